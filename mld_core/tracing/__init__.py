"""Capture: hooks, identity, passes and the task tracers; nothing here may raise into a training step."""
