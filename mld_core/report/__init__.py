"""One HTML page from a Result: `write_report`, `write_comparison`. Needs the extra `report`.

The names are looked up when they are used, so that the package imports where plotly and jinja2 are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mld_core.report.pages import Written, write_comparison, write_report

__all__ = ["Written", "write_comparison", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mld_core.report import pages  # noqa: PLC0415  see above

    return getattr(pages, name)
