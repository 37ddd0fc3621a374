"""Capture: hooks, identity, passes and the task tracers; nothing here may raise into a training step."""

try:
    import torch  # noqa: F401  (told here, in one sentence, instead of from somewhere inside)
except ImportError as error:
    raise ImportError(
        "recording needs PyTorch: pip install 'ml-debugger[torch]' (or the extra of your framework, "
        "such as 'ml-debugger[lightning]'); reading and evaluating records does not"
    ) from error
