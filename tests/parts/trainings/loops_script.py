"""The same training in every framework, one after another in one process group.

usage: loops_script.py ROOT WORLD:FRAMEWORK,FRAMEWORK.. ..    for each number of ranks, in the folder ROOT/WORLD

11 training and 7 validation samples, 2 epochs, learning rate 0: all leave the same logits. Every collective is
noted in ROOT/WORLD/collectives-RANK.json, with the framework and the innermost function of ours on the stack, if any.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d

_COLLECTIVES = (
    "broadcast", "all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "gather", "scatter",
    "reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "barrier",
    "monitored_barrier", "send", "recv", "isend", "irecv", "broadcast_object_list", "all_gather_object",
    "gather_object", "scatter_object_list", "new_group",
)  # fmt: skip
_OURS = ("/mld_core/", "/integrations/ml_debugger/")
_LOADERS = "accelerate/data_loader.py"  # a prepared loader synchronises generators when it is iterated
calls: list[dict[str, Any]] = []
current = ""
_depth = 0


def _noting(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        global _depth  # noqa: PLW0603
        if _depth == 0:
            frame, ours = sys._getframe(1), None
            while frame is not None and ours is None:
                code = frame.f_code
                if code.co_filename.endswith(_LOADERS):
                    break
                ours = code.co_name if any(part in code.co_filename for part in _OURS) else None
                frame = frame.f_back
            calls.append({"framework": current, "call": name, "ours": ours})
        _depth += 1
        try:
            return function(*args, **kwargs)
        finally:
            _depth -= 1

    return noted


for _name in _COLLECTIVES:  # before any framework takes the functions by name
    if hasattr(distributed_c10d, _name):
        _wrapped = _noting(_name, getattr(distributed_c10d, _name))
        setattr(distributed_c10d, _name, _wrapped)
        setattr(dist, _name, _wrapped)

from loop_parts import Indexed, Net  # noqa: E402
from ranks import forked  # noqa: E402
from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

WORLD = 1
N_TRAIN, N_VAL = 11, 7


def run_lightning(root: Path) -> None:
    import lightning.pytorch as pl

    from ml_debugger.lightning import MLDebuggerCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    pl.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[MLDebuggerCallback(model_name="lightning")],
    ).fit(Module(), DataLoader(Indexed(N_TRAIN), 2, shuffle=True), DataLoader(Indexed(N_VAL), 2))


def run_huggingface(root: Path) -> None:
    from hf_parts import trainer

    from ml_debugger.huggingface import MLDebuggerCallback

    trainer(
        root / "hf",
        MLDebuggerCallback(model_name="huggingface"),
        train=N_TRAIN,
        val=N_VAL,
        num_train_epochs=2,
        learning_rate=0.0,
        eval_strategy="epoch",
    ).train()


def run_mmengine(root: Path) -> None:
    from mmengine_parts import PlainModel, loader, runner

    from ml_debugger.mmengine import MLDebuggerHook

    class Pairs(Indexed):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return sample["x"], sample["labels"]

    model = PlainModel()
    model.head.load_state_dict(Net().head.state_dict())
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "device_ids": None}
    distributed = {"launcher": "pytorch", "cfg": {"model_wrapper_cfg": wrapper}} if WORLD > 1 else {}
    runner(
        root / "mmengine",
        MLDebuggerHook(model_name="mmengine"),
        model=model,
        train_dataloader=loader(Pairs(N_TRAIN), 2, shuffle=True),
        val_dataloader=loader(Pairs(N_VAL), 2),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        **distributed,
    ).train()


def _walk(model: Any, optimizer: Any, train: Any, val: Any, backward: Any) -> None:
    for _ in range(2):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            backward(model(**batch)["loss"])
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for batch in val:
                model(**batch)


def _pieces() -> tuple[Any, Any, Any, Any]:
    net = Net()
    train, val = DataLoader(Indexed(N_TRAIN), 2, shuffle=True), DataLoader(Indexed(N_VAL), 2)
    return net, torch.optim.SGD(net.parameters(), 0.0), train, val


def run_accelerate(root: Path) -> None:
    from accelerate import Accelerator

    from ml_debugger.accelerate import trace

    accelerator = Accelerator(cpu=True)
    model, optimizer, train, val = accelerator.prepare(*_pieces())
    model, train, val = trace(accelerator, model, train=train, val=val, model_name="accelerate")
    _walk(model, optimizer, train, val, accelerator.backward)
    train.recording.finish()


def run_uneven(root: Path) -> None:
    """More batches on rank 0 than on the others, and in epoch 1 rank 1 leaves its loop."""
    from accelerate import Accelerator, DataLoaderConfiguration

    from ml_debugger.accelerate import trace

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    net, _, _, _ = _pieces()
    val = accelerator.prepare(DataLoader(Indexed(9), 2))
    net, val = trace(accelerator, net, val=val, model_name="uneven")
    net.eval()
    for epoch in range(3):
        val.set_epoch(epoch)
        for i, batch in enumerate(val):
            net(**batch)
            if epoch == 1 and i == 1 and accelerator.process_index == 1:
                break
    val.recording.finish()


def run_fabric(root: Path) -> None:
    from lightning.fabric import Fabric

    from ml_debugger.fabric import trace

    fabric = Fabric(accelerator="cpu", devices=WORLD, strategy="ddp" if WORLD > 1 else "auto")
    fabric.launch()
    net, optimizer, train, val = _pieces()
    model, optimizer = fabric.setup(net, optimizer)
    train, val = fabric.setup_dataloaders(train, val)
    model, train, val = trace(fabric, model, train=train, val=val, model_name="fabric")
    _walk(model, optimizer, train, val, fabric.backward)
    train.recording.finish()


def run_torch(root: Path) -> None:
    from ml_debugger.torch import trace

    net, optimizer, train, val = _pieces()
    model: Any = net
    if WORLD > 1:
        train = DataLoader(train.dataset, 2, sampler=DistributedSampler(train.dataset))
        val = DataLoader(val.dataset, 2, sampler=DistributedSampler(val.dataset, shuffle=False))
        model = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    model, train, val = trace(model, train=train, val=val, model_name="torch")
    _walk(model, optimizer, train, val, lambda loss: loss.backward())
    train.recording.finish()


def run_plain(root: Path) -> None:
    from ml_debugger.training import ClassificationTracer

    net = Net()
    tracer = ClassificationTracer(net, "plain", "v1")
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    for epoch in range(2):
        for split, size in (("train", N_TRAIN), ("val", N_VAL)):
            net.train(split == "train")
            indices = torch.arange(size)
            if WORLD > 1:
                indices = torch.tensor(list(DistributedSampler(indices, shuffle=False)))
            with tracer.epoch(epoch, split):
                for chosen in indices.split(2):
                    samples = [Indexed(size)[int(i)] for i in chosen]
                    batch = torch.utils.data.default_collate(samples)
                    outputs = tracer(batch, batch["labels"], chosen)
                    if split == "train":
                        outputs["loss"].backward()
                        optimizer.step()
        tracer.wait_for_save(epoch)


def run_tokens(root: Path) -> None:
    """An evaluation of sentences that are padded to the longest of their batch, and dealt out by Accelerate."""
    from hf_parts import trainer
    from loop_parts import Sentences, Tokens, padded

    from ml_debugger.huggingface import MLDebuggerCallback

    trainer(
        root / "tokens",
        MLDebuggerCallback(model_name="tokens"),
        model=Tokens(),
        val=Sentences(23),
        data_collator=padded,
        per_device_eval_batch_size=8,
    ).evaluate()


def run_unchanged(root: Path) -> None:
    """Trainings with us and without."""
    import unchanged

    unchanged.run(root)


def run_repeated(root: Path) -> None:
    """Evaluations whose samplers repeat samples."""
    import repeated

    repeated.run(root)


IMPORTED = {
    "lightning": ("lightning.pytorch", "ml_debugger.lightning"),
    "huggingface": ("hf_parts",),
    "mmengine": ("mmengine_parts", "ml_debugger.mmengine"),
    "accelerate": ("accelerate", "ml_debugger.accelerate"),
    "fabric": ("lightning.fabric", "ml_debugger.fabric"),
    "plain": ("ml_debugger.training",),
    "unchanged": ("torch._functorch.aot_autograd",),
}
"""Once, before there are ranks: what a framework's training imports, and below, what every rank would."""

OF_EVERY_RANK = ("torch._dynamo", "pandas", "pyarrow.parquet", "mld_core.tracing.run.recorder")


def one_rank(root: Path, frameworks: list[str]) -> None:
    global current, WORLD  # noqa: PLW0603
    WORLD = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ["MLD_HOME"] = str(root / "store")
    if WORLD > 1:
        dist.init_process_group("gloo")
    for framework in frameworks:
        current = framework
        globals()[f"run_{framework}"](root)
    (root / f"collectives-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(calls))


def main() -> None:
    runs = [(world, names.split(",")) for world, names in (run.split(":") for run in sys.argv[2:])]
    for framework in {name for _, names in runs for name in names}:
        for module in (*OF_EVERY_RANK, *IMPORTED.get(framework, ())):
            importlib.import_module(module)
    for world, frameworks in runs:
        root = Path(sys.argv[1], world)
        root.mkdir()
        codes = forked(int(world))
        if codes is None:
            one_rank(root, frameworks)
            return
        if any(codes):
            sys.exit(f"{world} ranks ended with {codes}")


if __name__ == "__main__":
    main()
