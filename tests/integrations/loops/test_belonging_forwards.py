"""Logits and features of one row are of one forward, whichever modules counted which of their calls."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
SIZE = 12


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


class Deep(nn.Module):
    """A layer that hands its input on, run in one of several ways, and a head; what is read is the layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.way, self.back, self.head = way, nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.back.weight.data = torch.eye(4)

    def forward(self, x: Any) -> Any:
        if self.way == "frozen":
            with torch.no_grad():
                made = self.back(x)
            return self.head(made)
        if self.way == "plain":
            return self.head(self.back(x))
        # The old way runs the layer without gradients, and once more in the backward pass.
        return self.head(checkpoint(self.back, x.requires_grad_(), use_reentrant=self.way == "reentrant"))


def _teacher_first(model: Any, x: Any, other: Any, labels: Any) -> Any:
    with torch.no_grad():
        model(other)
    return nn.functional.cross_entropy(model(x), labels)


def _both(model: Any, x: Any, other: Any, labels: Any) -> Any:
    logits = model(x)
    return nn.functional.cross_entropy(logits, labels) + 0.01 * model(other).square().mean()


def _three(model: Any, x: Any, other: Any, labels: Any) -> Any:
    with torch.no_grad():
        model(other)
    return _both(model, x, other, labels)


def _hardest(model: Any, x: Any, other: Any, labels: Any) -> Any:
    """The whole batch without gradients, and what is hardest in it with them."""
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(x), labels, reduction="none")
    worst = losses.topk(1).indices
    return nn.functional.cross_entropy(model(x[worst]), labels[worst])


@pytest.mark.parametrize("way", ["plain", "frozen", "reentrant", "nonreentrant"])
@pytest.mark.parametrize("loss_of", [_teacher_first, _both, _three, _hardest])
def test_a_row_is_of_one_forward(loss_of: Callable[..., Any], way: str) -> None:
    model, train = trace(
        Deep(way),
        train=DataLoader(Indexed(SIZE), 2, shuffle=True),
        model_name="deep",
        target_layers={"features": "back"},
    )
    optimizer = torch.optim.SGD(model.head.parameters(), 1e-3)
    for _ in range(2):
        for batch in train:
            optimizer.zero_grad()
            loss_of(model, batch["x"], batch["x"] + 100, batch["labels"]).backward()
            optimizer.step()
    train.recording.finish()
    ids = load("deep", "v1").column("input_id").to_pylist()
    vectors = load("deep", "v1", "vectors")
    [name] = [name for name in vectors.column_names if name.startswith("feature")]
    assert sorted(map(int, ids)) == [i for i in range(SIZE) for _ in range(2)]
    assert [one and str(round(one[0])) for one in vectors.column(name).to_pylist()] == ids


class Wrapped(nn.Module):
    """A compiled network inside the model that is traced: its logits are seen outside it, its layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(Net(), backend="eager")

    def forward(self, x: Any) -> Any:
        return self.net(x)["logits"]


@pytest.mark.parametrize("again", [False, True])
def test_a_compiled_layers_features_are_not_those_of_a_later_forward(again: bool) -> None:
    model, train = trace(Wrapped(), train=DataLoader(Indexed(SIZE), 2), model_name="wrapped")
    for batch in train:
        loss = nn.functional.cross_entropy(model(batch["x"]), batch["labels"])
        if again:
            loss = loss + 0.01 * model(batch["x"] + 100).square().mean()
        loss.backward()
    train.recording.finish()
    ids = load("wrapped", "v1").column("input_id").to_pylist()
    vectors = load("wrapped", "v1", "vectors")
    found = [
        one
        for name in vectors.column_names
        if name.startswith("feature")
        for one in vectors.column(name).to_pylist()
    ]
    assert ids == [str(i) for i in range(SIZE)]
    if again:
        assert not any(found), "only the last call of what is compiled is seen"
    else:
        assert [str(round(one[0])) for one in found] == ids
