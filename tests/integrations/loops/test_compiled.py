"""However a model or its step is compiled, the step is not disturbed, and what is recorded is right."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.capture.compiling import COUNTS_TRACED  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")
SIZE = 12


def _compiled(net: Any, way: str, **options: Any) -> Any:
    if way == "in place":
        net.compile(**options)
    return torch.compile(net, **options) if way == "wrapped" else net


def _once(model: Any, x: Any, y: Any) -> Any:
    return nn.functional.cross_entropy(model(x)["logits"], y)


def _twice(model: Any, x: Any, y: Any) -> Any:
    return _once(model, x, y) + _once(model, x, y)


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("way", ["wrapped", "in place", "step", "step of two"])
def test_a_compiled_training_goes_on(way: str, fullgraph: bool) -> None:
    torch._dynamo.reset()
    options = {"backend": "aot_eager", "fullgraph": fullgraph}
    net = Net()
    model, train, val = trace(
        _compiled(net, way, **options),
        train=DataLoader(Indexed(SIZE), 4),
        val=DataLoader(Indexed(SIZE), 4),
        model_name="net",
    )
    step = {"step": torch.compile(_once, **options), "step of two": torch.compile(_twice, **options)}.get(
        way, _once
    )
    for _ in range(2):
        model.train()
        for batch in train:
            step(model, batch["x"], batch["labels"]).backward()
        model.eval()
        with torch.no_grad():
            for batch in val:
                model(batch["x"])
    train.recording.finish()
    for split in ("train", "val"):
        ids = [int(one) for one in load("net", "v1", dataset_type=split).column("input_id").to_pylist()]
        assert sorted(ids) == [i for i in range(SIZE) for _ in range(2)]
        logits = torch.tensor(load("net", "v1", "vectors", split).column("logits").to_pylist())
        own = net.head(torch.stack([Indexed(1, i)[0]["x"] for i in ids])).detach()
        torch.testing.assert_close(logits, own, rtol=2e-2, atol=2e-2)


def test_a_region_is_compiled_once_whatever_is_watched() -> None:
    torch._dynamo.reset()
    model, train = trace(Net(), train=DataLoader(Indexed(SIZE), 4), model_name="net")
    step = torch.compile(_once, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            for batch in train:
                step(model, batch["x"], batch["labels"]).backward()
    train.recording.finish()
    assert load("net", "v1").num_rows == 2 * SIZE


class Checkpointed(Net):
    """A block inside is run anew in the backward pass; nothing may be changed in it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return {"logits": self.head(x + checkpoint(self.block, x, use_reentrant=False))}


@pytest.mark.skipif(not COUNTS_TRACED, reason="compiled around checkpoints from PyTorch 2.6 on")
def test_a_compiled_step_around_a_checkpoint() -> None:
    torch._dynamo.reset()
    model, train = trace(Checkpointed(), train=DataLoader(Indexed(SIZE), 4), model_name="net")
    step = torch.compile(_once, backend="aot_eager", fullgraph=True)
    for batch in train:
        step(model, batch["x"].requires_grad_(), batch["labels"]).backward()
    train.recording.finish()
    assert load("net", "v1").num_rows == SIZE


class PartlyCompiled(nn.Module):
    """An eager part beside one that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.net = nn.Linear(4, 4), torch.compile(Net(), backend="aot_eager")

    def forward(self, x: Any) -> Any:
        return self.net(self.back(x))


def test_what_is_not_compiled_is_watched_no_longer_than_needed() -> None:
    torch._dynamo.reset()
    model, train = trace(PartlyCompiled(), train=DataLoader(Indexed(SIZE), 4), model_name="net")
    for batch in train:
        _once(model, batch["x"], batch["labels"]).backward()
    assert not model.back._forward_hooks
    train.recording.finish()
    assert load("net", "v1").num_rows == SIZE
