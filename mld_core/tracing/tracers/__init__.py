"""Tracers called by hand, `tracer(model_input, truth, ids)`.

One file a task on `base`, which is to be opened first.
"""
