"""Reading what was recorded, as Arrow tables."""

from mld_core.records.read.reader import load

__all__ = ["load"]
