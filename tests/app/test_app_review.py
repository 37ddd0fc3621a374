"""The review in the pages: said, taken back, accepted at once after twenty, settled by a third, exported, read again."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from app_parts import OPTIONS, opened
from store_factory import StoreFactory
from typer.testing import CliRunner

from ml_debugger.evaluator import Evaluator
from mld_core.cli.main import app
from mld_core.exchange.export import export_passes
from mld_core.exchange.relabel import read_relabel
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Subject, Verdict
from mld_core.records.store.verdicts import Verdicts

NET = {"model": "net <i>", "version": "v/1"}
RUN = RunKey("net <i>", "v/1")


@pytest.fixture
def store(shown_store, tmp_path):
    """One of one's own to write into."""
    shutil.copytree(shown_store.root, tmp_path / "store")
    return Store(tmp_path / "store")


def _say(client, rows, kind="relabel", **more):
    items = [{"row": row, "kind": kind, **more} for row in rows]
    return client.post("verdicts", {**NET, "items": items})


def test_a_verdict_is_written_shown_and_taken_back(store):
    with opened(store) as ann:
        first = ann.get("evaluation", **NET)["first"]["rows"][0]
        said = _say(ann, [first["row"]]).json()
        assert said["verdicts"][0]["label"] == first["suggested"]
        assert said["progress"]["reviewed"] == 1
        kept = Verdicts(store, RUN).standing("val")[Subject("val", first["id"])].verdict
        assert (kept.author, kept.given, kept.label) == (
            "ann",
            first["truth"]["class"],
            first["suggested"]["class"],
        )
        assert kept.input_hash == first["hash"]
        row = ann.get("sample", **NET, row=first["row"])["sample"]
        assert (row["verdict"]["kind"], row["verdict"]["mine"], row["verdict"]["conflict"]) == (
            "relabel",
            True,
            False,
        )
        listed = ann.get("verdicts", **NET)
        assert [(one["id"], one["row"]) for one in listed["rows"]] == [(first["id"], first["row"])]
        assert ann.post("verdicts/undo", {**NET, "last": True}).json()["undone"] == 1
        assert ann.get("verdicts", **NET)["total"] == 0
        assert ann.post("verdicts/undo", {**NET, "last": True}).status_code == 409


@pytest.mark.parametrize(
    ("item", "status"),
    [
        ({"row": 10**6, "kind": "ok"}, 404),
        ({"row": 0, "kind": "wrong"}, 400),
        ({"row": -1, "kind": "ok"}, 400),
        ({"row": 0, "kind": "relabel", "label": 99}, 400),
        ({"row": 0, "kind": "ok", "note": "x" * 5_000}, 400),
    ],
)
def test_a_word_that_means_nothing_writes_nothing(store, item, status):
    with opened(store) as ann:
        answer = ann.post("verdicts", {**NET, "items": [{"row": 1, "kind": "ok"}, item]})
        assert answer.status_code == status
        assert answer.json()["detail"]
        assert ann.get("verdicts", **NET)["total"] == 0


def test_the_rest_is_accepted_at_once_after_twenty(store):
    with opened(store) as ann:
        found = ann.get("suspects", **NET)
        assert not found["enough"]
        assert ann.post("verdicts/accept", {**NET, "limit": 5}).status_code == 409
        rows = [one["row"] for one in found["first"]]
        assert len(rows) == 20
        _say(ann, rows[:17])
        after = _say(ann, rows[17:], "ok").json()["progress"]
        assert (after["enough"], after["agreed"], after["precision"]) == (True, 17, 0.85)
        assert after["lo"] < 0.85 < after["hi"]
        tried = ann.post("verdicts/accept", {**NET, "limit": 5, "dry_run": True}).json()
        assert ann.get("verdicts", **NET)["total"] == 20
        done = ann.post("verdicts/accept", {**NET, "limit": 5}).json()
        assert done["rows"] == tried["rows"]
        assert done["accepted"] == len(done["ids"]) == 5
        assert not set(done["rows"]) & set(rows)
        assert ann.get("verdicts", **NET)["total"] == 25
        # Accepted without a look: they say nothing of how right the suspicion is.
        assert (done["progress"]["reviewed"], done["progress"]["agreed"]) == (25, 17)
        assert done["progress"]["precision"] == 0.85
        assert ann.post("verdicts/undo", {**NET, "ids": done["ids"]}).json()["undone"] == 5


