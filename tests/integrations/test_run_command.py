"""`mld run`: strangers' programs run as they would alone, and are recorded on every rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from detector_parts import yolo_data

from mld_core.records.format.layout import Store
from mld_core.records.read.reader import load

MLD = [sys.executable, "-m", "mld_core.cli.main", "run"]

LIGHTNING = """
import torch, lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)
    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.head(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = DataLoader(TensorDataset(torch.randn(12, 4), torch.arange(12) % 3), batch_size=4)
pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
           enable_progress_bar=False).fit(Net(), data)
"""

TRANSFORMERS = """
import torch
from transformers import Trainer, TrainingArguments

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)
    def forward(self, x, labels=None):
        logits = self.head(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

data = [{"x": torch.randn(4), "labels": i % 3} for i in range(12)]

def trainer(**more):
    return Trainer(Net(), TrainingArguments("out", use_cpu=True, num_train_epochs=1, report_to=[], disable_tqdm=True,
        save_strategy="no", per_device_train_batch_size=4), train_dataset=data, **more)

trainer().train()
from ml_debugger.huggingface import MLDebuggerCallback
trainer(callbacks=[MLDebuggerCallback(model_name="own")]).train()
late = trainer()
late.add_callback(MLDebuggerCallback(model_name="late"))
late.train()
"""

MMENGINE = """
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3)
    def forward(self, x, labels, mode="tensor"):
        logits = self.head(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels)} if mode == "loss" else logits

data = DataLoader(TensorDataset(torch.randn(12, 4), torch.arange(12) % 3), batch_size=4)
Runner(Net(), "out", train_dataloader=data, train_cfg=dict(by_epoch=True, max_epochs=1),
       optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1))).train()
"""

ALONE = """
import json, os, signal, sys, time
spec = __spec__ and __spec__.name
print(json.dumps([__name__, spec, sys.argv, sys.path, sys.stdin.read(), sorted(m for m in sys.modules if "torch" in m)]))
sys.exit(7)
"""


def run(*command: str, folder: Path, under: bool = True, give: str = "") -> subprocess.CompletedProcess[str]:
    argv = [*MLD, *command] if under else list(command)
    return subprocess.run(
        argv, cwd=folder, input=give, capture_output=True, text=True, timeout=300, check=False
    )


def program(folder: Path, text: str) -> str:
    file = folder / "train.py"
    file.write_text(text)
    return file.name


@pytest.mark.parametrize(
    "form", [["train.py", "a", "--epochs", "3"], ["-m", "train", "--", "-c"], ["-c", ALONE, "x"]]
)
def test_a_program_finds_what_it_finds_alone(tmp_path: Path, form: list[str]) -> None:
    program(tmp_path, ALONE)
    alone = run(sys.executable, *form, folder=tmp_path, under=False, give="said")
    under = run(sys.executable, *form, folder=tmp_path, give="said")
    assert json.loads(under.stdout) == json.loads(alone.stdout)
    assert (under.returncode, under.stderr) == (alone.returncode, alone.stderr) == (7, "")


def test_a_signal_reaches_the_program(tmp_path: Path) -> None:
    program(tmp_path, "import time\nprint('up', flush=True)\ntime.sleep(300)\n")
    process = subprocess.Popen([*MLD, "train.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_a_sitecustomize_of_the_machines_own_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.own = 'loaded'\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    )
    program(tmp_path, "import sys, sitecustomize\nprint(sys.own, sitecustomize.__file__)\n")
    assert run("train.py", folder=tmp_path).stdout.split() == [
        "loaded",
        str(tmp_path / "site" / "sitecustomize.py"),
    ]


def test_what_can_not_be_run_is_said(tmp_path: Path) -> None:
    for command, code, text in (
        ([], 2, "no command. Give the one that starts the training"),
        (["no-such-command"], 127, "'no-such-command' is no command that is found here"),
        (["./notes.txt"], 126, "It is a file that can not be executed"),
    ):
        (tmp_path / "notes.txt").write_text("")
        found = run(*command, folder=tmp_path)
        assert found.returncode == code
        assert text in found.stderr


@pytest.mark.slow
def test_a_loop_by_hand_is_told_what_to_write(store: Path, tmp_path: Path) -> None:
    program(tmp_path, "import torch\n")
    told = run("train.py", folder=tmp_path).stderr
    assert "nothing was recorded" in told
    assert "from ml_debugger.torch import trace" in told
    program(tmp_path, "import torch, accelerate\n")
    assert "from ml_debugger.accelerate import trace" in run("train.py", folder=tmp_path).stderr


@pytest.mark.slow
def test_lightning_on_two_ranks_of_a_launcher(store: Path, tmp_path: Path) -> None:
    file = program(tmp_path, LIGHTNING.replace('accelerator="cpu"', 'accelerator="cpu", devices=2'))
    done = run("torchrun", "--nproc_per_node", "2", file, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = load("Net", "v1", dataset_type="train").to_pandas()
    assert sorted(rows.input_id.astype(int)) == sorted([*range(12)] * 2)
    assert set(rows.rank_) == {0, 1}
    assert "no Lightning" not in done.stderr


@pytest.mark.slow
def test_transformers_and_a_callback_of_ones_own(store: Path, tmp_path: Path) -> None:
    if find_spec("transformers") is None:
        pytest.skip("needs transformers")
    done = run(program(tmp_path, TRANSFORMERS), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load("Net", "v1", dataset_type="train").num_rows == 12
    assert sorted((r.model_name, r.version_name) for r in Store(store).runs()) == [
        ("Net", "v1"),
        ("late", "v1"),
        ("own", "v1"),
    ]
    for name in ("own", "late"):
        assert load(name, "v1", dataset_type="train")["label"].null_count == 0
        assert load(name, "v1", dataset_type="train").num_rows == 12


@pytest.mark.slow
def test_mmengine(store: Path, tmp_path: Path) -> None:
    if find_spec("mmengine") is None:
        pytest.skip("needs mmengine")
    done = run(program(tmp_path, MMENGINE), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load("Net", "v1", dataset_type="train").num_rows == 12


TRAINER = """
import cloudpickle
from ml_debugger.ultralytics import _ours, attach, attached
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

