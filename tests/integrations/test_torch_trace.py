"""`ml_debugger.torch.trace` on loops of one process; ranks and equality with the others are in test_distributed.py."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from loop_parts import Indexed, Net  # noqa: E402
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
