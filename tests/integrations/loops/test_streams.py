"""Streams without an index: keys of their own are the ids; with none the receipt says what a hash can not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from ml_debugger.records import load
from ml_debugger.torch import trace
from mld_core.records.format.layout import RunKey, Store
from mld_core.tracing.guard import forget_told

N, EPOCHS = 8, 2


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_told()


class Rows(IterableDataset[Any]):
    """Dictionaries with another content in each epoch, as augmentation makes it."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(N):
            x = torch.randn(4) + i
            yield {"x": x, "labels": i % 3, **{name: values[i] for name, values in self.columns.items()}}


class Pipeline:
    """A loader as DALI's `DALIGenericIterator` is: a list with one dictionary for each pipeline, no `DataLoader`."""

    def __len__(self) -> int:
        return N // 4

    def __iter__(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        for first in range(0, N, 4):
            names = [f"/data/{i}.jpg".encode().ljust(12, b"\0") for i in range(first, first + 4)]
            yield [
                {
                    "data": torch.randn(4, 4),
                    "label": torch.arange(first, first + 4)[:, None] % 3,
                    "source_info": torch.tensor([list(name) for name in names], dtype=torch.uint8),
                }
            ]


def recorded(loader: Any, model_input: Any) -> Any:
    net, train = trace(torch.nn.Linear(4, 3), train=loader)
    for _ in range(EPOCHS):
        for batch in train:
            x, y = model_input(batch)
            torch.nn.functional.cross_entropy(net(x), y).backward()
    train.recording.finish()
    return load("Linear", "v1", n_epoch=None).to_pandas()


@pytest.mark.parametrize("key", ["idx", "index", "__index_level_0__", "__key__"])
def test_a_stream_with_keys(store: Path, key: str) -> None:
    loader = DataLoader(Rows(**{key: [f"k{i}" if key == "__key__" else 100 + i for i in range(N)]}), 4)
    rows = recorded(loader, lambda batch: (batch["x"], batch["labels"]))
    assert set(rows.id_source) == {key}
    names = [f"k{i}" if key == "__key__" else str(100 + i) for i in range(N)]
    for _, epoch in rows.groupby("n_epoch"):
        assert epoch.input_id.tolist() == names
        assert epoch.label.tolist() == [i % 3 for i in range(N)]


def test_dali_gives_its_files(store: Path) -> None:
    rows = recorded(Pipeline(), lambda batch: (batch[0]["data"], batch[0]["label"].squeeze(1)))
    assert set(rows.id_source) == {"source_info"}
    assert rows.input_id.tolist() == [f"/data/{i}.jpg" for i in range(N)] * EPOCHS
    assert rows.label.tolist() == [i % 3 for i in range(N)] * EPOCHS


@pytest.mark.parametrize("columns", [{}, {"idx": [0] * N}])
def test_a_stream_without_keys_says_what_a_hash_can_not_do(
    store: Path, columns: dict[str, list[int]]
) -> None:
    rows = recorded(DataLoader(Rows(**columns), 4), lambda batch: (batch["x"], batch["labels"]))
    assert set(rows.id_source) == {"content_hash"}
    assert rows.input_id.nunique() == N * EPOCHS, "another content in each epoch: no history"
    receipt = Store().run_info(RunKey("Linear", "v1"))["receipt"]
    assert "ids: content hash (no history over epochs under augmentation)" in receipt


def test_a_stream_of_hugging_face(store: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    data = datasets.Dataset.from_list([{"x": [float(i)] * 4, "labels": i % 3, "idx": i} for i in range(N)])
    loader = DataLoader(data.to_iterable_dataset().shuffle(seed=1, buffer_size=4).with_format("torch"), 4)
    rows = recorded(loader, lambda batch: (batch["x"], batch["labels"]))
    assert set(rows.id_source) == {"idx"}
    assert (rows.label == rows.input_id.astype(int) % 3).all()
    assert set(rows.groupby("n_epoch").input_id.nunique()) == {N}
