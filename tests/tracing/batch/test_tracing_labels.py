"""Inputs and labels are found in common batches; labels of any form become one; the task is told from them."""

import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from mld_core.tracing.batch.labels import find_inputs, find_labels, infer_task, normalise_labels

FORMS = {
    "int64": torch.tensor([2, 0, 1]),
    "int32": torch.tensor([2, 0, 1], dtype=torch.int32),
    "uint8": torch.tensor([2, 0, 1], dtype=torch.uint8),
    "column": torch.tensor([[2], [0], [1]]),
    "whole floats": torch.tensor([2.0, 0.0, 1.0]),
    "bfloat16": torch.tensor([2.0, 0.0, 1.0], dtype=torch.bfloat16),
    "numpy": np.array([2, 0, 1]),
    "list": [2, 0, 1],
    "tuple of numpy ints": tuple(np.array([2, 0, 1])),
    "list of 0-d tensors": [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
    "list of 1-element tensors": [torch.tensor([2]), torch.tensor([0]), torch.tensor([1])],
    "one-hot int": torch.eye(4, dtype=torch.int64)[[2, 0, 1]],
    "one-hot float": torch.eye(4)[[2, 0, 1]],
    "one-hot bool": torch.eye(4, dtype=torch.bool)[[2, 0, 1]],
    "list of one-hots": [row.numpy() for row in torch.eye(4)[[2, 0, 1]]],
}


@pytest.mark.parametrize("form", FORMS)
def test_hard_labels_of_any_form(form):
    labels = normalise_labels(FORMS[form], 3, 4)
    assert labels.hard.tolist() == [2, 0, 1]
    assert labels.hard.dtype == np.int64
    assert labels.valid.tolist() == [True] * 3
    assert labels.valid.dtype == np.bool_
    assert labels.soft is None
    assert labels.problem == ""


@pytest.mark.parametrize("value", [torch.tensor(3), 3, np.int64(3), torch.tensor([[3]]), [3]])
def test_a_single_row(value):
    assert normalise_labels(value, 1, 4).hard.tolist() == [3]


def test_soft_labels_keep_their_rows():
    smooth = torch.full((2, 4), 0.025)
    smooth[0, 1] = smooth[1, 3] = 0.925
    labels = normalise_labels(smooth, 2, 4)
    assert labels.hard.tolist() == [1, 3]
    np.testing.assert_allclose(labels.soft, smooth.numpy())
    assert labels.soft.dtype == np.float32
    mixed = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    labels = normalise_labels(mixed, 2, 3)
    assert labels.hard.tolist() == [1, 2]
    assert labels.soft.shape == (2, 3)


def test_ignored_and_out_of_range_are_flagged():
    labels = normalise_labels(torch.tensor([0, -100, 4, -1, 3]), 5, 4)
    assert labels.hard.tolist() == [0, -1, -1, -1, 3]
    assert labels.valid.tolist() == [True, False, False, False, True]
    assert (labels.ignored, labels.out_of_range) == (1, 2)
    own = normalise_labels([0, 255], 2, None, ignore_index=255)
    assert (own.valid.tolist(), own.ignored) == ([True, False], 1)
    rows = normalise_labels(torch.tensor([[0.5, 0.5], [1.0, 1.0], [float("nan"), 0.0]]), 3, 2)
    assert rows.valid.tolist() == [True, False, False]
    assert rows.out_of_range == 2
    nan = normalise_labels(torch.tensor([1.0, float("nan")]), 2, 3)
    assert nan.valid.tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([1, 2]), "shape (2,) for 3 samples"),
        (torch.tensor([0.5, 1.5, 2.0]), "real numbers"),
        (torch.zeros(3, 7), "shape (3, 7)"),
        (torch.zeros(3, 8, 8), "shape (3, 8, 8)"),
        (["cat", "dog", "owl"], "list"),
        ([{"boxes": 1}] * 3, "list"),
        ([[1], [1, 2], [3]], "list"),
        (torch.tensor(1), "shape ()"),
    ],
)
def test_unusable_labels_say_why(labels, says):
    result = normalise_labels(labels, 3, 4)
    assert result.hard.tolist() == [-1, -1, -1]
    assert not result.valid.any()
    assert says in result.problem
    assert "label_fn" in result.problem


def test_no_labels_and_no_rows():
    assert normalise_labels(None, 2, 4).valid.tolist() == [False, False]
    assert normalise_labels(None, 2, 4).problem == ""
    assert normalise_labels(torch.zeros(0, dtype=torch.int64), 0, 4).hard.shape == (0,)
    assert normalise_labels([], 0, 4).hard.shape == (0,)
    assert normalise_labels(torch.zeros(0, 4), 0, 4).hard.shape == (0,)


def test_the_label_is_a_copy():
    source = torch.tensor([1, 2])
    labels = normalise_labels(source, 2, 4)
    source.zero_()
    assert labels.hard.tolist() == [1, 2]


def test_the_soft_label_is_a_copy():
    source = torch.tensor([[0.5, 0.5]])
    labels = normalise_labels(source, 1, 2)
    source.zero_()
    assert labels.soft.tolist() == [[0.5, 0.5]]


