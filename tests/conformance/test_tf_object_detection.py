"""Exports of the TensorFlow Object Detection API, made by its own code, against what they return and its own COCO evaluation.

`MLD_CONFORMANCE` names the folder that holds its code under `tensorflow/models/research`: the checkout with its messages
compiled, or the source package `tf-models-research-object-detection`. Runs in .venv-keras with what docs/compatibility.md
adds to it; weights are random (`tf_od_run.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

for needed in ("tensorflow", "tf_keras", "tf_slim", "matplotlib", "pycocotools"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: see docs/compatibility.md")

import tensorflow as tf  # noqa: E402
import tf_od_run  # noqa: E402
from tf_od_run import CONFIGS, SIZES, pictures  # noqa: E402

from ml_debugger.evaluator import Evaluator  # noqa: E402
from ml_debugger.records import load  # noqa: E402
from ml_debugger.training import ObjectDetectionTracer  # noqa: E402

CODE = Path(os.environ.get("MLD_CONFORMANCE", "")) / "tensorflow/models/research"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not os.environ.get("MLD_CONFORMANCE") or not (CODE / "object_detection").is_dir(),
        reason="MLD_CONFORMANCE names no folder of checkouts with tensorflow/models (tests/conformance)",
    ),
]

HERE = Path(__file__).parent
NAMES = {"auprc": "mAP", "map_50": "mAP@.50IOU", "map_75": "mAP@.75IOU", "map_small": "mAP (small)"}
NAMES |= {"map_medium": "mAP (medium)", "map_large": "mAP (large)"}
RECALLS = {"ar_1": "AR@1", "ar_10": "AR@10", "ar_100": "AR@100"}
RECALLS |= {f"ar_{size}": f"AR@100 ({size})" for size in ("small", "medium", "large")}


def made(folder: Path, name: str) -> tuple[Any, dict[str, float]]:
    """What `tf_od_run.py` kept, and the API's figures."""
    places = [HERE.parents[1], HERE.parents[1] / "integrations", CODE, CODE / "slim"]
    more = {"PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, tf_od_run.__file__, str(folder), name]
    ran = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return np.load(folder / "kept.npz"), json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_has_the_figures_of_the_apis_own_evaluation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    kept, figures = made(tmp_path, name)
    model = tf.saved_model.load(str(tmp_path / "saved_model"))
    tracer = ObjectDetectionTracer(model, name, "exported")
    for number, picture in enumerate(pictures()):
        keys = ("boxes", "classes", "is_crowd")
        truth = {f"groundtruth_{key}": kept[f"{number}_groundtruth_{key}"] for key in keys}
        tracer(picture, truth, [str(number)], "val")
    tracer.wait_for_save(timeout=60)
    for version in ("exported", "built"):  # `built` as `model_builder` makes it
        rows, vectors = (load(name, version, table, "val") for table in ("detections", "vectors"))
        at = 0
        for number, (high, wide) in enumerate(SIZES):
            count = int(kept[f"{number}_num_detections"])
            own = rows.slice(at, count)
            answer = {
                key: kept[f"{number}_detection_{key}"][:count] for key in ("boxes", "scores", "classes")
            }
            assert own["input_id"].to_pylist() == [str(number)] * count
            np.testing.assert_allclose(own["score"].to_numpy(), answer["scores"], rtol=1e-4)
            assert own["label"].to_pylist() == (answer["classes"] - 1).astype(int).tolist()
            boxes = answer["boxes"][:, [1, 0, 3, 2]] * [wide, high, wide, high]
            np.testing.assert_allclose(np.reshape(own["box"].to_pylist(), (-1, 4)), boxes, atol=0.02)
            table = kept[f"{number}_detection_multiclass_scores"][:count]
            columns = table.shape[1] if name in {"ssd_softmax", "faster_rcnn"} else 4
            logits = np.reshape(vectors.slice(at, count)["logits"].to_pylist(), (-1, columns))
            said = np.exp(logits) if columns > 4 else 1 / (1 + np.exp(-logits))
            np.testing.assert_allclose(said, table[:, -columns:], atol=1e-4)
            at += count
        assert at == len(rows) > 100
        ours = Evaluator(name, version).request_evaluation(options={"progress": False})
        summary = ours.metrics_summary(full=True).iloc[0]
        theirs = figures["DetectionBoxes_Precision/mAP"]
        print(f"| {name} {version} | {theirs:.4f} | {summary['auprc']:.4f} |")
        assert 0.02 < theirs < 0.9
        for kind, names in (("Precision", NAMES), ("Recall", RECALLS)):
            for key, other in names.items():
                value = figures[f"DetectionBoxes_{kind}/{other}"]
                wanted = value if value >= 0 else np.nan
                assert summary[key] == pytest.approx(wanted, abs=1e-4, nan_ok=True), (key, version)
