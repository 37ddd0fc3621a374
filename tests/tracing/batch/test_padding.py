"""What samplers repeat to make ranks even, against what they really draw."""

from __future__ import annotations

import gc
import pickle
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from mld_core.tracing.batch.padding import repeats_of, watch_stream
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


class Stream(IterableDataset[int]):
    """Tells nobody how many samples it has."""

    generator = None

    def __init__(self, size: int) -> None:
        self.size = size
        self.walks = 0
        self.count = "its own"

    def __iter__(self) -> Any:
        self.walks += 1
        return iter(range(self.size))


def streams(size: int, ranks: int, split: bool) -> list[Any]:
    """Of each rank the loader over its shard of a stream."""
    shard = pytest.importorskip("accelerate.data_loader").IterableDatasetShard
    batch = 2 * ranks if split else 2
    shards = [shard(Stream(size), batch, False, ranks, rank, split) for rank in range(ranks)]
    return [DataLoader(one, 2) for one in shards]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", [False, True])
def test_accelerates_streams(size: int, ranks: int, split: bool) -> None:
    loaders = streams(size, ranks, split)
    own = [loader.dataset.dataset for loader in loaders]
    assert kept(loaders) == list(range(size))
    assert kept(loaders) == list(range(size)), "the next walk, too"
    assert [loader.dataset.dataset for loader in loaders] == own, "the stream stands in its own place again"
    assert [stream.walks for stream in own] == [2] * ranks


@pytest.mark.parametrize("size", SIZES)
def test_streams_of_transformers(size: int) -> None:
    shard = pytest.importorskip("transformers.trainer_pt_utils").IterableDatasetShard
    loaders = [DataLoader(shard(Stream(size), 2, False, 2, rank), 2) for rank in (0, 1)]
    assert kept(loaders) == list(range(size))


def test_a_stream_looks_like_itself_until_its_walk_begins() -> None:
    loader = streams(7, 2, False)[0]
    own = loader.dataset.dataset
    assert repeats_of(loader) is not None
    assert repeats_of(loader) is not None, "a walk that never began"
    seen = loader.dataset.dataset
    assert isinstance(seen, Stream)
    assert seen.size == 7
    assert seen.count == "its own"
    assert pickle.loads(pickle.dumps(seen)).size == 7
    with pytest.raises(TypeError):
        len(seen)
    seen.size = 5
    assert own.size == 5, "what is set on it is set on the stream"
    del seen.walks
    assert "walks" not in vars(own)
    own.walks = 0
    assert sum(len(batch) for batch in loader) == 4, "two rounds, of which this rank has two samples each"
    assert loader.dataset.dataset is own


def test_of_a_stream_that_is_drawn_elsewhere_or_already_nothing_is_said() -> None:
    loader = streams(7, 2, False)[1]
    assert repeats_of(loader, begun=True) is None
    assert repeats_of(DataLoader(loader.dataset, 2, num_workers=1)) is None
    walk = iter(loader)
    next(walk)
    repeats = repeats_of(loader)  # somebody asks too late and does not say so
    assert repeats is not None
    assert [repeats.pop(2), repeats.pop(2)] == [0, 0]


@pytest.mark.parametrize("size", SIZES)
def test_a_watched_stream_is_known_in_its_next_walk_though_that_has_begun(size: int) -> None:
    found: list[int] = []
    for loader in streams(size, 2, False):
        own = loader.dataset.dataset
        watch_stream(loader)
        walk = iter(loader)
        batch = next(walk)
        repeats = repeats_of(loader, begun=True)
        while batch is not None:
            n = len(batch)
            found += batch[: n - repeats.pop(n)].tolist()
            batch = next(walk, None)
        del walk, repeats
        next(iter(loader))
        assert repeats_of(loader, begun=True) is None, "nobody counted in this one"
        assert loader.dataset.dataset is own
    assert sorted(found) == list(range(size))


def test_a_watched_stream_is_not_kept_alive() -> None:
    loader = streams(7, 2, False)[0]
    watch_stream(loader)
    gone = weakref.ref(loader.dataset)
    del loader
    gc.collect()
    assert gone() is None


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
