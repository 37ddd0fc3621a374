"""The loader's own index order: which dataset indices a delivered batch was made of.

A tap stands where the loader's batch sampler stood and notes the index lists as they are drawn. Batches
of map-style, in-order loaders are delivered in the order of drawing, however many workers prefetch, so
the k-th list belongs to the k-th batch. That is taken for proven only while

- a `torch.utils.data.DataLoader` iterator draws straight from the tap (seen on the call stack; wrappers in
  between may shard, skip or reorder, so only known ones are let through),
- that iterator's own count of delivered batches agrees with the number of pops, up to a constant look-ahead,
- every list is as long as the batch it is popped for.

Once any of these fails, `IndexTap.pop` gives None until the next iterator starts. What the loader does
(order, draws from generators, length, workers) is the same with the tap and without it.

Everything here is for the training thread: host integers only.
"""

import contextlib
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mld_core.tracing.batch.identity import base_ids

_MAX_WAITING = 4096  # lists nobody pops: a split that is not recorded
_OWN = ("mld_inner", "mld_dataset", "mld_generation", "__weakref__")
# Wrappers of batch samplers that hand on every list, or all but the first ones.
_ONE_TO_ONE = {
    ("lightning.pytorch.overrides.distributed", "_IndexBatchSamplerWrapper"),
    ("pytorch_lightning.overrides.distributed", "_IndexBatchSamplerWrapper"),
    ("accelerate.data_loader", "SkipBatchSampler"),
}
_BATCH_SAMPLERS = {
    ("torch.utils.data.sampler", "BatchSampler"),
    ("accelerate.data_loader", "BatchSamplerShard"),
}


class Generation:
    """One walk over the batch sampler: what was drawn for which iterator."""

    __slots__ = ("drawn", "exhausted", "in_step", "iterator", "look_ahead", "popped", "skip", "waiting")

    def __init__(self, iterator: "weakref.ref[Any] | None", skip: int) -> None:
        self.iterator = iterator
        self.skip = skip
        self.waiting: deque[tuple[Any, ...]] = deque()
        self.drawn = 0
        self.popped = 0
        self.exhausted = False
        self.in_step = iterator is not None
        self.look_ahead: int | None = None

    def draw(self, indices: Any) -> None:
        """Note a list that was handed out."""
        if self.skip:
            self.skip -= 1
            return
        self.drawn += 1
        if self.in_step:
            self.waiting.append(tuple(indices))
            if len(self.waiting) > _MAX_WAITING:
                self.lose()

    def lose(self) -> None:
        """Give up on this walk: what follows could be out of step."""
        self.in_step = False
        self.waiting.clear()

    def agrees(self, max_ahead: int | None) -> bool:
        """Tell whether the iterator's count of delivered batches fits the batch to be popped now."""
        iterator = self.iterator() if self.iterator is not None else None
        if iterator is None:  # the loader let go of it: after the end that is normal
            return self.exhausted
        delivered = getattr(iterator, "_num_yielded", None)
        if not isinstance(delivered, int):
            return False
        ahead = delivered - 1 - self.popped
        if ahead < 0:
            return False
        if max_ahead is not None:
            return ahead <= max_ahead
        if self.look_ahead is None:
            self.look_ahead = ahead
        return ahead == self.look_ahead or (
            self.exhausted and delivered == self.drawn and ahead < self.look_ahead
        )


