"""Real mmdet3d detectors with the hook in `custom_hooks`: trained, validated and recorded, logits and truth proven.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere. Random weights, one real sweep under
several names, coarse pillars so that it fits a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ml_debugger.records import load
from ml_debugger.training import ObjectDetection3DTracer
from mld_core.geometry.conventions import to_standard
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.reader import select

if not DATA.is_dir():
    pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to their folder", allow_module_level=True)
init_default_scope("mmdet3d")


def vectors(name: str, alias: str, split: str = "val") -> np.ndarray:
    found = load(name, "v1", "vectors", split)
    column = found[alias]
    return (
        np.array(column.to_pylist())
        if "list" in str(column.type)
        else to_numpy(column, found.schema.field(alias))
    )


def logits_are_right(name: str, split: str = "val") -> None:
    """The sigmoid of a detection's logit for its label is its score; features are there."""
    found = load(name, "v1", "detections", split)
    rows = np.asarray(vectors(name, "logits", split), np.float64)
    assert len(rows) == found.num_rows > 0
    own = rows[np.arange(len(rows)), found["label"].to_numpy()]
    np.testing.assert_allclose(1 / (1 + np.exp(-own)), found["score"].to_numpy(), atol=2e-6)
    assert np.isfinite(np.asarray(vectors(name, "features", split), np.float64)).all()
    assert min(found["source_index"].to_pylist()) >= 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """PointPillars: one epoch, with a walk over the training frames and EMA, then validation."""
    folder = tmp_path_factory.mktemp("pointpillars")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLD_HOME", str(folder / "store"))
        boxes = parts.write_dataset(folder / "data")
        torch.manual_seed(0)
        parts.SEEN.clear()
        cfg = parts.small_run(parts.pointpillars(), folder / "data", folder / "work", replay_train=True)
        Runner.from_cfg(cfg).train()
        yield folder / "store", boxes, list(parts.SEEN)


def test_pointpillars_passes_and_samples(trained: Any) -> None:
    store, true_boxes, _ = trained
    passes = select(Store(store), RunKey("VoxelNet", "v1"), n_epoch=None, passes="all")
    told = [(p.key.dataset_type, p.key.n_epoch, p.n_rows, p.sealed, p.task) for p in passes]
    assert sorted(told) == [("train", 0, 4, True, "detection3d"), ("val", 0, 4, True, "detection3d")]
    info = Store(store).run_info(RunKey("VoxelNet", "v1"))
    assert (info["family"], info["layout"], info["head"]) == ("PointPillars", "mmdet3d>=1.1", "anchor")
    assert info["pc_range"] == pytest.approx(parts.KITTI_RANGE)
    assert (info["n_class"], info["class_names"]) == (3, parts.KITTI)

    for split in ("train", "val"):
        samples = load("VoxelNet", "v1", "samples", split).to_pylist()
        named = sorted(Path(row["input_id"]).name for row in samples)
        assert named == [f"{i:06d}.bin" for i in range(parts.FRAMES)]
        assert {row["id_source"] for row in samples} == {"metainfo"}
        assert [row["n_truths"] for row in samples] == [len(true_boxes)] * parts.FRAMES
        assert all(row["labelled"] and not row["nonfinite"] for row in samples)
        assert {row["mode"] for row in samples} == {"eval"}
        assert len({row["input_hash"] for row in samples}) == 1, "one sweep under four names"


def test_pointpillars_boxes_scores_and_truth(trained: Any) -> None:
    _, true_boxes, seen = trained
    found = load("VoxelNet", "v1", "detections", "val")
    assert found.num_rows == sum(len(scores) for _, scores in seen) > 0
    expected = to_standard(torch.cat([box for box, _ in seen]), "mmdet3d>=1.0")[0]
    np.testing.assert_allclose(found["box"].to_pylist(), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found["score"].to_pylist(), torch.cat([s for _, s in seen]).numpy())
    truths = load("VoxelNet", "v1", "truths", "val")
    np.testing.assert_allclose(truths["box"].to_pylist(), true_boxes * parts.FRAMES, atol=1e-4)
    assert set(truths["label"].to_pylist()) == {2}
    assert not any(truths["ignore"].to_pylist())


@pytest.mark.parametrize("split", ["train", "val"])
def test_pointpillars_logits(trained: Any, split: str) -> None:
    logits_are_right("VoxelNet", split)


def test_pointpillars_evaluates(trained: Any) -> None:
    evaluator = pytest.importorskip("ml_debugger.evaluator")
    summary = evaluator.Evaluator("VoxelNet", "v1").request_evaluation(n_epoch=None).metrics_summary()
    assert set(summary.dataset) >= {"train", "val"}
    assert set(summary.counts) == {parts.FRAMES}


def test_centerpoint_trains_and_validates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    true_boxes = parts.write_dataset(tmp_path / "data", "nuscenes", 2)
    torch.manual_seed(0)
    parts.SEEN.clear()
    Runner.from_cfg(
        parts.small_run(parts.centerpoint(), tmp_path / "data", tmp_path / "work", "nuscenes")
    ).train()
    found = load("CenterPoint", "v1", "detections", "val")
    expected = to_standard(torch.cat([box for box, _ in parts.SEEN]), "mmdet3d>=1.0")
    np.testing.assert_allclose(found["box"].to_pylist(), expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["velocity"].to_pylist(), expected[1].numpy(), atol=1e-6)
    logits_are_right("CenterPoint")
    truths = load("CenterPoint", "v1", "truths", "val")
    np.testing.assert_allclose(truths["box"].to_pylist(), true_boxes * 2, atol=1e-4)
    info = Store(tmp_path / "store").run_info(RunKey("CenterPoint", "v1"))
    assert (info["family"], info["head"], info["n_class"]) == ("CenterPoint", "center", 10)


def test_a_detection_is_the_anchor_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare points by hand; each detection's box is what its anchor decodes to."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = MODELS.build(parts.pointpillars().model).eval()
    outputs: list[Any] = []
    model.bbox_head.register_forward_hook(lambda module, args, output: outputs.append(output))
    frame = parts.frame_of("kitti")
    cloud = torch.from_numpy(np.fromfile(frame["folder"] / frame["points"], np.float32).reshape(-1, 4))
    truth = {
        "boxes_3d": [o["box_3d"][:7] for o in frame["objects"]],
        "labels_3d": [2] * len(frame["objects"]),
    }
    tracer = ObjectDetection3DTracer(model, "net", "v1", max_detections_per_frame=30)
    with torch.no_grad():
        tracer([cloud, cloud[::2]], [truth, None], ["whole", "half"], "val", 0)
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    assert model.bbox_head.test_cfg["max_num"] == 10
    samples = load("net", "v1").to_pandas().set_index("input_id")
    assert samples.n_truths.fillna(-1).to_dict() == {"whole": 6, "half": -1}
    logits_are_right("net")

    found = load("net", "v1", "detections").to_pandas()
    head, (cls, reg, _) = model.bbox_head, outputs[-1]
    priors = head.prior_generator.grid_anchors([cls[0].shape[-2:]], device="cpu")[0].reshape(-1, 7)
    for unit in (0, 1):
        rows = found[found.unit == unit]
        deltas = reg[0][unit].permute(1, 2, 0).reshape(-1, 7)
        index = torch.tensor(rows.source_index.tolist())
        decoded = head.bbox_coder.decode(priors[index], deltas[index])
        expected = to_standard(decoded.detach(), "mmdet3d>=1.0")[0].numpy()
        np.testing.assert_allclose(np.stack(rows.box)[:, :6], expected[:, :6], atol=1e-4)