X, Y = torch.zeros(3, 2, 4, 4), torch.tensor([0, 1, 2])
Point = collections.namedtuple("Point", ["image", "label"])  # noqa: PYI024


@dataclasses.dataclass
class Record:
    img: torch.Tensor
    target: torch.Tensor


class Data:  # as torch_geometric's Data: attributes, no mapping
    def __init__(self):
        self.x, self.y = X, Y


BATCHES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "with ids": (X, Y, {"input_id": ["a", "b", "c"]}),
    "with index": (X, Y, torch.arange(3)),
    "dict": {"image": X, "label": Y},
    "hf": BatchEncoding({"pixel_values": X, "labels": Y}),
    "ultralytics": {"img": X, "cls": Y, "im_file": ["a", "b", "c"]},
    "namedtuple": Point(X, Y),
    "dataclass": Record(X, Y),
    "object": Data(),
    "upper case": {"Image": X, "Label": Y},
}


@pytest.mark.parametrize("name", BATCHES)
def test_inputs_and_labels_are_found(name):
    assert find_inputs(BATCHES[name]) is X
    assert find_labels(BATCHES[name], 3) is Y
    assert find_labels(BATCHES[name]) is Y


def test_several_modalities():
    other = torch.zeros(3, 8)
    inputs = find_inputs((X, other, Y))
    assert inputs[0] is X
    assert inputs[1] is other
    assert find_labels((X, other, Y), 3) is Y
    inputs = find_inputs({"input_ids": X, "attention_mask": other, "labels": Y})
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_soft_labels_stay_second():
    soft = torch.full((3, 4), 0.25)
    assert find_labels((X, soft), 3) is soft
    assert find_labels((X, soft, {"input_id": ["a", "b", "c"]}), 3) is soft


def test_data_samples_of_mmpretrain():
    class Sample:
        def __init__(self, label):
            self.gt_label = torch.tensor([label])

    batch = {"inputs": X, "data_samples": [Sample(k) for k in range(3)]}
    assert find_inputs(batch) is X
    assert normalise_labels(find_labels(batch, 3), 3, 5).hard.tolist() == [0, 1, 2]


def test_data_samples_of_mmpretrain_that_its_preprocessor_mixed():
    """`gt_score`, which is what its losses take; a sample without one: the labels."""
    shares = torch.tensor([[0.7, 0.3], [0.0, 1.0]])
    samples = [SimpleNamespace(gt_label=torch.tensor([k]), gt_score=shares[k]) for k in range(2)]
    batch = {"inputs": torch.zeros(2, 4), "data_samples": samples}
    assert torch.equal(find_labels(batch), shares)
    del samples[1].gt_score
    assert [int(label) for label in find_labels(batch)] == [0, 1]


def test_nothing_to_find():
    assert find_labels(X) is None
    assert find_inputs(X) is X
    assert find_labels((X,)) is None
    assert find_inputs([X]) is X
    assert find_labels((X, Y), 4) is None
    assert find_labels({"image": X}) is None
    samples = [{"image": 1}, {"image": 2}]
    assert find_inputs(samples) is samples
    assert find_labels(samples) is None
    assert find_labels(None) is None


@pytest.mark.parametrize(
    ("shape", "labels", "task"),
    [
        ((3, 4), Y, "classification"),
        ((3, 4), None, "classification"),
        ((3, 4), torch.full((3, 4), 0.25), "classification"),
        ((3, 4), torch.eye(4)[:3], "classification"),
        ((3, 4, 1, 1), Y, "classification"),
        ((3, 4), ["a", "b", "c"], "classification"),
        ((3, 4), torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]), "multi-label"),
        ((3, 4), torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]), "multi-label"),
        ((3, 4), torch.tensor([0.3, 1.7, 2.2]), "regression"),
        ((3, 4), torch.full((3, 4), 7.5), "regression"),
        ((3, 1), torch.tensor([0.3, 1.7, 2.2]), "regression"),
        ((3,), torch.tensor([0.3, 1.7, 2.2]), "regression"),
        ((3, 1), Y, "unknown"),
        ((3, 4, 8, 8), torch.zeros(3, 8, 8, dtype=torch.int64), "segmentation"),
        ((3, 16, 4), torch.zeros(3, 16, dtype=torch.int64), "unknown"),
        ((3, 4), torch.zeros(3, 16, dtype=torch.int64), "unknown"),
        (None, Y, "unknown"),
        ((3, 4), torch.zeros(3, dtype=torch.int64, device="meta"), "classification"),
        ((3, 4), torch.zeros(3, device="meta"), "regression"),
        ((3, 4), torch.zeros(3, 4, device="meta"), "classification"),
    ],
)
def test_task(shape, labels, task):
    found, reason = infer_task(shape, labels)
    assert found == task, reason
    assert reason.endswith(".")
    assert len(reason) > 20


def test_find_labels_never_looks_at_values():
    x, y = torch.zeros(3, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
    assert find_labels((x, y), 3) is y
    assert find_inputs({"x": x, "y": y}) is x
