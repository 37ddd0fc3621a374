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
