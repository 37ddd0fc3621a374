"""What the MMEngine hook promises, against the real Runner (the numbers are those of the contract list)."""

from __future__ import annotations

import gc
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmengine")

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine_parts import (
    VAL_OFFSET,
    Classifier,
    IndexedDataset,
    PlainModel,
    Rows,
    SampleDataset,
    assert_ids_are_content,
    features_of,
    ids_of,
    loader,
    logits_of,
    passes,
    runner,
    summary,
)

from ml_debugger.mmengine import MLDebuggerHook
from ml_debugger.records import load
from mld_core.tracing.guard import forget_told

ALL = {str(i) for i in range(20)}
BY_ITER = {"by_epoch": False, "max_iters": 10, "val_interval": 4}
SAVE_EPOCHS = {"type": "CheckpointHook", "interval": 1}


@pytest.fixture(autouse=True)
def nothing_told_yet() -> None:
    """Every test gets its messages."""
    forget_told()


@pytest.fixture
def load_whole_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine 0.10.7 cannot read its own checkpoints with torch >= 2.6 (`weights_only`)."""
    real = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: real(*args, **{**kwargs, "weights_only": False})
    )


class Stop(Exception):
    pass


class StopAt(Hook):
    """Raises in the user's part of the training after some iterations."""

    priority = "VERY_LOW"

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if runner.iter + 1 == self.iterations:
            raise Stop


@pytest.mark.parametrize("workers", [0, 2])
def test_04_every_sample_once_per_epoch_and_the_val_epoch_is_e(
    store: Path, tmp_path: Path, workers: int
) -> None:
    extra = {"num_workers": workers, "persistent_workers": workers > 0}
    data = loader(IndexedDataset(20), shuffle=True, **extra)
    val = loader(IndexedDataset(10, VAL_OFFSET), **extra)
    runner(tmp_path, MLDebuggerHook(), train_dataloader=data, val_dataloader=val).train()
    assert summary(store) == [("train", 0, 0, 20), ("train", 1, 0, 20), ("val", 0, 0, 10), ("val", 1, 0, 10)]
    for selection in passes(store):
        train = selection.key.dataset_type == "train"
        assert Counter(ids_of(selection)) == {str(i): 1 for i in range(20 if train else 10)}
        assert_ids_are_content(selection, 0 if train else VAL_OFFSET)
        assert selection.sealed
        modes = selection.table("samples").column("mode").to_pylist()
        assert set(modes) == {"train" if train else "eval"}
    orders = [ids_of(p) for p in passes(store, split="train")]
    assert orders[0] != orders[1], "shuffled anew each epoch"


def test_the_loaders_are_given_back_as_they_were(store: Path, tmp_path: Path) -> None:
    trained = runner(tmp_path, MLDebuggerHook())
    trained.train()
    for loop in (trained.train_loop, trained.val_loop):
        assert type(loop.dataloader.batch_sampler) is torch.utils.data.BatchSampler
    assert not any(m._forward_hooks for m in trained.model.modules())


def test_05_walks_after_the_training_carry_the_epoch_last_trained(store: Path, tmp_path: Path) -> None:
    trained = runner(tmp_path, MLDebuggerHook(), val_dataloader=None)
    trained.train()
    trained.test()
    assert summary(store, split="test") == [("test", 1, 0, 8)]
    assert_ids_are_content(passes(store, split="test")[0], VAL_OFFSET)


@pytest.mark.usefixtures("load_whole_checkpoints")
@pytest.mark.parametrize("by_iter", [False, True])
def test_05_test_in_a_fresh_runner(store: Path, tmp_path: Path, by_iter: bool) -> None:
    hooks = {
        "default_hooks": {
            "checkpoint": {**SAVE_EPOCHS, "by_epoch": not by_iter, "interval": 7 if by_iter else 1}
        }
    }
    runner(tmp_path, MLDebuggerHook(), **hooks).train()
    checkpoint = str(tmp_path / ("iter_7.pth" if by_iter else "epoch_1.pth"))
    fresh = runner(tmp_path, MLDebuggerHook(), load_from=checkpoint)
    fresh.test()
    # 5 iterations an epoch: the first epoch's own checkpoint, or one saved inside the second epoch
    assert summary(store, split="test") == [("test", int(by_iter), 0, 8)]
    assert isinstance(fresh._train_loop, dict), "a test alone must not make us build the train loop"
    runner(tmp_path / "other", MLDebuggerHook(model_name="fresh")).test()
    assert summary(store, "fresh") == [("test", None, 0, 8)]