def test_two_who_differ_are_a_conflict_that_a_third_settles(store):
    with opened(store, "ann") as ann, opened(store, "bob") as bob, opened(store, "cem") as cem:
        one = ann.get("suspects", **NET)["first"][0]
        mine = _say(ann, [one["row"]]).json()["verdicts"][0]["id"]
        _say(bob, [one["row"]], "ok")
        (shown,) = ann.get("verdicts", **NET, show="conflicts")["rows"]
        assert shown["stands"] == "conflict"
        assert {heard["author"]: heard["kind"] for heard in shown["heard"]} == {"ann": "relabel", "bob": "ok"}
        card = bob.get("sample", **NET, row=one["row"])
        assert card["conflict"]
        assert card["sample"]["verdict"]["kind"] == "ok"
        refused = bob.post("verdicts/undo", {**NET, "ids": [mine]})
        assert refused.status_code == 409
        assert "ann" in refused.json()["detail"]
        _say(cem, [one["row"]])
        listed = bob.get("verdicts", **NET)
        assert listed["counts"]["conflicts"] == 0
        assert listed["rows"][0]["stands"] == "relabel"


def test_what_stands_is_exported(store, tmp_path):
    with opened(store) as ann:
        found = ann.get("suspects", **NET)["first"][:3]
        _say(ann, [one["row"] for one in found], note='=1+1, "quoted"')
        answer = ann.ask("export", **NET, format="relabel")
        assert 'filename="relabel.json"' in answer.headers["content-disposition"]
        (tmp_path / "relabel.json").write_bytes(answer.content)
        assert {one["input_id"] for one in read_relabel(tmp_path / "relabel.json")} == {
            one["id"] for one in found
        }
        rows = list(csv.DictReader(io.StringIO(ann.ask("export", **NET, format="csv").content.decode())))
        assert {row["input_id"]: row["label"] for row in rows} == {
            one["id"]: str(one["suggested"]["class"]) for one in found
        }
        formats = ann.get("export/formats", **NET)
        assert formats["labels"] == 3
        assert ann.ask("export", **NET, format="exe").status_code == 400


def test_a_true_box_is_relabelled_and_exported_as_a_coco_patch(store):
    boxes = {"model": "boxes", "version": "v1"}
    with opened(store) as ann:
        rows = ann.get("samples", **boxes, filter="is_error = true", limit=200)["rows"]
        one = next(row for row in rows if row["asks"] == "label")
        none = next(row for row in rows if row["asks"] == "object")
        refused = ann.post("verdicts", {**boxes, "items": [{"row": none["row"], "kind": "ok"}]})
        assert refused.status_code == 400
        label = (one["truth"]["class"] + 1) % 6
        item = {"row": one["row"], "kind": "relabel", "label": label}
        assert ann.post("verdicts", {**boxes, "items": [item]}).status_code == 200
        patch = ann.ask("export", **boxes, format="coco").json()
        (kept,) = patch["annotations"]
        assert (kept["image_file"], kept["truth"]) == (one["id"], one["gt_idx"])
        assert (kept["category_id"], kept["given_category_id"]) == (label + 1, one["truth"]["class"] + 1)


