"""Of several forwards in a step rows hold the one of the batch in hand: told by what it was given, or compared with."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.capture.compiling import COUNTS_TRACED  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
SIZE = 12
Loss = nn.CrossEntropyLoss


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


def _train(model: nn.Module, step: Callable[..., None], *, seen: bool = True, size: int = 2) -> None:
    """A training of two epochs; `step` gets the batch, and samples of others with their labels."""
    criterion = Loss()
    model, train = trace(
        model,
        train=DataLoader(Indexed(SIZE), size, shuffle=True),
        model_name="net",
        criterion=criterion if seen else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    for _ in range(2):
        for batch in train:
            optimizer.zero_grad()
            step(model, criterion, batch, batch["x"] + 100, (batch["labels"] + 1) % 3)
            optimizer.step()
    train.recording.finish()


def _rows(split: str = "train") -> list[tuple[int, int]]:
    """(the id of a row, the sample that its feature says)."""
    ids = load("net", "v1", dataset_type=split).column("input_id").to_pylist()
    vectors = load("net", "v1", "vectors", split)
    names = [name for name in vectors.column_names if name.startswith("feature")]
    found = [one for name in names for one in vectors.column(name).to_pylist()]
    return [(int(row), round(one[0])) for row, one in zip(ids, found, strict=True)]


def _all_own(split: str = "train", epochs: int = 2) -> None:
    rows = _rows(split)
    assert [own for own, _ in rows] == [said for _, said in rows]
    assert sorted(own for own, _ in rows) == [i for i in range(SIZE) for _ in range(epochs)]


def _other_first(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
    reg = model(other)["logits"].square().mean()
    (loss(model(batch["x"])["logits"], batch["labels"]) + 0.01 * reg).backward()


def test_without_a_loss_the_forward_that_was_given_the_batch() -> None:
    _train(Net(), _other_first, seen=False)
    _all_own()


def test_a_copy_of_the_batch_is_the_batch() -> None:
    """As what moved to a device is."""

    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        _other_first(model, loss, {"x": batch["x"].clone(), "labels": batch["labels"]}, other, labels)

    _train(Net(), step, seen=False)
    _all_own()


def test_of_an_evaluation_too() -> None:
    model, val = trace(Net(), val=DataLoader(Indexed(SIZE), 2), model_name="net")
    model.eval()
    with torch.no_grad():
        for batch in val:
            model(batch["x"] + 100)
            model(batch["x"])
    val.recording.finish()
    _all_own("val", 1)


@pytest.mark.parametrize("look", [True, False])
def test_a_step_that_sorts_its_batch_is_refused(look: bool, caplog: pytest.LogCaptureFixture) -> None:
    """By its losses (the hardest first), or by anything: also where it is given to the model once."""

    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        losses = -batch["x"][:, 1]
        if look:
            with torch.no_grad():
                made = model(batch["x"])["logits"]
                losses = nn.functional.cross_entropy(made, batch["labels"], reduction="none")
        order = losses.argsort()
        loss(model(batch["x"][order])["logits"], batch["labels"][order]).backward()

    _train(Net(), step, seen=False, size=SIZE)
    rows = load("net", "v1", "vectors")
    assert rows.num_rows == 0
    assert "another order" in caplog.text


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_of_several_losses_the_one_of_the_batchs_labels(first: bool, at_once: bool) -> None:
    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        parts = [(other, labels), (batch["x"], batch["labels"])]
        losses = []
        for x, y in parts if first else parts[::-1]:
            losses.append(loss(model(x)["logits"], y))
            if not at_once:
                losses[-1].backward()
        if at_once:
            sum(losses).backward()

    _train(Net(), step)
    _all_own()


class Sum(nn.Module):
    """One criterion of both: the labels of the batch, and others."""

    def forward(self, a: Any, b: Any, y: Any, other: Any) -> Any:
        return nn.functional.cross_entropy(a, y) + nn.functional.cross_entropy(b, other)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("chance", [True, False], ids=["equal at first", "other"])
def test_of_one_loss_of_two_batches_the_part_of_the_batchs_labels(first: bool, chance: bool) -> None:
    """Also where the labels of both are the same in the batch that settles it."""
    criterion = Sum()
    model, train = trace(Net(), train=DataLoader(Indexed(SIZE), 2), model_name="net", criterion=criterion)
    for epoch in range(2):
        for i, batch in enumerate(train):
            y = batch["labels"] if chance and not epoch and not i else (batch["labels"] + 1) % 3
            own, other = batch["x"], batch["x"] + 100
            if first:
                a, b = model(own)["logits"], model(other)["logits"]
            else:
                b, a = model(other)["logits"], model(own)["logits"]
            criterion(a, b, batch["labels"], y).backward()
    train.recording.finish()
    _all_own()


def _two(model: Any, loss: Any, first: Any, second: Any, y: Any, z: Any) -> None:
    a, b = model(first)["logits"], model(second)["logits"]
    parts = nn.functional.cross_entropy(a, y), nn.functional.cross_entropy(b, z)
    loss(*parts).backward()


class Added(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return a + b


@pytest.mark.parametrize("kind", ["own last", "other last", "twice", "twice mixed"])
def test_a_compiled_model_with_a_loss_of_two_forwards(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    criterion, inner = Added(), Net()
    torch._dynamo.reset()
    inner.compile(backend="aot_eager")
    model, train = trace(
        inner, train=DataLoader(Indexed(SIZE), 2, shuffle=True), model_name="net", criterion=criterion
    )
    for _ in range(2):
        for batch in train:
            x, y, other, z = batch["x"], batch["labels"], batch["x"] + 100, (batch["labels"] + 1) % 3
            if kind == "own last":
                _two(model, criterion, other, x, z, y)
            elif kind == "other last":
                _two(model, criterion, x, other, y, z)
            elif kind == "twice":
                _two(model, criterion, x, x, y, y)
            else:
                soft = 0.7 * nn.functional.one_hot(y, 3).float() + 0.3 * nn.functional.one_hot(z, 3)
                _two(model, criterion, x, x, soft, soft)
    train.recording.finish()
    if kind == "other last":
        assert load("net", "v1", "vectors").num_rows == 0
        assert "no other is seen" in caplog.text
    else:
        _all_own()


def test_of_losses_that_an_accelerator_sends_backward_too() -> None:
    accelerate = pytest.importorskip("accelerate")
    from ml_debugger.accelerate import trace as trace_prepared

    accelerator = accelerate.Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model, optimizer, train = accelerator.prepare(
        model, optimizer, DataLoader(Indexed(SIZE), 2, shuffle=True)
    )
    own = accelerator.backward
    model, train = trace_prepared(accelerator, model, train=train, model_name="net")
    for _ in range(2):
        for batch in train:
            optimizer.zero_grad()
            others = (batch["labels"] + 1) % 3
            accelerator.backward(nn.functional.cross_entropy(model(batch["x"] + 100)["logits"], others))
            accelerator.backward(nn.functional.cross_entropy(model(batch["x"])["logits"], batch["labels"]))
            optimizer.step()
    assert accelerator.backward == own, "it has its own method again"
    train.recording.finish()
    _all_own()


@pytest.mark.skipif(not COUNTS_TRACED, reason="a compiled step's calls are counted from PyTorch 2.6 on")
@pytest.mark.parametrize("last", ["own", "other"])
def test_in_a_step_that_is_compiled_as_a_whole(last: str, caplog: pytest.LogCaptureFixture) -> None:
    def compiled(model: Any, first: Any, second: Any) -> Any:
        return model(first)["logits"].square().mean() + model(second)["logits"].mean()

    torch._dynamo.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)

    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        first, second = (other, batch["x"]) if last == "own" else (batch["x"], other)
        run(model, first, second).backward()

    model = Net()
    with torch._dynamo.config.patch(error_on_recompile=True):
        _train(model, step, seen=False)
    if last == "own":
        ids = map(int, load("net", "v1").column("input_id").to_pylist())
        logits = torch.tensor(load("net", "v1", "vectors").column("logits").to_pylist())
        own = model.head(torch.stack([Indexed(1, i)[0]["x"] for i in ids]))
        torch.testing.assert_close(logits, own.detach(), rtol=1e-2, atol=1e-2)
    else:
        assert load("net", "v1", "vectors").num_rows == 0
        assert "called several times" in caplog.text


def test_soft_targets_are_those_of_the_loss_that_is_heeded() -> None:
    """Of every batch, not of the watched one alone."""

    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        loss(model(other)["logits"], labels).backward()
        soft = 0.9 * nn.functional.one_hot(batch["labels"], 3) + 0.1 / 3
        loss(model(batch["x"])["logits"], soft).backward()

    _train(Net(), step)
    _all_own()
    rows = load("net", "v1")
    assert rows.column("label").to_pylist() == [int(one) % 3 for one in rows.column("input_id").to_pylist()]
    assert rows.column("soft_label").null_count == 0


def test_a_mask_of_ones_tells_nothing() -> None:
    class Masked(Net):
        def forward(self, x: Any, mask: Any) -> Any:
            return super().forward(x * mask)

    def step(model: Any, loss: Any, batch: Any, other: Any, labels: Any) -> None:
        mask = torch.ones_like(batch["x"])
        loss(model(batch["x"].roll(1, 0), mask)["logits"], batch["labels"].roll(1, 0)).backward()

    _train(Masked(), step, seen=False, size=6)
    assert load("net", "v1", "vectors").num_rows == 0


@pytest.mark.parametrize("kind", ["two losses", "a penalty"])
def test_a_compiled_models_other_terms(kind: str) -> None:
    """A second loss that is of the call seen last is not the batch's; a compiled penalty is of no call."""
    criterion, total, inner = Loss(), Added(), Net()
    torch._dynamo.reset()
    inner.compile(backend="aot_eager")
    penalty = torch.compile(lambda weight: (weight**2).sum() * 1e-4, backend="aot_eager")
    watched = criterion if kind == "two losses" else total
    model, train = trace(inner, train=DataLoader(Indexed(SIZE), 4), model_name="net", criterion=watched)
    for batch in train:
        x, y = batch["x"], batch["labels"]
        if kind == "two losses":
            own, others = model(x)["logits"], model(x + 100)["logits"]
            (criterion(own, y) + criterion(others, (y + 1) % 3)).backward()
        else:
            soft = 0.9 * nn.functional.one_hot(y, 3) + 0.1 * nn.functional.one_hot(y.roll(1), 3)
            made = model(0.9 * x + 0.1 * x.roll(1, 0))["logits"]
            total(nn.functional.cross_entropy(made, soft), penalty(model.head.weight)).backward()
    train.recording.finish()
    assert load("net", "v1", "vectors").num_rows == (0 if kind == "two losses" else SIZE)


def test_a_method_that_the_user_sets_meanwhile_stays() -> None:
    accelerate = pytest.importorskip("accelerate")
    from ml_debugger.accelerate import trace as trace_prepared

    accelerator = accelerate.Accelerator(cpu=True)
    model, train = accelerator.prepare(Net(), DataLoader(Indexed(SIZE), 4))
    seen = 0
    for name in ("first", "second"):
        traced, loader = trace_prepared(accelerator, model, train=train, model_name=name)
        for epoch in range(2):
            if epoch and name == "first":
                theirs = accelerator.backward

                def mine(loss: Any, theirs: Any = theirs) -> None:
                    nonlocal seen
                    seen += 1
                    theirs(loss)

                accelerator.backward = mine
            for batch in loader:
                soft = 0.9 * nn.functional.one_hot(batch["labels"], 3) + 0.1 / 3
                accelerator.backward(nn.functional.cross_entropy(traced(batch["x"])["logits"], soft))
        loader.recording.finish()
        if name == "first":
            assert seen == SIZE // 4
            del accelerator.backward
    assert "backward" not in vars(accelerator)
    assert load("second", "v1").column("soft_label").null_count == 0