@pytest.mark.usefixtures("load_whole_checkpoints")
def test_weights_to_begin_with_are_not_a_resume(store: Path, tmp_path: Path) -> None:
    hooks = {"default_hooks": {"checkpoint": SAVE_EPOCHS}}
    runner(tmp_path, MLDebuggerHook(), **hooks).train()
    runner(tmp_path, MLDebuggerHook(), load_from=str(tmp_path / "epoch_2.pth")).train()
    assert len(passes(store)) == 4
    assert len(passes(store, version="v2")) == 4


def test_06_accumulation_records_every_micro_batch_once(store: Path, tmp_path: Path) -> None:
    wrapper = {"optimizer": {"type": "SGD", "lr": 1e-4}, "accumulative_counts": 2}
    runner(tmp_path, MLDebuggerHook(splits=["train"]), optim_wrapper=wrapper).train()
    first, second = passes(store)
    assert Counter(ids_of(first)) == Counter(ids_of(second)) == dict.fromkeys(ALL, 1)
    assert first.table("samples").column("global_step").to_pylist() == [i for i in range(5) for _ in range(4)]


def test_08_iteration_based_val_passes_stay_apart(store: Path, tmp_path: Path) -> None:
    endless = loader(SampleDataset(20), sampler={"type": "InfiniteSampler", "shuffle": True})
    trained = runner(
        tmp_path, MLDebuggerHook(), model=Classifier(), train_dataloader=endless, train_cfg=BY_ITER
    )
    trained.train()
    assert summary(store, "Classifier") == [
        ("train", 0, 0, 40),
        ("val", 0, 0, 10),
        ("val", 0, 1, 10),
        ("val", 0, 2, 10),
    ]
    train, *vals = passes(store, "Classifier")
    assert Counter(ids_of(train)) == dict.fromkeys(ALL, 2), (
        "ten batches of four: every sample twice, none dropped"
    )
    assert_ids_are_content(train)
    assert [set(v.table("samples").column("global_step").to_pylist()) for v in vals] == [{4}, {8}, {10}]


