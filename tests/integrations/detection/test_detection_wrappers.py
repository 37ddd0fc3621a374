"""Detectors in Lightning, the Hugging Face Trainer, MMEngine and Ultralytics' trainer, on one rank and two."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from detector_parts import (
    CLASSES,
    HEIGHT,
    WIDTH,
    PixelScenes,
    boxes,
    pixel_scenes,
    pixels,
    scenes,
    yolo_data,
    yolos,
)
from folders import TRAININGS
from lightning_parts import HuggingFaceModule, TorchvisionModule, passes, quiet_trainer
from zygote import started

from ml_debugger.records import load
from mld_core.records.format.layout import RunKey, Store

SCRIPT = TRAININGS / "detection_script.py"


def table(family: str = "samples", version: str = "v", **which: Any) -> pd.DataFrame:
    return load("net", version, family, **which).to_pandas()


def walks(store: Path, version: str = "v") -> list[tuple[str, int | None, bool, int]]:
    """(split, epoch, sealed and whole, rows) of every pass."""
    found = passes(store, "net", version)
    return [(s.key.dataset_type, s.key.n_epoch, s.sealed and not s.missing_ranks, s.n_rows) for s in found]


def check_truths(split: str, version: str = "v") -> None:
    """Every image's true boxes are those of its index, in pixels, classes from 0."""
    samples, truths = table(version=version, dataset_type=split), table("truths", version, dataset_type=split)
    keys = ["n_epoch", "pass_no", "rank_", "unit"]
    assert len(samples)
    assert samples.labelled.all()
    for row in samples.itertuples():
        mine = truths[np.all([truths[key] == getattr(row, key) for key in keys], axis=0)]
        box, label = boxes(int(row.input_id))
        assert len(mine) == len(box) == row.n_truths
        if len(mine):
            np.testing.assert_allclose(np.stack(list(mine.box)), box, atol=1e-4)
            assert mine.label.tolist() == label.tolist()
            assert not mine.ignore.any()


def check_detections(split: str, version: str = "v") -> None:
    """Scores follow from the stored logits; boxes lie in the image."""
    found, vectors = (
        table("detections", version, dataset_type=split),
        table("vectors", version, dataset_type=split),
    )
    assert len(found) == len(vectors) > 0
    assert found.label.between(0, CLASSES - 1).all()
    box = np.stack(list(found.box))
    assert (box >= -1).all()
    assert (box[:, 2] <= WIDTH + 1).all()
    assert (box[:, 3] <= HEIGHT + 1).all()
    assert (box[:, 2] > box[:, 0]).all(), "changed in place by the user's metrics"
    logits = torch.tensor(np.stack(list(vectors.logits)))
    activation = found.activation.iloc[0]
    if activation == "sigmoid":
        scores = logits.sigmoid()[torch.arange(len(found)), torch.tensor(found.label.to_numpy())]
    else:
        shift = int(Store().run_info(RunKey("net", version)).get("background") == 0)
        scores = logits.softmax(1)[torch.arange(len(found)), torch.tensor(found.label.to_numpy()) + shift]
    np.testing.assert_allclose(found.score, scores, rtol=1e-4, atol=1e-6)


# -- Lightning ---------------------------------------------------------------------------------------------------


def test_lightning_with_a_detector_that_is_read_in_training_too(store: Path, tmp_path: Path) -> None:
    from ml_debugger.lightning import MLDebuggerCallback

    trainer = quiet_trainer(tmp_path, MLDebuggerCallback("net", "v"), max_epochs=2)
    trainer.fit(TorchvisionModule("retinanet"), scenes(4, 0, shuffle=True), scenes(3, 0))
    assert walks(store) == [
        ("train", 0, True, 4),
        ("train", 1, True, 4),
        ("val", 0, True, 3),
        ("val", 1, True, 3),
    ]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    samples = table()
    assert set(samples.id_source) == {"image_id"}
    assert set(samples[samples.dataset_type == "train"]["mode"]) == {"train"}
    assert Store(store).run_info(RunKey("net", "v"))["task"] == "detection"


