"""The order of the events that the wrappers rely on, kept as files: an upgrade shows the difference.

To write the file of a new version: `MLD_WRITE_GOLDEN=1 pytest tests/integrations/test_golden_traces.py`, then
read the difference to the older file and decide what it means for the wrapper.
"""

import difflib
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def check(framework: str, version: str, lines: list[str]) -> None:
    """Compare with the newest file that is not newer than the installed version."""
    installed = _number(version)
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{framework}-{'.'.join(map(str, installed))}.txt"
    if os.environ.get("MLD_WRITE_GOLDEN"):
        path.write_text(text)
    known = {_number(p.stem.rsplit("-", 1)[1]): p for p in GOLDEN.glob(f"{framework}-*.txt")}
    assert known, f"no golden trace of {framework}"
    usable = [v for v in known if v <= installed] or [min(known)]
    golden = known[max(usable)]
    difference = "".join(
        difflib.unified_diff(
            golden.read_text().splitlines(True), text.splitlines(True), golden.name, f"installed {version}"
        )
    )
    assert not difference, f"the events of {framework} changed:\n{difference}"


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    seen: list[str] = []

    class Spy(transformers.TrainerCallback):
        def __getattribute__(self, name: str):
            if not name.startswith("on_"):
                return super().__getattribute__(name)

            def event(args, state, control, **kwargs):
                keys = sorted(key for key in kwargs.get("metrics") or {} if key.endswith("_runtime"))
                epoch = "none" if state.epoch is None else f"{float(state.epoch):.2f}"
                seen.append(" ".join([name, f"epoch={epoch}", f"step={state.global_step}", *keys]))

            return event

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 2)

        def forward(self, x, labels=None):
            seen.append(f"FORWARD rows={len(x)} training={self.training}")
            logits = self.net(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = [{"x": torch.full((3,), float(i)), "labels": i % 2} for i in range(7)]

    def arguments(folder: str, **more) -> "transformers.TrainingArguments":
        return transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **more,
        )

    seen.append("# train: 2 epochs, accumulation 2, a dict of two datasets, eval_on_start")
    trainer = transformers.Trainer(
        model=Model(),
        args=arguments(
            "a",
            num_train_epochs=2,
            gradient_accumulation_steps=2,
            eval_strategy="epoch",
            eval_on_start=True,
            save_strategy="epoch",
        ),
        train_dataset=data,
        eval_dataset={"one": data[:3], "two": data[:2]},
        callbacks=[Spy()],
    )
    trainer.train()
    seen.append("# evaluate, then predict, alone")
    trainer.evaluate(data[:2], metric_key_prefix="test")
    trainer.predict(data[:2])
    seen.append("# resume in mid-epoch")
    resumed = transformers.Trainer(
        model=Model(),
        args=arguments("a", num_train_epochs=1, save_strategy="no"),
        train_dataset=data,
        callbacks=[Spy()],
    )
    first = arguments("b", num_train_epochs=1, save_strategy="steps", save_steps=2, max_steps=3)
    transformers.Trainer(model=Model(), args=first, train_dataset=data).train()
    del seen[seen.index("# resume in mid-epoch") + 1 :]
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    seen.append("# auto_find_batch_size: the first try runs out of memory")

    class Hungry(Model):
        def forward(self, x, labels=None):
            if self.training and len(x) > 1:
                raise RuntimeError("CUDA out of memory. (said by the test)")
            return super().forward(x, labels)

    hungry = transformers.Trainer(
        model=Hungry(),
        args=arguments("c", num_train_epochs=1, save_strategy="no", auto_find_batch_size=True),
        train_dataset=data[:3],
        callbacks=[Spy()],
    )
    hungry.train()
    check("transformers", transformers.__version__, seen)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning(package: str, tmp_path: Path) -> None:
    pl = pytest.importorskip(package)
    import torch
    from torch.utils.data import DataLoader

    seen: list[str] = []
    hooks = [name for name in dir(pl.Callback) if name.startswith("on_") or name in {"setup", "teardown"}]

    class Spy(pl.Callback):
        def __getattribute__(self, name: str):
            if name not in hooks:
                return super().__getattribute__(name)

            def event(*args, **kwargs):
                trainer = args[0]
                sanity = " sanity" if trainer.sanity_checking else ""
                seen.append(f"{name} epoch={trainer.current_epoch} step={trainer.global_step}{sanity}")

            return event

        def state_dict(self):
            seen.append("state_dict")
            return {"a": 1}

        def load_state_dict(self, state_dict):
            seen.append("load_state_dict")

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 2)

        def training_step(self, batch, batch_idx):
            return self.net(batch).sum()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return self.net(batch)

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    loader = DataLoader(torch.zeros(6, 3), batch_size=2)

    def trainer(**more):
        checkpoint = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Spy(), checkpoint],
            **more,
        )

    seen.append("# fit: 2 epochs, accumulation 2, 2 validation loaders, 1 sanity step")
    fit = trainer(max_epochs=2, accumulate_grad_batches=2, num_sanity_val_steps=1)
    fit.fit(Model(), loader, [loader, loader])
    seen.append("# test after fit")
    fit.test(Model(), loader)
    seen.append("# resume from the end of epoch 0")
    trainer(max_epochs=2).fit(Model(), loader, loader, ckpt_path=tmp_path / "epoch=0.ckpt")
    seen.append("# an exception in training")

    class Broken(Model):
        def training_step(self, batch, batch_idx):
            raise ValueError("said by the test")

    with pytest.raises(ValueError, match="said by the test"):
        trainer(max_epochs=1).fit(Broken(), loader)
    version = pl.__version__
    check("lightning", version, seen)


