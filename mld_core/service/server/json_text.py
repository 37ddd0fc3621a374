"""JSON of strangers: bounded in the number of its values, in its depth, and without numbers that are none."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 60
MAX_VALUES = 40_000
"""In the body of a request; a real one has some hundreds, the names of classes apart."""


def loads(text: bytes, values: int = MAX_VALUES) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8.
        values: the most members and items it may have in all, over every level.

    Raises:
        ValueError: why not, fit for the client.

    >>> loads(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> loads(b"[1, NaN]")
    Traceback (most recent call last):
    ...
    ValueError: it holds NaN, which is no JSON number
    """
    # Every value but the first follows one of these bytes: counted before anything is built from them.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > values:
        raise ValueError(f"it has more than {values} values")
    try:
        found = json.loads(text, parse_constant=_none_such)
    except RecursionError:
        raise ValueError(f"its values are nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} at {error.pos}") from None
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return found
    raise ValueError(f"its values are nested more than {MAX_DEPTH} levels deep")


def _none_such(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no JSON number")
