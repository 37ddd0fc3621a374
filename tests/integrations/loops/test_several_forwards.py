"""Several forwards in a training's step: recorded is the one that the loss is of, or nothing, which is said."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
SIZE = 12


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


def _train(
    model: nn.Module, step: Callable[[Any, Any, Any], Any], *, criterion: bool = True, frozen: bool = False
) -> Any:
    """A training whose samples begin with their index; `step` gets those of the batch and others, 100 on."""
    model.train(not frozen)
    loss_of = nn.CrossEntropyLoss()
    model, train = trace(
        model,
        train=DataLoader(Indexed(SIZE), 2, shuffle=True),
        model_name="net",
        criterion=loss_of if criterion else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        for batch in train:
            logits = step(model, batch["x"], batch["x"] + 100)
            optimizer.zero_grad()
            loss_of(logits, batch["labels"]).backward()
            optimizer.step()
    train.recording.finish()
    return load("net", "v1", "vectors")


def _holds_its_own(vectors: Any) -> None:
    ids = load("net", "v1").column("input_id").to_pylist()
    [feature] = [name for name in vectors.column_names if name.startswith("feature")]
    assert [str(int(one[0])) for one in vectors.column(feature).to_pylist()] == ids
    assert sorted(map(int, ids)) == [i for i in range(SIZE) for _ in range(2)]


def _teacher_first(model: Any, x: Any, other: Any) -> Any:
    with torch.no_grad():
        model(other)
    return model(x)["logits"]


def _teacher_of_one_first(model: Any, x: Any, other: Any) -> Any:
    return _teacher_first(model, x, other[:1])


def _teacher_last(model: Any, x: Any, other: Any) -> Any:
    logits = model(x)["logits"]
    with torch.no_grad():
        model(other)
    return logits


def _another_first(model: Any, x: Any, other: Any) -> Any:
    model(other)
    return model(x)["logits"]


def _another_last(model: Any, x: Any, other: Any) -> Any:
    logits = model(x)["logits"]
    model(other)
    return logits


@pytest.mark.parametrize(
    "step", [_teacher_first, _teacher_of_one_first, _teacher_last, _another_first, _another_last]
)
def test_the_losss_own_is_recorded(step: Any) -> None:
    _holds_its_own(_train(Net(), step))


@pytest.mark.parametrize("step", [_teacher_first, _another_first])
def test_of_a_training_in_eval_mode_too(step: Any) -> None:
    """Where normalisation's statistics stay as they are."""
    _holds_its_own(_train(Net(), step, frozen=True))


@pytest.mark.parametrize("step", [_teacher_first, _teacher_of_one_first, _teacher_last])
def test_without_a_loss_the_one_with_gradients_is(step: Any) -> None:
    _holds_its_own(_train(Net(), step, criterion=False))


@pytest.mark.parametrize("step", [_teacher_first, _teacher_last, _another_first])
def test_of_a_compiled_model_too(step: Any) -> None:
    _holds_its_own(_train(torch.compile(Net(), backend="eager"), step))


def test_of_a_compiled_model_that_is_called_again_nothing_is(caplog: pytest.LogCaptureFixture) -> None:
    assert _train(torch.compile(Net(), backend="eager"), _another_last).num_rows == 0
    [told] = [r.getMessage() for r in caplog.records if "no other is seen" in r.getMessage()]
    assert "train without torch.compile" in told
    assert f"{2 * SIZE} lost" in caplog.text
