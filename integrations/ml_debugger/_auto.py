"""What Lightning loads at every `Trainer()` through its entry points: nothing, unless `MLD_AUTO=1`.

Lightning calls the factories without a safety net, so they import nothing before they are asked to and raise
nothing.
"""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["lightning_callbacks"]


def lightning_callbacks() -> list[Any]:
    """The callback for `lightning.pytorch.callbacks_factory` and `pytorch_lightning.callbacks_factory`.

    >>> os.environ.pop("MLD_AUTO", None) and None
    >>> lightning_callbacks()
    []
    """
    if os.environ.get("MLD_AUTO") != "1":
        return []
    try:
        from ml_debugger.lightning import AutoMLDebuggerCallback  # nothing before it is wanted

        return [AutoMLDebuggerCallback()]
    except Exception:
        logging.getLogger("ml_debugger").exception("MLD_AUTO=1: nothing is recorded; the training goes on")
        return []
