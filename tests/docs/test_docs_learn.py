"""Five minutes with each framework: the program of the page, run as it stands, prints what the page says it prints.

MMDetection3D's and Keras' pages have environments of their own (tests/mmdet3d, tests/keras).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import zygote
from docs_parts import DOCS, blocks, console, not_printed, pages

from ml_debugger.records import load

NEEDS = {
    "accelerate": "accelerate",
    "huggingface": "transformers",
    "lightning": "lightning",
    "mmengine": "mmengine",
    "plain": "torch",
    "ultralytics": "ultralytics",
}
HEAVY = {"mmengine", "ultralytics"}  # seconds of their own beside the training
ELSEWHERE = {"keras", "mmdet3d"}
RECORDED = {
    "accelerate": ("digits", {"train": 2400, "val": 1194}),
    "huggingface": ("ViTForImageClassification", {"train": 1200, "val": 597}),
    "lightning": ("Digits", {"train": 2400, "val": 1194}),
    "mmengine": ("Digits", {"train": 2400, "val": 1194}),
    "plain": ("digits", {"train": 2400, "val": 1194}),
    "ultralytics": ("traffic", {"train": 6, "val": 5}),
}
"""Page -> model, rows of each split."""


def test_every_page_is_run():
    assert {page.stem for page in pages("learn")} == NEEDS.keys() | ELSEWHERE


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MLD_LIVE", "0")  # the process beside a training has tests of its own
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(name: str, home: Path) -> None:
    """Run the page's program as a script of its own, and hold what it prints and records against the page."""
    page = DOCS / "learn" / f"{name}.md"
    Path("train.py").write_text(blocks(page)["train"], encoding="utf-8")
    program = zygote.Process(home / "train.py", env=dict(os.environ))
    code = program.wait(240)
    assert code == 0, program.stderr + program.stdout
    assert not_printed(page, program.stderr + program.stdout, home / "store") == []
    model, rows = RECORDED[name]
    assert {split: load(model, "v1", dataset_type=split).num_rows for split in rows} == rows


@pytest.mark.processes
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.heavy if one in HEAVY else ()) for one in NEEDS]
)
def test_the_program_runs(name, home):
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if name == "ultralytics":
        pytest.importorskip("cv2")
        from detector_parts import yolo_data

        yolo_data(home / "scenes").rename("data.yaml")
    train(name, home)
    if name == "plain":
        names = {}
        exec("import torch; from sklearn.datasets import load_digits; digits = load_digits()", names)
        exec("from torch.utils.data import DataLoader, TensorDataset", names)
        exec(blocks(DOCS / "learn" / "plain.md")["by_hand"], names)
        assert load("by_hand", "v1").column("input_id").to_pylist() == [str(k) for k in range(1797)]
    if name == "mmengine":
        config = pytest.importorskip("mmengine.config").Config
        lines = config.fromstring(blocks(DOCS / "learn" / "mmengine.md")["config"], ".py")
        assert lines.custom_hooks[0].type == "MLDebuggerHook"


@pytest.mark.heavy
@pytest.mark.processes
def test_the_commands_after_a_training(home):
    pytest.importorskip("lightning")
    train("lightning", home)
    commands = console(DOCS / "learn" / "index.md")
    assert [line.split()[1] for line in commands] == ["ls", "evaluate", "show", "show", "ui"]
    for line in commands[:-1]:  # `mld ui` is tests/app's
        command = zygote.Process("mld_core.cli.main", *line.split()[1:], env=dict(os.environ))
        assert command.wait(120) == 0, command.stderr
        assert "val" in command.stdout or "prediction" in command.stdout
