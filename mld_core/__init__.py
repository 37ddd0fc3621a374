"""The framework-neutral core of ml_debugger: capture, records, evaluation.

Importing this package has no side effect and needs neither torch nor a training framework; each room
(`mld_core.records`, `mld_core.evaluation`, ...) is imported by name.
"""

__version__ = "0.1.0"
