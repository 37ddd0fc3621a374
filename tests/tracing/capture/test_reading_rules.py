"""Which tensor is the logits where no loss can be asked: what is unclear is refused, never guessed."""

import pytest
import torch
from torch import nn

from mld_core.tracing.capture.capture import Capture, LeafCall
from mld_core.tracing.capture.heads import HeadChooser
from mld_core.tracing.capture.reading import Known, Refusal, by_rules

N = 6
LOGITS, FEATURES = torch.randn(N, 10), torch.randn(N, 32)


def ruled(output, known=None, args=()):
    return by_rules(LeafCall("", nn.Linear(1, 1), args, output), N, known or Known())


@pytest.mark.parametrize("known", [Known(count=10), Known(smallest=10), Known(count=10, smallest=4)])
@pytest.mark.parametrize("output", [(FEATURES, LOGITS), (LOGITS, FEATURES), {"z": FEATURES, "y": LOGITS}])
def test_of_several_tensors_the_one_as_wide_as_the_classes(output, known):
    source, logits = ruled(output, known)
    assert torch.equal(logits, LOGITS)
    assert source.path is not None


def test_several_tensors_and_no_known_number_of_classes():
    found = ruled((FEATURES, LOGITS), Known(smallest=8))
    assert isinstance(found, Refusal)
    assert "n_class=<number of classes>" in found.reason


def test_named_logits_need_no_number():
    _, logits = ruled({"features": FEATURES, "logits": LOGITS}, Known(smallest=8))
    assert torch.equal(logits, LOGITS)


def test_an_output_of_the_shape_of_the_input_is_no_answer():
    given = torch.randn(N, 10)
    assert "the shape of what it was given" in ruled(LOGITS, Known(smallest=3), (given,)).reason
    assert isinstance(ruled(LOGITS, Known(smallest=10), (given,)), tuple), "as many as there are classes"


@pytest.mark.parametrize("shape", [(N, 1), (N,)])
def test_one_number_per_sample(shape):
    z = torch.randn(shape)
    source, logits = ruled(z, Known(binary=True))
    assert (source.activation, logits.shape) == ("one logit", (N, 1))
    assert "one number z" in ruled(z, Known(smallest=4)).reason


class Deep(nn.Module):
    """One logit, made of eight hidden features."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("binary", [True, False])
def test_nothing_below_an_answer_is_looked_at(binary):
    model = Deep()
    capture = Capture(model)
    chooser = HeadChooser(capture, n_class=None, known={})
    capture.begin(watch=True)
    z = model(torch.randn(N, 4))
    captured = chooser.take(N, None, training=False, known=Known(smallest=3, binary=binary))
    if binary:
        assert torch.equal(captured.logits, z)
        assert captured.n_class == 2
    else:
        assert captured is None
        assert "one number z" in chooser.refusal.reason


def test_of_several_forwards_the_first_of_the_batch_counts():
    model = Deep()
    capture = Capture(model)
    chooser = HeadChooser(capture, n_class=None, known={})
    for watched in (True, False):
        capture.begin(watch=watched)
        model(torch.randn(N - 1, 4))
        z = model(torch.randn(N, 4))
        model(torch.randn(N, 4))
        captured = chooser.take(N, None, training=False, known=Known(binary=True))
        assert torch.equal(captured.logits, z)
        capture.end()


def test_labels_seen_in_later_batches_make_it_clear():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 32), nn.Linear(32, 10)

        def forward(self, x):
            return self.body(x), self.head(self.body(x))

    model = Pair()
    capture = Capture(model)
    chooser = HeadChooser(capture, n_class=None, known={})
    for smallest, found in ((8, False), (10, True)):
        capture.begin(watch=chooser.needs_watch(training=False))
        _, z = model(torch.randn(N, 4))
        captured = chooser.take(N, None, training=False, known=Known(smallest=smallest))
        assert (captured is not None) == found
        assert not found or torch.equal(captured.logits, z)


def test_the_user_names_the_logits():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    capture = Capture(model, target_layers={"cls_logits": "0"})
    chooser = HeadChooser(capture, n_class=None, known={})
    capture.begin(watch=True)
    model(torch.randn(N, 4))
    captured = chooser.take(N, None, training=True)
    assert captured.source.name == "0"
    assert captured.logits.shape == (N, 3)
    assert "cls_logits" not in captured.features


def test_what_no_longer_fits_is_settled_again_and_told():
    model = nn.Sequential(nn.Linear(4, 3))
    capture = Capture(model)
    chooser = HeadChooser(capture, n_class=None, known={})
    capture.begin(watch=True)
    model(torch.randn(N, 4))
    assert chooser.take(N, None, training=True) is not None
    assert not chooser.needs_watch(training=True)
    capture.begin(watch=False)
    model(torch.randn(N + 1, 4))
    assert chooser.take(N, None, training=True) is None
    assert chooser.needs_watch(training=True)
    assert "settled again" in chooser.problems["plan"]
