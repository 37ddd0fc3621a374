"""Places in nested containers: the keys, positions and attributes that lead to a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from torch import Tensor

Path = tuple[Any, ...]
_DEPTH: Final = 3
_MOST_PARTS: Final = 16


def tensors_at(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in nested containers, with the way to it.

    >>> one = Tensor()
    >>> [path for path, _ in tensors_at((one, {"logits": one}))]
    [(0,), (1, 'logits')]
    """
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) < _DEPTH:
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            parts = list(value.items())
        elif isinstance(value, (list, tuple)):
            parts = list(enumerate(value[:_MOST_PARTS]))
        elif is_dataclass(value) and not isinstance(value, type):
            parts = [(f.name, getattr(value, f.name, None)) for f in fields(value)]
        for key, part in parts:
            yield from tensors_at(part, (*path, key))


def at(value: Any, path: Path) -> Any:
    """What stands at `path`; None where it does not lead anywhere.

    >>> at({"a": [1, 2]}, ("a", 1)), at([1], ("a",))
    (2, None)
    """
    try:
        for key in path:
            indexed = isinstance(value, (dict, list, tuple, Mapping))
            value = value[key] if indexed else getattr(value, key, None)
    except (LookupError, TypeError):
        return None
    return value


def spelled(path: Path) -> str:
    """A path as code.

    >>> spelled((1, "logits"))
    "[1]['logits']"
    """
    return "".join(f"[{key!r}]" for key in path)
