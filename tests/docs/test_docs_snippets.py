"""Every Python block of docs/*.md is executed as it stands there; the README's have tests of their own."""

import re
from pathlib import Path

import pytest
import store_factory as records
import torch
from app_building import need_pages
from planted import planted

from ml_debugger.review import Verdict, Verdicts
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.codes.diagnosis import markdown_table
from mld_core.records.format.layout import RunKey, Store

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- snippet: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


def blocks(document: Path) -> list[tuple[str, str]]:
    """Name and code of every Python block; each has a name."""
    found = [(match[2], match[3]) for match in BLOCK.finditer(document.read_text(encoding="utf-8"))]
    assert all(name for name, _ in found), (
        f"{document.name}: every ```python block needs <!-- snippet: NAME -->"
    )
    return found


DOCUMENTS = [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python" in path.read_text("utf-8")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What the documents presume: two versions of MyModel, with columns of the user's own."""
    made = records.StoreFactory(tmp_path_factory.mktemp("docs") / "store")
    for version, skill in (("v1", 0.8), ("v2", 1.0)):
        run = made.run("MyModel", version, n_class=6)
        for epoch in (0, 1):
            train = planted(records, 600, seed=1, skill=skill, jitter=epoch).data
            made.add_pass(run, "train", with_scene(train), n_epoch=epoch, batch=300)
            val = planted(
                records, 800, seed=2, start=5000, noise=0.05, broken=0.06, skill=skill, jitter=epoch
            )
            made.add_pass(run, "val", with_scene(val.data), n_epoch=epoch, batch=300)
    return made.store.root


def with_scene(data):
    """Three units in a row are of one scene."""
    data.fields["scene"] = [f"scene {number // 3}" for number in range(data.rows)]
    return data


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_snippets_run(document, recorded, monkeypatch, tmp_path, capsys):
    if document.name == "report.md":
        need_pages()
    monkeypatch.setenv("MLD_HOME", str(recorded))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = before_review(recorded) if document.name == "review.md" else {}
    for name, code in blocks(document):
        exec(compile(code, f"{document.name}: {name}", "exec"), names)
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
