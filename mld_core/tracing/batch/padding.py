"""What a sampler repeats so that every rank gets as many samples: read off the sampler, no row is compared.

Samplers that deal a data set out to ranks fill up behind its last sample, so on each rank repeats come last:
it is enough to know how many of its samples are its own. Of samplers that are not known here nothing is said.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from mld_core.tracing.batch.taps import IndexTap, innermost

# Each rank takes every so-many-th of the samples, in whatever order they are.
_STRIDED = {
    ("torch.utils.data.distributed", "DistributedSampler"),
    ("lightning.fabric.utilities.distributed", "DistributedSamplerWrapper"),
    ("lightning_fabric.utilities.distributed", "DistributedSamplerWrapper"),
    ("mmengine.dataset.sampler", "DefaultSampler"),
    ("timm.data.distributed_sampler", "OrderedDistributedSampler"),
    ("pcdet.datasets", "DistributedSampler"),
}
# These draw as many as they say.
_PLAIN = {
    ("torch.utils.data.sampler", "SequentialSampler"),
    ("torch.utils.data.sampler", "RandomSampler"),
    ("torch.utils.data.sampler", "SubsetRandomSampler"),
    ("torch.utils.data.sampler", "WeightedRandomSampler"),
    ("accelerate.data_loader", "SeedableRandomSampler"),
    ("transformers.trainer_pt_utils", "LengthGroupedSampler"),
}
_SHARD = ("accelerate.data_loader", "BatchSamplerShard")
# Each rank takes its part of every round of a stream; the last round is filled up from the first.
_STREAMS = {
    ("accelerate.data_loader", "IterableDatasetShard"),
    ("transformers.trainer_pt_utils", "IterableDatasetShard"),
}


# By shard, until the walk after `watch_stream` is asked for.
_watched: weakref.WeakKeyDictionary[Any, Drawn] = weakref.WeakKeyDictionary()


class Repeats:
    """Counts a rank's samples as its loader delivers them.

    Args:
        own: how many come before the first repeat.

    >>> repeats = Repeats(3)
    >>> repeats.pop(2), repeats.pop(2)
    (0, 1)
    """

    def __init__(self, own: int) -> None:
        self._left: int | None = own  # None: lost count

    def pop(self, n: int | None) -> int:
        """How many samples at the end of the next batch are repeats.

        Args:
            n: samples in it; None: not known, and nothing is said of what follows.
        """
        if n is None or self._left is None:
            self._left = None
            return 0
        own = min(self._left, n)
        self._left -= own
        return n - own


class Dealt:
    """The same of batches that rank 0 draws and slices for all: the last one tells how many were drawn.

    Args:
        loader: Accelerate's dispatching loader, walked one batch at a time.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def pop(self, n: int | None) -> int:
        """As of `Repeats`; the batch is the one in hand."""
        loader = self._loader
        if n is None or not loader.end_of_dataloader or loader.remainder <= 0:
            return 0
        drawn, rank = int(loader.remainder), int(loader.state.process_index)
        return n - min(n, max(0, drawn - rank * n))


class Drawn:
    """A stream that stands in its shard's place until the walk over it begins, and counts what is drawn then.

    Args:
        shard: its stream is put back as soon as it is asked for an iterator.

    `_so_far` is how many; None: the walk has not begun. It has no public name that is not the stream's.
    """

    def __init__(self, shard: Any) -> None:
        own = shard.dataset
        own = vars(own)["_own"] if type(own) is Drawn else own  # of a walk that never began
        # Its own names go past `__setattr__`: what anybody else sets is the stream's.
        self.__dict__.update(_shard=weakref.ref(shard), _own=own, _so_far=None)
        shard.dataset = self

    def __iter__(self) -> Iterator[Any]:
        shard = self._shard()
        if shard is not None:
            shard.dataset = self._own
        self.__dict__["_so_far"] = 0
        return _Counting(iter(self._own), self)

    def __len__(self) -> int:
        return len(self._own)

    def __getattr__(self, name: str) -> Any:
        if name in {"_own", "_shard"}:
            raise AttributeError(name)
        return getattr(self._own, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._own, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._own, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._own)

    def __reduce__(self) -> Any:
        return _itself, (self._own,)


class _Counting:
    """An iterator that counts for a `Drawn`."""

    def __init__(self, inner: Iterator[Any], drawn: Drawn) -> None:
        self._inner, self._drawn = inner, drawn

    def __iter__(self) -> _Counting:
        return self

    def __next__(self) -> Any:
        item = next(self._inner)
        vars(self._drawn)["_so_far"] += 1
        return item


