"""Evaluations that a page begins: `protocol` says what the pages ask, `local` runs them on this machine.

`child` is the process that evaluates; a team's server has a queue and workers of its own behind the protocol.
"""
