"""What samplers repeat to make ranks even, against what they really draw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from mld_core.tracing.batch.padding import repeats_of
from mld_core.tracing.batch.taps import install_tap

SIZES = (1, 2, 3, 7, 8, 11, 12)


def kept(loaders: list[Any]) -> list[int]:
    """What is left of each rank's walk without the repeats."""
    found = []
    for loader in loaders:
        repeats = repeats_of(loader)
        for batch in loader:
            n = len(batch)
            found += batch[: n - (0 if repeats is None else repeats.pop(n))].tolist()
    return sorted(found)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_that_take_turns(size: int, ranks: int, shuffle: bool) -> None:
    data: Any = range(size)
    samplers = [DistributedSampler(data, ranks, rank, shuffle=shuffle) for rank in range(ranks)]
    loaders = [DataLoader(data, 2, sampler=sampler) for sampler in samplers]
    assert sum(len(sampler) for sampler in samplers) >= size
    assert kept(loaders) == list(range(size))
    assert all(install_tap(loader) is not None for loader in loaders)
    assert kept(loaders) == list(range(size)), "behind our tap, too"


def test_a_sampler_that_drops_the_rest_repeats_nothing() -> None:
    data: Any = range(7)
    loaders = [DataLoader(data, 2, sampler=DistributedSampler(data, 2, r, drop_last=True)) for r in (0, 1)]
    assert [repeats_of(loader) for loader in loaders] == [None, None]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_accelerates_shards(size: int, ranks: int, split: bool, even: bool) -> None:
    shard = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    data: Any = range(size)

    def loader(rank: int) -> Any:
        inner = BatchSampler(SequentialSampler(data), 2 * ranks if split else 2, drop_last=False)
        return DataLoader(data, batch_sampler=shard(inner, ranks, rank, split, even))

    assert kept([loader(rank) for rank in range(ranks)]) == list(range(size))


def test_timms_and_mmengines_samplers() -> None:
    data: Any = range(7)
    timm = pytest.importorskip("timm.data.distributed_sampler").OrderedDistributedSampler
    assert kept([DataLoader(data, 2, sampler=timm(data, 2, rank)) for rank in (0, 1)]) == list(range(7))
    made = pytest.importorskip("mmengine.dataset.sampler").DefaultSampler
    loaders = []
    for rank in (0, 1):
        sampler = made(data, shuffle=True, seed=3)
        sampler.rank, sampler.world_size, sampler.num_samples, sampler.total_size = rank, 2, 4, 8
        loaders.append(DataLoader(data, 2, sampler=sampler))
    assert kept(loaders) == list(range(7))


class Unknown(Sampler[int]):
    """As `DistributedSampler` looks, but repeats come first."""

    def __init__(self, rank: int) -> None:
        self.dataset, self.rank, self.num_replicas = range(3), rank, 2
        self.num_samples, self.total_size = 2, 4

    def __iter__(self) -> Any:
        return iter([0, 0, 1, 2][self.rank :: 2])

    def __len__(self) -> int:
        return 2


def test_of_an_unknown_sampler_nothing_is_said() -> None:
    data: Any = range(3)
    assert repeats_of(DataLoader(data, 2, sampler=Unknown(1))) is None
    assert repeats_of(DataLoader(data, 2)) is None
    assert repeats_of(DataLoader(data, 2, sampler=RandomSampler(data))) is None
    assert repeats_of(SimpleNamespace()) is None


def test_a_batch_whose_samples_are_not_known_ends_it() -> None:
    data: Any = range(3)
    repeats = repeats_of(DataLoader(data, 1, sampler=DistributedSampler(data, 2, 1, shuffle=False)))
    assert repeats is not None
    assert (repeats.pop(1), repeats.pop(None), repeats.pop(1)) == (0, 0, 0)
