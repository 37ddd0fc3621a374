"""What users import: tracers, evaluator, and one callback per training framework.

A module a framework, each importing its own only and none another; `_loop` records loops written by hand for
two of them. Open `lightning` first: a wrapper only translates events into calls of
`mld_core.tracing.run.recorder`.
"""

from mld_core import __version__

__all__ = ["__version__"]