def test_the_next_evaluation_says_what_became_of_the_reviewed(tmp_path, records, planted):
    """A label corrected in the next version, one left as it was, one confirmed: in words, in the result and the page."""
    factory = StoreFactory(tmp_path / "store")
    split = planted(records, 300, seed=2, noise=0.08)
    run = factory.run("net", "v1", n_class=6)
    factory.add_pass(run, "val", split.data, n_epoch=0, batch=300)
    wrong = split.wrong_label[:2].tolist()
    right = int(np.setdiff1d(np.arange(300), split.wrong_label)[0])
    ids, labels = split.data.ids, split.data.labels
    better = [int((labels[row] + 1) % 6) for row in wrong]
    Verdicts(factory.store, run).append(
        [
            Verdict("relabel", "val", ids[row], label=new, given=int(labels[row]), author="ann")
            for row, new in zip(wrong, better, strict=True)
        ]
        + [Verdict("ok", "val", ids[right], author="ann")]
    )
    split.data.labels[wrong[0]] = better[0]
    after = factory.run("net", "v2", n_class=6)
    factory.add_pass(after, "val", split.data, n_epoch=0, batch=300)
    result = Evaluator("net", "v2", store=factory.store.root).request_evaluation("second", options=OPTIONS)
    (told,) = result.info["verdicts"]
    assert (told["reviewed"], told["corrected"], told["uncorrected"], told["confirmed"]) == (3, 1, 1, 1)
    assert any("Of 3 reviewed before" in one["message"] for one in result.problems)
    with opened(factory.store) as ann:
        page = ann.get("evaluation", model="net", version="v2")
        assert page["verdicts"]["changed"]["sentence"] == told["sentence"]


def test_a_box_without_a_truth_is_an_object_without_a_label_or_nothing(store, tmp_path):
    """Said, shown, in conflict, taken back, exported, and laid over the annotations that the training had."""
    boxes = {"model": "boxes", "version": "v1"}
    with opened(store) as ann:
        rows = ann.get("samples", **boxes, filter="gt_idx is null", sort="-confidence")["rows"]
        assert {one["asks"] for one in rows} == {"object"}
        first, second = rows[:2]

        def say(who, row, kind, **more):
            return who.post("verdicts", {**boxes, "items": [{"row": row["row"], "kind": kind, **more}]})

        for kind in ("relabel", "ok", "hard"):
            refused = say(ann, first, kind)
            assert refused.status_code == 400
            assert "missing, nothing, ambiguous" in refused.json()["detail"]
        labelled = ann.get("samples", **boxes, filter="gt_idx is not null")["rows"][0]
        assert say(ann, labelled, "missing").status_code == 400
        given = say(ann, first, "missing").json()["verdicts"][0]
        assert given["label"] == first["said"]
        assert say(ann, first, "missing", label=99).status_code == 400
        assert say(ann, second, "nothing").status_code == 200
        kept = Verdicts(store, RunKey("boxes", "v1")).standing("val")
        where = {one.box: one for one in kept}
        assert tuple(first["box"]) in where
        shown = ann.get("sample", **boxes, row=first["row"])["sample"]["verdict"]
        assert (shown["kind"], shown["mine"]) == ("missing", True)
        listed = {one["stands"]: one for one in ann.get("verdicts", **boxes)["rows"]}
        assert listed["missing"]["row"] == first["row"]
        assert listed["nothing"]["box"] == second["box"]
        with opened(store, author="bob") as bob:
            assert say(bob, first, "nothing").status_code == 200
            assert bob.get("verdicts", **boxes, show="conflicts")["total"] == 1
            assert bob.post("verdicts/undo", {**boxes, "last": True}).json()["undone"] == 1
        exported = ann.ask("export", **boxes, format="relabel").json()["boxes"]
        assert [(one["kind"], one["box"]) for one in exported] != []
        patch = ann.ask("export", **boxes, format="coco").json()["missing"]
        x1, y1, x2, y2 = first["box"]
        assert patch[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=2e-3)
        (folder,) = export_passes(store, RunKey("boxes", "v1"), "coco", tmp_path / "out")
        source, target = folder / "annotations.json", tmp_path / "corrected.json"
        command = ["review", "apply", str(source), "-o", str(target), "--split", "val"]
        done = CliRunner().invoke(
            app, [*command, "--model", "boxes", "--version", "v1", "--store", str(store.root)]
        )
        assert done.exit_code == 0, done.output
        assert "1 boxes added" in done.output
        before, after = (json.loads(path.read_text())["annotations"] for path in (source, target))
        assert after[: len(before)] == before
        (added,) = after[len(before) :]
        assert added["bbox"] == patch[0]["bbox"]
        assert added["category_id"] == first["said"]["class"] + 1
        assert added["id"] not in {one["id"] for one in before}
