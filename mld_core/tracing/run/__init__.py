"""The event protocol: runs, passes, batches. `recorder` is what every wrapper calls: open it first.

`lifecycle` starts and ends a run, `session` is what one run holds, `classifying` and `detection` are its two
kinds.
"""