def test_iteration_based_loop_without_ids_uses_the_content(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = loader(IndexedDataset(20), sampler={"type": "InfiniteSampler", "shuffle": True})
    runner(tmp_path, MLDebuggerHook(), train_dataloader=endless, train_cfg=BY_ITER).train()
    train, val, *_ = passes(store)
    # Its iterator exists before any event: index lists drawn by then would be missing, so none are used.
    assert set(train.table("samples").column("id_source").to_pylist()) == {"content_hash"}
    assert len(set(ids_of(train))) == 20
    assert_ids_are_content(val, VAL_OFFSET)
    assert sum("hash of the inputs" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.usefixtures("load_whole_checkpoints")
def test_09_resume_from_the_end_of_an_epoch(store: Path, tmp_path: Path) -> None:
    hooks = {"default_hooks": {"checkpoint": SAVE_EPOCHS}}
    hook = MLDebuggerHook()
    with pytest.raises(Stop):
        runner(tmp_path, hook, StopAt(8), **hooks).train()
    hook._recorder.finish("exception")  # as at the exit of the process
    assert [p.sealed for p in passes(store)] == [True, False, True]
    cfg = {"by_epoch": True, "max_epochs": 3}
    runner(tmp_path, MLDebuggerHook(), resume=True, train_cfg=cfg, **hooks).train()
    assert summary(store) == [(s, e, 0, n) for s, n in (("train", 20), ("val", 10)) for e in range(3)]
    for selection in passes(store, split="train"):
        assert Counter(ids_of(selection)) == dict.fromkeys(ALL, 1)
        assert selection.sealed


@pytest.mark.usefixtures("load_whole_checkpoints")
def test_09_a_cut_epoch_is_walked_again_and_counts_once(store: Path, tmp_path: Path) -> None:
    saving = {"default_hooks": {"checkpoint": {**SAVE_EPOCHS, "by_epoch": False, "interval": 2}}}
    with pytest.raises(Stop):
        runner(tmp_path, MLDebuggerHook(), StopAt(9), **saving).train()
    runner(tmp_path, MLDebuggerHook(), resume=True, **saving).train()
    assert summary(store) == [("train", 0, 0, 20), ("train", 1, 0, 20), ("val", 0, 0, 10), ("val", 1, 0, 10)]
    assert Counter(ids_of(passes(store, split="train")[1])) == dict.fromkeys(ALL, 1)


@pytest.mark.usefixtures("load_whole_checkpoints")
def test_09_resume_of_an_iteration_based_training_goes_on(store: Path, tmp_path: Path) -> None:
    def once(*hooks: Any, **more: Any) -> None:
        endless = loader(SampleDataset(20), sampler={"type": "InfiniteSampler", "shuffle": True, "seed": 3})
        saving = {"default_hooks": {"checkpoint": {**SAVE_EPOCHS, "by_epoch": False, "interval": 2}}}
        options = {"train_dataloader": endless, "train_cfg": {**BY_ITER, "val_interval": 2}, **saving, **more}
        runner(tmp_path, MLDebuggerHook(roll_seconds=0.01), *hooks, model=Classifier(), **options).train()

    with pytest.raises(Stop):  # validated at 2, 4 and 6; the checkpoint is of 6, iteration 7 is trained again
        once(StopAt(7))
    once(resume=True)
    train, *vals = passes(store, "Classifier")
    assert Counter(train.table("samples").column("global_step").to_pylist()) == dict.fromkeys(range(10), 4)
    assert Counter(ids_of(train)) == dict.fromkeys(ALL, 2)
    assert_ids_are_content(train)
    assert [(v.key.pass_no, v.n_rows) for v in vals] == [(i, 10) for i in range(5)]
    assert [v.table("samples").column("global_step").to_pylist()[0] for v in vals] == [2, 4, 6, 8, 10]


@pytest.mark.usefixtures("load_whole_checkpoints")
@pytest.mark.parametrize("content", ["", "{}", '{"states": {"x": 1}}'])
def test_09_resume_with_a_broken_run_file_trains_on(store: Path, tmp_path: Path, content: str) -> None:
    hooks = {"default_hooks": {"checkpoint": SAVE_EPOCHS}}
    runner(tmp_path, MLDebuggerHook(), **hooks).train()
    (tmp_path / "mld_run.json").write_text(content)
    cfg = {"by_epoch": True, "max_epochs": 3}
    runner(tmp_path, MLDebuggerHook(), resume=True, train_cfg=cfg, **hooks).train()
    assert summary(store, version="v2") == [("train", 2, 0, 20), ("val", 2, 0, 10)]


def test_09_the_run_file_holds_builtin_types_only(store: Path, tmp_path: Path) -> None:
    runner(tmp_path, MLDebuggerHook(), default_hooks={"checkpoint": SAVE_EPOCHS}).train()
    states = json.loads((tmp_path / "mld_run.json").read_text())["states"]
    assert sorted(states) == ["10", "5"]
    assert {s["model_name"] for s in states.values()} == {"PlainModel"}
    assert "ml_debugger" not in str(sorted(torch.load(tmp_path / "epoch_2.pth", weights_only=False)))


def test_10_an_exception_keeps_what_was_recorded(store: Path, tmp_path: Path) -> None:
    hook = MLDebuggerHook(roll_seconds=0.01)
    broken = runner(tmp_path, hook, StopAt(3))
    with pytest.raises(Stop):
        broken.train()
    assert hook._recorder.session is not None
    hook._recorder.session.flush(60)
    (selection,) = passes(store)
    assert not selection.sealed
    assert len(ids_of(selection)) == 12
    broken.test()  # the next call ends what was left open
    assert [(p.key.dataset_type, p.sealed) for p in passes(store)] == [("test", True), ("train", False)]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_13_half_precision(store: Path, tmp_path: Path, half: torch.dtype) -> None:
    try:
        with torch.autocast("cpu", half):
            pass
    except RuntimeError as error:
        pytest.skip(f"PyTorch {torch.__version__} does not compute in {half} on the CPU: {error}")

    class Amp(PlainModel):
        def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
            with torch.autocast("cpu", half):
                return super().forward(x, y, mode)

    trained = runner(tmp_path, MLDebuggerHook(), model=Amp())
    trained.train()
    with torch.inference_mode():
        trained.test()
    for split, size in (("train", 40), ("val", 20), ("test", 8)):
        table = load("Amp", "v1", "samples", split)
        assert table.num_rows == size
        assert not any(table.column("nonfinite").to_pylist())
        assert table.column("prediction").null_count == 0


def test_14_later_changes_of_outputs_and_batch_do_not_reach_the_record(store: Path, tmp_path: Path) -> None:
    class Vandal(Hook):
        priority = "VERY_LOW"

        def after_test_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
        ) -> None:
            outputs.zero_()
            data_batch[0].fill_(-1)

    tested = runner(tmp_path, MLDebuggerHook(), Vandal())
    tested.test()
    (selection,) = passes(store)
    assert_ids_are_content(selection, VAL_OFFSET)
    assert np.abs(logits_of(selection)).min() > 0


def test_15_live_tensors_are_flat(store: Path, tmp_path: Path) -> None:
    counts = []

    class CountTensors(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if batch_idx in (200, 600, 999):
                runner._hooks[-1]._recorder.session.flush(60)
                gc.collect()
                counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))

    data = loader(IndexedDataset(2000), batch_size=2)
    options = {
        "train_dataloader": data,
        "val_dataloader": None,
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
    }
    runner(tmp_path, CountTensors(), MLDebuggerHook(), **options).train()
    assert len(counts) == 3
    assert counts[-1] <= counts[0] + 2, counts


