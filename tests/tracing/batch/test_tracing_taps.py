"""The tap's ids are in step with the content of every delivered batch, and the loader does not notice it."""

import copy
import gc
import pickle
import weakref

import accelerate
import pytest
import torch
from lightning.fabric.utilities.data import _replace_dunder_methods
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from mld_core.tracing.batch.identity import WithInputId
from mld_core.tracing.batch.taps import IndexTap, install_tap, remove_tap

pytestmark = pytest.mark.timeout(120)


class Numbers(Dataset):
    """A sample says its own index."""

    def __init__(self, size=23, offset=0):
        self.size, self.offset = size, offset

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([float(index + self.offset)]), torch.rand(())  # augmentation draws in the worker


class Rows(IterableDataset):
    def __iter__(self):
        return iter(range(10))


class Buckets(BatchSampler):
    """A user's own batch sampler: batches of uneven length, an epoch, one more argument."""

    def __init__(self, sampler, batch_size, drop_last, longest=6):
        super().__init__(sampler, batch_size, drop_last)
        self.longest = longest
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        batch = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) > index % self.longest:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self):
        return 7


def generator():
    return torch.Generator().manual_seed(5)


def build(kind, dataset=None, **more):
    dataset = Numbers() if dataset is None else dataset
    size = len(dataset)
    if kind == "sequential":
        return DataLoader(dataset, batch_size=4, **more)
    if kind == "drop_last":
        return DataLoader(dataset, batch_size=4, drop_last=True, **more)
    if kind == "shuffle":
        return DataLoader(dataset, batch_size=4, shuffle=True, **more)
    if kind == "shuffle with a generator":
        return DataLoader(dataset, batch_size=4, shuffle=True, generator=generator(), **more)
    if kind == "weighted":
        weights = torch.arange(1.0, size + 1)
        return DataLoader(dataset, batch_size=5, sampler=WeightedRandomSampler(weights, 30), **more)
    if kind == "distributed":
        return DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset, 2, 1), **more)
    if kind == "custom batch sampler":
        return DataLoader(dataset, batch_sampler=Buckets(RandomSampler(dataset), 4, False), **more)
    if kind == "a list of batches":
        return DataLoader(dataset, batch_sampler=[[3, 1], [2], [5, 3, 0]], **more)
    raise AssertionError(kind)


KINDS = [
    "sequential", "drop_last", "shuffle", "shuffle with a generator", "weighted", "distributed",
    "custom batch sampler", "a list of batches",
]  # fmt: skip


def contents(batch):
    return [str(int(value)) for value in batch[0].flatten()]


def walk(loader, tap, stop=None):
    """Walk one epoch; every batch's ids must be its content."""
    seen = []
    for number, batch in enumerate(loader):
        ids = tap.pop(len(batch[0]))
        assert ids == contents(batch)
        seen.append(ids)
        if number == stop:
            break
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_in_step_without_workers(kind):
    loader = build(kind)
    tap = install_tap(loader)
    for stop in (None, 1, None):
        assert len(walk(loader, tap, stop)) >= 2


@pytest.mark.processes
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["shuffle", "custom batch sampler"])
def test_ids_are_in_step_with_workers(kind, persistent):
    loader = build(kind, num_workers=2, prefetch_factor=3, persistent_workers=persistent)
    tap = install_tap(loader)
    for stop in (None, 1, None):  # an epoch broken off leaves prefetched batches behind
        walk(loader, tap, stop)


@pytest.mark.processes
def test_an_iterator_kept_after_a_break_does_no_harm():
    loader = build("shuffle", num_workers=2)
    tap = install_tap(loader)
    kept = iter(loader)
    batch = next(kept)
    assert tap.pop(4) == contents(batch)
    walk(loader, tap)
    assert next(kept) is not None


def epochs(loader, tap):
    """Return what two epochs bring and the generators' states after them."""
    order = []
    for _ in range(2):
        for batch in loader:
            order.append((contents(batch), batch[1].tolist()))
            if tap is not None:
                assert tap.pop(len(batch[0])) == contents(batch)
    own = loader.generator.get_state() if loader.generator is not None else None
    return order, torch.get_rng_state(), own


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        *((kind, 0) for kind in KINDS),
        ("shuffle", 2),
        ("shuffle with a generator", 2),
        ("custom batch sampler", 2),
    ],
)
def test_order_draws_and_length_are_the_same_as_without(kind, workers):
    torch.manual_seed(11)
    plain = build(kind, num_workers=workers)
    plain_order, plain_rng, plain_own = epochs(plain, None)
    torch.manual_seed(11)
    loader = build(kind, num_workers=workers)
    attributes = dict(vars(loader))
    tap = install_tap(loader)
    order, rng, own = epochs(loader, tap)
    assert order == plain_order
    assert torch.equal(rng, plain_rng)
    assert own is None or torch.equal(own, plain_own)
    assert len(loader) == len(plain)
    remove_tap(loader)
    after = {key: value for key, value in vars(loader).items() if key in attributes}
    assert all(after[key] is value for key, value in attributes.items())
    walked = [contents(batch) for batch in loader]
    assert len(walked) == len(order) // 2