def test_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mmengine = pytest.importorskip("mmengine")
    import torch
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    whole = torch.load  # 0.10.7 cannot read its own checkpoints with torch >= 2.6 (`weights_only`)
    monkeypatch.setattr(torch, "load", lambda *a, **k: whole(*a, **{**k, "weights_only": False}))
    seen: list[str] = []

    def number(loop, name: str) -> str:
        return str(getattr(loop, name)) if hasattr(loop, name) else "not built"

    class Spy(Hook):
        priority = "LOW"

        def __getattribute__(self, name: str):
            if not name.startswith(("before_", "after_")):
                return super().__getattribute__(name)

            def event(runner, batch_idx=None, data_batch=None, outputs=None, **kwargs):
                loop = runner._train_loop
                parts = [name, f"epoch={number(loop, 'epoch')}", f"iter={number(loop, 'iter')}"]
                if batch_idx is not None:
                    parts.append(f"batch={batch_idx}")
                if outputs is not None:
                    parts.append(f"outputs={type(outputs).__name__}")
                if "checkpoint" in kwargs:
                    meta, hub = kwargs["checkpoint"]["meta"], kwargs["checkpoint"]["message_hub"]
                    parts.append(f"saved epoch={meta['epoch']} iter={meta['iter']}")
                    parts.append(f"trained epoch={hub['runtime_info']['epoch']}")
                seen.append(" ".join(parts))

            return event

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 2)

        def forward(self, x, mode="tensor"):
            seen.append(f"FORWARD mode={mode} training={self.training}")
            return {"loss": self.net(x).sum()} if mode == "loss" else self.net(x)

    class Metric(mmengine.evaluator.BaseMetric):
        def process(self, data_batch, data_samples) -> None:
            seen.append("METRIC process")
            self.results.append(0)

        def compute_metrics(self, results):
            return {}

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index):
            return {"x": torch.zeros(3)}

    def runner(folder: str, cfg: dict, **more) -> Runner:
        loader = {
            "dataset": Data(),
            "batch_size": 2,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        }
        checkpoint = {"type": "CheckpointHook", "interval": 1, "by_epoch": cfg["by_epoch"]}
        return Runner(
            model=Model(),
            work_dir=str(tmp_path / folder),
            train_dataloader=loader,
            train_cfg=cfg,
            val_dataloader=loader,
            val_cfg={},
            val_evaluator=[Metric()],
            test_dataloader=loader,
            test_cfg={},
            test_evaluator=[Metric()],
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2},
            default_hooks={"logger": None, "checkpoint": checkpoint},
            custom_hooks=[Spy()],
            log_level="ERROR",
            experiment_name=f"golden_{folder}_{len(seen)}",
            **more,
        )

    seen.append("# train: 2 epochs, accumulation 2")
    first = runner("a", {"by_epoch": True, "max_epochs": 2})
    first.train()
    seen.append("# test after it")
    first.test()
    seen.append("# resume from the end of epoch 1")
    runner("a", {"by_epoch": True, "max_epochs": 3}, resume=True).train()
    seen.append("# test alone, from a checkpoint")
    runner("b", {"by_epoch": True, "max_epochs": 1}, load_from=str(tmp_path / "a" / "epoch_1.pth")).test()
    seen.append("# by iteration: 3 iterations, validation every 2")
    runner("c", {"by_epoch": False, "max_iters": 3, "val_interval": 2}).train()
    seen.append("# resume by iteration")
    runner("c", {"by_epoch": False, "max_iters": 4, "val_interval": 2}, resume=True).train()
    check("mmengine", mmengine.__version__, seen)
