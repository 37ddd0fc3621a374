"""Every Python block of docs/*.md is executed as it stands there; the README's have tests of their own."""

from pathlib import Path

import pytest
import torch
from app_building import need_pages
from docs_parts import ROOT, pages, run

from ml_debugger.review import Verdict, Verdicts
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.codes.diagnosis import markdown_table
from mld_core.records.format.layout import RunKey, Store

DOCUMENTS = pages("")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_snippets_run(document, recorded, monkeypatch, tmp_path, capsys):
    if document.name == "report.md":
        need_pages()
    monkeypatch.setenv("MLD_HOME", str(recorded))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = before_review(recorded) if document.name == "review.md" else {}
    run(document, names)
    checks = {
        "evaluation.md": check_evaluation,
        "record_format.md": check_record_format,
        "report.md": check_report,
        "review.md": check_review,
        "usage.md": check_usage,
    }
    assert document.name in checks, f"{document.name} has snippets: say here what they must lead to"
    checks[document.name](names)


def check_evaluation(names):
    assert names["result"].datasets == ["train", "val"]
    assert len(names["suspects"]) > 5
    assert (names["issues"]["severity"] >= 4).all()
    assert names["by_scene"].info["options"]["group_key"] == "scene"
    change = names["change"]
    assert change.units.loc[0, "n_fixed"] > change.units.loc[0, "n_regressed"]
    assert (names["first"]["category"] == "critical_hotspot").all()


def check_record_format(names):
    assert len(names["worst"].fetchall()) == 20
    assert names["frame"]["input_id"].nunique() == len(names["frame"]) == 800


def before_review(root):
    """A training split, and what somebody said of one of its samples."""
    train_data = [(torch.zeros(3), k % 6) for k in range(600)]
    made = Verdict("relabel", "train", "7", label=3, given=1, author="ann")
    Verdicts(Store(root), RunKey("MyModel", "v1")).append([made])
    return {"train_data": train_data}


def check_review(names):
    assert names["fixed"][7][1] == 3
    assert names["fixed"].skipped == []
    assert sum(len(labels) for _, labels in names["train_loader"]) == 600


def check_usage(names):
    from ml_debugger.records import load

    assert type(names["tracer"]).__name__ == "BlobTracer"
    assert load("blobs", "v1").column("n_truths").to_pylist() == [1, 0]
    assert load("blobs", "v1", "detections").num_rows == sum(
        load("blobs", "v1").column("n_detections").to_pylist()
    )


def check_report(names):
    for name in ("report.html", "with_images.html"):
        assert 'id="mld-pass-' in Path(name).read_text("utf-8")


def test_the_catalogue_of_the_document_is_the_one_of_the_code():
    text = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    table = text.partition("<!-- catalogue:begin -->\n")[2].partition("<!-- catalogue:end -->")[0]
    assert table.splitlines()[2:] == markdown_table(DIAGNOSES)