def test_nested_datasets_give_base_ids():
    whole = Numbers(20)
    nested = ConcatDataset([Subset(Subset(whole, range(5, 15)), [0, 3, 9]), Numbers(4, offset=100)])
    loader = DataLoader(nested, batch_size=2, shuffle=True)
    tap = install_tap(loader)
    want = {"0/5": 5, "0/8": 8, "0/14": 14, "1/0": 100, "1/1": 101, "1/2": 102, "1/3": 103}
    seen = {}
    for batch in loader:
        seen.update(zip(tap.pop(len(batch[0])), [int(v) for v in batch[0].flatten()], strict=True))
    assert seen == want


def test_prefix_of_a_wrapped_dataset():
    parts = [WithInputId(Numbers(2), prefix="a"), WithInputId(Numbers(3), prefix="b")]
    loader = DataLoader(ConcatDataset(parts), batch_size=5)
    tap = install_tap(loader)
    for batch in loader:
        assert tap.pop(5) == ["a/0", "a/1", "b/0", "b/1", "b/2"] == batch[2]["input_id"]


def test_loaders_without_an_order_are_refused():
    assert install_tap(DataLoader(Rows(), batch_size=2)) is None
    assert install_tap(DataLoader(Numbers(), batch_size=None)) is None
    assert install_tap(DataLoader(Numbers(), batch_size=2, num_workers=1, in_order=False)) is None
    assert install_tap([1, 2]) is None
    assert install_tap(None) is None
    remove_tap(None)
    remove_tap(DataLoader(Numbers()))


def test_installing_twice_keeps_the_tap_and_removing_restores():
    loader = build("shuffle")
    own = loader.batch_sampler
    tap = install_tap(loader)
    assert install_tap(loader) is tap
    remove_tap(loader)
    assert loader.batch_sampler is own
    assert type(loader.batch_sampler) is BatchSampler


def test_the_stand_in_shows_the_sampler_it_stands_for():
    loader = build("custom batch sampler")
    own = loader.batch_sampler
    tap = install_tap(loader)
    assert isinstance(loader.batch_sampler, Buckets)
    assert isinstance(loader.batch_sampler, IndexTap)
    assert loader.batch_sampler.longest == 6
    assert len(tap) == 7
    loader.batch_sampler.set_epoch(4)
    loader.batch_sampler.batch_size = 9
    loader.batch_sampler.new = "x"
    assert (own.epoch, own.batch_size, own.new) == (4, 9, "x")
    del loader.batch_sampler.new
    assert not hasattr(own, "new")
    assert "Buckets" in repr(tap)
    with pytest.raises(AttributeError, match="missing"):
        tap.missing  # noqa: B018


@pytest.mark.parametrize("kind", ["shuffle", "custom batch sampler"])
def test_pickle_and_copy(kind):
    loader = build(kind)
    tap = install_tap(loader)
    for other in (pickle.loads(pickle.dumps(loader)), copy.copy(loader), copy.deepcopy(loader)):
        again = install_tap(other)
        assert isinstance(again, IndexTap)
        assert again.longest == tap.longest if kind == "custom batch sampler" else again.batch_size == 4
        walk(other, again)


def test_iterators_used_at_once_give_no_ids():
    loader = build("shuffle")
    tap = install_tap(loader)
    first, second = iter(loader), iter(loader)
    next(first), next(second), next(first)
    assert tap.pop(4) is None
    del first, second
    walk(loader, tap)


@pytest.mark.processes
def test_iterators_used_at_once_with_workers_give_no_wrong_ids():
    loader = build("shuffle", num_workers=2, prefetch_factor=8)  # all indices are drawn at once
    tap = install_tap(loader)
    first = iter(loader)
    next(first)
    second = iter(loader)
    batch = next(first)  # of the older iterator
    assert tap.pop(4) in (None, contents(batch))
    del second


def test_a_batch_that_was_not_popped_ends_the_proof():
    loader = build("sequential")
    tap = install_tap(loader)
    got = []
    for number, batch in enumerate(loader):
        if number != 2:
            got.append((tap.pop(len(batch[0])), contents(batch)))
    assert [ids == content for ids, content in got[:2]] == [True, True]
    assert all(ids is None for ids, _ in got[2:])
    walk(loader, tap)  # the next epoch is sound again


