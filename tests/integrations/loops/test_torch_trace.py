"""`ml_debugger.torch.trace` on loops of one process; ranks and equality with the others are in test_distributed.py."""

import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from ml_debugger.torch import trace  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


def _walk(model: Any, train: Any, val: Any, epochs: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(epochs):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for batch in val:
                model(**batch)


def _ids(split: str) -> dict[int, str]:
    rows = load("Net", "v1", dataset_type=split).to_pandas()
    assert set(rows.id_source) == {"loader_index"}
    assert (rows.groupby("n_epoch").input_id.nunique() == rows.groupby("n_epoch").size()).all()
    return {epoch: " ".join(sorted(ids, key=int)) for epoch, ids in rows.groupby("n_epoch").input_id}


def test_a_loop_as_it_stands_is_recorded() -> None:
    net = Net()
    model, train, val = trace(
        net, train=DataLoader(Indexed(7), 2, shuffle=True), val=DataLoader(Indexed(3), 2)
    )
    assert model is net
    assert len(train) == 4
    assert isinstance(val, DataLoader)
    _walk(model, train, val)
    train.recording.finish()
    assert _ids("train") == {0: "0 1 2 3 4 5 6", 1: "0 1 2 3 4 5 6"}
    assert _ids("val") == {0: "0 1 2", 1: "0 1 2"}


@pytest.mark.parametrize("kind", ["average", "both"])
def test_a_walk_by_another_model_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """An average of the weights is validated, alone or beside the model: nothing is passed over in silence."""
    net = Net()
    average = AveragedModel(net).eval()
    val: Any = DataLoader(Indexed(6), 2)
    model, val = trace(net, val=val, model_name="plain")
    model.eval()
    with torch.no_grad():
        for called in (average, model) if kind == "both" else (average,):
            for batch in val:
                called(**batch)
    val.recording.finish()
    [told] = [r.getMessage() for r in caplog.records if "made no forward" in r.getMessage()]
    assert "Net" in told
    assert "3 batches" in told
    assert "another model_name" in told
    assert load("plain", "v1", dataset_type="val").num_rows == (6 if kind == "both" else 0)
    # As it says:
    model, val = trace(average, val=DataLoader(Indexed(6), 2), model_name="average")
    with torch.no_grad():
        for batch in val:
            average(**batch)
    val.recording.finish()
    assert load("average", "v1", dataset_type="val").num_rows == 6


def test_where_nothing_is_listened_for_no_other_model_is_guessed(caplog: pytest.LogCaptureFixture) -> None:
    """A regression is refused in its first batch; the walks after it have nothing to be heard."""
    net, criterion = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    model, train, val = trace(
        net,
        train=DataLoader(Indexed(6), 2),
        val=DataLoader(Indexed(4), 2),
        criterion=criterion,
        model_name="plain",
    )
    for loader in (train, val, train, val):
        for batch in loader:
            criterion(model(batch["x"]), batch["labels"].float()[:, None]).backward()
    train.recording.finish()
    assert any("looks like regression" in record.getMessage() for record in caplog.records)
    assert not any("made no forward" in record.getMessage() for record in caplog.records)


def test_a_compiled_model_is_seen_through() -> None:
    model, train, val = trace(
        torch.compile(Net(), backend="eager"), train=DataLoader(Indexed(4), 2), val=DataLoader(Indexed(2), 2)
    )
    _walk(model, train, val, 1)
    train.recording.finish()
    assert _ids("train") == {0: "0 1 2 3"}


class Prefetching:
    """A loader around a loader, as timm's `PrefetchLoader` is: no `DataLoader`, holds one as `loader`."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        ahead: Any = None
        for batch in self.loader:
            if ahead is not None:
                yield ahead
            ahead = batch
        if ahead is not None:
            yield ahead

    def __len__(self) -> int:
        return len(self.loader)


def test_a_loader_around_a_loader_gives_its_indices() -> None:
    loaders = (Prefetching(DataLoader(Indexed(n), 2, shuffle=n == 7)) for n in (7, 3))
    model, train, val = trace(Net(), **dict(zip(("train", "val"), loaders, strict=True)))
    _walk(model, train, val)
    train.recording.finish()
    assert _ids("train") == {0: "0 1 2 3 4 5 6", 1: "0 1 2 3 4 5 6"}
    rows = load("Net", "v1", dataset_type="train", table="vectors").to_pandas()
    features = rows.features.map(lambda one: one[0])
    assert (features == rows.input_id.astype(float)).all(), "ids of another batch"


def test_an_unknown_option_is_told_at_once() -> None:
    with pytest.raises(TypeError, match=r"trace.*unexpected keyword argument 'trian'"):
        trace(Net(), trian=None)


class _Pair(torch.nn.Module):
    """Gives (features, logits), or its own loss beside them."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.body, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 5)

    def forward(self, x: Any, labels: Any = None) -> Any:
        features = self.body(x).relu()
        z = self.head(features)
        if not self.own:
            return features, z
        return {"loss": torch.nn.functional.cross_entropy(z, labels), "a": features, "b": z}


@pytest.mark.parametrize("how", ["a criterion", "the model's own loss"])
def test_a_loop_shows_its_loss(how: str) -> None:
    criterion = torch.nn.CrossEntropyLoss()
    own = how != "a criterion"
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    given = {} if own else {"criterion": criterion}
    model, train = trace(_Pair(own), train=DataLoader(rows, 4), model_name="Net", **given)
    seen = []
    for batch in train:
        out = model(**batch) if own else model(batch["x"])
        seen.append((out["b"] if own else out[1]).detach().clone())
        (out["loss"] if own else criterion(out[1], batch["labels"])).backward()
    train.recording.finish()
    logits = load("Net", "v1", "vectors")["logits"].to_pylist()
    assert torch.equal(torch.tensor(logits), torch.cat(seen))
    assert load("Net", "v1")["label"].to_pylist() == y.tolist()
    assert pickle.loads(pickle.dumps(criterion)) is not None
