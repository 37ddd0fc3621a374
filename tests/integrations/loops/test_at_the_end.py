"""What is told at the end of a program is told too where model and loaders were local to a function."""

import os
from pathlib import Path

import pytest
from zygote import Process

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.torch import trace
from ml_debugger.training import ClassificationTracer

def loop(net, data):
    model, train = trace(net, train=data, model_name="looped")
    for x, y in train:
        torch.nn.functional.cross_entropy(model(x), y).backward()

def by_hand(net, data):
    tracer = ClassificationTracer(net, "by_hand", "v1")
    for number, (x, y) in enumerate(data):
        tracer(x, y, [f"{number}-{k}" for k in range(4)], "train", 0)

for main in (loop, by_hand):
    main(torch.nn.Linear(4, 3), DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4))
"""


@pytest.mark.processes
def test_it_is_said(tmp_path: Path, store: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    program = Process(script, env=dict(os.environ))
    assert program.wait(120) == 0, program.stderr
    assert f"8 rows recorded to {store}/looped/v1" in program.stderr
    assert "unsealed passes (train epoch 0)" in program.stderr
