"""A batch of labelled and of unlabelled samples, from two loaders at once (FixMatch and the like)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from lightning_parts import quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger import records
from ml_debugger.lightning import MLDebuggerCallback

Rows = list[tuple[list[float], int]]


def loader(n: int, size: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(n)
    data = torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    return DataLoader(TensorDataset(*data), batch_size=size)


class SemiSupervised(pl.LightningModule):
    """Two forwards, or one of all samples, of whose rows the first are labelled."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.head, self.at_once, self.seen = torch.nn.Linear(6, 3), at_once, Rows()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        (x, y), (u, _) = batch["labelled"], batch["unlabelled"]
        if self.at_once:
            logits, other = self.head(torch.cat([x, u])).split([len(x), len(u)])
        else:
            logits, other = self.head(x), self.head(u + 0.1)
        self.seen += zip(logits.tolist(), y.tolist(), strict=True)
        return F.cross_entropy(logits, y) + F.cross_entropy(other, other.detach().argmax(1))

    def validation_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, module: SemiSupervised, unlabelled: int) -> None:
    both = CombinedLoader({"labelled": loader(12, 4), "unlabelled": loader(30, unlabelled)}, "min_size")
    callback = MLDebuggerCallback(model_name="net")
    quiet_trainer(folder, callback, max_epochs=1, num_sanity_val_steps=0).fit(module, both, loader(8, 4))


@pytest.mark.parametrize("unlabelled", [4, 8])
def test_rows_are_the_labelled_samples(store: Path, tmp_path: Path, unlabelled: int) -> None:
    module = SemiSupervised(at_once=False)
    fit(tmp_path, module, unlabelled)
    rows, vectors = (records.load("net", "v1", table, "train") for table in ("samples", "vectors"))
    assert rows["label"].to_pylist() == [label for _, label in module.seen]
    torch.testing.assert_close(vectors["logits"].to_pylist(), [logits for logits, _ in module.seen])
    assert len(set(rows["input_id"].to_pylist())) == 12
    assert len(records.load("net", "v1", dataset_type="val")) == 8


def test_rows_that_are_a_part_of_an_output_are_refused_and_the_evaluation_is_not(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, SemiSupervised(at_once=True), 8)
    assert "`head` gives 12 rows for 4 samples" in caplog.text
    assert len(records.load("net", "v1", dataset_type="train")) == 0
    rows = records.load("net", "v1", dataset_type="val")
    assert rows["label"].null_count == 0
    assert len(rows) == 8
