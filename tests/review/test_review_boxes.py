"""Corrected boxes: what people say of the place of a true box, in what form it is exported, and the data set it gives."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import road_store as roads
import simulated_detector as simulation

from mld_core.exchange.coco_patch import correct_coco, write_patch
from mld_core.exchange.kitti import write_corrected
from mld_core.exchange.relabel import write_relabel
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Subject, Verdict, of_members
from mld_core.records.store.verdicts import Verdicts
from mld_core.review import apply

RUN = RunKey("net", "v1")
NAMES = ["a", "b", "c", "d", "e", "f"]


def moved(name, truth, seen, right, **more):
    return Verdict("moved", "val", name, truth, seen=seen, right=right, author="ann", **more)


@pytest.mark.parametrize(
    "wrong",
    [
        {"truth": None},
        {"right": None},
        {"right": (4, 0, 2, 9)},
        {"right": (0, 0, 0, 1, 4, -2, 0)},
        {"kind": "relabel", "label": 2},
        {"kind": "nothing", "truth": None, "right": None},
    ],
)
def test_a_correction_that_means_nothing_is_none(wrong):
    good = {"kind": "moved", "dataset_type": "val", "input_id": "1", "truth": 0, "right": (0, 0, 2, 9)}
    assert Verdict(**good).corrects_box
    with pytest.raises(ValueError, match=r"."):
        Verdict(**{**good, **wrong})


def test_it_stands_beside_the_others_and_is_read_again(tmp_path):
    """Two people who say the same place agree; another place is a conflict; older lines say what they said."""
    book = Verdicts(Store(tmp_path), RUN)
    first = moved("1", 0, (0, 0, 4, 4), (0, 0, 5, 4))
    book.append([first, replace(first, author="bob")])
    subject = Subject("val", "1", 0)
    assert book.standing()[subject].verdict.right == (0, 0, 5, 4)
    book.append([replace(first, author="bob", right=(0, 0, 6, 4))])
    assert book.standing()[subject].conflict
    old = {"kind": "relabel", "dataset_type": "val", "input_id": "1", "label": 2, "verdict_id": "0" * 16}
    assert of_members(old).right is None


# -- images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Records of images, and the data set they were recorded of."""
    store = Store(tmp_path_factory.mktemp("images") / "store")
    store.ensure_run(RUN, {"task": "detection", "n_class": 6, "class_names": NAMES})
    scene = simulation.simulate(12, seed=4)
    simulation.write(store, RUN, "val", scene)
    return store, scene


class Images:
    """Samples `(image, target)` as torchvision's detectors take them."""

    def __init__(self, scene, make=np.asarray):
        self.scene, self.make = scene, make

    def __len__(self):
        return self.scene.frames

    def __getitem__(self, index):
        own = self.scene.truth_frame == index
        box = self.scene.truth_box[own].astype(np.float32)
        target = {
            "boxes": self.make(box),
            "labels": self.make(self.scene.truth_label[own].astype(np.int64)),
            "area": self.make((box[:, 2:] - box[:, :2]).prod(axis=1)),
            "image_id": index,
        }
        return np.zeros((3, 8, 8)), target


def recorded_ids(store):
    from mld_core.records.read.reader import select

    (item,) = select(store, RUN, dataset_type="val")
    return [str(one) for one in item.table("samples", ["input_id"])["input_id"].to_pylist()]


def tensors(values):
    return pytest.importorskip("torch").as_tensor(values)


@pytest.mark.parametrize("make", [np.asarray, tensors], ids=["arrays", "tensors"])
def test_boxes_of_a_data_set_are_moved_removed_and_added(images, tmp_path, make):
    _, scene = images
    store = Store(tmp_path / "store")
    store.ensure_run(RUN, {"task": "detection", "n_class": 6, "class_names": NAMES})
    simulation.write(store, RUN, "val", scene)
    ids = recorded_ids(store)
    data = Images(scene, make)
    counts = [int((scene.truth_frame == k).sum()) for k in range(12)]
    one, two = [k for k, n in enumerate(counts) if n >= 2][:2]
    box = np.asarray(data[one][1]["boxes"], np.float64)
    label = np.asarray(data[one][1]["labels"])
    other = np.asarray(data[two][1]["boxes"], np.float64)
    right = (1.0, 2.0, 30.0, 40.0)
    said = [
        moved(ids[one], 0, box[0], right, given=int(label[0]), label=int(label[0] + 1) % 6),
        Verdict("nothing", "val", ids[one], 1, seen=box[1], author="ann"),
        Verdict("missing", "val", ids[one], label=3, box=(5, 5, 9, 9), author="ann"),
        moved(ids[two], 0, other[0] + 20, right),
    ]
    Verdicts(store, RUN).append(said)
    fixed = apply(data, "net", "v1", "val", store=store, id_of=lambda _, index: ids[index])
    assert len(fixed.skipped) == 1
    assert f"{ids[two]}#0: the reviewer saw it at" in fixed.skipped[0]
    target = fixed[one][1]
    assert type(target["boxes"]) is type(data[one][1]["boxes"])
    wanted = [right, *box[2:].tolist(), (5, 5, 9, 9)]
    np.testing.assert_allclose(np.asarray(target["boxes"]), wanted, rtol=1e-6)
    assert np.asarray(target["labels"]).tolist() == [(label[0] + 1) % 6, *label[2:], 3]
    assert np.asarray(target["area"])[[0, -1]].tolist() == [29 * 38, 16]
    np.testing.assert_array_equal(np.asarray(fixed[two][1]["boxes"]), np.asarray(data[two][1]["boxes"]))
    assert data[one][1]["boxes"].shape == box.shape


