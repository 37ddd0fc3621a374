"""A stream of WebDataset's shards: its keys are the ids, whatever the order and the augmentation."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_debugger.records import load
from ml_debugger.torch import trace

wds = pytest.importorskip("webdataset", reason="pip install webdataset")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two shards of four samples."""
    made = []
    for shard in range(2):
        path = tmp_path / f"{shard}.tar"
        with tarfile.open(path, "w") as tar:
            for n in range(4 * shard, 4 * shard + 4):
                content = json.dumps({"x": [float(n)] * 4, "y": n % 3}).encode()
                entry = tarfile.TarInfo(f"sample{n}.json")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        made.append(str(path))
    return made


def test_keys_of_the_shards_are_the_ids(store: Path, shards: list[str]) -> None:
    def sample(one: dict[str, Any]) -> dict[str, Any]:
        x = torch.tensor(one["json"]["x"]) + torch.randn(4)  # another content in each epoch
        return {"x": x, "labels": one["json"]["y"], "__key__": one["__key__"]}

    data = wds.WebDataset(shards, shardshuffle=False, empty_check=False).shuffle(8).decode().map(sample)
    net, train = trace(torch.nn.Linear(4, 3), train=torch.utils.data.DataLoader(data, batch_size=4))
    for _ in range(2):
        for batch in train:
            torch.nn.functional.cross_entropy(net(batch["x"]), batch["labels"]).backward()
    train.recording.finish()
    for epoch in range(2):
        rows = load("Linear", "v1", n_epoch=epoch)
        assert set(rows["id_source"].to_pylist()) == {"__key__"}
        labels = dict(zip(rows["input_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
        assert labels == {f"sample{n}": n % 3 for n in range(8)}
