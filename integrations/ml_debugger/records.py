"""Reading what was recorded, as Arrow tables."""

from mld_core.records.reader import load

__all__ = ["load"]