def test_16_torch_compile(store: Path, tmp_path: Path) -> None:
    cfg = Config({"compile": {"backend": "eager"}})
    runner(tmp_path, MLDebuggerHook(), cfg=cfg).train()
    assert summary(store) == [("train", 0, 0, 20), ("train", 1, 0, 20), ("val", 0, 0, 10), ("val", 1, 0, 10)]
    for selection in passes(store):
        assert_ids_are_content(selection, 0 if selection.key.dataset_type == "train" else VAL_OFFSET)


def test_18_config_from_the_documented_snippet(store: Path, tmp_path: Path) -> None:
    import ml_debugger.mmengine as module

    documented = [line.strip() for line in module.__doc__.splitlines() if line.strip().startswith("custom_")]
    assert len(documented) == 2
    for registry, kind in ((MODELS, PlainModel), (DATASETS, IndexedDataset), (METRICS, Rows)):
        registry.register_module(module=kind, force=True)
    path = tmp_path / "config.py"
    path.write_text("\n".join(documented) + CONFIG + f"work_dir = {str(tmp_path)!r}\n")
    built = Runner.from_cfg(Config.fromfile(path))
    names = [type(hook).__name__ for hook in built._hooks]
    assert names.index("MLDebuggerHook") == names.index("CheckpointHook") - 1
    built.train()
    assert summary(store) == [("train", 0, 0, 20), ("val", 0, 0, 10)]


CONFIG = """
model = dict(type="PlainModel")
train_dataloader = dict(
    dataset=dict(type="IndexedDataset", size=20),
    batch_size=4,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=1e-4))
val_dataloader = dict(
    dataset=dict(type="IndexedDataset", size=10),
    batch_size=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
)
val_cfg = dict()
val_evaluator = dict(type="Rows")
log_level = "ERROR"
"""


def test_18_new_style_config_with_imports(store: Path, tmp_path: Path) -> None:
    """Configs that import classes ignore `custom_imports`: there the class itself is the hook's type."""
    path = tmp_path / "lazy.py"
    path.write_text(
        "from ml_debugger.mmengine import MLDebuggerHook\n"
        'custom_hooks = [dict(type=MLDebuggerHook, priority="LOW", model_name="lazy")]\n'
    )
    (hook,) = Config.fromfile(path).custom_hooks
    runner(tmp_path, hook).train()
    assert len(passes(store, "lazy")) == 4


def test_18_a_wrong_option_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"on_full='explode'.*expected.*block"):
        runner(tmp_path, {"type": "MLDebuggerHook", "on_full": "explode"})


