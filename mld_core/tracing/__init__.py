"""Capture: hooks, identity, passes and the task tracers; nothing here may raise into a training step."""

from importlib.util import find_spec

# Told here, in one sentence, instead of from somewhere inside. Keras models are recorded without PyTorch.
if find_spec("torch") is None and find_spec("keras") is None:
    raise ImportError(
        "recording needs PyTorch: pip install 'ml-debugger[torch]' (or the extra of your framework, "
        "such as 'ml-debugger[lightning]'), or Keras: pip install 'ml-debugger[keras]'; reading and "
        "evaluating records does not"
    )