class IndexTap(BatchSampler):
    """A batch sampler that notes what it hands out.

    Made by a framework with the signature of ``BatchSampler`` it is a ``BatchSampler``; `install_tap`
    makes it stand in for an existing one, whose attributes, length and class (``isinstance``) it shows as
    its own. The stand-in for a batch sampler of another class is a subclass that builds such a one again
    when a framework rebuilds the loader by ``type(batch_sampler)(...)``.

    Args:
        sampler: as in ``torch.utils.data.BatchSampler``.
        batch_size: likewise.
        drop_last: likewise.
    """

    __slots__ = ("mld_dataset", "mld_generation", "mld_inner")
    mld_inner_type: Any = BatchSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.mld_adopt(type(self).mld_inner_type(*args, **kwargs))

    def mld_adopt(self, inner: Any) -> None:
        """Stand in for `inner`."""
        object.__setattr__(self, "mld_inner", inner)
        object.__setattr__(self, "mld_dataset", None)
        object.__setattr__(self, "mld_generation", None)
        # One dict for both: what anybody sets on the stand-in (batch_size, an epoch) reaches the sampler
        # itself, and Lightning's wrapper, which copies the dict, finds everything.
        with contextlib.suppress(AttributeError):
            object.__setattr__(self, "__dict__", inner.__dict__)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.mld_inner)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self.mld_inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.mld_inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.mld_inner, name)

    def __len__(self) -> int:
        return len(self.mld_inner)

    def __repr__(self) -> str:
        return f"IndexTap({self.mld_inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _tap_of, (self.mld_inner,)

    def __iter__(self) -> Iterator[Any]:
        # Not a generator itself: who asks for the iterator is to be seen on the stack. Drawing starts
        # with the first next(), as it does without us: a loader with workers makes two iterators and uses
        # one. (Never keep our own frame in a local: it would hold itself, the caller and the iterator
        # with its workers.)
        return self.mld_draw(*_drawing_iterator(sys._getframe(1)))  # noqa: SLF001

    def mld_draw(self, iterator: "weakref.ref[Any] | None", skip: int) -> Iterator[Any]:
        """Hand on the inner sampler's lists and note them."""
        generation = Generation(iterator, skip)
        self.mld_generation = generation
        for indices in self.mld_inner:
            if self.mld_generation is not generation and self.mld_generation is not None:
                self.mld_generation.lose()  # two iterators run at once: nobody knows whose batch is next
            generation.draw(indices)
            yield indices
        generation.exhausted = True

    def pop(self, n: int, max_ahead: int | None = None) -> list[str] | None:
        """Name the samples of the next batch in order of delivery.

        Call it once for every delivered batch, recorded or not.

        Args:
            n: samples in the batch, the proof that it is the expected one.
            max_ahead: how many batches the framework may have fetched beyond the one in hand (Hugging
                Face with gradient accumulation fetches a step's batches together); None where that number
                is constant.

        Returns:
            One id per sample (`mld_core.tracing.batch.identity.base_id`), or None where the order is not
            proven.
        """
        generation = self.mld_generation
        if generation is None or not generation.in_step or self.mld_dataset is None:
            return None
        if not generation.waiting or len(generation.waiting[0]) != n or not generation.agrees(max_ahead):
            generation.lose()
            return None
        indices = generation.waiting.popleft()
        generation.popped += 1
        try:
            return base_ids(self.mld_dataset, indices)
        except (TypeError, ValueError, LookupError):  # indices that name no single sample
            generation.lose()
            return None


def _drawing_iterator(frame: Any) -> tuple["weakref.ref[Any] | None", int]:
    """Return the loader iterator that asked for the tap's iterator, and how many lists it will not see.

    A weak reference: the iterator owns what is drawn for it, worker processes included, and must end when
    it would.

    (None, 0) where something unknown stands between the two.
    """
    skip = 0
    for _ in range(3):
        if frame is None:
            return None, 0
        caller = frame.f_locals.get("self")
        if isinstance(caller, _BaseDataLoaderIter):
            known = frame.f_globals.get("__name__") == "torch.utils.data.dataloader"
            return (weakref.ref(caller), skip) if known else (None, 0)
        if (type(caller).__module__, type(caller).__name__) not in _ONE_TO_ONE:
            return None, 0
        skip += int(getattr(caller, "skip_batches", 0))
        frame = frame.f_back
    return None, 0


_TYPES: dict[type, type[IndexTap]] = {BatchSampler: IndexTap}


def _tap_of(inner: Any) -> IndexTap:
    """Make the stand-in for an existing batch sampler."""
    kind = type(inner)
    if kind not in _TYPES:
        _TYPES[kind] = type(
            f"IndexTap_{kind.__name__}", (IndexTap,), {"mld_inner_type": kind, "__slots__": ()}
        )
    tap: IndexTap = object.__new__(_TYPES[kind])
    tap.mld_adopt(inner)
    return tap