def train_weights(work_dir: Path, *hooks: Any, workers: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    extra = {"num_workers": workers, "persistent_workers": workers > 0}
    data = loader(IndexedDataset(20), shuffle=True, **extra)
    torch.manual_seed(3)
    options = {"randomness": {"seed": 7}, "model": PlainModel(dropout=0.3), "train_dataloader": data}
    trained = runner(work_dir, *hooks, **options)
    trained.train()
    return [p.detach().clone() for p in trained.model.parameters()], torch.rand(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_and_random_numbers_are_as_without_us(store: Path, tmp_path: Path, workers: int) -> None:
    bare, bare_random = train_weights(tmp_path, workers=workers)
    with_us, random = train_weights(tmp_path, MLDebuggerHook(), workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(bare, with_us, strict=True))
    assert torch.equal(bare_random, random)
    assert len(passes(store)) == 4


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        ("recorder", "_read"),
        ("recorder", "new_pass"),
        ("recorder", "identify"),
        ("recorder", "_start"),
        ("hook", "_find_state"),
        ("hook", "_settle"),
    ],
)
def test_20_an_error_in_ours_never_stops_a_training(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, holder: str, name: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("planted")

    bare, _ = train_weights(tmp_path)
    hook = MLDebuggerHook()
    hook._resumed_at = 0
    setattr(hook if holder == "hook" else hook._recorder, name, fail)
    if name == "_find_state":
        hook.before_train = hook._start  # as if a checkpoint had been loaded
    with_us, _ = train_weights(tmp_path, hook)
    assert all(torch.equal(a, b) for a, b in zip(bare, with_us, strict=True))
    told = [r.getMessage() for r in caplog.records if "planted" in r.getMessage()]
    assert len(told) == 1, told
    assert "training" in told[0]
    assert "lost" in told[0]


def test_20_a_work_dir_that_cannot_be_written(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mld_run.json").mkdir()
    runner(tmp_path, MLDebuggerHook(), default_hooks={"checkpoint": SAVE_EPOCHS}).train()
    assert len(passes(store)) == 4
    assert sum("writing mld_run.json failed" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("begin", [0, 3])
def test_21_ema_outputs_are_recorded_once(store: Path, tmp_path: Path, begin: int) -> None:
    seen = []

    class Spy(PlainModel):
        def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
            out = super().forward(x, y, mode)
            if mode == "predict":
                seen.append(out.detach().clone())
            return out

    wrapper = {"optimizer": {"type": "SGD", "lr": 0.5}}
    ema = {"type": "EMAHook", "momentum": 0.5, "begin_iter": begin}
    trained = runner(tmp_path, MLDebuggerHook(), ema, model=Spy(), optim_wrapper=wrapper)
    trained.train()
    vals = passes(store, "Spy", split="val")
    recorded = np.concatenate([logits_of(v) for v in vals])
    np.testing.assert_allclose(recorded, torch.cat(seen).numpy(), rtol=1e-6)
    now = trained.model.head(torch.from_numpy(features_of(vals[-1]))).detach().numpy()
    assert np.abs(now - logits_of(vals[-1])).max() > 1e-3, "the weights after the swap back are others"
    for selection in passes(store, "Spy"):
        assert_ids_are_content(selection, 0 if selection.key.dataset_type == "train" else VAL_OFFSET)


def test_mmpretrain_style_samples(store: Path, tmp_path: Path) -> None:
    trained = runner(tmp_path, MLDebuggerHook(), model=Classifier())
    trained.train()
    for selection in passes(store, "Classifier"):
        assert_ids_are_content(selection)
        samples = selection.table("samples")
        assert set(samples.column("id_source").to_pylist()) == {"metainfo"}
        offset = 0 if selection.key.dataset_type == "train" else VAL_OFFSET
        assert samples.column("label").to_pylist() == [(int(i) - offset) % 3 for i in ids_of(selection)]
        assert samples.column("prediction").to_pylist() == logits_of(selection).argmax(1).tolist()


def test_mmpretrain_style_scores_where_no_layer_gives_logits(store: Path, tmp_path: Path) -> None:
    class Averaged(Classifier):
        """As a test-time augmentation model: the scores are a mean of several forward passes."""

        def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
            inputs = torch.stack(list(inputs))
            scores = sum(self.head((inputs * factor,)).softmax(1) for factor in (1, 0.1)) / 2
            for sample, score in zip(data_samples, scores, strict=True):
                sample.pred_score = score
            self.kept = scores
            return data_samples

    tested = runner(tmp_path, MLDebuggerHook(), model=Averaged(), test_dataloader=loader(SampleDataset(4)))
    tested.test()
    (selection,) = passes(store, "Averaged")
    np.testing.assert_allclose(np.exp(logits_of(selection)), tested.model.kept.detach().numpy(), rtol=1e-5)
    assert selection.meta["activation"] == "probabilities"


def test_samples_without_labels(store: Path, tmp_path: Path) -> None:
    class Unlabelled(SampleDataset):
        def __getitem__(self, index: int) -> Any:
            packed = super().__getitem__(index)
            del packed["data_samples"].gt_label
            return packed

    runner(tmp_path, MLDebuggerHook(), model=Classifier(), test_dataloader=loader(Unlabelled(6))).test()
    (selection,) = passes(store, "Classifier")
    assert_ids_are_content(selection)
    assert selection.table("samples").column("label").null_count == 6


def test_splits_every_n_epochs_and_options_from_a_dict(store: Path, tmp_path: Path) -> None:
    hook = {
        "type": "MLDebuggerHook",
        "splits": ["val"],
        "every_n_epochs": 2,
        "model_name": "m",
        "version_name": "x",
    }
    runner(tmp_path, hook, train_cfg={"by_epoch": True, "max_epochs": 3}).train()
    assert summary(store, "m", "x") == [("val", 0, 0, 10), ("val", 2, 0, 10)]


def test_pickles_before_and_after_training(store: Path, tmp_path: Path) -> None:
    hook = pickle.loads(pickle.dumps(MLDebuggerHook(model_name="kept")))
    runner(tmp_path, hook).train()
    assert len(passes(store, "kept")) == 4
    assert pickle.loads(pickle.dumps(hook))._recorder.state()["model_name"] == "kept"