def _itself(value: Any) -> Any:
    return value


class Streamed:
    """The same of a stream: a repeat comes only when all is drawn, which then tells how many are own.

    Args:
        shard: deals the stream out.
        drawn: how many samples were drawn from it so far in this walk; None: it has not begun.
    """

    def __init__(self, shard: Any, drawn: Callable[[], int | None]) -> None:
        ranks, size = int(shard.num_processes), int(shard.batch_size)
        split = getattr(shard, "split_batches", False)
        self._round = size if split else size * ranks
        self._rows = self._round // ranks
        self._before = self._rows * int(shard.process_index)
        self._drawn = drawn
        self._given: int | None = 0  # None: lost count

    def pop(self, n: int | None) -> int:
        """As of `Repeats`; call it as soon as the batch is delivered, or later."""
        drawn = self._drawn()
        if n is None or drawn is None or self._given is None:
            self._given = None
            return 0
        whole, rest = divmod(drawn, self._round)
        own = whole * self._rows + min(self._rows, max(0, rest - self._before)) - self._given
        self._given += n
        return n - max(0, min(own, n))


def watch_stream(loader: Any) -> None:
    """A stream's next walk may be one whose loader is known only after it began: what it draws is counted."""
    shard = getattr(innermost(loader), "dataset", None)
    if _name(shard) in _STREAMS and not hasattr(shard, "num_examples"):
        _watched[shard] = Drawn(shard)


def repeats_of(loader: Any, *, begun: bool = False) -> Repeats | Dealt | Streamed | None:
    """What a walk over a loader repeats; None where that is nothing, or not known.

    Args:
        loader: the loader as the walk has it.
        begun: the walk has begun, and nothing of it was recorded yet.
    """
    if any(kind.__name__ == "DataLoaderDispatcher" for kind in type(loader).__mro__):
        return Dealt(loader)
    target = innermost(loader)
    if not isinstance(target, DataLoader):
        return None
    if _name(target.dataset) in _STREAMS:
        known = target.num_workers == 0 and not getattr(loader, "skip_batches", 0)
        return _of_stream(target.dataset, begun) if known else None
    batches = _real(target.batch_sampler)
    if _name(batches) == _SHARD:
        return _of_shard(batches)
    return _of_strides(batches.sampler) if type(batches) is BatchSampler else None


def _name(value: Any) -> tuple[str, str]:
    return type(value).__module__, type(value).__name__


def _real(batches: Any) -> Any:
    """The batch sampler behind the taps that stand in for it."""
    while issubclass(type(batches), IndexTap):
        batches = batches.mld_inner
    return batches


def _of_strides(sampler: Any) -> Repeats | None:
    """Ranks that take turns, sample by sample."""
    if _name(sampler) not in _STRIDED:
        return None
    ranks = getattr(sampler, "num_replicas", None) or sampler.world_size
    size = len(sampler.dataset)
    if sampler.total_size <= size or sampler.total_size != sampler.num_samples * ranks:
        return None  # drops what does not come out even, or was made for another data set
    return Repeats(len(range(sampler.rank, size, ranks)))


def _of_stream(shard: Any, begun: bool) -> Streamed | None:
    """Ranks that take turns in a stream, which is drawn in this process: workers' draws are not seen."""
    if shard.drop_last:
        return None
    if hasattr(shard, "num_examples"):  # transformers' own count
        return Streamed(shard, lambda: shard.num_examples)
    drawn = _watched.pop(shard, None)  # of one walk, whose count says nothing of the next
    if not begun:
        drawn = Drawn(shard)
    elif drawn is None:
        return None
    return Streamed(shard, lambda: vars(drawn)["_so_far"])


def _of_shard(shard: Any) -> Repeats | None:
    """Ranks that take turns, batch by batch, or each a part of every batch."""
    inner: Any = _real(shard.batch_sampler)
    sampler: Any = getattr(inner, "sampler", None)
    if type(inner) is not BatchSampler or _name(sampler) not in _PLAIN:
        return None
    if not shard.even_batches or shard.drop_last:
        return None
    ranks, size, whole = shard.num_processes, len(sampler), inner.batch_size
    rows = whole // ranks if shard.split_batches else whole
    round_ = whole if shard.split_batches else whole * ranks
    last = size % round_  # samples of the last round, which is filled up
    return Repeats(size // round_ * rows + min(rows, max(0, last - shard.process_index * rows)))