def test_lightning_with_losses_only_and_without_replay(store: Path, tmp_path: Path) -> None:
    from ml_debugger.lightning import MLDebuggerCallback

    plain = TorchvisionModule("faster")
    traced = TorchvisionModule("faster")
    for module, callbacks in ((plain, []), (traced, [MLDebuggerCallback("net", "v")])):
        torch.manual_seed(1)
        trainer = quiet_trainer(tmp_path, *callbacks, max_epochs=2)
        trainer.fit(module, scenes(4, shuffle=True), scenes(3))
    assert walks(store) == [("val", 0, True, 3), ("val", 1, True, 3)]
    check_detections("val")
    assert traced.losses == plain.losses


def test_lightning_replays_losses_only_and_trains_the_same(store: Path, tmp_path: Path) -> None:
    from ml_debugger.lightning import MLDebuggerCallback

    plain, traced = TorchvisionModule("faster"), TorchvisionModule("faster")
    for module, callbacks in ((plain, []), (traced, [MLDebuggerCallback("net", "v", replay_train=True)])):
        torch.manual_seed(1)
        trainer = quiet_trainer(tmp_path, *callbacks, max_epochs=3)
        trainer.fit(module, scenes(6, shuffle=True), scenes(3))
    assert traced.losses == plain.losses
    assert [w for w in walks(store) if w[0] == "train"] == [("train", n, True, 6) for n in range(3)]
    check_truths("train")
    check_detections("train")
    assert set(table(dataset_type="train")["mode"]) == {"eval"}


def test_lightning_with_a_query_detector(store: Path, tmp_path: Path) -> None:
    from ml_debugger.lightning import MLDebuggerCallback

    trainer = quiet_trainer(tmp_path, MLDebuggerCallback("net", "v", score_thresh=0.0), max_epochs=1)
    trainer.fit(HuggingFaceModule(), pixel_scenes(4), pixel_scenes(3))
    assert walks(store) == [("train", 0, True, 4), ("val", 0, True, 3)]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    assert (table().n_detections == 6).all()