def install_tap(loader: Any) -> IndexTap | None:
    """Put a tap on a loader, in place; a loader that has one keeps it.

    It notes iterators that start afterwards. A framework that rebuilds the loader keeps the tap; call
    this again on the rebuilt loader to make it known which dataset the indices belong to.

    Args:
        loader: a ``torch.utils.data.DataLoader`` over a map-style dataset, in order, with automatic batching.

    Returns:
        The tap, or None where the order of indices is not that of the batches: other loaders, iterable
        datasets, ``batch_size=None``, ``in_order=False``, loaders that skip or dispatch batches.
    """
    if not isinstance(loader, DataLoader) or getattr(loader, "skip_batches", False):
        return None
    target = innermost(loader)
    if _is_a(loader, "DataLoaderDispatcher", "StatefulDataLoader") or not _ordered(target):
        return None
    current: Any = target.batch_sampler
    tap: IndexTap = current if issubclass(type(current), IndexTap) else _tap_of(current)
    if tap is not current:
        object.__setattr__(target, "batch_sampler", tap)  # DataLoader refuses the plain assignment
    tap.mld_dataset = target.dataset
    return tap


def remove_tap(loader: Any) -> None:
    """Give a loader its own batch sampler back."""
    target = innermost(loader)
    current: Any = getattr(target, "batch_sampler", None)
    if issubclass(type(current), IndexTap):
        object.__setattr__(target, "batch_sampler", current.mld_inner)


def innermost(loader: Any) -> Any:
    """Return the loader that makes the batches: accelerate's prepared ones hold it and pass for it."""
    while "base_dataloader" in getattr(loader, "__dict__", {}):
        loader = loader.base_dataloader
    return loader


def _is_a(loader: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(loader).__mro__)


def _ordered(loader: Any) -> bool:
    """Whether batches are delivered in the order in which their indices are drawn."""
    mapped = not isinstance(loader.dataset, IterableDataset)
    return mapped and loader.batch_sampler is not None and getattr(loader, "in_order", True)


class SequentialOrder:
    """Names the samples of each delivered batch of a sequential loader; used like an `IndexTap`.

    For a walk whose loader is known only after it began: an evaluation of the Hugging Face Trainer shows its
    loader with the first finished batch. A sequential sampler draws the same indices on every walk, and from
    no generator, so a second walk over the batch sampler tells what the first one drew. Any other order is
    not guessed.

    Args:
        batch_sampler: a batch sampler over a sequential sampler.
        dataset: what its indices belong to.
    """

    def __init__(self, batch_sampler: Any, dataset: Any) -> None:
        self._drawn: Iterator[Any] | None = iter(batch_sampler)
        self._dataset = dataset

    def pop(self, n: int | None, max_ahead: int | None = None) -> list[str] | None:  # noqa: ARG002 - as a tap's
        """The ids of the next batch, which has `n` samples; None from the first batch of another size on."""
        indices = None if self._drawn is None else next(self._drawn, None)
        if indices is None or (n is not None and len(indices) != n):
            self._drawn = None
            return None
        return base_ids(self._dataset, indices)


def sequential_order(loader: Any) -> SequentialOrder | None:
    """The order of a loader that draws its dataset front to back, sharded over ranks or not; else None.

    Args:
        loader: a ``torch.utils.data.DataLoader``, or one prepared by Accelerate.
    """
    if _is_a(loader, "DataLoaderDispatcher"):
        return None  # rank 0 draws for all and slices
    loader = getattr(loader, "base_dataloader", loader)
    if not isinstance(loader, DataLoader) or not _ordered(loader):
        return None
    current: Any = loader.batch_sampler
    while (type(current).__module__, type(current).__name__) in _BATCH_SAMPLERS:
        current = current.sampler if type(current) is BatchSampler else current.batch_sampler
    return (
        SequentialOrder(loader.batch_sampler, loader.dataset) if type(current) is SequentialSampler else None
    )
