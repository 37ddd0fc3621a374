"""Ids are found in every kind of batch, in the stated order, and survive collating and worker processes."""

import collections
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from ml_debugger.training import WithInputId
from mld_core.tracing.batch.identity import DatasetIndexId, as_id_list, base_id, find_ids, locate_ids


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", 2), ["a", "2"]),
        ([1, -2], ["1", "-2"]),
        ([np.int64(3), np.str_("x"), np.bytes_(b"y")], ["3", "x", "y"]),
        (np.array([1, 2], dtype=np.uint8), ["1", "2"]),
        (np.array([2**63 + 5], dtype=np.uint64), [str(2**63 + 5)]),
        (np.array(["a", "bc"]), ["a", "bc"]),
        (np.array([b"a", b"bc"]), ["a", "bc"]),
        (np.array(["a", 3], dtype=object), ["a", "3"]),
        (torch.tensor([7, 8]), ["7", "8"]),
        (torch.tensor([7], dtype=torch.uint8), ["7"]),
        (torch.tensor(7), ["7"]),
        (np.array(7), ["7"]),
        (np.int64(7), ["7"]),
        (7, ["7"]),
        ("one", ["one"]),
        (b"one", ["one"]),
        ([b"\xff"], ["\\xff"]),
        ([torch.tensor(4), torch.tensor([5])], ["4", "5"]),
        ([np.array([4])], ["4"]),
        ([Path("a/b.png")], [str(Path("a/b.png"))]),
        (range(3), ["0", "1", "2"]),
        ([], []),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_ids_as_text(ids, texts):
    got = as_id_list(ids)
    assert got == texts
    assert all(type(one) is str for one in got)


