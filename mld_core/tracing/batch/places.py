"""Where labels, inputs and ids stand in the batches of a loader: searched for in the first, then looked up.

A search by names, types and shapes asks some two hundred questions of a batch, and gets the same answers of
every batch that looks the same. What looks the same is told by containers, keys, dtypes and ranks; a batch of
any other kind (objects, lists of targets) is searched each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mld_core.tracing.batch.batches import Batch
from mld_core.tracing.paths import Path, at

Search = Callable[[Any], Batch]


def look_of(batch: Any) -> list[Any] | None:
    """What the answers of a search depend on; None: more than can be told quickly.

    >>> look_of({"image": None, "input_id": ["a"]})
    [<class 'dict'>, 'image', 'input_id', None, <class 'list'>, <class 'str'>]
    >>> look_of([object()]) is None
    True
    """
    kind = type(batch)
    if kind is tuple or kind is list:
        look, parts = [kind, len(batch)], batch
    elif kind is dict or isinstance(batch, Mapping):
        look, parts = [kind, *batch], batch.values()
    else:
        return None
    for part in parts:
        if isinstance(part, Tensor):
            shape = part.shape
            look += (part.dtype, len(shape), len(shape) == 2 and shape[1] == 1)
        elif part is None:
            look.append(None)
        elif (type(part) is list or type(part) is tuple) and part and isinstance(part[0], str):
            look += (type(part), type(part[0]))
        elif type(part) is dict:
            inner = look_of(part)
            if inner is None:
                return None
            look.append(inner)
        else:
            return None
    return look


@dataclass(frozen=True)
class Places:
    """Where a batch's parts stand: paths into it; None where it has no such part.

    Attributes:
        inputs: a path, or the several of a mapping by key, or the first so many of a sequence.
        id_source: the kind of ids that stand at `ids`.
    """

    labels: Path | None
    inputs: Path | list[Any] | int
    ids: Path | None
    id_source: str

    def read(self, batch: Any) -> Batch:
        """The parts of a batch that looks as the one they were found in."""
        inputs: Any = self.inputs
        if type(inputs) is tuple:
            inputs = batch[inputs[0]] if len(inputs) == 1 else at(batch, inputs)
        else:
            inputs = batch[:inputs] if type(inputs) is int else {key: batch[key] for key in inputs}
        labels: Any = self.labels
        if labels is not None:
            labels = batch[labels[0]] if len(labels) == 1 else at(batch, labels)
        ids = None if self.ids is None else (at(batch, self.ids), self.id_source)
        return Batch(inputs, labels, whole=batch, id_column=ids, searched=True)


class BatchPlan:
    """How batches are read: by a search, and as the last search found for those that look the same."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._look: list[Any] | None = None
        self._places: Places | None = None

    def forget(self) -> None:
        """The next batch is searched: something was learned."""
        self._look = None

    def known(self, batch: Any) -> tuple[list[Any], Places] | None:
        """The look of a batch and its places, where they are those of the last search."""
        look = look_of(batch)
        return None if look is None or look != self._look or self._places is None else (look, self._places)

    def read(self, batch: Any) -> Batch:
        """What stands in a batch; `Batch.n` is None where nothing was searched for."""
        look = look_of(batch)
        if look is not None and look == self._look and self._places is not None:
            return self._places.read(batch)
        found = self._search(batch)
        self._look, self._places = look, None if look is None else places_of(batch, found)
        return found


def places_of(batch: Any, found: Batch) -> Places | None:
    """Where a search found the parts; None where it made them of several, or did not look for ids.

    Args:
        batch: a sequence or a mapping that `look_of` knows.
        found: in it.
    """
    if not found.searched:
        return None
    paths: dict[int, Path] = {id(batch): ()}
    for key, part in batch.items() if isinstance(batch, Mapping) else enumerate(batch):
        paths.setdefault(id(part), (key,))
        for inner, value in part.items() if type(part) is dict else ():
            paths.setdefault(id(value), (key, inner))
    column, source = found.id_column or (None, "")
    labels, ids = (None if part is None else paths.get(id(part)) for part in (found.labels, column))
    inputs: Any = paths.get(id(found.inputs))
    if inputs is None:
        inputs = _several(batch, found.inputs)
    missing = (found.labels is not None and labels is None) or (column is not None and ids is None)
    return None if missing or inputs is None else Places(labels, inputs, ids, source)


def _several(batch: Any, inputs: Any) -> list[Any] | int | None:
    """The keys, or the number of leading parts, of inputs that are several of a batch's parts as they are."""
    if type(inputs) is dict and isinstance(batch, Mapping):
        same = all(key in batch and batch[key] is value for key, value in inputs.items())
        return list(inputs) if same else None
    if type(inputs) is type(batch) and isinstance(inputs, (tuple, list)) and len(inputs) <= len(batch):
        same = all(mine is its for mine, its in zip(inputs, batch, strict=False))
        return len(inputs) if same else None
    return None
