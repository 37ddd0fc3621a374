"""What scikit-learn does to the filters of warnings is undone.

It sets the process's filters aside for a moment (`warnings.catch_warnings`), which is not safe with threads:
of two that overlap one may put back what the other had set for itself. The user's filters would be gone. Its
jobs (`sklearn.utils.parallel`) set them aside for every column of every fit, leave none meanwhile, and warn,
hundreds of times, where they then find none: ours have nothing to hide, so within `filters_kept` they touch
none.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


class _Untouched:
    """Stands for the module `warnings` in scikit-learn's jobs: warns, and leaves the filters as they are."""

    filters = (("default", None, Warning, None, 0),)

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def catch_warnings(self) -> AbstractContextManager[None]:
        return nullcontext()

    def simplefilter(self, *_: object, **__: object) -> None: ...

    filterwarnings = resetwarnings = simplefilter

    def _get_filters(self) -> Any:  # since Python 3.14
        return self.filters


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
    from sklearn.utils import parallel

    global _inside, _before  # noqa: PLW0603 - the filters are the process's, so is what is known of them
    with _lock:
        if _inside == 0:
            _before = list(warnings.filters)
            parallel.warnings = _Untouched()
        elif not warnings.filters:
            _restore()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                parallel.warnings = warnings
                if warnings.filters != _before:
                    _restore()


def _restore() -> None:
    warnings.resetwarnings()  # tells the registries that the filters changed
    warnings.filters.extend(_before)  # type: ignore[attr-defined]  # a list, whatever its stub says
