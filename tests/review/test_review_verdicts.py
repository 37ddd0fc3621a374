"""Verdicts: appended by several people and processes, taken back, settled, torn files; applied to data sets."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import store_factory as records
import torch
from planted import planted
from store_factory import StoreFactory
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from typer.testing import CliRunner

from ml_debugger.review import apply
from mld_core.cli.main import app
from mld_core.exchange.coco_patch import correct_coco
from mld_core.exchange.relabel import read_relabel
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Subject, Verdict
from mld_core.records.store.verdicts import FOLDER, Verdicts
from mld_core.tracing.batch.identity import base_id

RUN = RunKey("net", "v1")


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.ensure_run(RUN, {"task": "classification", "n_class": 5, "class_names": list("abcde")})
    return made


def _relabel(name, label, given=None, author="ann", **more):
    return Verdict("relabel", "train", name, label=label, given=given, author=author, **more)


def test_what_is_appended_is_read_with_author_time_and_id(store, monkeypatch):
    monkeypatch.setenv("MLD_AUTHOR", "eve")
    (made,) = Verdicts(store, RUN).append([Verdict("ok", "val", "ü<b>\n7", note="sure")])
    told, problems = Verdicts(store, RUN).read()
    assert (told, problems) == ([made], [])
    assert made.author == "eve"
    assert made.at.endswith("+00:00")
    assert len(made.verdict_id) == 16


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"kind": "wrong"}, "expected one of relabel, ok"),
        ({"kind": "relabel"}, "a label goes with 'relabel'"),
        ({"kind": "ok", "label": 1}, "a label goes with 'relabel'"),
        ({"kind": "relabel", "label": -1}, "at least 0"),
        ({"kind": "undo"}, "names the verdict it takes back"),
    ],
)
def test_a_verdict_that_says_nothing_is_refused(members, said):
    with pytest.raises(ValueError, match=said):
        Verdict(dataset_type="val", input_id="1", **members)


def test_the_last_word_of_a_person_counts_and_can_be_taken_back(store):
    book = Verdicts(store, RUN)
    book.append([_relabel("1", 2)])
    (later,) = book.append([_relabel("1", 3)])
    subject = Subject("train", "1")
    assert book.standing()[subject].verdict.label == 3
    book.undo([later])
    assert book.standing()[subject].verdict.label == 2
    assert len(book.read()[0]) == 3


def test_two_who_differ_are_a_conflict_and_a_third_settles_it(store):
    book = Verdicts(store, RUN)
    book.append([_relabel("1", 2), Verdict("ok", "train", "1", author="bob")])
    (one,) = book.standing().values()
    assert one.conflict
    assert [heard.author for heard in one.heard] == ["ann", "bob"]
    book.append([_relabel("1", 2, author="cem")])
    (one,) = book.standing().values()
    assert not one.conflict
    assert one.verdict.label == 2


def test_a_torn_line_is_left_out_and_told(store):
    book = Verdicts(store, RUN)
    book.append([_relabel(str(k), 1) for k in range(3)])
    (path,) = (store.run_dir(RUN) / FOLDER).glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-7])
    told, problems = Verdicts(store, RUN).read()
    assert [one.input_id for one in told] == ["0", "1"]
    assert len(problems) == 1
    assert "line 3" in problems[0]


def test_verdicts_are_no_split_and_survive_members_of_a_newer_release(store):
    book = Verdicts(store, RUN)
    book.append([_relabel("1", 2)])
    (path,) = (store.run_dir(RUN) / FOLDER).glob("*.jsonl")
    line = {**json.loads(path.read_text()), "verdict_id": "ff", "mood": "good", "input_id": "2"}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    assert [one.input_id for one in book.read()[0]] == ["1", "2"]
    assert store.runs() == [RUN]


APPENDS = """
import sys
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Verdict
from mld_core.records.store.verdicts import Verdicts
book = Verdicts(Store(sys.argv[1]), RunKey("net", "v1"))
for k in range(25):
    book.append([Verdict("relabel", "train", str(k), label=1, author=sys.argv[2])])