@pytest.mark.parametrize(
    "ids",
    [
        None, 1.5, [1.5], torch.tensor([1.0]), np.array([1.0]), torch.tensor([[1], [2]]), np.zeros((2, 2), int), [True],
        torch.tensor([True]), [None], [[1, 2]], [torch.tensor([1, 2])], object(), {"a": 1}.values().__iter__(),
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused_with_the_fix(ids):
    with pytest.raises(ValueError, match="list of str or int, or a 1-D"):
        as_id_list(ids)


X, Y = torch.zeros(2, 3), torch.tensor([0, 1])
Sample = collections.namedtuple("Sample", ["image", "input_id"])  # noqa: PYI024


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    input_id: list


class DataSample:
    """As an OpenMMLab data sample, of which only the metainfo counts here."""

    def __init__(self, **metainfo):
        self.metainfo = metainfo


@pytest.mark.parametrize(
    ("batch", "ids", "source"),
    [
        ({"image": X, "input_id": ["a", "b"]}, ["a", "b"], "input_id"),
        ({"image": X, "input_id": torch.tensor([4, 5])}, ["4", "5"], "input_id"),
        ((X, Y, {"input_id": ["a", "b"]}), ["a", "b"], "input_id"),
        ([X, Y, {"input_id": ["a", "b"]}], ["a", "b"], "input_id"),
        (Batch(X, ["a", "b"]), ["a", "b"], "input_id"),
        (Sample(X, ["a", "b"]), ["a", "b"], "input_id"),
        ([{"image": X, "input_id": "a"}, {"image": X, "input_id": "b"}], ["a", "b"], "input_id"),
        ((X, Y, {"input_id": [DatasetIndexId("3"), DatasetIndexId("4")]}), ["3", "4"], "dataset_index"),
        ({"image": X, "own": [DatasetIndexId("3"), DatasetIndexId("4")]}, ["3", "4"], "dataset_index"),
        (([X, X], [{"image_id": 8}, {"image_id": 9}]), ["8", "9"], "image_id"),
        (
            ([X, X], ({"image_id": torch.tensor([8])}, {"image_id": torch.tensor([9])})),
            ["8", "9"],
            "image_id",
        ),
        (
            {"pixel_values": X, "labels": [{"image_id": torch.tensor([k])} for k in (8, 9)]},
            ["8", "9"],
            "image_id",
        ),
        ({"image": X, "target": {"image_id": torch.tensor([8, 9])}}, ["8", "9"], "image_id"),
        ({"image": X, "image_id": ["p", "q"]}, ["p", "q"], "image_id"),
        (
            {"inputs": X, "data_samples": [DataSample(token="t"), DataSample(token="u")]},
            ["t", "u"],
            "metainfo",
        ),
        ({"inputs": X, "data_samples": [DataSample(img_id=1), DataSample(img_id=2)]}, ["1", "2"], "metainfo"),
        (
            {
                "inputs": X,
                "data_samples": [DataSample(sample_idx=1, lidar_path="a"), DataSample(lidar_path="b")],
            },
            ["a", "b"],
            "metainfo",
        ),
        ([DataSample(token="t"), DataSample(token="u")], ["t", "u"], "metainfo"),
        ({"img": X, "img_metas": [{"sample_idx": 1}, {"sample_idx": 2}]}, ["1", "2"], "metainfo"),
        ({"image": X, "__key__": ["s/1", "s/2"], "__url__": ["a.tar", "a.tar"]}, ["s/1", "s/2"], "__key__"),
        ({"input_id": [0.5, 0.7], "image_id": ["p", "q"]}, ["p", "q"], "image_id"),
    ],
)
def test_found_in_batches(batch, ids, source):
    assert find_ids(batch, 2) == (ids, source)


def test_order_of_sources():
    batch = {
        "input_id": ["a", "b"],
        "labels": [{"image_id": 1}, {"image_id": 2}],
        "data_samples": [DataSample(token="t"), DataSample(token="u")],
    }
    assert find_ids(batch, 2, lambda b: [x.upper() for x in b["input_id"]]) == (["A", "B"], "id_fn")
    assert find_ids(batch, 2)[1] == "input_id"
    del batch["input_id"]
    assert find_ids(batch, 2)[1] == "image_id"
    del batch["labels"]
    assert find_ids(batch, 2)[1] == "metainfo"


@pytest.mark.parametrize(
    "batch", [None, X, (X, Y), {"image": X}, [X], [], (), {}, "text", 3, {"input_id": ["a"]}]
)
def test_no_ids(batch):
    assert find_ids(batch, 2) is None


def test_a_wrong_id_fn_is_told():
    with pytest.raises(ValueError, match="id_fn gave 1 ids for 2 samples"):
        find_ids((X, Y), 2, lambda batch: ["a"])
    with pytest.raises(ValueError, match="id_fn gave None ids"):
        find_ids((X, Y), 2, lambda batch: None)
    with pytest.raises(ValueError, match="float"):
        find_ids((X, Y), 2, lambda batch: torch.rand(2))


def test_ids_on_a_device_are_left_there():
    # On the meta device reading a value raises.
    ids = torch.zeros(2, dtype=torch.int64, device="meta")
    found, source = locate_ids({"image": X, "input_id": ids}, 2)
    assert found is ids
    assert source == "input_id"
    targets = [{"image_id": ids[:1]}, {"image_id": ids[1:]}]
    found, source = locate_ids((X, targets), 2)
    assert source == "image_id"
    assert len(found) == 2


def test_located_host_ids_do_not_follow_the_buffer():
    ids = torch.tensor([1, 2])
    found, _ = locate_ids({"input_id": ids}, 2)
    ids.zero_()
    assert as_id_list(found) == ["1", "2"]


# Datasets


class Pairs(Dataset):
    classes = ("cat", "dog")

    def __init__(self, size=6, kind="tuple"):
        self.size, self.kind = size, kind

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        x, y = torch.tensor([float(index)]), index % 2
        pair = collections.namedtuple("Pair", ["x", "y"])  # noqa: PYI024
        return {
            "tuple": (x, y), "list": [x, y], "dict": {"x": x, "y": y}, "tensor": x, "user dict":
            collections.UserDict(x=x), "namedtuple": pair(x, y),
        }[self.kind]  # fmt: skip


class Batched(Pairs):
    calls = 0

    def __getitems__(self, indices):
        type(self).calls += 1
        return [self[index] for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "tensor", "user dict", "namedtuple"])
def test_collated_samples_carry_their_index(kind):
    loader = DataLoader(WithInputId(Pairs(kind=kind)), batch_size=3)
    for number, batch in enumerate(loader):
        assert find_ids(batch, 3) == ([str(3 * number + k) for k in range(3)], "dataset_index")
    assert number == 1


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_through_worker_processes(method):
    data = WithInputId(TensorDataset(torch.arange(5)), prefix="toy", key="sample")
    loader = DataLoader(data, batch_size=5, num_workers=1, multiprocessing_context=method)
    for batch in loader:
        assert find_ids(batch, 5) == ([f"toy/{k}" for k in range(5)], "dataset_index")


def test_the_wrapped_dataset_shines_through():
    data = WithInputId(Pairs())
    assert len(data) == 6
    assert data.classes == ("cat", "dog")
    assert data.kind == "tuple"
    assert data[1][:2] == data.dataset[1]
    assert not hasattr(data, "missing")
    with pytest.raises(AttributeError, match="__missing__"):
        data.__missing__  # noqa: B018
    again = pickle.loads(pickle.dumps(data))
    assert again[2][2] == {"input_id": "2"}


def test_batched_fetch():
    Batched.calls = 0
    loader = DataLoader(WithInputId(Batched()), batch_size=3)
    assert [find_ids(batch, 3)[0] for batch in loader] == [["0", "1", "2"], ["3", "4", "5"]]
    assert Batched.calls == 2
    loader = DataLoader(Subset(WithInputId(Batched()), [5, 1]), batch_size=2)
    assert [find_ids(batch, 2)[0] for batch in loader] == [["5", "1"]]
    assert Batched.calls == 3


def test_the_sample_itself_is_not_changed():
    samples = [{"x": 1}, {"x": 2}]
    assert WithInputId(samples)[0] == {"x": 1, "input_id": "0"}
    assert samples[0] == {"x": 1}


def test_placed_inside_or_outside_a_subset_gives_the_same_id():
    subset = [4, 2, 0]
    inside = Subset(WithInputId(Pairs()), subset)
    outside = WithInputId(Subset(Pairs(), subset))
    assert (
        [inside[k][2] for k in range(3)]
        == [outside[k][2] for k in range(3)]
        == [{"input_id": i} for i in "420"]
    )
    assert WithInputId(Pairs())[-1][2] == {"input_id": "5"}


def test_streams_are_refused():
    with pytest.raises(ValueError, match=r"map-style dataset .* got Stream"):
        WithInputId(Stream())
    with pytest.raises(ValueError, match="got int"):
        WithInputId(3)


class Repeated(Dataset):
    """As OpenMMLab's wrappers: a dataset inside and a method that maps indices."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 2 * len(self.dataset)

    def _get_ori_dataset_idx(self, index):
        return index % len(self.dataset)


@pytest.mark.parametrize(
    ("dataset", "index", "name"),
    [
        (Pairs(), 3, "3"),
        (Pairs(), torch.tensor(3), "3"),
        (Pairs(), np.int64(3), "3"),
        (Pairs(), -1, "5"),
        ({"key": 1}, "key", "key"),
        (Subset(Pairs(), [4, 2]), 1, "2"),
        (Subset(Pairs(), torch.tensor([4, 2])), 1, "2"),
        (Subset(Subset(Pairs(), [5, 4, 3]), [2]), 0, "3"),
        (ConcatDataset([Pairs(2), Pairs(3)]), 2, "1/0"),
        (ConcatDataset([Pairs(2), Pairs(3)]), -1, "1/2"),
        (ConcatDataset([Pairs(2), ConcatDataset([Pairs(1), Pairs(3)])]), 4, "1/1/1"),
        (Subset(ConcatDataset([Pairs(2), Pairs(3)]), [3]), 0, "1/1"),
        (ConcatDataset([WithInputId(Pairs(2), prefix="a"), WithInputId(Pairs(2), prefix="b")]), 2, "b/0"),
        (ConcatDataset([WithInputId(Pairs(2)), Pairs(2)]), 1, "0/1"),
        (Repeated(Subset(Pairs(), [5, 1])), 3, "1"),
    ],
)
def test_base_id(dataset, index, name):
    assert base_id(dataset, index) == name


def test_base_id_outside_the_dataset():
    with pytest.raises(IndexError, match="index 5 is outside a dataset of 5 samples"):
        base_id(ConcatDataset([Pairs(2), Pairs(3)]), 5)


def test_mmengine_wrappers_are_followed():
    from mmengine.dataset import BaseDataset, ClassBalancedDataset, RepeatDataset

    class Toy(BaseDataset):
        def load_data_list(self):
            return [{"label": k % 2} for k in range(4)]

        def get_cat_ids(self, index):
            return [self.get_data_info(index)["label"]]

    toy = Toy(serialize_data=False)
    assert base_id(RepeatDataset(toy, 3), 9) == "1"
    balanced = ClassBalancedDataset(toy, oversample_thr=1.0)
    assert {base_id(balanced, k) for k in range(len(balanced))} == {"0", "1", "2", "3"}
    assert find_ids({"data_samples": [DataSample(sample_idx=toy[2]["sample_idx"])]}, 1) == (["2"], "metainfo")
