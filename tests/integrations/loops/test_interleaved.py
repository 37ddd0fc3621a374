"""Two traced loaders walked at the same time: a row has what its own forward gave, or there is none, and that is said."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
FIRST = {"train": 0, "val": 100, "test": 200}
"""The index that the first sample of a split has in its features."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


def traced(**sizes: int) -> Any:
    loaders = {
        split: DataLoader(Indexed(size, FIRST[split]), 2, shuffle=split == "train")
        for split, size in sizes.items()
    }
    return trace(Net(), **loaders)


def step(model: Any, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    model(**batch)["loss"].backward()
    optimizer.step()


def recorded(split: str) -> list[int]:
    """The ids of a split's rows, each of which has its own features."""
    ids = load("Net", "v1", dataset_type=split).column("input_id").to_pylist()
    if not ids:
        return []
    vectors = load("Net", "v1", "vectors", split)
    [feature] = [name for name in vectors.column_names if name.startswith("feature")]
    assert [str(int(one[0]) - FIRST[split]) for one in vectors.column(feature).to_pylist()] == ids
    return sorted(map(int, ids))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "are walked at the same time" in r.getMessage()]


def test_an_iterator_that_is_kept_beside_a_training(caplog: pytest.LogCaptureFixture) -> None:
    model, train, val = traced(train=8, val=8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kept = iter(val)
    for batch in train:
        step(model, optimizer, batch)
        with torch.no_grad():
            model(**next(kept))
    train.recording.finish()
    assert recorded("train") == list(range(8)), "the loss says which forward is the training's"
    assert recorded("val") == [0, 1]
    [told] = said(caplog)
    assert "'train' and 'val'" in told
    assert "nothing of 'val'" in told


def test_a_training_and_a_validation_in_step(caplog: pytest.LogCaptureFixture) -> None:
    model, train, val = traced(train=8, val=8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for batch, other in zip(train, val, strict=True):
        with torch.no_grad():
            model(**other)
        step(model, optimizer, batch)
    train.recording.finish()
    ids = recorded("train")
    assert len(ids) == len(set(ids)) == 6, "of the first batches in hand it is not known whose a forward was"
    assert recorded("val") == []
    assert len(said(caplog)) == 1
    assert not [r for r in caplog.records if "made no forward" in r.getMessage()]


@pytest.mark.parametrize("swapped", [False, True])
def test_two_evaluations_in_step(swapped: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, val, test = traced(val=8, test=8)
    model.eval()
    with torch.no_grad():
        for pair in zip(val, test, strict=True):
            for batch in pair[::-1] if swapped else pair:
                model(x=batch["x"])
    val.recording.finish()
    assert recorded("val") == recorded("test") == []
    [told] = said(caplog)
    assert "nothing of 'val' and 'test'" in told


def test_one_inside_another_is_both(caplog: pytest.LogCaptureFixture) -> None:
    """As a training that validates every so many batches does, before or after its own forward."""
    model, train, val = traced(train=8, val=6)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for index, batch in enumerate(train):
        if index % 2:
            step(model, optimizer, batch)
        if index == 1 or index == 2:
            with torch.no_grad():
                for other in val:
                    model(**other)
        if index % 2 == 0:
            step(model, optimizer, batch)
    train.recording.finish()
    assert recorded("train") == list(range(8))
    assert recorded("val") == [i for i in range(6) for _ in range(2)], "two passes"
    assert said(caplog) == []


def test_a_batch_that_is_kept_beside_a_training_takes_no_others_forward() -> None:
    """As one that is drawn to be looked at, its iterator kept; then data are evaluated that are not traced."""
    model, train, val = traced(train=8, val=8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kept = iter(val)
    next(kept)
    for _ in range(2):
        for batch in train:
            step(model, optimizer, batch)
        with torch.no_grad():
            for other in DataLoader(Indexed(4, 300), 2):
                model(**other)
    with torch.no_grad():
        for batch in val:
            model(**batch)
    train.recording.finish()
    assert recorded("train") == [i for i in range(8) for _ in range(2)]
    assert recorded("val") == list(range(8))


@pytest.mark.parametrize("first", [True, False])
def test_a_step_on_a_batch_of_the_validation_too(first: bool) -> None:
    """As searches for an architecture do, with the next batch of a new iterator."""
    model, train, val = traced(train=8, val=8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for batch in train:
        if not first:
            step(model, optimizer, batch)
        other = next(iter(val))
        step(model, optimizer, other)
        if first:
            step(model, optimizer, batch)
    train.recording.finish()
    assert recorded("train") == ([] if first else list(range(8)))
    assert recorded("val") == []
