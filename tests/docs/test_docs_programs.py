"""Three complete programs of the API that users' scripts have been written for: as they stand, at a server and without.

Only `model`, `dataloader` and the two lines that set endpoint and key are ours; without a server those two are gone.
"""

from __future__ import annotations

import os
import re

import optional
import pytest
import torch
from docs_parts import DOCS, blocks
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.records import load

PAGE = DOCS / "coming-from" / "hosted-sdk.md"
CREDENTIAL = re.compile(r'^os\.environ\["(MLD_API_ENDPOINT|MLD_API_KEY)"\] = ".*"\n', re.MULTILINE)
EXPECTED = {
    "classification": ("resnet18", "train", 300),
    "detection": ("faster_rcnn", "val", 12),
    "detection3d": ("centerpoint", "val", 4),
}
"""Program -> model, split, samples."""


def digits():
    """A classifier, and a loader of (images, labels, numbers)."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.images[:300]).float() / 16, torch.tensor(data.target[:300])
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    return model, DataLoader(TensorDataset(images, labels, torch.arange(300)), batch_size=64)


def scenes():
    """torchvision's Faster R-CNN, and a loader of (images, targets, ids)."""
    optional.torchvision()
    from detector_parts import Scenes, torchvision_model

    def collate(samples):
        images, targets = zip(*samples, strict=True)
        truth = [{"boxes": one["boxes"], "labels": one["labels"]} for one in targets]
        return list(images), truth, [f"image-{one['image_id']}" for one in targets]

    return torchvision_model("fasterrcnn"), DataLoader(Scenes(12), batch_size=4, collate_fn=collate)


def clouds():
    """The detector of the examples, and a loader of (points, truths, ids)."""
    from lidar_scenes import make_frames
    from pillar_detector import PillarDetector

    torch.manual_seed(0)
    frames = make_frames(n_train=1, n_val=4)[1]

    def collate(samples):
        truth = [{"boxes_3d": one.boxes, "labels_3d": one.labels} for _, one in samples]
        return [torch.from_numpy(one.points) for _, one in samples], truth, [f"frame-{k}" for k, _ in samples]

    return PillarDetector(), DataLoader(list(enumerate(frames)), batch_size=2, collate_fn=collate)


GIVEN = {"classification": digits, "detection": scenes, "detection3d": clouds}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    for name in ("MLD_API_ENDPOINT", "MLD_API_KEY"):
        monkeypatch.setenv(name, "")  # so that what the program sets is taken back
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("fastapi", reason='the server is not installed: pip install "ml-debugger[server]"')
    from server_parts import ServerProcess

    process = ServerProcess(tmp_path_factory.mktemp("server") / "data").start()
    yield process
    process.stop()


def run(task, code):
    model, dataloader = GIVEN[task]()
    names = {"model": model, "dataloader": dataloader}
    exec(compile(code, f"{PAGE.name}: {task}", "exec"), names)
    return names


def check(task, names, capsys):
    model, split, n = EXPECTED[task]
    metrics = names["metrics"].set_index("dataset")
    assert metrics.counts.to_dict() == {split: n}
    assert names["result"].datasets == [split]
    assert {"error_code", "category", "input_id"} <= set(names["issues"].columns)
    assert split in capsys.readouterr().out
    assert load(model, "v1", dataset_type=split).num_rows == n


@pytest.mark.parametrize("task", EXPECTED)
def test_without_a_server(task, capsys):
    code, gone = CREDENTIAL.subn("", blocks(PAGE)[task])
    assert gone == 2
    check(task, run(task, code), capsys)


@pytest.mark.processes
@pytest.mark.parametrize(
    "task",
    ["classification", *(pytest.param(one, marks=pytest.mark.heavy) for one in ("detection", "detection3d"))],
)
def test_at_a_server(task, server, capsys):
    values = {"MLD_API_ENDPOINT": server.url, "MLD_API_KEY": server.key}
    code = CREDENTIAL.sub(lambda line: f'os.environ["{line[1]}"] = "{values[line[1]]}"\n', blocks(PAGE)[task])
    check(task, run(task, code), capsys)
    assert os.environ["MLD_API_KEY"] == server.key
    model, split, _ = EXPECTED[task]
    [found] = [one for one in server.api().get("/v1/runs")["items"] if one["model_name"] == model]
    passes = server.api().get(f"/v1/runs/{found['run_id']}/passes")["items"]
    assert [(one["dataset_type"], one["n_epoch"]) for one in passes] == [(split, 0)]
