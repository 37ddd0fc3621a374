"""Evaluations on ranks whose samplers repeat samples to come out even, where a repeat looks like another sample.

For `loops_script.py`, inside its process group. Seven sequences of numbers, padded to the longest of their batch and
without a mask: what a sampler repeats stands in another batch, so its content's hash is another one. Ids are the
user's own, or there are none but the content's hash.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

SIZE = 7
WAYS = {
    "torch": ("torch", "one by one", "own sampler", "by hand", "by hand, own sampler"),
    "accelerate": ("accelerate", "split", "dispatched", "stream", "split stream"),
    "lightning": ("fabric", "lightning", "predicting"),
    "transformers": ("huggingface", "by length", "stream of transformers", "stream of the Trainer"),
    "mmengine": ("mmengine", "mmengine, own sampler"),
}
"""Package -> the ways of dealing out samples that need it."""


class Sequences(torch.utils.data.Dataset[dict[str, Any]]):
    """Sample i: i + 1, then i % 4 times 0.5; `even`: all of one length, as rank 0 can only deal out such."""

    def __init__(self, ids: bool = True, even: bool = False) -> None:
        self.ids, self.even = ids, even

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= SIZE:  # it is iterated for the lengths
            raise IndexError(index)
        sample: dict[str, Any] = {
            "x": [index + 1.0] + [0.5] * (1 if self.even else index % 4),
            "labels": index % 3,
        }
        if self.ids:
            sample["input_id"] = index
        return sample


class Stream(IterableDataset[dict[str, Any]]):
    """The same samples, one after the other; nobody knows how many."""

    def __iter__(self) -> Any:
        return iter([Sequences()[index] for index in range(SIZE)])


class FrontFirst(Sampler[int]):
    """A sampler of one's own with the attributes of torch's `DistributedSampler`: the repeat comes first."""

    def __init__(self) -> None:
        self.num_replicas, self.rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        self.num_samples, self.drop_last = -(-SIZE // self.num_replicas), False
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Any:
        drawn = [0] * (self.total_size - SIZE) + list(range(SIZE))
        return iter(drawn[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As long as the longest."""
    longest = max(len(one["x"]) for one in samples)
    batch = {"x": torch.tensor([one["x"] + [0.0] * (longest - len(one["x"])) for one in samples])}
    for name in set(samples[0]) - {"x", "length"}:
        batch[name] = torch.tensor([one[name] for one in samples])
    return batch