def test_lightning_with_two_detectors_says_model(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ml_debugger.lightning import MLDebuggerCallback

    module: Any = TorchvisionModule("faster")
    module.teacher = TorchvisionModule("retinanet").net.requires_grad_(False)
    quiet_trainer(tmp_path, MLDebuggerCallback("net", "two"), max_epochs=1).fit(module, scenes(2), scenes(2))
    assert "holds 2 detectors: net (FasterRCNN), teacher (RetinaNet). Give model=" in caplog.text
    quiet_trainer(tmp_path, MLDebuggerCallback("net", "v", model=module.net), max_epochs=1).fit(
        module, scenes(2), scenes(2)
    )
    assert walks(store) == [("val", 0, True, 2)]


# -- Hugging Face ------------------------------------------------------------------------------------------------


def test_the_hugging_face_trainer(store: Path, tmp_path: Path) -> None:
    from hf_parts import trainer

    from ml_debugger.huggingface import MLDebuggerCallback

    options = {"remove_unused_columns": False, "eval_do_concat_batches": False, "eval_strategy": "epoch"}
    callback = MLDebuggerCallback("net", "v", score_thresh=0.0)
    trained = trainer(
        tmp_path,
        callback,
        model=yolos(),
        train=PixelScenes(5),
        val=PixelScenes(4),
        data_collator=pixels,
        num_train_epochs=2,
        **options,
    )
    trained.train()
    assert walks(store) == [
        ("train", 0, True, 5),
        ("train", 1, True, 5),
        ("val", 0, True, 4),
        ("val", 1, True, 4),
    ]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    assert set(table().id_source) == {"image_id"}


def test_the_hugging_face_trainer_replays(store: Path, tmp_path: Path) -> None:
    from hf_parts import trainer

    from ml_debugger.huggingface import MLDebuggerCallback

    weights = []
    for callbacks in ([], [MLDebuggerCallback("net", "v", score_thresh=0.0, replay_train=0.6)]):
        trained = trainer(
            tmp_path,
            *(callbacks or [_Nothing()]),
            model=yolos(),
            train=PixelScenes(5),
            val=PixelScenes(4),
            data_collator=pixels,
            num_train_epochs=2,
            remove_unused_columns=False,
            eval_do_concat_batches=False,
            eval_strategy="epoch",
        )
        trained.train()
        weights.append(trained.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert walks(store) == [
        ("train", 0, True, 3),
        ("train", 1, True, 3),
        ("val", 0, True, 4),
        ("val", 1, True, 4),
    ]
    check_truths("train")
    assert table(dataset_type="train", n_epoch=0).input_id.tolist() == ["0", "2", "4"]
    assert set(table(dataset_type="train")["mode"]) == {"eval"}


def _nothing() -> Any:
    from transformers import TrainerCallback

    return TrainerCallback()


_Nothing = _nothing


# -- two ranks ---------------------------------------------------------------------------------------------------


def launch(framework: str, root: Path) -> None:
    """Two ranks, as torchrun makes them."""
    both = started(2, SCRIPT, framework, root)
    assert [rank.wait() for rank in both] == [0, 0], [rank.stdout + rank.stderr for rank in both]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_two_ranks_of_lightning(store: Path, tmp_path: Path) -> None:
    launch("lightning", tmp_path)
    assert walks(store) == [
        ("train", 0, True, 9),
        ("train", 1, True, 9),
        ("val", 0, True, 5),
        ("val", 1, True, 5),
    ]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    assert set(table().rank_) == {0, 1}


@pytest.mark.processes
@pytest.mark.slow
def test_two_ranks_of_the_hugging_face_trainer(store: Path, tmp_path: Path) -> None:
    launch("huggingface", tmp_path)
    assert walks(store) == [("train", 0, True, 8), ("val", 0, True, 5)]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    assert set(table().rank_) == {0, 1}


# -- MMEngine ----------------------------------------------------------------------------------------------------


def test_mmengine(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from mmengine_detector import DetectorAdapter, DetectorModel, PackedScenes, pack_scenes
    from mmengine_parts import loader, runner

    from ml_debugger.mmengine import MLDebuggerHook
    from mld_core.adapters import registry

    registry.register(DetectorAdapter)
    try:
        weights = []
        for hooks in ([], [MLDebuggerHook("net", "v", replay_train=True)]):
            torch.manual_seed(0)
            made = runner(
                tmp_path / str(len(hooks)),
                *hooks,
                model=DetectorModel(),
                train_dataloader=loader(PackedScenes(5), 2, shuffle=True, collate_fn=pack_scenes),
                val_dataloader=loader(PackedScenes(4), 2, collate_fn=pack_scenes),
                randomness={"seed": 3},
            )
            made.train()
            weights.append(made.model.state_dict())
    finally:
        registry._registered.remove(DetectorAdapter)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert walks(store) == [
        ("train", 0, True, 5),
        ("train", 1, True, 5),
        ("val", 0, True, 4),
        ("val", 1, True, 4),
    ]
    for split in ("train", "val"):
        check_truths(split)
        check_detections(split)
    assert set(table().id_source) == {"metainfo"}


# -- Ultralytics -------------------------------------------------------------------------------------------------


@pytest.fixture
def yolo_train(torchvision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains a small YOLO from scratch for two epochs; the last checkpoint."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    printed = np.get_printoptions()
    ultralytics = pytest.importorskip("ultralytics")
    np.set_printoptions(**printed)  # the package sets its own, and doctests of ours come after
    torch.set_printoptions(profile="default")
    data = yolo_data(tmp_path / "data")

    def run(name: str, before: Any, **options: Any) -> Any:
        model = before(ultralytics.YOLO("yolov8n.yaml"))
        if find_spec("polars") is None:  # the trainer reads its own results.csv with it, into the checkpoint
            model.add_callback("on_pretrain_routine_end", lambda t: setattr(t, "read_results_csv", dict))
        settings = {
            "epochs": 2,
            "imgsz": 64,
            "batch": 2,
            "workers": 0,
            "amp": False,
            "mosaic": 0.0,
            **options,
        }
        model.train(
            data=str(data),
            device="cpu",
            plots=False,
            verbose=False,
            project=str(tmp_path),
            name=name,
            exist_ok=True,
            **settings,
        )
        return model, tmp_path / name / "weights" / "last.pt"

    return run


@pytest.mark.slow
def test_ultralytics_own_trainer(store: Path, yolo_train: Any) -> None:
    from ml_debugger.ultralytics import attach

    _, plain = yolo_train("plain", lambda model: model)
    _, traced = yolo_train("traced", lambda m: attach(m, "net", "v", score_thresh=0.0, max_detections=30))
    assert walks(store) == [
        ("train", 0, True, 6),
        ("train", 1, True, 6),
        ("val", 0, True, 5),
        ("val", 1, True, 5),
    ]
    samples, truths, info = table(), table("truths"), Store(store).run_info(RunKey("net", "v"))
    assert samples.n_detections.between(1, 30).all()
    assert samples.labelled.all()
    index = samples.input_id.map(lambda path: int(Path(path).stem))
    assert (samples.n_truths == index % 3).all()
    assert set(samples.id_source) == {"metainfo"}
    assert set(samples[samples.dataset_type == "train"]["mode"]) == {"train"}
    assert set(samples[samples.dataset_type == "val"]["mode"]) == {"eval"}
    assert not truths.ignore.any()
    assert (info["task"], info["n_class"], info["class_names"]) == ("detection", 2, ["cat", "dog"])
    assert len(table("vectors")) == len(table("detections")) == samples.n_detections.sum()
    # The training is the same, and nothing of ours is in the checkpoint.
    states = [
        torch.load(path, weights_only=False, map_location="cpu")["model"].state_dict()
        for path in (plain, traced)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert b"mld_core" not in traced.read_bytes()


@pytest.mark.slow
def test_ultralytics_replays_and_ends_well_after_an_exception(store: Path, yolo_train: Any) -> None:
    from ml_debugger.ultralytics import attach

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise RuntimeError("planted")

    def prepare(model: Any) -> Any:
        attach(model, "net", "v", score_thresh=0.0, replay_train=True)
        model.add_callback("on_train_batch_end", stop)
        return model

    with pytest.raises(RuntimeError, match="planted"):
        yolo_train("stopped", prepare)
    assert walks(store) == [("train", 0, True, 6), ("val", 0, True, 5)]
    assert set(table(dataset_type="train")["mode"]) == {"eval"}


@pytest.mark.parametrize("content", ["", "[1]", '{"model_name": 1}'])
def test_ultralytics_with_a_broken_run_file_still_has_names(
    store: Path, tmp_path: Path, content: str
) -> None:
    """Rank 0 settles the names for all ranks: were it to raise, the others would wait in the broadcast."""
    from ml_debugger.ultralytics import _Callbacks
    from mld_core.tracing.run.recorder import Recorder

    (tmp_path / "mld_run.json").write_text(content)
    callbacks = _Callbacks(Recorder(model_name="net"))
    trainer = SimpleNamespace(save_dir=tmp_path, start_epoch=1)
    names, _ = callbacks._settle(trainer, torch.nn.Linear(2, 2))
    assert (names["model_name"], names["version_name"]) == ("net", "v1")


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_two_ranks_of_ultralytics(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("ultralytics") is None:
        pytest.skip("needs ultralytics")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    yolo_data(tmp_path / "data")
    launch("ultralytics", tmp_path)
    found = walks(store)
    assert [w[:3] for w in found] == [
        ("train", 0, True),
        ("train", 1, True),
        ("val", 0, True),
        ("val", 1, True),
    ]
    assert [w[3] for w in found if w[0] == "train"] == [6, 6]
    samples = table()
    assert set(samples.rank_) == {0, 1}
    for n_epoch in (0, 1):
        val = samples[(samples.dataset_type == "val") & (samples.n_epoch == n_epoch)]
        assert sorted(Path(name).stem for name in val.input_id) == ["0", "1", "2", "3", "4"]
