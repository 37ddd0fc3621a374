"""Stores, results and exports written by the version before open as before; `make.py` says how they were made."""

import json
import zipfile
from pathlib import Path

import pytest

from ml_debugger import records
from ml_debugger.evaluator import Evaluator

HERE = Path(__file__).parent
SAID = json.loads((HERE / "before.json").read_text())
MODELS = sorted(SAID)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden") / "store"
    with zipfile.ZipFile(HERE / "before.zip") as archive:
        archive.extractall(root)
    return root


def _same(frame, expected):
    """The rows of before, in their order, with at least the columns of before."""
    rows = json.loads(frame.to_json(orient="records", double_precision=15))
    assert len(rows) == len(expected)
    for row, before in zip(rows, expected, strict=True):
        for name, value in before.items():
            assert row[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


@pytest.mark.parametrize("model", MODELS)
def test_records_read_as_before(store, model):
    assert SAID[model]["tables"]
    for name, expected in SAID[model]["tables"].items():
        table = records.load(model, "v1", table=name, store=store)
        assert table.num_rows == expected["rows"]
        assert table.column_names[: len(expected["columns"])] == expected["columns"]


@pytest.mark.parametrize("model", MODELS)
def test_results_open_as_before(store, model):
    evaluator = Evaluator(model, "v1", store=store)
    assert list(evaluator.list_results()["result_name"]) == SAID[model]["results"]
    result = evaluator.get_result("golden")
    _same(result.metrics_summary(), SAID[model]["metrics"])
    _same(result.issue_category_summary(), SAID[model]["categories"])
    issues = result.get_issues()
    assert len(issues) == SAID[model]["issues"] > 0
    assert list(issues.columns) == SAID[model]["issue_columns"]
    said = issues[issues["diagnosis"].str.len() > 0]
    assert len(said) > 0
    assert said["recommended_action"].str.len().min() > 0


@pytest.mark.parametrize("model", MODELS)
def test_an_old_result_still_prints_and_is_viewed(store, model, capsys):
    result = Evaluator(model, "v1", store=store).get_result("golden")
    result.get_summary()
    assert "golden" in capsys.readouterr().out
    assert len(result.get_view(groupby="gt")) > 1


@pytest.mark.parametrize("model", MODELS)
def test_old_records_evaluate_and_compare_with_their_old_result(store, model):
    evaluator = Evaluator(model, "v1", store=store)
    anew = evaluator.request_evaluation(
        f"anew-{model}", None, options={"progress": False, "repeats": 1, "threads": 1}
    )
    assert list(anew.metrics_summary()["counts"]) == [row["counts"] for row in SAID[model]["metrics"]]
    comparison = evaluator.get_result("golden").compare(anew)
    assert set(comparison.units["dataset"]) == {row["dataset"] for row in SAID[model]["metrics"]}
    assert len(repr(comparison)) > 100


def test_an_export_has_the_folders_and_families_it_had():
    with zipfile.ZipFile(HERE / "export.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert any(name.endswith("samples.parquet") for name in names)
    assert any(name.endswith("vectors.parquet") for name in names)
