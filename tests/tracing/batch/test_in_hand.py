"""What speaks for a call's being of the batch in hand, and what says nothing."""

import pytest
import torch

from mld_core.tracing.batch.in_hand import InHand

X = torch.arange(24.0).reshape(8, 3)
ONES, FLAG, LABELS = torch.ones(8, 3), torch.tensor([0, 1] * 4), torch.arange(8) % 3
ORDER = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])


def hand(*parts):
    return InHand((*parts, LABELS), LABELS)


@pytest.mark.parametrize(("given", "count"), [
    ((X,), 1),
    ((X.clone(),), 1),
    (({"x": X},), 1),
    ((X + 100,), 0),
    ((X[ORDER],), 0),
    ((X.half(),), 0),
    ((X[:4],), 0),
    ((LABELS,), 0),
    ((), 0),
])  # fmt: skip
def test_a_call_that_was_given_the_batch(given, count):
    assert hand(X).given(given) == count


def test_what_other_samples_have_too_says_nothing():
    """A mask of ones, or a flag, is the same whoever it is of."""
    assert hand(X, ONES, FLAG).given((X + 100, ONES.clone(), FLAG.clone())) == 0


def test_missing_values_are_no_difference():
    part = X.clone()
    part[2, 1] = torch.nan
    assert hand(part).given((part.clone(),)) == 1
    assert hand(part).given((X,)) == 0


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16", "float16", "uint8", "int64", "bool"])
def test_numbers_of_any_kind(dtype):
    """Of the narrowest hardly any operation is there."""
    part = (X % 7 > 3) if dtype == "bool" else (X % 16)
    part = part.to(getattr(torch, dtype))
    assert hand(part).given((part.clone(),)) == 1
    assert hand(part).given((part.roll(1, 0),)) == 0


def test_samples_in_another_order():
    assert hand(X).reorders((X[ORDER],))
    assert not hand(X).reorders((X,))
    assert not hand(X).reorders((X + 100,))
    assert not hand(X, FLAG).reorders((X * 1.001, 1 - FLAG)), "as many of each as there were"


def test_what_is_no_plain_tensor_is_let_be():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for odd in (X.to_sparse(), X.to_sparse_csr(), nested, torch.zeros(8, 3, dtype=torch.complex64)):
        assert hand(X).given((odd,)) == 0
        assert not hand(X).reorders((odd,))
        assert hand(odd).given((X,)) == 0


@pytest.mark.parametrize("labels", [LABELS, LABELS.tolist(), LABELS.numpy()])
def test_targets_are_the_batchs_labels(labels):
    one = InHand((X, labels), labels)
    assert one.answers(LABELS)
    assert one.answers(torch.nn.functional.one_hot(LABELS, 3).float())
    assert not one.answers((LABELS + 1) % 3)
    assert not one.answers(None)
