"""The same training on every rank with us and without: what each left behind, as digests.

For `loops_script.py`, inside its process group. Everything that a training could notice is in a digest: the weights,
the gradients of each step, the states of the generators, the losses, and how often the model ran or was compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop_parts import Indexed
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler

WAYS = {
    "torch": ("plain", "checkpointed", "compiled", "an exception in a step", "accumulating"),
    "accelerate": ("accelerate",),
    "lightning": ("fabric", "lightning"),
    "transformers": ("huggingface",),
    "mmengine": ("mmengine",),
}
"""Package -> the ways of training that need it."""


class Dropping(nn.Module):
    """Draws random numbers (dropout), keeps buffers (batch norm), and may run a part twice (checkpointing)."""

    def __init__(self, saving: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)
        self.saving, self.runs = saving, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        if not torch.compiler.is_compiling():
            self.runs += 1
        if self.saving:
            logits = self.head(checkpoint(self.body, x, use_reentrant=False))
        else:
            logits = self.head(self.body(x))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def _loader(size: int, *, shuffle: bool) -> DataLoader[Any]:
    data = Indexed(size)
    return DataLoader(data, 2, sampler=DistributedSampler(data, shuffle=shuffle))


def loop(kind: str, ours: bool, losses: list[float]) -> tuple[nn.Module, int]:
    """A loop of one's own under DDP: `trace` with its criterion. Returns the model, and graphs compiled."""
    from torch._dynamo import config, utils

    from ml_debugger.torch import trace

    inner = Dropping(saving=kind == "checkpointed")
    compiled = kind == "compiled"
    if compiled:
        torch._dynamo.reset()
        utils.counters.clear()
    run: Any = torch.compile(inner, backend="aot_eager", fullgraph=True, dynamic=False) if compiled else inner
    ddp = nn.parallel.DistributedDataParallel(run)
    criterion = nn.CrossEntropyLoss()
    train, val = _loader(12, shuffle=True), _loader(8, shuffle=False)
    model: Any = ddp
    if ours:
        model, train, val = trace(ddp, train=train, val=val, criterion=criterion, model_name=f"un {kind}")
    optimizer = torch.optim.SGD(inner.parameters(), 0.05, momentum=0.9)

    def epoch(number: int) -> None:
        model.train()
        for index, batch in enumerate(train):
            waits = kind == "accumulating" and index % 2 == 0
            with ddp.no_sync() if waits else nullcontext():
                loss = criterion(model(batch["x"]), batch["labels"])
                loss.backward()
            if kind == "an exception in a step" and (number, index) == (0, 1):
                raise RuntimeError("planted")
            losses.append(loss.item())
            if not waits:
                optimizer.step()
                optimizer.zero_grad(set_to_none=index < 2)
        model.eval()
        with torch.no_grad():
            losses.extend(criterion(model(batch["x"]), batch["labels"]).item() for batch in val)

    # Batch norm under fullgraph is compiled once for each mode: that is no recompilation of ours.
    with config.patch(recompile_limit=4) if compiled else nullcontext():
        for number in range(2):
            if compiled and number == 1:
                with config.patch(error_on_recompile=True):
                    epoch(number)
                continue
            try:
                epoch(number)
            except RuntimeError as error:
                if str(error) != "planted":
                    raise
                optimizer.zero_grad()
    if ours:
        train.recording.finish()
    return inner, utils.counters["stats"]["unique_graphs"]


def accelerate(ours: bool, losses: list[float]) -> nn.Module:
    """A prepared loop that accumulates gradients."""
    from accelerate import Accelerator

    from ml_debugger.accelerate import trace

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    inner = Dropping()
    model, optimizer, train = accelerator.prepare(
        inner, torch.optim.SGD(inner.parameters(), 0.05), DataLoader(Indexed(12), 2, shuffle=True)
    )
    if ours:
        model, train = trace(accelerator, model, train=train, model_name="un accelerate")
    for _ in range(2):
        for batch in train:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    if ours:
        train.recording.finish()
    return inner


def fabric(ours: bool, losses: list[float]) -> nn.Module:
    """Fabric's DDP."""
    from lightning.fabric import Fabric

    from ml_debugger.fabric import trace

    owner = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
    owner.launch()
    inner = Dropping()
    model, optimizer = owner.setup(inner, torch.optim.SGD(inner.parameters(), 0.05))
    train = owner.setup_dataloaders(DataLoader(Indexed(12), 2, shuffle=True))
    if ours:
        model, train = trace(owner, model, train=train, model_name="un fabric")
    for _ in range(2):
        for batch in train:
            optimizer.zero_grad()
            loss = model(**batch)["loss"]
            owner.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    if ours:
        train.recording.finish()
    return inner


