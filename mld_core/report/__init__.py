"""One HTML page from a Result: `write_report`, `write_comparison`.

A classification's is the app in one file. Boxes, comparisons and former pages need the extra `report`.
"""

from mld_core.report.writing import Written, write_comparison, write_report

__all__ = ["Written", "write_comparison", "write_report"]
