"""What is told at the end of a program is so too where model and loaders are local to a function."""

import os
from pathlib import Path

import pytest
from zygote import Process

pytestmark = pytest.mark.processes
DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def main():
    net = torch.nn.Linear(4, 3)
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), 4)
"""
LOOP = """
    from ml_debugger.torch import trace
    model, train = trace(net, train=data, model_name="net")
    for x, y in train:
        torch.nn.functional.cross_entropy(model(x), y).backward()
"""
TRACER = """
    from ml_debugger.training import ClassificationTracer
    tracer = ClassificationTracer(net, "net", "v1")
    for number, (x, y) in enumerate(data):
        tracer(x, y, [f"{number}-{k}" for k in range(4)], "train", 0)
"""
SAID = {LOOP: "8 rows recorded", TRACER: "unsealed passes (train epoch 0)"}


@pytest.mark.parametrize("body", SAID, ids=["loop", "tracer"])
def test_it_is_said(body: str, tmp_path: Path, store: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"{DATA}{body}\nmain()\n", encoding="utf-8")
    program = Process(script, env=dict(os.environ))
    assert program.wait(120) == 0, program.stderr
    assert SAID[body] in program.stderr
