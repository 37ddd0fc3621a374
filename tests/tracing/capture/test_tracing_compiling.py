"""The hooks of a PyTorch older than 2.3, which has no `torch.compiler.is_compiling`, do not raise into a forward."""

import importlib
import sys

import torch

from mld_core.tracing.capture import compiling


def test_what_an_older_pytorch_has_is_asked(monkeypatch):
    monkeypatch.delattr(torch.compiler, "is_compiling")
    monkeypatch.delitem(sys.modules, compiling.__name__)
    older = importlib.import_module(compiling.__name__)
    assert older.is_compiling is torch._utils.is_compiling  # Dynamo of 2.1 and 2.2 knows this one


def test_every_hook_asks_it_there_alone():
    """`torch.compiler.is_compiling` named in a hook is what raised with every forward."""
    for name in ("capture", "detectors", "forward", "probe"):
        module = importlib.import_module(f"mld_core.tracing.capture.{name}")
        assert module.is_compiling is compiling.is_compiling
        assert "torch.compiler" not in module.__loader__.get_source(module.__name__)
