"""What scikit-learn does to the filters of warnings is undone.

Its jobs set the process's filters aside while they run (`warnings.catch_warnings`), which is not safe with
threads: two that overlap may leave none at all. The user's filters would be gone, and every fit after that
would warn of it, thousands of times.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


@contextmanager
def filters_kept() -> Iterator[None]:
    """Leave the filters as the first of the threads that are inside found them.

    Example:
        >>> before = list(warnings.filters)
        >>> with filters_kept():
        ...     warnings.resetwarnings()
        >>> warnings.filters == before
        True
    """
    global _inside, _before  # noqa: PLW0603 - the filters are the process's, so is what is known of them
    with _lock:
        if _inside == 0:
            _before = list(warnings.filters)
        elif not warnings.filters:
            _restore()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and warnings.filters != _before:
                _restore()


def _restore() -> None:
    warnings.resetwarnings()  # tells the registries that the filters changed
    warnings.filters.extend(_before)  # type: ignore[attr-defined]  # a list, whatever its stub says
