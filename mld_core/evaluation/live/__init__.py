"""Evaluation as it happens: figures of each pass, soon after it is sealed, made beside the training.

`helper` is the training's end of a process of its own, `process` and `loop` the other; `measuring`, `boxes`
and `sampled` are what it computes, `figures` is where that is kept and read,
`watching` how a terminal shows it. Open `figures` first.
"""
