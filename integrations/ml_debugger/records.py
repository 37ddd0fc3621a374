"""Reading what was recorded: `load` as an Arrow table, `scan` as a stream of record batches."""

from mld_core.records.read.reader import load, scan

__all__ = ["load", "scan"]
