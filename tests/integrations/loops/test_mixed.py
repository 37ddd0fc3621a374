"""Samples that a step mixes: their labels are the loss's shares of classes, however the loss is written."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
N, K, BATCH = 24, 3, 8
SHARE = 0.75
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % K


class Total(nn.Module):
    """A loss of one's own: calls what it is given."""

    def forward(self, made: Callable[[], torch.Tensor]) -> torch.Tensor:
        return made()


def _shares(y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return SHARE * F.one_hot(y, K) + (1 - SHARE) * F.one_hot(other, K)


def _two_hard(z, y, other):
    return SHARE * F.cross_entropy(z, y) + (1 - SHARE) * F.cross_entropy(z, other)


def _two_smoothed(z, y, other):
    one, two = (F.cross_entropy(z, t, label_smoothing=0.1) for t in (y, other))
    return (one * SHARE + two * (1 - SHARE)) / 2


def _each(z, y, other):
    share = torch.full((len(y),), SHARE)
    one, two = (F.cross_entropy(z, t, reduction="none") for t in (y, other))
    return (one * share + two * (1 - share)).mean()


def _soft(z, y, other):
    return F.cross_entropy(z, _shares(y, other))


def _soft_negated(z, y, other):
    return torch.sum(-_shares(y, other) * F.log_softmax(z, dim=-1), dim=-1).mean()


def _train(loss_of, mixed=lambda index: True, epochs=1):
    """Trains on mixed samples; returns the shares of each row, as drawn, and what was recorded."""
    torch.manual_seed(0)
    net, total = nn.Linear(4, K), Total()
    model, train = trace(net, train=DataLoader(TensorDataset(X, Y), BATCH), model_name="net", criterion=total)
    wanted = []
    for _ in range(epochs):
        for index, (x, y) in enumerate(train):
            other = y.roll(1) if mixed(index) else y
            inputs = SHARE * x + (1 - SHARE) * x.roll(1, 0) if mixed(index) else x
            z = model(inputs)
            total(lambda z=z, y=y, other=other: loss_of(z, y, other)).backward()
            wanted.append(_shares(y, other))
    train.recording.finish()
    return torch.cat(wanted).numpy(), load("net", "v1")


def _soft_of(rows):
    hard = rows["label"].to_pylist()
    soft = rows["soft_label"].to_pylist()
    return np.array([np.eye(K)[h] if s is None else s for h, s in zip(hard, soft, strict=True)])


@pytest.mark.parametrize("loss_of", [_two_hard, _two_smoothed, _each, _soft, _soft_negated])
def test_mixed_samples_have_their_shares(loss_of):
    wanted, rows = _train(loss_of)
    assert rows.num_rows == N
    np.testing.assert_allclose(_soft_of(rows), wanted, atol=1e-6)


def test_mixing_that_begins_later_is_seen(caplog):
    """Mixed with a chance, as CutMix is: the first batch has plain labels, and settles that these are read."""

    def loss_of(z, y, other):
        return F.cross_entropy(z, y) if other is y else _two_hard(z, y, other)

    wanted, rows = _train(loss_of, mixed=lambda index: index == 1, epochs=2)
    np.testing.assert_allclose(_soft_of(rows), wanted, atol=1e-6)
    assert caplog.text.count("The loss of a later training batch compares") == 1


@pytest.mark.parametrize("first", [True, False])
def test_losses_shown_one_by_one_give_mixed_samples_no_label(first):
    """A criterion that is called twice does not show the weights: no label is better than a wrong one."""
    torch.manual_seed(0)
    net, criterion = nn.Linear(4, K), nn.CrossEntropyLoss()
    data = DataLoader(TensorDataset(X, Y), BATCH)
    model, train = trace(net, train=data, model_name="net", criterion=criterion)
    for index, (x, y) in enumerate(train):
        z = model(x)
        loss = SHARE * criterion(z, y)
        if (index == 1) != first:
            loss = loss + (1 - SHARE) * criterion(z, y.roll(1))
        loss.backward()
    train.recording.finish()
    labels = load("net", "v1")["label"].to_pylist()
    plain = range(BATCH, 2 * BATCH) if first else [*range(BATCH), *range(2 * BATCH, N)]
    assert labels == [int(Y[i]) if i in plain else None for i in range(N)]


class Several(nn.Module):
    """Binary cross entropy of every class that was mixed in, as timm's with a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, z, target):
        return self.loss(z, (target > 0).float())


def test_targets_of_all_classes_mixed_in_are_no_several_labels():
    """Rows of two classes have no label; those mixed with their own class, and the evaluation, have theirs."""
    torch.manual_seed(0)
    net, criterion = nn.Linear(4, K), Several()
    data = TensorDataset(X, Y)
    model, train, val = trace(
        net, train=DataLoader(data, BATCH), val=DataLoader(data, BATCH), model_name="net", criterion=criterion
    )
    wanted = []
    for x, y in train:
        target = _shares(y, y.flip(0))
        wanted += [int(a) if a == b else None for a, b in zip(y, y.flip(0), strict=True)]
        criterion(model(x), target).backward()
    with torch.no_grad():
        for x, _ in val:
            model(x)
    train.recording.finish()
    labels = load("net", "v1", dataset_type="train")["label"].to_pylist()
    assert labels == wanted
    assert load("net", "v1", dataset_type="val")["label"].to_pylist() == Y.tolist()


def test_several_labels_of_the_batch_itself_are_refused():
    """A data set with several classes a sample, and one of them beside: its loss compares with what it holds."""
    torch.manual_seed(0)
    net, criterion, several = nn.Linear(4, K), Several(), _shares(Y, Y.roll(1))
    data = TensorDataset(X, Y, (several > 0).float())
    model, train = trace(net, train=DataLoader(data, BATCH), model_name="net", criterion=criterion)
    for x, _, target in train:
        criterion(model(x), target).backward()
    train.recording.finish()
    assert load("net", "v1").num_rows == 0


def test_a_teachers_answers_are_not_labels():
    """Distillation compares the same logits with the labels and with another model's classes."""
    torch.manual_seed(0)
    net, total, teacher = nn.Linear(4, K), Total(), torch.randint(0, K, (N,))
    model, train = trace(net, train=DataLoader(TensorDataset(X, Y), BATCH), model_name="net", criterion=total)
    for index, (x, y) in enumerate(train):
        z, taught = model(x), teacher[index * BATCH : (index + 1) * BATCH]
        total(lambda z=z, y=y, t=taught: _two_hard(z, t, y)).backward()
    train.recording.finish()
    rows = load("net", "v1")
    assert rows["label"].to_pylist() == Y.tolist()
    assert rows["soft_label"].null_count == N


def test_a_later_loss_of_another_forward_is_no_mixing():
    """A step that also learns from its samples in another order, from some batch on."""
    torch.manual_seed(0)
    net, criterion = nn.Linear(4, K), nn.CrossEntropyLoss()
    data = DataLoader(TensorDataset(X, Y), BATCH)
    model, train = trace(net, train=data, model_name="net", criterion=criterion)
    for index, (x, y) in enumerate(train):
        loss = criterion(model(x), y)
        if index:
            loss = loss + criterion(model(x.flip(0)), y.flip(0))
        loss.backward()
    train.recording.finish()
    assert load("net", "v1")["label"].to_pylist() == Y.tolist()


def test_a_loss_put_together_otherwise_is_no_mixing():
    """A term that is added later, such as a penalty, leaves labels as they are."""
    torch.manual_seed(0)
    net, total = nn.Linear(4, K), Total()
    model, train = trace(net, train=DataLoader(TensorDataset(X, Y), BATCH), model_name="net", criterion=total)
    for index, (x, y) in enumerate(train):
        z = model(x)
        total(
            lambda z=z, y=y, i=index: F.cross_entropy(z, y) + (0.1 * z.pow(2).mean() if i else 0)
        ).backward()
    train.recording.finish()
    assert load("net", "v1")["label"].to_pylist() == Y.tolist()


NOT_MIXED = {
    "a module beside a functional loss": lambda z, y, taught: F.cross_entropy(z, y) + F.mse_loss(z, taught),
    "a teacher that is nearly right": lambda z, y, taught: (
        F.cross_entropy(z, y)
        + 0.5 * F.cross_entropy(z, torch.where(torch.arange(len(y)) < 1, (y + 1) % K, y))
    ),
    "a teacher that is right": lambda z, y, taught: (
        F.cross_entropy(z, y) + 0.5 * F.cross_entropy(z, y.clone())
    ),
    "taken from it": lambda z, y, taught: F.cross_entropy(z, y) - 0.1 * F.cross_entropy(z, y.roll(1)),
}


@pytest.mark.parametrize("case", NOT_MIXED)
def test_what_is_no_mixing_has_its_labels(case):
    torch.manual_seed(0)
    net, total, unnamed = nn.Linear(4, K), Total(), nn.MSELoss()
    data = DataLoader(TensorDataset(X, Y), BATCH)
    given = {} if case.startswith("a module") else {"criterion": total}
    model, train = trace(net, train=data, model_name="net", **given)
    for x, y in train:
        z = model(x)
        unnamed(z, torch.randn(len(y), K))  # says nothing
        total(lambda z=z, y=y: NOT_MIXED[case](z, y, torch.randn(len(y), K))).backward()
    train.recording.finish()
    assert load("net", "v1")["label"].to_pylist() == Y.tolist()


def test_a_later_loss_of_another_head_is_no_mixing():
    """Its targets may be the labels in another order by chance, where classes are few."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, K), nn.Linear(4, K)

        def forward(self, x):
            return self.a(x), self.b(x)

    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss()
    data = DataLoader(TensorDataset(X, Y), BATCH)
    model, train = trace(Two(), train=data, model_name="net", criterion=criterion)
    for index, (x, y) in enumerate(train):
        z, other = model(x)
        loss = criterion(z, y)
        if index:
            loss = loss + criterion(other, y.roll(1))
        loss.backward()
    train.recording.finish()
    assert load("net", "v1")["label"].to_pylist() == Y.tolist()


def test_a_criterion_keeps_no_recorder_alive_and_compiles_once():
    """In a step that is compiled as a whole the hook is traced as nothing."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    criterion, counted = nn.CrossEntropyLoss(), CompileCounterWithBackend("aot_eager")

    def training():
        model, train = trace(nn.Linear(4, K), train=DataLoader(TensorDataset(X, Y), BATCH), model_name="net")
        step = torch.compile(lambda x, y: criterion(model(x), y), backend=counted, fullgraph=True)
        for _ in range(2):
            for x, y in train:
                step(x, y).backward()
        train.recording.finish()
        return weakref.ref(train.recording.recorder)

    recorder = training()
    assert counted.frame_count == 1
    assert load("net", "v1")["label"].to_pylist() == 2 * Y.tolist()
    torch._dynamo.reset()
    gc.collect()
    assert recorder() is None
    criterion(nn.Linear(4, K)(X), Y).backward()


class Attributes(dict):
    """A dictionary by attributes, as many have one: what is not there is a KeyError."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("plain", [0, 1])
def test_whatever_a_criterion_returns_does_not_raise_into_the_step(plain, caplog):
    class Loss(nn.Module):
        calls = 0

        def forward(self, z, y):
            self.calls += 1
            made = Attributes(total=F.cross_entropy(z, y))
            return made.total if self.calls <= plain else made

    torch.manual_seed(0)
    criterion, data = Loss(), DataLoader(TensorDataset(X, Y), BATCH)
    model, train = trace(nn.Linear(4, K), train=data, model_name="net", criterion=criterion)
    for x, y in train:
        loss = criterion(model(x), y)
        (loss.total if isinstance(loss, dict) else loss).backward()
    train.recording.finish()
    assert load("net", "v1")["label"].to_pylist() == Y.tolist()
    assert "as no loss" not in caplog.text
    assert "KeyError" not in caplog.text


def test_losses_of_other_rows_of_one_output_are_no_mixing():
    """Labelled and unlabelled samples go through the model at once; each loss takes its part of the rows."""
    torch.manual_seed(0)
    total, data = Total(), DataLoader(TensorDataset(X, Y), BATCH)
    model, train = trace(nn.Linear(4, K), train=data, model_name="net", criterion=total)
    half = BATCH // 2
    for x, y in train:
        z = model(x)

        def loss(z=z, y=y):
            first = F.cross_entropy(z[:half], y[:half])
            return 0.75 * first + 0.25 * F.cross_entropy(z[half:], y[:half].flip(0))

        total(loss).backward()
    train.recording.finish()
    rows = load("net", "v1")
    assert rows.num_rows == 0 or rows["soft_label"].null_count == rows.num_rows
