"""The export for FiftyOne, read back by FiftyOne with its real database."""

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from boxes_store import write
from data import store_factory
from docs_parts import DOCS, blocks, console
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.exchange.export import export_passes
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

NAMES = ["cat", "dog", "cow", "hen", "pig"]
MONGOD = Path(sys.prefix, "mongodb", "fiftyone", "db", "bin", "mongod")


@pytest.fixture(scope="module")
def fiftyone(tmp_path_factory):
    """FiftyOne on a database of its own."""
    if "FIFTYONE_DATABASE_URI" not in os.environ and not MONGOD.exists():
        pytest.skip("no database for FiftyOne: .ci/exchange-env, or set FIFTYONE_DATABASE_URI")
    folder = tmp_path_factory.mktemp("fiftyone")
    asked = {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_DATABASE_VALIDATION": "false"}
    asked |= {"HOME": str(folder), "FIFTYONE_DATABASE_NAME": "ml-debugger-test"}
    server = None
    if MONGOD.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        MONGOD.chmod(0o755)
        command = [MONGOD, "--dbpath", folder, "--port", str(port), "--bind_ip", "127.0.0.1", "--quiet"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        asked["FIFTYONE_DATABASE_URI"] = f"mongodb://127.0.0.1:{port}"
        wait_for(port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in asked.items():
            patch.setenv(name, value)
        yield pytest.importorskip("fiftyone", reason=".ci/exchange-env installs FiftyOne")
    if server is not None:
        server.terminate()
        server.wait(30)


def wait_for(port):
    ends = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < ends, "the database does not answer"
            time.sleep(0.1)
        else:
            return


def test_labels_and_findings_are_fields(fiftyone, tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "store"
    store_factory.StoreFactory(root).standard("MyModel", "v1")
    page = DOCS / "coming-from" / "fiftyone.md"
    for command in ("mld evaluate MyModel v1 --dataset val", *console(page)):
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    names = {}
    exec(blocks(page)["back"], names)
    found = names["dataset"]
    run = RunKey("MyModel", "v1")
    (item,) = [one for one in select(Store(root), run, passes="last") if one.key.dataset_type == "val"]
    rows = item.table("samples").to_pylist()
    assert found.values("input_id") == [row["input_id"] for row in rows]
    for field, column in (("ground_truth", "label"), ("predictions", "prediction")):
        named = [None if row[column] is None else NAMES[row[column]] for row in rows]
        assert found.values(f"{field}.label") == named
    confidence = [row["confidence"] for row in rows if row["prediction"] is not None]
    assert_allclose(
        [one for one in found.values("predictions.confidence") if one is not None], confidence, rtol=1e-4
    )
    assert found.values("filepath")[0] == f"/where/pictures/lie/{rows[0]['input_id']}"
    assert set(found.distinct("tags")) == {"val"}
    listed = [one for one in found if one["severity"] is not None]
    assert listed
    assert all(one["category"] and one["error_proba"] is not None for one in listed)
    assert set(found.distinct("suggested_label.label")) <= set(NAMES)
    right = fiftyone.ViewField("ground_truth.label") == fiftyone.ViewField("predictions.label")
    assert len(found.match(right)) == sum(row["label"] == row["prediction"] for row in rows)


def test_boxes_stand_where_they_stood(fiftyone, tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for k in range(5):
        corner = rng.uniform(0, 60, (3, 2))
        box = np.column_stack([corner, corner + rng.uniform(10, 50, (3, 2))]).astype(np.float32)
        label = rng.integers(0, 3, 3)
        frames.append(
            {
                "input_id": f"street/{k}.jpg",
                "image": (120, 160),
                "affine": [2, 0, 0, 0, 2, 0],
                "truths": {"box": box, "label": label},
                "detections": {"box": box + 1, "label": label, "score": rng.random(3)},
            }
        )
    store, run = Store(tmp_path / "store"), RunKey("detector", "v1")
    write(store, run, "val", frames, "detection", class_names=NAMES[:3])
    (folder,) = export_passes(store, run, "fiftyone", tmp_path / "out")
    found = fiftyone.Dataset.from_dir(str(folder), fiftyone.types.LegacyFiftyOneDataset)
    assert found.values("input_id") == [frame["input_id"] for frame in frames]
    for sample, frame in zip(found, frames, strict=True):
        assert_allclose(
            [one.confidence for one in sample.predictions.detections], frame["detections"]["score"], rtol=1e-6
        )
        for field, name in (("ground_truth", "truths"), ("predictions", "detections")):
            stored = sample[field].detections
            assert [one.label for one in stored] == [NAMES[k] for k in frame[name]["label"]]
            x, y, width, height = np.array([one.bounding_box for one in stored]).T
            box = np.column_stack([x, y, x + width, y + height]) * [320, 240, 320, 240]
            assert_allclose(box, 2 * frame[name]["box"], rtol=1e-5, atol=1e-4)
    judged = found.evaluate_detections("predictions", gt_field="ground_truth", compute_mAP=False)
    assert judged.metrics()["recall"] == 1.0
