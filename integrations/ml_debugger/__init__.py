"""What users import: tracers, evaluator, and one callback per training framework.

Importing this package imports no framework; `ml_debugger.lightning`, `ml_debugger.huggingface` and the other
wrapper modules each import theirs.
"""

from mld_core import __version__

__all__ = ["__version__"]