class Summing(nn.Module):
    """Logits of (first number, sum): padding with zeros is nothing to them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor, labels: Any = None, input_id: Any = None) -> dict[str, torch.Tensor]:
        logits = self.head(torch.stack([x[:, 0], x.sum(1)], 1))
        out = {"logits": logits}
        return out if labels is None else {"loss": F.cross_entropy(logits, labels), **out}


def _loader(batch_size: int = 2, *, even: bool = False, **options: Any) -> DataLoader[Any]:
    return DataLoader(Sequences(even=even), batch_size, collate_fn=collate, **options)


def _walk(model: Any, loader: Any) -> None:
    model.eval()
    with torch.no_grad():
        for batch in loader:
            model(**batch)
    loader.recording.finish()


def _by_hand(loader: Any, name: str) -> None:
    from ml_debugger.training import ClassificationTracer

    tracer = ClassificationTracer(Summing().eval(), name, "v1")
    with torch.no_grad(), tracer.epoch(0, "val", loader=loader):
        for batch in loader:
            tracer({"x": batch["x"]}, batch["labels"], batch["input_id"])
    tracer.wait_for_save(0)


def torch_(way: str, name: str) -> None:
    from ml_debugger.torch import trace

    own = "own sampler" in way
    sampler = FrontFirst() if own else DistributedSampler(Sequences(), shuffle=way != "torch")
    if way.startswith("by hand"):
        _by_hand(_loader(sampler=sampler), name)
        return
    _walk(*trace(Summing(), val=_loader(1 if way == "one by one" else 2, sampler=sampler), model_name=name))


def accelerate(way: str, name: str) -> None:
    from accelerate import Accelerator, DataLoaderConfiguration

    from ml_debugger.accelerate import trace

    split, dispatch = way.startswith("split"), way == "dispatched"
    config = DataLoaderConfiguration(split_batches=split, dispatch_batches=dispatch)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    size = 4 if split else 2
    if way.endswith("stream"):
        loader = accelerator.prepare(DataLoader(Stream(), size, collate_fn=collate))
    else:
        loader = accelerator.prepare(_loader(size, even=dispatch, shuffle=way == "accelerate"))
    _walk(*trace(accelerator, Summing(), val=loader, model_name=name, input_hash=not dispatch))


def fabric(way: str, name: str) -> None:
    from lightning.fabric import Fabric

    from ml_debugger.fabric import trace

    owner = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
    owner.launch()
    _walk(*trace(owner, owner.setup(Summing()), val=owner.setup_dataloaders(_loader()), model_name=name))


def lightning(way: str, name: str) -> None:
    import lightning.pytorch as pl

    from ml_debugger.lightning import MLDebuggerCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Summing()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(**batch)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)["logits"]

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MLDebuggerCallback(model_name=name)],
    )
    if way == "predicting":
        trainer.predict(Module(), _loader(), return_predictions=False)
    else:
        trainer.validate(Module(), _loader(), verbose=False)


def stream_of_transformers(name: str) -> None:
    from transformers.trainer_pt_utils import IterableDatasetShard

    from ml_debugger.torch import trace

    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    shard = IterableDatasetShard(Stream(), 2, num_processes=ranks, process_index=rank)
    _walk(*trace(Summing(), val=DataLoader(shard, 2, collate_fn=collate), model_name=name))


def huggingface(way: str, name: str, root: Path) -> None:
    from hf_parts import trainer
    from transformers import TrainingArguments

    from ml_debugger.huggingface import MLDebuggerCallback

    grouped: dict[str, Any] = {}
    if way == "stream of the Trainer":
        grouped = {"accelerator_config": {"dispatch_batches": False}}
    if way == "by length":  # renamed in transformers 5
        new = "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
        grouped = {"train_sampling_strategy": "group_by_length"} if new else {"group_by_length": True}

    class Lengths(Sequences):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            return {**sample, "input_ids": sample["x"]}

    trainer(
        root / name,
        MLDebuggerCallback(model_name=name),
        model=Summing(),
        val=Stream() if way == "stream of the Trainer" else Lengths(ids=way != "by length"),
        data_collator=lambda samples: collate(
            [{k: v for k, v in s.items() if k != "input_ids"} for s in samples]
        ),
        remove_unused_columns=False,
        **grouped,
    ).evaluate()


def mmengine(way: str, name: str, root: Path) -> None:
    from mmengine.model import BaseModel
    from mmengine_parts import runner

    from ml_debugger.mmengine import MLDebuggerHook

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = Summing()

        def forward(self, mode: str = "tensor", **batch: Any) -> Any:
            out = self.net(**batch)
            return {"loss": out["loss"]} if mode == "loss" else out["logits"]

    loader = {
        "dataset": Sequences(),
        "batch_size": 2,
        "num_workers": 0,
        "sampler": FrontFirst() if "own" in way else {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": collate,
    }
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "device_ids": None}
    runner(
        root / name,
        MLDebuggerHook(model_name=name),
        model=Model(),
        train_dataloader=None,
        train_cfg=None,
        optim_wrapper=None,
        test_dataloader=None,
        test_cfg=None,
        test_evaluator=None,
        val_dataloader=loader,
        launcher="pytorch",
        cfg={"model_wrapper_cfg": wrapper},
    ).val()


def run(root: Path) -> None:
    """Every way that is installed, as runs called `repeated <way>`."""
    for package, ways in WAYS.items():
        if not find_spec(package):
            continue
        for way in ways:
            name = f"repeated {way}"
            if way == "stream of transformers":
                stream_of_transformers(name)
            elif package in {"transformers", "mmengine"}:
                {"transformers": huggingface, "mmengine": mmengine}[package](way, name, root)
            elif package == "lightning":
                (fabric if way == "fabric" else lightning)(way, name)
            else:
                (torch_ if package == "torch" else accelerate)(way, name)
