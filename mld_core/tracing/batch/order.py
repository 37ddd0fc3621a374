"""The index order of a walk whose loader is known only after it began.

An evaluation of the Hugging Face Trainer shows its loader with the first finished batch, too late for a
tap. A sequential sampler draws the same indices on every walk, and from no generator, so a second walk over
the batch sampler tells what the first one drew. Any other order is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from mld_core.tracing.batch.identity import base_id

_BATCH_SAMPLERS: Final = {
    ("torch.utils.data.sampler", "BatchSampler"),
    ("accelerate.data_loader", "BatchSamplerShard"),
}


class SequentialOrder:
    """Names the samples of each delivered batch of a sequential loader; used like an `IndexTap`.

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
        return [base_id(self._dataset, index) for index in indices]


def sequential_order(loader: Any) -> SequentialOrder | None:
    """The order of a loader that draws its dataset front to back, sharded over ranks or not; else None.

    Args:
        loader: a ``torch.utils.data.DataLoader``, or one prepared by Accelerate.
    """
    if any(kind.__name__ == "DataLoaderDispatcher" for kind in type(loader).__mro__):
        return None  # rank 0 draws for all and slices
    loader = getattr(loader, "base_dataloader", loader)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if loader.batch_sampler is None or not getattr(loader, "in_order", True):
        return None
    current: Any = loader.batch_sampler
    while (type(current).__module__, type(current).__name__) in _BATCH_SAMPLERS:
        current = current.sampler if type(current) is BatchSampler else current.batch_sampler
    return (
        SequentialOrder(loader.batch_sampler, loader.dataset) if type(current) is SequentialSampler else None
    )
