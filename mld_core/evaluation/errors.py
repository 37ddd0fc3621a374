"""Errors of the evaluation; every message holds what was asked for, what exists and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mld_core.explained import explained


class NotFoundError(LookupError):
    """A model, version, epoch, split or result of that name is not in the store."""

    def __init__(self, message: str) -> None:
        super().__init__(explained(message))


class ResultExistsError(ValueError):
    """A result of that name exists; results are never changed."""


class RecordsRemovedError(ValueError):
    """A result tells of samples that were removed while it was made."""


class FilterError(ValueError):
    """A filter expression or a view names a column that does not exist, or cannot be read."""


class TaskError(ValueError):
    """Results of different tasks have nothing in common."""


class AuthenticationError(PermissionError):
    """The service did not accept the API key."""

    def __init__(self, message: str) -> None:
        super().__init__(explained(message))


def known(names: Iterable[object], *, limit: int = 20) -> str:
    """List names for a message, the first `limit` of them.

    Example:
        >>> known(["a", "b"])
        "'a', 'b'"
        >>> known([])
        'none'
    """
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return (", ".join(shown[:limit]) or "none") + more


def near(name: str, names: Iterable[str]) -> str:
    """The names that are spelled like `name`, as the end of a message; empty where there is none.

    Example:
        >>> near("confidance", ["confidence", "loss"])
        "; did you mean 'confidence'?"
    """
    lower = {candidate.lower(): candidate for candidate in names}
    found = [lower[hit] for hit in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(repr(hit) for hit in found)}?" if found else ""
