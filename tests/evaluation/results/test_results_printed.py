"""What a person reads: figures with three decimals, nothing dropped at 80 columns, one note for a tiny run."""

import pandas as pd
import pytest
from store_factory import StoreFactory, make_data

from ml_debugger.evaluator import Evaluator

METRICS = (
    *("dataset", "counts", "accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy"),
    *("error_proba_auroc", "error_proba_auprc"),
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    factory = StoreFactory(tmp_path_factory.mktemp("printed") / "store")
    factory.standard("net", "v1")
    evaluator = Evaluator("net", "v1", store=factory.store.root)
    return evaluator.request_evaluation(n_epoch=None, options={"repeats": 1})


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("table", ["metrics_summary", "issue_category_summary"])
def test_tables_print_all_their_columns(result, monkeypatch, width, table):
    monkeypatch.setenv("COLUMNS", str(width))
    frame = getattr(result, table)()
    text = str(frame)
    assert max(len(line) for line in text.splitlines()) <= width
    for name in frame.columns:
        assert name in text
    for value in frame.select_dtypes("float64").to_numpy().ravel():
        assert f"{value:.3f}" in text
    assert "..." not in text


def test_wide_tables_stand_as_they_are(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = str(result.metrics_summary().query("dataset == 'val'").pipe(type(result.metrics_summary())))
    assert text.splitlines()[0].split() == [*METRICS, "n_epoch"]
    assert len(text.splitlines()) == 3


def test_what_is_taken_from_a_table_is_a_plain_frame(result):
    frame = result.metrics_summary(full=True)
    assert isinstance(frame, pd.DataFrame)
    assert type(frame[["dataset"]]) is pd.DataFrame
    assert type(frame.head(1)) is pd.DataFrame
    assert "0.855" in frame._repr_html_()
    assert "0.8550" not in frame._repr_html_()


def test_a_run_of_one_unit_has_one_note(tmp_path):
    factory = StoreFactory(tmp_path / "store")
    run = factory.run("one", "v1")
    factory.add_pass(run, "val", make_data(1))
    result = Evaluator("one", "v1", store=factory.store.root).request_evaluation()
    (only,) = result.problems
    assert only["message"].startswith("val (epoch 0): 1 unit is too few")
    assert str(result.summary()).count("note:") == 1
