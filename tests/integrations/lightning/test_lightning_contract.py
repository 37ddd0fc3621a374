"""What the Lightning callback promises, against the real Trainer (the numbers are those of the contract list)."""

from __future__ import annotations

import copy
import gc
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_parts import (
    IndexModule,
    assert_ids_are_content,
    feature_matrix,
    ids_of,
    loader,
    passes,
    quiet_trainer,
)

from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.records import load

ALL = {str(i) for i in range(20)}


def test_every_sample_once_per_epoch_with_its_id(store: Path, tmp_path: Path) -> None:
    train = loader(20, shuffle=True, num_workers=2, persistent_workers=True)
    quiet_trainer(tmp_path, MLDebuggerCallback(keep_vectors=9), max_epochs=3).fit(
        IndexModule(), train, loader(10)
    )
    found = passes(store)
    assert [(p.key.dataset_type, p.key.n_epoch, p.key.pass_no) for p in found] == [
        (split, epoch, 0) for split in ("train", "val") for epoch in range(3)
    ]
    for selection in found:
        size = 20 if selection.key.dataset_type == "train" else 10
        assert Counter(ids_of(selection)) == {str(i): 1 for i in range(size)}
        assert_ids_are_content(selection)
        assert selection.sealed
    orders = [ids_of(p) for p in found if p.key.dataset_type == "train"]
    assert orders[0] != orders[1], "shuffled anew each epoch"


def test_02_sanity_check_leaves_no_rows(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(IndexModule(), loader(20), loader(10))
    assert {p.key.dataset_type: p.n_rows for p in passes(store)} == {"train": 20, "val": 10}
    assert_ids_are_content(passes(store, split="val")[0])


def test_fast_dev_run_leaves_nothing(store: Path, tmp_path: Path) -> None:
    quiet_trainer(tmp_path, MLDebuggerCallback(), fast_dev_run=2).fit(IndexModule(), loader(20), loader(10))
    assert not store.exists()


def test_03_validation_inside_the_train_epoch_keeps_the_epoch(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2)
    trainer.fit(IndexModule(), loader(20), loader(10))
    assert [(p.key.n_epoch, len(ids_of(p))) for p in passes(store, split="val")] == [(0, 10), (1, 10)]
    assert [(p.key.n_epoch, len(ids_of(p))) for p in passes(store, split="train")] == [(0, 20), (1, 20)]


def test_05_standalone_walks_carry_the_epoch_last_trained(store: Path, tmp_path: Path) -> None:
    module, trainer = IndexModule(), quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2)
    trainer.fit(module, loader(20))
    trainer.validate(module, loader(10), verbose=False)
    trainer.test(module, loader(8), verbose=False)
    trainer.predict(module, loader(6))
    found = {
        p.key.dataset_type: (p.key.n_epoch, p.n_rows) for p in passes(store) if p.key.dataset_type != "train"
    }
    assert found == {"val": (1, 10), "test": (1, 8), "predict": (1, 6)}
    assert_ids_are_content(passes(store, split="test")[0])


def test_05_test_in_a_fresh_trainer(store: Path, tmp_path: Path) -> None:
    first = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2, enable_checkpointing=True)
    first.fit(IndexModule(), loader(20))
    checkpoint = first.checkpoint_callback.best_model_path
    quiet_trainer(tmp_path, MLDebuggerCallback()).test(
        IndexModule(), loader(8), ckpt_path=checkpoint, verbose=False
    )
    assert [(p.key.n_epoch, p.n_rows) for p in passes(store, split="test")] == [(1, 8)]
    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="fresh")).test(
        IndexModule(), loader(8), verbose=False
    )
    assert [p.key.n_epoch for p in passes(store, "fresh")] == [None]


