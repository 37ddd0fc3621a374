"""What users import: tracers, evaluator, and one callback per training framework.

A module a framework, each importing its own only and none another; `_loop` records loops written by hand for
two of them. Open `lightning` first: a wrapper only translates events into calls of
`mld_core.tracing.run.recorder`.
"""

import importlib
from typing import Any

from mld_core import __version__

__all__ = ["__version__", "explain"]


def __getattr__(name: str) -> Any:
    if name != "explain":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("mld_core.tracing.tracers.explain").explain
