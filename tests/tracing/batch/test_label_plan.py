"""Where labels are read, as the target of a watched batch's loss says it; labels may be a list, as data samples' are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mld_core.tracing.batch.plan import LabelPlan, answer_among, as_tensor, mixes

HARD = [2, 0, 1]
FORMS = {
    "tensor": torch.tensor(HARD),
    "array": np.array(HARD),
    "numbers": HARD,
    "reversed array": np.array(HARD[::-1])[::-1],
    "array of another machine": np.array(HARD, ">i8"),
    "arrays": [np.array([k]) for k in HARD],
    "one of each data sample": [torch.tensor([k]) for k in HARD],
}
MIXED = torch.tensor([[0.0, 0.3, 0.7], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])


pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_the_losss_target_wins_over_labels_of_any_form(labels) -> None:
    plan = LabelPlan()
    assert plan.settle({"x": torch.zeros(3, 4)}, labels, MIXED) is MIXED
    assert plan.of_loss


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("target", [torch.tensor(HARD), torch.eye(3)[HARD]], ids=["hard", "one-hot"])
def test_labels_that_the_loss_saw_stay(labels, target) -> None:
    plan = LabelPlan()
    assert plan.settle({"x": torch.zeros(3, 4)}, labels, target) is labels
    assert not plan.of_loss


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_targets_of_two_losses_are_told_apart_by_labels_of_any_form(labels) -> None:
    own, other = torch.tensor(HARD), torch.tensor([0, 1, 2])
    assert mixes((own, other), labels, weighted=True)
    assert answer_among((other, own), labels) is own
    assert not mixes((own, torch.tensor([0, 0, 2])), labels, weighted=True)


@pytest.mark.parametrize("labels", [np.array(3), [np.zeros(2), np.zeros(3)], ["a"], []], ids=str)
def test_what_no_tensor_is_made_of(labels) -> None:
    assert as_tensor(labels) is None


def test_labels_of_which_no_number_is_made_are_the_losss() -> None:
    plan = LabelPlan()
    target = torch.tensor(HARD)
    assert plan.settle({"name": ["cat", "dog", "cow"]}, ["cat", "dog", "cow"], target) is target


X, U, Y = torch.rand(3, 3, 8, 8), torch.rand(6, 3, 8, 8), torch.tensor(HARD)
ONE = torch.ones(3)


@pytest.mark.parametrize(
    ("batch", "path", "inputs"),
    [
        ({"labelled": [X, Y], "unlabelled": [U]}, ("labelled", 1), X),
        ([[U], [X, Y]], (1, 1), X),
        ({"unlabelled": {"image": U}, "labelled": {"image": X, "label": Y}}, ("labelled", "label"), X),
        (
            {"inputs": {"pixel_values": X}, "targets": {"labels": Y}},
            ("targets", "labels"),
            {"pixel_values": X},
        ),
        ({"inputs": {"x": X}, "targets": {"labels": Y, "weight": ONE}}, ("targets", "labels"), {"x": X}),
        (({"image": X}, {"label": Y, "one_hot": torch.eye(3)}), (1, "label"), {"image": X}),
        (([X, X + 1], [Y, torch.arange(3)]), (1, 0), [X, X + 1]),
        (([X], [Y]), (1, 0), [X]),
        ((["a", "b", "c"], [Y, ONE]), (1, 0), ["a", "b", "c"]),
        ((["a", "b", "c"], [Y]), (1, 0), ["a", "b", "c"]),
    ],
)
def test_the_inputs_of_labels_that_stand_in_a_part_of_the_batch(batch, path, inputs) -> None:
    """Of a labelled and an unlabelled loader the labels' own; of a batch in parts what stands beside their part."""
    assert same(LabelPlan(path).inputs(batch), inputs)


def same(a, b) -> bool:
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b if isinstance(b, str) else torch.equal(a, b)
