"""Exports for other tools, read back by the tools' own packages, and what people said there brought home."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from boxes_store import write
from data import store_factory
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.exchange.export import export_passes
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.records.store.verdicts import Verdicts

RUN = RunKey("net", "v1")
BOXES = RunKey("detector", "v1")
NAMES = ["cat", "dog", "cow", "hen", "pig"]


def mld(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A store with one run of classification that was evaluated; nobody writes into it."""
    root = tmp_path_factory.mktemp("labelled") / "store"
    store_factory.StoreFactory(root).standard("net", "v1")
    mld("evaluate", "net", "v1", "--dataset", "val", "--store", root)
    return root


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    """A store with one run of 2D detection at half the pictures' size."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(6):
        corner = rng.uniform(0, 60, (3, 2))
        box = np.column_stack([corner, corner + rng.uniform(10, 50, (3, 2))]).astype(np.float32)
        label = rng.integers(0, 3, 3)
        found = {"box": box + 1, "label": label, "score": rng.random(3)}
        frames.append(
            {
                "input_id": f"street/{k}.jpg",
                "image": (120, 160),
                "affine": [2, 0, 0, 0, 2, 0],
                "truths": {"box": box, "label": label},
                "detections": found,
            }
        )
    store = Store(tmp_path_factory.mktemp("boxed") / "store")
    write(store, BOXES, "val", frames, "detection", class_names=NAMES[:3])
    return store, frames


def val_of(root):
    (item,) = [one for one in select(Store(root), RUN, passes="last") if one.key.dataset_type == "val"]
    return item.table("samples")


def one_folder(root, out, kind, run=RUN, split="val"):
    (folder,) = [one for one in export_passes(Store(root), run, kind, out) if one.name.startswith(split)]
    return folder


def test_cleanlab_takes_the_arrays(labelled, tmp_path):
    from cleanlab.filter import find_label_issues

    arrays = np.load(one_folder(labelled, tmp_path / "out", "cleanlab") / "cleanlab.npz")
    samples = val_of(labelled).to_pylist()
    use = [row for row in samples if row["label"] is not None and not row["nonfinite"]]
    assert arrays["input_id"].tolist() == [row["input_id"] for row in use]
    assert_allclose(arrays["pred_probs"].sum(axis=1), 1, rtol=1e-5)
    assert arrays["pred_probs"].argmax(axis=1).tolist() == [row["prediction"] for row in use]
    assert_allclose(arrays["pred_probs"].max(axis=1), [row["confidence"] for row in use], rtol=1e-4)
    issues = find_label_issues(arrays["labels"], arrays["pred_probs"], n_jobs=1)
    assert 0 < issues.sum() < len(use)


def test_datasets_reads_classes_and_findings(labelled, tmp_path):
    datasets = pytest.importorskip("datasets", reason=".ci/exchange-env installs Datasets")
    out = tmp_path / "out"
    mld("export", "net", "v1", "--format", "hf-dataset", "--epoch", "latest", "-o", out, "--store", labelled)
    (file,) = out.glob("val*/val.parquet")
    read = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    samples = val_of(labelled).to_pylist()
    assert read["input_id"] == [row["input_id"] for row in samples]
    assert read.features["label"].names == NAMES
    assert read["label"] == [row["label"] for row in samples]
    assert any(read["category"])


def test_parquet_says_its_features(labelled, tmp_path):
    import pyarrow.parquet as pq

    (file,) = one_folder(labelled, tmp_path / "out", "hf-dataset").glob("*.parquet")
    table = pq.read_table(file)
    said = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(said) == set(table.column_names)
    assert said["label"] == {"names": NAMES, "_type": "ClassLabel"}
    assert table["prediction"].to_pylist() == val_of(labelled)["prediction"].to_pylist()


def test_label_studio_accepts_the_tasks(labelled, boxed, tmp_path):
    pytest.importorskip("label_studio_sdk", reason=".ci/exchange-env installs Label Studio's SDK")
    from label_studio_sdk.label_interface import LabelInterface

    folders = [
        one_folder(labelled, tmp_path / "labels", "label-studio"),
        one_folder(boxed[0].root, tmp_path / "boxes", "label-studio", BOXES),
    ]
    for folder in folders:
        interface = LabelInterface((folder / "config.xml").read_text())
        interface.validate()
        tasks = json.loads((folder / "tasks.json").read_text())
        assert tasks
        for task in tasks:
            assert interface.validate_task({"data": task["data"]})  # with predictions it raises by itself
            for prediction in task["predictions"]:
                assert interface.validate_prediction(prediction, return_errors=True) == []


def test_label_studio_brings_labels_home(labelled, tmp_path):
    out, home = tmp_path / "out", tmp_path / "home"
    mld(
        "export", "net", "v1", "--format", "label-studio", "--epoch", "latest", "-o", out, "--store", labelled
    )
    (path,) = out.glob("val*/tasks.json")
    tasks = json.loads(path.read_text())
    assert any("suggested_label" in task["data"] for task in tasks)
    chosen = [task for task in tasks if task["data"]["given"] is not None][:3]
    names = [
        chosen[0]["data"]["given"],
        next(one for one in NAMES if one != chosen[1]["data"]["given"]),
        "cat",
    ]
    for number, (task, name) in enumerate(zip(chosen, names, strict=True)):
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
        annotation = {"id": number, "completed_by": {"id": 7, "email": "ann@team"}, "result": [result]}
        task["annotations"] = [annotation | ({"was_cancelled": True} if number == 2 else {})]
    back = tmp_path / "project.json"
    back.write_text(json.dumps(tasks))
    store_factory.StoreFactory(home).standard("net", "v1")  # a store of its own: verdicts stay
    for _ in range(2):  # the same file twice says nothing new
        mld("review", "import", back, "net", "v1", "--store", home)
    read, problems = Verdicts(Store(home), RUN).read()
    assert not problems
    said = {one.input_id: (one.kind, one.label, one.given, one.author) for one in read}
    assert said == {
        chosen[0]["data"]["input_id"]: ("ok", None, NAMES.index(names[0]), "ann@team"),
        chosen[1]["data"]["input_id"]: (
            "relabel",
            NAMES.index(names[1]),
            NAMES.index(chosen[1]["data"]["given"]),
            "ann@team",
        ),
    }
    assert len(read) == 2


def test_label_studio_places_boxes_in_the_original_picture(boxed, tmp_path):
    store, frames = boxed
    folder = one_folder(store.root, tmp_path / "out", "label-studio", BOXES)
    tasks = json.loads((folder / "tasks.json").read_text())
    for task, frame in zip(tasks, frames, strict=True):
        given, said = task["predictions"]
        assert (given["model_version"], said["model_version"]) == ("given labels", "detector/v1")
        for one, box in zip(given["result"], frame["truths"]["box"], strict=True):
            width, height = one["original_width"], one["original_height"]
            assert (width, height) == (320, 240)
            value = one["value"]
            corner = value["x"] * width / 100, value["y"] * height / 100
            assert_allclose(
                [*corner, value["width"] * width / 100], [*(2 * box[:2]), 2 * (box[2] - box[0])], rtol=1e-5
            )


def test_cvat_brings_changed_labels_home(boxed, tmp_path):
    store, frames = boxed
    folder = one_folder(store.root, tmp_path / "out", "cvat", BOXES)
    tree = ET.parse(folder / "annotations.xml")
    images = tree.getroot().findall("image")
    assert [image.get("name") for image in images] == [frame["input_id"] for frame in frames]
    assert_allclose(float(images[0].find("box").get("xtl")), 2 * frames[0]["truths"]["box"][0, 0], atol=0.006)
    box = images[2].findall("box")[1]
    given = NAMES.index(box.get("label"))
    right = (given + 1) % 3
    box.set("label", NAMES[right])
    ET.SubElement(images[3], "box", label="cat", xtl="1", ytl="1", xbr="9", ybr="9")  # drawn anew: no truth
    tree.write(folder / "export.xml")
    home = tmp_path / "home"
    write(Store(home), BOXES, "val", frames, "detection", class_names=NAMES[:3])
    done = mld("review", "import", folder / "export.xml", "detector", "v1", "--author", "bo", "--store", home)
    assert "1 relabel" in done.output
    (one,) = Verdicts(Store(home), BOXES).read()[0]
    assert (one.kind, one.input_id, one.truth, one.label, one.given, one.author) == (
        "relabel",
        "street/2.jpg",
        1,
        right,
        given,
        "bo",
    )


def test_cvat_tags(labelled, tmp_path):
    folder = one_folder(labelled, tmp_path / "out", "cvat")
    rows = val_of(labelled).to_pylist()
    for file, column in (("annotations.xml", "label"), ("predictions.xml", "prediction")):
        tags = [image.find("tag") for image in ET.parse(folder / file).getroot().findall("image")]
        names = [None if row[column] is None else NAMES[row[column]] for row in rows]
        assert [None if tag is None else tag.get("label") for tag in tags] == names


def test_what_is_no_export_is_refused(labelled, tmp_path):
    for name, text, message in (
        ("a.json", "{}", "a list of tasks"),
        ("b.json", '[{"data": {}}]', "not exported from here"),
        ("c.xml", "<annotations/>", "index.json"),
    ):
        (tmp_path / name).write_text(text)
        done = CliRunner().invoke(app, ["review", "import", str(tmp_path / name), "--store", str(labelled)])
        assert done.exit_code != 0
        assert message in done.output


def test_ultralytics_reads_the_labels(boxed, tmp_path):
    pytest.importorskip("ultralytics", reason="pip install ultralytics")
    from PIL import Image
    from ultralytics.data.utils import check_det_dataset, verify_image_label

    store, frames = boxed
    folder = one_folder(store.root, tmp_path / "out", "yolo", BOXES)
    index = json.loads((folder / "index.json").read_text())
    assert list(index.values()) == [frame["input_id"] for frame in frames]
    (folder / "images").mkdir()
    for stem, frame in zip(index, frames, strict=True):
        picture = folder / "images" / f"{stem}.jpg"
        Image.new("RGB", (320, 240)).save(picture)
        _, label, shape, _, _, *counts, message = verify_image_label(
            (str(picture), str(folder / "labels" / f"{stem}.txt"), "", False, 3, 0, 0, False)
        )
        assert (shape, counts[3], message) == ((240, 320), 0, "")
        assert label[:, 0].tolist() == frame["truths"]["label"].tolist()
        box = 2 * frame["truths"]["box"]
        centre = (box[:, :2] + box[:, 2:]) / 2 / [320, 240]
        assert_allclose(label[:, 1:3], centre, atol=1e-5)
    names = check_det_dataset(str(folder / "data.yaml"), autodownload=False)["names"]
    assert list(names.values()) == NAMES[:3]