def test_06_accumulation_records_every_micro_batch_once(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(IndexModule(), loader(20))
    (selection,) = passes(store)
    assert Counter(ids_of(selection)) == dict.fromkeys(ALL, 1)
    steps = selection.table("samples").column("global_step").to_pylist()
    assert steps == [0] * 8 + [1] * 8 + [2] * 4


def test_08_several_val_passes_in_one_epoch_stay_apart(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1, val_check_interval=2)
    trainer.fit(IndexModule(), loader(20), loader(10))
    assert [(p.key.n_epoch, p.key.pass_no, p.n_rows) for p in passes(store, split="val")] == [
        (0, 0, 10),
        (0, 1, 10),
    ]


def test_07_several_val_loaders_are_several_splits(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2)
    trainer.fit(IndexModule(), loader(20), [loader(10), loader(6)])
    found = [
        (p.key.dataset_type, p.key.n_epoch, p.n_rows) for p in passes(store) if p.key.dataset_type != "train"
    ]
    assert found == [("val", 0, 10), ("val", 1, 10), ("val/1", 0, 6), ("val/1", 1, 6)]
    for selection in passes(store, split="val/1"):
        assert_ids_are_content(selection)


class Stop(Exception):
    pass


class StopAt(pl.Callback):
    """Raises in the user's part of the training at one optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            raise Stop


def fit_resumable(tmp_path: Path, *callbacks: Any, ckpt: str | None = None, epochs: int = 2) -> str:
    checkpoints = ModelCheckpoint(
        str(tmp_path / "ckpt"), every_n_train_steps=2, save_top_k=-1, save_last=True
    )
    trainer = quiet_trainer(tmp_path, *callbacks, checkpoints, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(IndexModule(), loader(20, shuffle=True), loader(10), ckpt_path=ckpt)
    return checkpoints.last_model_path


def test_09_resume_in_mid_epoch_doubles_and_loses_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):  # 5 steps an epoch; checkpoints at 2, 4, 6, 8: step 9 is lost, 7 and 8 are kept
        fit_resumable(tmp_path, MLDebuggerCallback(), StopAt(9))
    fit_resumable(tmp_path, MLDebuggerCallback(), ckpt=str(tmp_path / "ckpt" / "last.ckpt"))
    found = {(p.key.dataset_type, p.key.n_epoch, p.key.pass_no): p for p in passes(store)}
    assert sorted(found) == [("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("val", 1, 0)]
    assert Counter(ids_of(found["train", 0, 0])) == dict.fromkeys(ALL, 1)
    rows = found["train", 1, 0].table("samples")
    per_step = Counter(rows.column("global_step").to_pylist())
    assert per_step == {5: 4, 6: 4, 7: 4, 8: 4, 9: 4}, (
        "every step of the epoch once: 3 before the crash, 2 after"
    )
    assert found["train", 1, 0].sealed
    assert_ids_are_content(found["train", 1, 0])
    assert all(Counter(ids_of(found["val", e, 0])) == {str(i): 1 for i in range(10)} for e in (0, 1))


def test_09_resume_from_the_end_of_an_epoch(store: Path, tmp_path: Path) -> None:
    first = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2, enable_checkpointing=True)
    first.fit(IndexModule(), loader(20), loader(10))
    checkpoint = first.checkpoint_callback.best_model_path
    more = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=4, num_sanity_val_steps=2)
    more.fit(IndexModule(), loader(20), loader(10), ckpt_path=checkpoint)
    found = [(p.key.dataset_type, p.key.n_epoch, p.key.pass_no, p.n_rows) for p in passes(store)]
    assert found == [("train", e, 0, 20) for e in range(4)] + [("val", e, 0, 10) for e in range(4)]


def test_10_an_exception_keeps_what_was_recorded(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), StopAt(3), max_epochs=1)
    with pytest.raises(Stop):
        trainer.fit(IndexModule(), loader(20))
    (selection,) = passes(store)
    assert not selection.sealed
    # Lightning runs callbacks in the user's order: ours came before the one that raised.
    assert len(ids_of(selection)) == 12
    assert "process_dataloader" not in vars(trainer.strategy)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_13_precision_inference_tensors_and_graphs(store: Path, tmp_path: Path, precision: Any) -> None:
    class ReturnsGraph(IndexModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.head(batch[0])
            return {"loss": torch.nn.functional.cross_entropy(logits, batch[1]), "preds": logits}

    module, trainer = (
        ReturnsGraph(),
        quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1, precision=precision),
    )
    trainer.fit(module, loader(20), loader(10))
    trainer.test(module, loader(8), verbose=False)
    for split, size in (("train", 20), ("val", 10), ("test", 8)):
        table = load("ReturnsGraph", "v1", "samples", split)
        assert table.num_rows == size
        assert not any(table.column("nonfinite").to_pylist())
        assert table.column("prediction").null_count == 0


def test_14_later_changes_of_the_outputs_do_not_reach_the_record(store: Path, tmp_path: Path) -> None:
    class Vandal(pl.Callback):
        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            module.kept.zero_()
            batch[0].fill_(-1)

    class Keeps(IndexModule):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.kept = self.head(batch[0])

    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), Vandal(), inference_mode=False)
    trainer.test(Keeps(), loader(8), verbose=False)
    (selection,) = passes(store, "Keeps")
    assert_ids_are_content(selection)
    assert selection.table("samples").column("confidence").to_pylist() != [pytest.approx(1 / 3)] * 8


def test_15_live_tensors_are_flat(store: Path, tmp_path: Path) -> None:
    counts = []

    class CountTensors(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (100, 300, 499):
                trainer.callbacks[0]._recorder.session.flush(60)
                gc.collect()
                counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))

    gc.collect()
    gc.freeze()  # what tests before left is not counted, for it may go
    try:
        trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), CountTensors(), max_epochs=1)
        trainer.fit(IndexModule(), loader(1000, batch_size=2))
    finally:
        gc.unfreeze()
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 2, counts


def test_16_torch_compile(store: Path, tmp_path: Path) -> None:
    module = IndexModule()
    module.head = torch.compile(module.head, backend="eager")
    quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2).fit(module, loader(20), loader(10))
    assert [p.n_rows for p in passes(store)] == [20, 20, 10, 10]
    whole = torch.compile(IndexModule(), backend="eager")
    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="whole"), max_epochs=2).fit(
        whole, loader(20), loader(10)
    )
    assert [p.n_rows for p in passes(store, "whole")] == [20, 20, 10, 10]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("bare", [True, False])
def test_17_both_packages_bare_and_in_a_list(store: Path, tmp_path: Path, package: str, bare: bool) -> None:
    import importlib

    lightning = importlib.import_module(package)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.nn.functional.cross_entropy(self.head(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = MLDebuggerCallback()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callback if bare else [callback],
        default_root_dir=str(tmp_path),
    )
    trainer.fit(Module(), loader(20))
    (selection,) = passes(store, "Module")
    assert Counter(ids_of(selection)) == dict.fromkeys(ALL, 1)


def test_18_lightning_cli_from_yaml(store: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "jsonargparse", reason='LightningCLI needs it: pip install "jsonargparse[signatures]"'
    )
    from lightning.pytorch.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(20)

        def val_dataloader(self) -> Any:
            return loader(10)

    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n"
        "  max_epochs: 1\n"
        "  accelerator: cpu\n"
        "  logger: false\n"
        "  enable_checkpointing: false\n"
        "  callbacks:\n"
        "    - class_path: ml_debugger.lightning.MLDebuggerCallback\n"
        "      init_args:\n"
        "        model_name: from-yaml\n"
        "        splits: [val]\n"
        "        roll_seconds: 2\n"
    )
    LightningCLI(IndexModule, Data, args=["fit", "--config", str(config)], save_config_callback=None)
    (selection,) = passes(store, "from-yaml")
    assert (selection.key.dataset_type, selection.n_rows) == ("val", 10)
    assert_ids_are_content(selection)  # loaders made by a data module are tapped too


def test_19_checkpoint_with_our_state_loads_weights_only(store: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1, enable_checkpointing=True)
    trainer.fit(IndexModule(), loader(20))
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    ours = [v for k, v in state["callbacks"].items() if "MLDebugger" in k]
    assert ours[0]["model_name"] == "IndexModule"


def train_weights(
    tmp_path: Path, *callbacks: Any, workers: int = 0
) -> tuple[list[torch.Tensor], torch.Tensor]:
    pl.seed_everything(7, verbose=False)
    module = IndexModule(dropout=0.3)
    train = loader(40, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    quiet_trainer(tmp_path, *callbacks, max_epochs=3).fit(module, train, loader(10))
    return [p.detach().clone() for p in module.parameters()], torch.rand(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_and_random_numbers_are_as_without_us(store: Path, tmp_path: Path, workers: int) -> None:
    bare, bare_random = train_weights(tmp_path, workers=workers)
    with_us, random = train_weights(tmp_path, MLDebuggerCallback(), workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(bare, with_us, strict=True))
    assert torch.equal(bare_random, random)
    assert len(passes(store)) == 6


@pytest.mark.parametrize(
    "where", ["record", "begin_batch", "begin_pass", "end_pass", "resolve_names", "start", "identify"]
)
def test_20_an_error_in_ours_never_stops_a_training(
    store: Path, tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    bare, _ = train_weights(tmp_path)
    broken = {
        "record": "_read",
        "begin_batch": "session.arm",
        "begin_pass": "new_pass",
        "end_pass": "session.seal",
        "resolve_names": "_restored",
        "start": "_start",
        "identify": "identify",
    }[where]

    class Breaks(MLDebuggerCallback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.plant()

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            if where in ("resolve_names", "start"):
                self.plant()
            super().on_fit_start(trainer, module)

        def plant(self) -> None:
            def fail(*args: Any, **kwargs: Any) -> Any:
                raise RuntimeError("planted")

            holder: Any = self._recorder
            *path, last = broken.split(".")
            for name in path:
                holder = getattr(holder, name)
            setattr(holder, last, fail)

    with_us, _ = train_weights(tmp_path, Breaks())
    assert all(torch.equal(a, b) for a, b in zip(bare, with_us, strict=True))
    told = [r.getMessage() for r in caplog.records if " failed: " in r.getMessage()]
    assert sum(("planted" in m) or ("'function' object" in m) for m in told) == 1, told
    assert "training" in told[0]
    assert "lost" in told[0]


def test_21_a_copied_ema_model_does_not_record(store: Path, tmp_path: Path) -> None:
    class Ema(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.copy = copy.deepcopy(module)

        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            with torch.no_grad():
                self.copy.head(torch.full((4, 4), -5.0))

    quiet_trainer(tmp_path, MLDebuggerCallback(), Ema(), max_epochs=1).fit(IndexModule(), loader(20))
    (selection,) = passes(store)
    assert_ids_are_content(selection)
    assert feature_matrix(selection.table("vectors"))[:, 0].min() >= 0


def test_pickles_before_and_after_training(store: Path, tmp_path: Path) -> None:
    callback = MLDebuggerCallback(model_name="kept")
    again = pickle.loads(pickle.dumps(callback))
    quiet_trainer(tmp_path, again, max_epochs=1).fit(IndexModule(), loader(20))
    assert passes(store, "kept")[0].n_rows == 20
    assert pickle.loads(pickle.dumps(again)).state_dict()["model_name"] == "kept"


@pytest.mark.parametrize(
    "make_batch",
    [
        lambda x, y: {"image": x, "label": y},
        lambda x, y: [x, y],
        lambda x, y: {"inputs": {"x": x}, "target": y.unsqueeze(1)},
        lambda x, y: (x, torch.nn.functional.one_hot(y, 3).float()),
    ],
    ids=["dict", "list", "nested", "one-hot"],
)
def test_batches_of_many_shapes(store: Path, tmp_path: Path, make_batch: Any) -> None:
    class Steps(IndexModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return make_batch(*batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = next(v for v in torch.utils._pytree.tree_flatten(batch)[0] if v.ndim == 2 and v.shape[1] == 4)
            return self.head(x).square().mean()

    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="m"), max_epochs=1).fit(Steps(), loader(20))
    (selection,) = passes(store, "m")
    samples = selection.table("samples")
    assert [int(i) % 3 for i in samples.column("input_id").to_pylist()] == samples.column("label").to_pylist()


def test_a_task_that_is_not_ours_is_told_once_and_leaves_nothing(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Regression(IndexModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.head(batch[0]) - 1).square().mean()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0], batch[0][:, :3] * 1.5

    quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2).fit(Regression(), loader(20))
    told = [r.getMessage() for r in caplog.records if "looks like regression" in r.getMessage()]
    assert len(told) == 1, [r.getMessage() for r in caplog.records]
    assert sum(p.n_rows for p in passes(store, "Regression")) == 0


def test_iterable_dataset_falls_back_to_the_content_hash(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_parts import IndexedDataset

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return (IndexedDataset(20)[i] for i in range(20))

    quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=2).fit(
        IndexModule(), torch.utils.data.DataLoader(Stream(), batch_size=4)
    )
    first, second = passes(store)
    assert first.n_rows == 20
    assert len(set(ids_of(first))) == 20
    assert ids_of(first) == ids_of(second)
    assert set(first.table("samples").column("id_source").to_pylist()) == {"content_hash"}
    assert sum("content_hash" in r.getMessage() for r in caplog.records) == 1


def test_user_ids_fields_and_class_names(store: Path, tmp_path: Path) -> None:
    callback = MLDebuggerCallback(
        model_name="m",
        id_fn=lambda batch: [f"img-{int(i)}" for i in batch[0][:, 0]],
        fields_fn=lambda batch: {"bright": batch[0][:, 1]},
        additional_fields=[{"name": "bright", "type": "float"}],
        class_names=["a", "b", "c"],
    )
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(20))
    table = load("m", "v1")
    assert table.column("input_id").to_pylist() == [f"img-{i}" for i in range(20)]
    np.testing.assert_allclose(table.column("bright").to_pylist(), np.sin(np.arange(20) + 1.0), rtol=1e-6)


def test_splits_and_every_n_epochs(store: Path, tmp_path: Path) -> None:
    callback = MLDebuggerCallback(splits=["val"], every_n_epochs=2)
    quiet_trainer(tmp_path, callback, max_epochs=4).fit(IndexModule(), loader(20), loader(10))
    assert [(p.key.dataset_type, p.key.n_epoch) for p in passes(store)] == [("val", 0), ("val", 2)]


def test_second_fit_of_the_same_names_is_a_newer_attempt(store: Path, tmp_path: Path) -> None:
    for _ in range(2):
        callback = MLDebuggerCallback(model_name="m", version_name="fixed")
        quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(20))
    (selection,) = passes(store, "m", "fixed")
    assert selection.n_rows == 20


def test_unnamed_runs_get_the_next_version(store: Path, tmp_path: Path) -> None:
    for _ in range(2):
        quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1).fit(IndexModule(), loader(20))
    assert passes(store, version="v1")[0].n_rows == passes(store, version="v2")[0].n_rows == 20