def test_what_would_be_guessed_of_a_data_set_is_left_and_said(images, tmp_path):
    """Boxes written otherwise than recorded, and members that nobody can fill in for a box that is added."""
    store, scene = images
    ids = recorded_ids(store)
    one = int(np.bincount(scene.truth_frame).argmax())
    book = Verdicts(store, RUN)
    given = book.append([Verdict("missing", "val", ids[one], label=3, box=(5, 5, 9, 9), author="ann")])

    class Wide(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            boxes = target["boxes"].copy()
            boxes[:, 2:] -= boxes[:, :2]
            return image, {**target, "boxes": boxes}

    class Masked(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, {**target, "masks": np.zeros((len(target["boxes"]), 2, 2))}

    for data, why in ((Wide(scene), "elsewhere"), (Masked(scene), "masks")):
        fixed = apply(data, "net", "v1", "val", store=store, id_of=lambda _, index: ids[index])
        assert why in fixed.skipped[0]
        assert len(fixed[one][1]["boxes"]) == len(data[one][1]["boxes"])
    book.undo(given)


def test_annotations_and_patches_hold_the_places_that_stand(tmp_path):
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    boxes = [[0, 0, 4, 4], [1, 1, 4, 4], [10, 10, 5, 5]]
    document = {
        "images": [{"id": 7, "file_name": "one.jpg"}],
        "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
        "annotations": [
            {"id": k, "image_id": 7, "category_id": 10, "bbox": box, "segmentation": [[1, 2, 3]], "area": 1}
            for k, box in enumerate(boxes)
        ],
    }
    source.write_text(json.dumps(document))
    book = Verdicts(Store(tmp_path / "store"), RUN)
    book.append(
        [
            Verdict("nothing", "val", "one", 0, seen=(0, 0, 4, 4), given=0, author="ann"),
            moved("one", 1, (1, 1, 5, 5), (2, 2, 8, 9), given=0, label=1),
            moved("one", 2, (0, 0, 5, 5), (2, 2, 8, 9), given=0),  # the file has it elsewhere
        ]
    )
    found = book.standing("val").values()
    laid = correct_coco(source, target, found, ["a", "b"])
    assert (laid.moved, laid.removed, laid.changed, laid.added, len(laid.skipped)) == (1, 1, 0, 0, 1)
    first, second = json.loads(target.read_text())["annotations"]
    assert (first["id"], first["bbox"], first["category_id"]) == (1, [2, 2, 6, 7], 20)
    assert (first["area"], first["segmentation"]) == (42, [])
    assert second == document["annotations"][2]
    assert write_patch(tmp_path / "patch.json", RUN, found, ["a", "b"]) == 3
    patch = json.loads((tmp_path / "patch.json").read_text())
    assert [one["truth"] for one in patch["removed"]] == [0]
    assert [one["bbox"] for one in patch["annotations"]] == [[2, 2, 6, 7], [2, 2, 6, 7]]
    assert [one["category_id"] for one in patch["annotations"]] == [2, 1]
    write_relabel(tmp_path / "relabel.json", RUN, found, ["a", "b"])
    listed = json.loads((tmp_path / "relabel.json").read_text())["true_boxes"]
    assert [(one["kind"], one["truth"], one["label"]) for one in listed] == [
        ("nothing", 0, None),
        ("moved", 1, 1),
        ("moved", 2, None),
    ]
    assert listed[1]["right"] == [2, 2, 8, 9]


# -- point clouds -------------------------------------------------------------------------------------------------


def test_a_flipped_heading_is_turned_in_kitti_labels_and_in_the_data_set(tmp_path):
    store = Store(tmp_path / "store")
    store.ensure_run(RUN, {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "walker"]})
    _, frames, _ = roads.make_scenes(4)
    rng = np.random.default_rng(0)
    roads.write_pass(store, RUN, "val", frames, [roads.detect(one, rng) for one in frames], 0)
    ids = [roads.frame_id(k) for k in range(4)]
    seen = [float(value) for value in np.float32(frames[1].boxes[0])]
    right = (*seen[:6], seen[6] - np.pi if seen[6] > 0 else seen[6] + np.pi)
    Verdicts(store, RUN).append([moved(ids[1], 0, seen, right), moved(ids[2], 99, seen, right)])
    found = Verdicts(store, RUN).standing("val").values()
    assert write_corrected(tmp_path / "kitti.zip", store, RUN, found, ["car", "van", "walker"]) == 2
    with zipfile.ZipFile(tmp_path / "kitti.zip") as made:
        index = json.loads(made.read("val/index.json"))
        number = next(number for number, name in index.items() if name == ids[1])
        lines = made.read(f"val/label_2/{number}.txt").decode().splitlines()
        assert f"{ids[2]}#99: no such box" in made.read("skipped.txt").decode()
    assert len(lines) == len(frames[1].boxes)
    turned = float(lines[0].split()[14])
    assert np.cos(turned + np.pi / 2 + right[6]) == pytest.approx(1, abs=1e-4)
    data = [{"points": None, "gt_boxes": one.boxes.copy(), "gt_names": one.labels.copy()} for one in frames]
    fixed = apply(data, "net", "v1", "val", store=store, id_of=lambda _, index: ids[index])
    assert len(fixed.skipped) == 1
    assert fixed[1]["gt_boxes"][0, :7] == pytest.approx(right, abs=1e-5)
    np.testing.assert_array_equal(fixed[1]["gt_boxes"][1:], frames[1].boxes[1:])