"""


def test_processes_append_beside_one_another(store):
    people = [
        subprocess.Popen([sys.executable, "-c", APPENDS, str(store.root), name]) for name in ("ann", "bob")
    ]
    assert [one.wait(120) for one in people] == [0, 0]
    told, problems = Verdicts(store, RUN).read()
    assert problems == []
    assert len({one.verdict_id for one in told}) == len(told) == 50


# -- applied ------------------------------------------------------------------------------------------------


def _data(n=6):
    return TensorDataset(torch.arange(n, dtype=torch.float32), torch.arange(n) % 5)


def test_the_corrected_data_set_has_the_new_labels_and_nothing_else_changed(store):
    Verdicts(store, RUN).append([_relabel("2", 4, given=2), Verdict("ambiguous", "train", "3", author="ann")])
    data = _data()
    fixed = apply(data, "net", "v1", "train", store=store)
    assert [int(fixed[k][1]) for k in range(6)] == [0, 1, 4, 3, 4, 0]
    assert [int(data[k][1]) for k in range(6)] == [0, 1, 2, 3, 4, 0]
    assert fixed[2][1].dtype == torch.int64
    assert len(fixed) == 6
    assert fixed.skipped == []


def test_ids_are_those_of_the_data_set_inside(store):
    base = _data()
    Verdicts(store, RUN).append([_relabel("4", 0, given=4)])
    fixed = apply(Subset(base, [4, 1]), "net", "v1", "train", store=store)
    assert int(fixed[0][1]) == 0
    assert [base_id(fixed, k) for k in range(2)] == ["4", "1"]
    both = ConcatDataset([base, fixed])
    assert base_id(both, 6) == "1/4"


def test_what_does_not_fit_is_left_and_said(store):
    book = Verdicts(store, RUN)
    book.append([_relabel("0", 3, given=1), _relabel("99", 3), _relabel("1", 2), _relabel("3", 4, truth=0)])
    book.append([Verdict("ok", "train", "1", author="bob")])
    fixed = apply(_data(), "net", "v1", "train", store=store)
    assert [int(fixed[k][1]) for k in range(6)] == [0, 1, 2, 3, 4, 0]
    said = "\n".join(fixed.skipped)
    assert "0: the reviewer saw label 1, the data set has 0" in said
    assert "99: no sample of 'train' has this id" in said
    assert "1: in conflict (ann: relabel 2, bob: ok)" in said
    assert "3#0: a verdict on a box" in said


@pytest.mark.parametrize(
    "samples",
    [
        [("x", 1)] * 3,
        [["x", 1, "more"]] * 3,
        [{"image": "x", "label": 1}] * 3,
        [{"pixel_values": "x", "labels": np.int64(1)}] * 3,
        [("x", np.array(1))] * 3,
    ],
)
def test_labels_are_found_in_tuples_lists_and_mappings(store, samples):
    Verdicts(store, RUN).append([_relabel("1", 3, given=1)])
    fixed = apply(samples, "net", "v1", "train", store=store)
    place = next(
        (key for key in ("label", "labels") if isinstance(samples[0], dict) and key in samples[0]), 1
    )
    assert [int(fixed[k][place]) for k in range(3)] == [1, 3, 1]
    assert type(fixed[1]) is type(samples[1])
    assert type(fixed[1][place]) is type(samples[1][place])


def test_an_ambiguous_sample_an_iterable_and_a_wrong_split_are_told(store):
    Verdicts(store, RUN).append([_relabel("0", 3, given=1)])
    with pytest.raises(ValueError, match="which is the label"):
        apply([{"label": 1, "labels": 2}], "net", "v1", "train", store=store)
    with pytest.raises(TypeError, match="__getitem__ and __len__"):
        apply(iter([]), "net", "v1", "train", store=store)
    with pytest.raises(LookupError, match="no verdicts for 'net' 'v1' 'val'"):
        apply(_data(), "net", "v1", "val", store=store)


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_gives_lists_exports_applies_and_takes_back(tmp_path, standard_store):
    root = str(standard_store.root)

    def mld(*words):
        done = CliRunner().invoke(app, ["review", *words, "--store", root])
        assert done.exit_code == 0, done.output
        return done.stdout

    book = Verdicts(standard_store, RUN)
    mld("add", "id000003", "id000004", "--verdict", "relabel", "--label", "1", "--split", "train")
    given = {one.input_id: one.given for one in book.read()[0]}
    assert set(given) == {"id000003", "id000004"}
    assert None not in given.values()
    assert "id000003" in mld("list", "net", "v1")

    mld("export", "net", "v1", "-o", str(tmp_path / "relabel.json"))
    rows = read_relabel(tmp_path / "relabel.json")
    assert [(row["input_id"], row["label"], row["given"]) for row in rows] == [
        (name, 1, given[name]) for name in ("id000003", "id000004")
    ]
    mld("export", "net", "v1", "-o", str(tmp_path / "relabel.csv"))
    with (tmp_path / "relabel.csv").open(newline="") as file:
        assert [row["input_id"] for row in csv.DictReader(file)] == ["id000003", "id000004"]

    labels = tmp_path / "labels.csv"
    labels.write_text(f"input_id,label,who\nid000003,{given['id000003']},x\nid000004,77,y\nother,2,z\n")
    mld("apply", str(labels), "-o", str(tmp_path / "fixed.csv"))
    assert (tmp_path / "fixed.csv").read_text().split() == [
        "input_id,label,who",
        "id000003,1,x",
        "id000004,77,y",
        "other,2,z",
    ]
    mld("undo", "id000003", "id000004", "--split", "train")
    assert book.standing() == {}


def test_the_first_suspects_are_accepted_with_their_suggestions(tmp_path):
    made = StoreFactory(tmp_path / "suspects")
    for version in ("v1",):
        made.add_pass(
            made.run("net", version, n_class=6), "val", planted(records, 800, seed=2, noise=0.05).data
        )
    root = str(made.store.root)
    done = CliRunner().invoke(app, ["evaluate", "net", "v1", "--store", root])
    assert done.exit_code == 0, done.output
    words = ["review", "accept", "--first", "5", "--split", "val", "--author", "ann", "--store", root]
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.exit_code == 0, done.output
    book = Verdicts(made.store, RUN)
    assert book.read() == ([], [])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told, _ = book.read()
    assert len(told) == 5
    assert all(one.kind == "relabel" and one.label != one.given and one.author == "ann" for one in told)
    assert all(one.result_name for one in told)


def test_the_command_refuses_what_is_not_there(standard_store):
    done = CliRunner().invoke(
        app, ["review", "add", "nobody", "--verdict", "ok", "--store", str(standard_store.root)]
    )
    assert done.exit_code == 3
    assert "no sample nobody in 'val'" in done.output


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("missing", {"box": (0, 0, 1, 1)}),  # of which class?
        ("missing", {"label": 1}),  # where?
        ("nothing", {"box": (0, 0, 1, 1), "label": 1}),
        ("nothing", {}),
        ("ok", {"box": (0, 0, 1, 1)}),
        ("relabel", {"box": (0, 0, 1, 1), "label": 1}),
        ("ambiguous", {"box": (0, 0, 1, 1), "truth": 3}),
    ],
)
def test_what_can_not_be_said_of_a_box_is_refused(kind, more):
    with pytest.raises(ValueError, match=kind):
        Verdict(kind, "val", "1", **more)


def test_annotations_are_corrected_where_the_reviewer_saw_what_they_hold(store, tmp_path):
    """Categories by name, images by id or file name; what does not fit is said and left."""
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    document = {
        "images": [{"id": 7, "file_name": "a/one.jpg"}, {"id": 8, "file_name": "b/two.jpg"}],
        "categories": [{"id": 20, "name": "b"}, {"id": 10, "name": "a"}, {"id": 30, "name": "c"}],
        "annotations": [
            {"id": 3, "image_id": 7, "category_id": 10, "bbox": [0, 0, 4, 4]},
            {"id": 9, "image_id": 7, "category_id": 20, "bbox": [1, 1, 4, 4]},
        ],
    }
    source.write_text(json.dumps(document))
    said = [
        Verdict("relabel", "train", "one.jpg", 0, label=2, given=0, author="ann"),
        Verdict("relabel", "train", "7", 1, label=2, given=0, author="ann"),  # the file has b there
        Verdict("relabel", "train", "two", 0, label=2, given=0, author="ann"),  # no such box
        Verdict("missing", "train", "two", label=1, box=(1, 2, 4, 8), author="ann"),
        Verdict("nothing", "train", "two", box=(5, 5, 6, 6), author="ann"),
        Verdict("missing", "train", "three", label=1, box=(1, 2, 4, 8), author="ann"),
    ]
    Verdicts(store, RUN).append(said)
    found = Verdicts(store, RUN).standing("train").values()
    laid = correct_coco(source, target, found, ["a", "b", "c"])
    assert (laid.changed, laid.added, len(laid.skipped)) == (1, 1, 3)
    made = json.loads(target.read_text())
    assert [one["category_id"] for one in made["annotations"]] == [30, 20, 20]
    assert made["annotations"][2] | {"segmentation": []} == {
        "id": 10,
        "image_id": 8,
        "category_id": 20,
        "bbox": [1, 2, 3, 6],
        "area": 18,
        "iscrowd": 0,
        "segmentation": [],
    }
    assert json.loads(source.read_text()) == document
    with pytest.raises(ValueError, match="no category 'd'"):
        correct_coco(source, target, found, ["a", "b", "d"])