def lightning(ours: bool, losses: list[float]) -> nn.Module:
    """Lightning's DDP, with an evaluation in between."""
    import lightning.pytorch as pl

    from ml_debugger.lightning import MLDebuggerCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Dropping()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(**batch)["loss"]
            losses.append(loss.item())
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            losses.append(self.net(**batch)["loss"].item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    module = Module()
    pl.Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MLDebuggerCallback(model_name="un lightning")] if ours else [],
    ).fit(module, DataLoader(Indexed(12), 2, shuffle=True), DataLoader(Indexed(8), 2))
    return module.net


def huggingface(root: Path, ours: bool) -> nn.Module:
    """A `Trainer` that evaluates after each epoch."""
    from hf_parts import trainer
    from transformers import TrainerCallback

    from ml_debugger.huggingface import MLDebuggerCallback

    made = trainer(
        root / f"hf-{ours}",
        MLDebuggerCallback(model_name="un huggingface") if ours else TrainerCallback(),
        model=Dropping(),
        train=12,
        val=8,
        num_train_epochs=2,
        learning_rate=0.05,
        eval_strategy="epoch",
    )
    made.train()
    inner: nn.Module = made.model
    return inner


def mmengine(root: Path, ours: bool, losses: list[float]) -> nn.Module:
    """A Runner that evaluates after each epoch and accumulates gradients."""
    from mmengine.model import BaseModel
    from mmengine_parts import runner

    from ml_debugger.mmengine import MLDebuggerHook

    class Model(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Dropping()

        def forward(self, x: Any, labels: Any = None, mode: str = "tensor") -> Any:
            out = self.net(x, labels)
            losses.append(out["loss"].item())
            return {"loss": out["loss"]} if mode == "loss" else out["logits"]

    def loader(size: int, *, shuffle: bool) -> dict[str, Any]:
        return {
            "dataset": Indexed(size),
            "batch_size": 2,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": shuffle},
            "collate_fn": {"type": "default_collate"},
        }

    made = runner(
        root / f"mmengine-{ours}",
        *([MLDebuggerHook(model_name="un mmengine")] if ours else []),
        model=Model(),
        train_dataloader=loader(12, shuffle=True),
        val_dataloader=loader(8, shuffle=False),
        optim_wrapper={
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
            "accumulative_counts": 2,
        },
        launcher="pytorch",
        cfg={
            "model_wrapper_cfg": {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": False,
                "device_ids": None,
            }
        },
    )
    made.train()
    inner: nn.Module = made.model.module.net
    return inner


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part.detach().numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode()
        )
    return digest.hexdigest()[:16]


def left_behind(root: Path, way: str, *, ours: bool) -> dict[str, Any]:
    """What one training left on this rank."""
    torch.manual_seed(int(os.environ["RANK"]))  # another generator on each rank, as dropout has it
    np.random.seed(3)  # noqa: NPY002 - the global one, which a user may use
    random.seed(3)
    losses: list[float] = []
    graphs, gradients = 0, list[str]()
    seen = register_optimizer_step_pre_hook(
        lambda optimizer, *_: gradients.append(
            _digest(*(one.grad for group in optimizer.param_groups for one in group["params"]))
        )
    )
    if way in WAYS["torch"]:
        model, graphs = loop(way, ours, losses)
    elif way == "huggingface":
        model = huggingface(root, ours)
    elif way == "mmengine":
        model = mmengine(root, ours, losses)
    else:
        frameworks: dict[str, Callable[..., nn.Module]] = {
            "accelerate": accelerate,
            "fabric": fabric,
            "lightning": lightning,
        }
        model = frameworks[way](ours, losses)
    seen.remove()
    return {
        "weights and buffers": _digest(*model.state_dict().values()),
        "gradients": gradients,
        "torch's generator": _digest(torch.get_rng_state()),
        "numpy's generator": _digest(*np.random.get_state()),  # noqa: NPY002
        "Python's generator": _digest(random.getstate()),
        "losses": losses,
        "forwards": getattr(model, "runs", 0),
        "graphs": graphs,
        # A Hugging Face trainer may evaluate after it has trained: its hooks stay until the process ends.
        "hooks": sum(len(m._forward_hooks) for m in model.modules() if way != "huggingface"),
    }


def run(root: Path) -> None:
    """Writes ROOT/unchanged-RANK.json: way -> what it left without us and with us."""
    ways = [way for package, names in WAYS.items() if find_spec(package) for way in names]
    found = {}
    for way in ways:
        if way == "lightning":  # its first training in a process draws once more from Python's generator
            left_behind(root, way, ours=False)
        found[way] = {name: left_behind(root, way, ours=name == "ours") for name in ("bare", "ours")}
    (root / f"unchanged-{os.environ['RANK']}.json").write_text(json.dumps(found))
