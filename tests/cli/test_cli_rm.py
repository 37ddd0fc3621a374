"""`mld rm`: asks first, says what would go, and leaves nothing of what was named."""

import json
import shutil

import pytest

from mld_core.cli import rm as rm_module
from mld_core.evaluation.errors import RecordsRemovedError
from mld_core.evaluation.results.store import ResultStore, mentions
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.removals import Removals, id_digest
from mld_core.records.read.reader import load
from mld_core.records.store.verdict import Verdict
from mld_core.records.store.verdicts import Verdicts

RUN = RunKey("net", "v2")


@pytest.fixture
def place(evaluated, tmp_path):
    """A copy of the evaluated store that may be changed."""
    return Store(shutil.copytree(evaluated, tmp_path / "mine"))


def ids(store, run=RUN):
    return set(load(run.model_name, run.version_name, store=store)["input_id"].to_pylist())


def test_it_asks_first_and_a_dry_run_changes_nothing(mld, place):
    before = sorted(path for path in place.root.rglob("*") if path.is_file())
    would = mld("rm", "net", "v2", "--dry-run", "--json", "--store", place.root)
    (row,) = json.loads(would.stdout)
    assert (row["what"], row["rows"] > 0, row["files"] > 0, row["bytes"] > 0) == ("run", True, True, True)
    assert "would go" in would.stderr
    refused = mld("rm", "net", "v2", "--store", place.root)
    assert (refused.exit_code, "--dry-run" in refused.stderr) == (2, True)
    assert sorted(path for path in place.root.rglob("*") if path.is_file()) == before
    done = mld("rm", "net", "v2", "--yes", "--json", "--store", place.root)
    assert json.loads(done.stdout) == [row]
    assert [run.version_name for run in place.runs() if run.model_name == "net"] == ["v1"]
    assert mld("rm", "net", "v2", "--yes", "--store", place.root).exit_code == 3


@pytest.mark.parametrize("agrees", [True, False])
def test_at_a_terminal_a_word_is_enough(mld, place, monkeypatch, agrees):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(rm_module, "sys", type("sys", (), {"stdin": Terminal(), "stderr": Terminal()}))
    monkeypatch.setattr(rm_module.typer, "confirm", lambda *_, **__: agrees)
    done = mld("rm", "net", "--epoch", "0", "--dataset", "val", "--store", place.root)
    assert done.exit_code == (0 if agrees else 1)
    assert "net v2: passes" in done.stderr
    left = load("net", "v2", dataset_type="val", n_epoch=0, store=place).num_rows
    assert (left == 0) == agrees


def test_a_sample_goes_from_records_results_and_verdicts(mld, place):
    results = ResultStore(place, RUN)
    (name,) = [info["result_name"] for info in results.all()]
    sample = min(ids(place))
    book = Verdicts(place, RUN)
    book.append([Verdict("ok", "val", sample), Verdict("ok", "val", "another")])
    (row, result) = json.loads(
        mld("rm", "net", "v2", "--input-id", sample, "--dry-run", "--json", "--store", place.root).stdout
    )
    assert row["rows"] >= 1
    assert result["what"] == f"result {name}"
    done = mld("rm", "net", "v2", "--input-id", sample, "--yes", "--store", place.root)
    assert done.exit_code == 0, done.output
    assert sample not in ids(place)
    assert sample in ids(place, RunKey("net", "v1"))
    assert results.all() == []
    assert [one.input_id for one in book.read()[0]] == ["another"]
    assert not any(f'"{sample}"' in path.read_text() for path in (place.run_dir(RUN)).rglob("*.json*"))
    again = mld("evaluate", "net", "v2", "--store", place.root)
    assert again.exit_code == 0, again.output
    (info,) = results.all()
    assert not mentions(results.folder(info["result_name"]), frozenset({id_digest(sample)}))


def test_a_result_of_what_was_removed_meanwhile_is_not_published(place):
    results = ResultStore(place, RUN)
    (info,) = results.all()
    sample = min(ids(place))
    with results.writing() as folder:
        shutil.copytree(results.folder(info["result_name"]), folder, dirs_exist_ok=True)
        Removals(place, RUN).append([id_digest(sample)])
        with pytest.raises(RecordsRemovedError, match="evaluate again"):
            results.publish(folder, {**info, "result_name": "late"}, numbered=False)
    assert [one["result_name"] for one in results.all()] == [info["result_name"]]


def test_what_was_removed_from_one_split_may_stand_in_the_results_of_another(place):
    """Indices of two data sets are the same ids of other samples."""
    results = ResultStore(place, RUN)
    (info,) = results.all()
    with results.writing() as folder:
        shutil.copytree(results.folder(info["result_name"]), folder, dirs_exist_ok=True)
        Removals(place, RUN).append([id_digest(min(ids(place)))], "another split")
        assert results.publish(folder, {**info, "result_name": "late"}, numbered=False) == "late"


def test_results_are_removed_by_name(mld, place):
    (info,) = ResultStore(place, RUN).all()
    name = info["result_name"]
    assert mld("rm", "net", "v2", "--result", name, "--yes", "--store", place.root).exit_code == 0
    assert ResultStore(place, RUN).all() == []
    assert mld("rm", "net", "v2", "--result", name, "--yes", "--store", place.root).exit_code == 3
    assert mld("rm", "net", "v2", "--result", name, "--epoch", "1", "--yes").exit_code == 2