options = dict(model="yolov8n.yaml", data={data!r}, imgsz=64, batch=2, workers=0, plots=False, epochs=1,
               device="cpu", amp=False, project={folder!r}, name="one")
first = DetectionTrainer(overrides=options)
travelled = cloudpickle.loads(cloudpickle.dumps(first.callbacks))  # as to the processes of several devices
rank = DetectionTrainer(overrides=options, _callbacks=travelled)
ours = [c for c in rank.callbacks["teardown"] if type(getattr(c, "__self__", None)).__name__ == "_Callbacks"]
print("ours", attached(first), len(ours))
rank.train()

model = YOLO("yolov8n.yaml")
before = [callbacks.joined for callbacks in _ours(model)]
attach(model, "own", "v")
class BaseTrainer:
    def check(self):
        return YOLO("yolov8n.yaml")
print("joined", before, [callbacks.joined for callbacks in _ours(model)], attached(BaseTrainer().check()))
"""


@pytest.fixture
def yolo(
    torchvision: object, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command under `mld run`, made to end well; its output."""
    for package in ("ultralytics", "polars", "cloudpickle"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")

    def call(*command: str) -> str:
        done = run(*command, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return call


def validated(run_of: Any) -> Any:
    rows = load(run_of.model_name, run_of.version_name, "samples", "val").to_pandas()
    assert sorted(Path(name).stem for name in rows.input_id) == ["0", "1", "2", "3", "4"]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("validates", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_the_yolo_command(store: Path, tmp_path: Path, yolo: Callable[..., str], validates: bool) -> None:
    data = yolo_data(tmp_path / "data")
    options = [f"data={data}", "imgsz=64", "batch=2", "workers=0", "plots=False", "device=cpu"]
    out = [f"project={tmp_path}", "name=one"]
    yolo("yolo", "detect", "train", "model=yolov8n.yaml", *options, "epochs=1", "amp=False", *out)
    (made,) = Store(store).runs()
    assert set(validated(made).n_epoch) == {0}
    if validates:
        yolo("yolo", "detect", "val", f"model={tmp_path / 'one' / 'weights' / 'last.pt'}", *options)
        assert validated(max(Store(store).runs(), key=lambda r: r.version_name)).n_epoch.isna().all()


@pytest.mark.slow
def test_a_trainer_of_a_rank_is_recorded_once_and_a_model_attached_by_hand_as_said(
    store: Path, tmp_path: Path, yolo: Callable[..., str]
) -> None:
    data = yolo_data(tmp_path / "data")
    printed = yolo(program(tmp_path, TRAINER.format(data=str(data), folder=str(tmp_path))))
    assert "ours True 1" in printed
    assert "joined [True] [False] False" in printed
    (made,) = Store(store).runs()
    validated(made)