def test_popping_twice_or_with_a_wrong_length_gives_nothing():
    loader = build("sequential")
    tap = install_tap(loader)
    assert tap.pop(4) is None
    for batch in loader:
        assert tap.pop(4) == contents(batch)
        assert tap.pop(4) is None
        break
    for _batch in loader:
        assert tap.pop(3) is None
        assert tap.pop(4) is None
        break


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_constant_look_ahead_is_in_step_to_the_end(ahead):
    loader = build("shuffle")
    tap = install_tap(loader)
    iterator, held, seen = iter(loader), [], 0
    while True:
        while len(held) <= ahead:
            batch = next(iterator, None)
            if batch is None:
                break
            held.append(batch)
        if not held:
            break
        batch = held.pop(0)
        assert tap.pop(len(batch[0])) == contents(batch)
        seen += 1
    assert seen == 6


def test_accumulated_fetching_needs_its_bound():
    loader = build("shuffle")
    for bound, sound in ((3, True), (None, False)):
        tap = install_tap(loader)
        iterator, results = iter(loader), []
        for _ in range(2):
            group = [next(iterator) for _ in range(3)]
            results += [tap.pop(len(batch[0]), max_ahead=bound) == contents(batch) for batch in group]
        assert all(results) is sound


def test_unpopped_lists_do_not_pile_up():
    loader = DataLoader(Numbers(6000), batch_size=1)
    tap = install_tap(loader)
    for number, _ in enumerate(loader):
        if number == 5000:
            break
    assert not tap.mld_generation.waiting
    assert tap.pop(1) is None


@pytest.mark.processes
@pytest.mark.parametrize("stop", [0, None], ids=["broken off", "walked to the end"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shuffle", "custom batch sampler"])
def test_the_tap_keeps_no_iterator_alive(kind, workers, stop):
    # An iterator that waits for the garbage collector keeps its workers, and a fork then breaks their shutdown.
    loader = build(kind, num_workers=workers)
    install_tap(loader)
    gc.collect()
    gc.disable()
    try:
        iterator = iter(loader)
        reference = weakref.ref(iterator)
        for number, _ in enumerate(iterator):
            if number == stop:
                break
        del iterator
        assert reference() is None, "freed by reference counting, as without the tap"
    finally:
        gc.enable()


# The frameworks' own ways with loaders


@pytest.mark.parametrize("kind", ["shuffle", "custom batch sampler"])
@pytest.mark.parametrize("inside", [False, True], ids=["made before", "made in Lightning's hooks"])
@pytest.mark.parametrize("stage", [RunningStage.TRAINING, RunningStage.PREDICTING])
def test_lightning_rebuild_keeps_the_tap(kind, inside, stage):
    if inside:
        with _replace_dunder_methods(DataLoader, "dataset"), _replace_dunder_methods(BatchSampler):
            loader = build(kind)
            plain = build(kind)
    else:
        loader, plain = build(kind), build(kind)
    install_tap(loader)
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=1, shuffle=True)
    rebuilt = _update_dataloader(loader, sampler, mode=stage)
    expected = _update_dataloader(plain, sampler, mode=stage)
    assert [contents(batch) for batch in rebuilt] == [contents(batch) for batch in expected]
    tap = install_tap(rebuilt)
    assert tap.sampler is sampler
    if kind == "custom batch sampler":
        assert isinstance(rebuilt.batch_sampler, Buckets if stage is RunningStage.TRAINING else object)
        assert tap.longest == 6
    walk(rebuilt, tap)
    walk(rebuilt, tap)


def test_lightning_predict_wrapper_over_a_tap_is_followed():
    loader = build("sequential")
    install_tap(loader)
    rebuilt = _update_dataloader(loader, SequentialSampler(loader.dataset), mode=RunningStage.PREDICTING)
    inner = rebuilt.batch_sampler._batch_sampler
    assert isinstance(inner, IndexTap)
    inner.mld_dataset = rebuilt.dataset
    for batch in rebuilt:
        assert inner.pop(len(batch[0])) == contents(batch)
    assert len(rebuilt.batch_sampler.seen_batch_indices) == 6


@pytest.fixture
def accelerator():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("before", [True, False], ids=["tap, then prepare", "prepare, then tap"])
def test_accelerate_prepared_loader(accelerator, before):
    loader = build("shuffle")
    if before:
        install_tap(loader)
    prepared = accelerator.prepare(loader)
    tap = install_tap(prepared)
    walk(prepared, tap)
    walk(prepared, tap)


def test_accelerate_resume_skips_batches(accelerator):
    prepared = accelerator.prepare(build("sequential"))
    tap = install_tap(prepared)
    resumed = accelerate.skip_first_batches(prepared, 2)
    seen = walk(resumed, tap)
    assert seen[0] == ["8", "9", "10", "11"]
    walk(prepared, tap)


def test_a_sharding_batch_sampler_over_the_tap_gives_no_ids():
    loader = build("sequential")
    tap = install_tap(loader)
    shard = accelerate.data_loader.BatchSamplerShard(loader.batch_sampler, num_processes=2, process_index=1)
    sharded = DataLoader(loader.dataset, batch_sampler=shard)
    for _batch in sharded:
        assert tap.pop(4) is None
    outer = install_tap(sharded)
    walk(sharded, outer)
