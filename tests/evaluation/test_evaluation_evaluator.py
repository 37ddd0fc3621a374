"""The evaluator end to end, on stores the real writer made."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from rich.progress import Progress
from scipy.special import softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from ml_debugger.evaluator import Evaluator
from ml_debugger.evaluator.evaluator import Evaluator as LongPathEvaluator
from mld_core.evaluation.errors import AuthenticationError, NotFoundError, ResultExistsError
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import CATEGORY_COLUMNS, METRIC_COLUMNS

ONCE = {"repeats": 1}
"""Where the error estimate is not what is looked at, it is made once."""


def test_public_paths():
    assert LongPathEvaluator is Evaluator


def test_progress_shows_what_is_left(factory, monkeypatch):
    shown = []
    monkeypatch.setattr(Progress, "add_task", lambda self, name, total=None: shown.append((name, total)) or 0)
    monkeypatch.setattr(Progress, "remove_task", lambda self, task: None)
    monkeypatch.setattr(Progress, "advance", lambda self, task, advance=1: None)
    factory.standard("net", "v1")
    evaluator = Evaluator("net", "v1", store=factory.store.root)
    evaluator.request_evaluation(options={"progress": True})
    (_, expected), *stages = shown
    assert len(stages) <= expected <= 1.1 * len(stages)


def test_metrics_equal_sklearn(factory, records):
    data = records.make_data(500, classes=5, seed=4)
    run = factory.run()
    factory.add_pass(run, "val", data, n_epoch=2, world_size=2)
    row = Evaluator("net", "v1").request_evaluation(options=ONCE).metrics_summary(full=True).iloc[0]
    p = softmax(data.logits.astype(np.float64), axis=1)
    one_hot = np.eye(5)[data.labels]
    assert row["counts"] == 500
    assert row["accuracy"] == pytest.approx((p.argmax(1) == data.labels).mean())
    assert row["auroc"] == pytest.approx(roc_auc_score(data.labels, p, multi_class="ovr"), abs=1e-9)
    assert row["auprc"] == pytest.approx(average_precision_score(one_hot, p, average="macro"), abs=1e-9)
    entropy = -(p * np.log(p)).sum(axis=1)
    loss = -np.log(p[np.arange(500), data.labels])
    assert row["net_entropy"] == pytest.approx(entropy.sum(), rel=1e-9)
    assert row["net_entropy_loss"] == pytest.approx(loss.sum(), rel=1e-9)
    assert row["net_entropy_mean"] == pytest.approx(entropy.mean(), rel=1e-9)
    assert row["net_entropy_norm"] == pytest.approx(entropy.mean() / np.log(5), rel=1e-9)
    assert row["n_epoch"] == 2


def test_binary_auroc_is_that_of_class_one(factory, records):
    data = records.make_data(300, classes=2, seed=5)
    run = factory.run(n_class=2)
    factory.add_pass(run, "test", data)
    row = Evaluator("net", "v1").request_evaluation(options=ONCE).metrics_summary().iloc[0]
    p = softmax(data.logits.astype(np.float64), axis=1)
    assert row["auroc"] == pytest.approx(roc_auc_score(data.labels, p[:, 1]), abs=1e-9)


def test_tables_have_the_fixed_columns(standard_store):
    result = Evaluator("net", "v1", store=standard_store.root).request_evaluation()
    metrics = result.metrics_summary()
    assert (
        tuple(metrics.columns)
        == METRIC_COLUMNS
        == (
            *("dataset", "counts", "accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy"),
            *("error_proba_auroc", "error_proba_auprc"),
        )
    )
    assert metrics["dataset"].tolist() == ["train", "val", "test"]
    categories = result.issue_category_summary()
    assert (
        tuple(categories.columns)
        == CATEGORY_COLUMNS
        == (
            *("dataset", "stable_coverage_ratio", "operational_coverage_ratio", "hotspot_ratio"),
            *("recessive_hotspot_ratio", "critical_hotspot_ratio", "aleatoric_hotspot_ratio"),
        )
    )
    assert tuple(result.metrics_summary(full=True).columns[: len(METRIC_COLUMNS)]) == METRIC_COLUMNS


def test_epochs(standard_store):
    evaluator = Evaluator("net", "v1", store=standard_store.root)
    latest = evaluator.request_evaluation(options=ONCE).metrics_summary(full=True)
    assert latest["n_epoch"].fillna(-9).tolist() == [1, 1, -9]
    first = evaluator.request_evaluation(n_epoch=0, options=ONCE).metrics_summary(full=True)
    assert first["dataset"].tolist() == ["train", "val"]
    assert first["n_epoch"].tolist() == [0, 0]
    every = evaluator.request_evaluation(n_epoch=None, options=ONCE).metrics_summary()
    assert tuple(every.columns) == (*METRIC_COLUMNS, "n_epoch")
    assert every[["dataset", "n_epoch"]].fillna(-9).to_numpy().tolist() == [
        ["train", 0],
        ["train", 1],
        ["val", 0],
        ["val", 1],
        ["test", -9],
    ]
    with pytest.raises(NotFoundError, match=r"no records of epoch 7 \(epochs: 'none', 0, 1\)"):
        evaluator.request_evaluation(n_epoch=7)
    with pytest.raises(ValueError, match="expected 'latest'"):
        evaluator.request_evaluation(n_epoch="last")


def test_result_names_number_and_results_never_change(factory, records):
    run = factory.run()
    for epoch in (0, 1):
        factory.add_pass(run, "val", records.make_data(40), n_epoch=epoch)
    evaluator = Evaluator("net", "v1")
    first = evaluator.request_evaluation(options=ONCE)
    second = evaluator.request_evaluation(options=ONCE)
    day = first.result_name.rsplit("_", 1)[1]
    assert len(day) == 8
    assert day.isdigit()
    assert first.result_name == f"net_v1_classification_v1_{day}"
    assert second.result_name == f"{first.result_name}_2"
    named = evaluator.request_evaluation("mine", n_epoch=0, options=ONCE)
    with pytest.raises(ResultExistsError, match="get_result"):
        evaluator.request_evaluation("mine")
    again = evaluator.get_result("mine")
    assert again.metrics_summary().equals(named.metrics_summary())
    with pytest.raises(NotFoundError, match="did you mean 'mine'"):
        evaluator.get_result("mime")
    listed = evaluator.list_results()
    assert list(listed.columns) == [
        *("result_name", "method_name", "n_epoch", "created_at", "completed_at", "options")
    ]
    assert set(listed["result_name"]) == {first.result_name, second.result_name, "mine"}
    assert evaluator.list_results("mine")["n_epoch"].tolist() == [0]
    assert len(evaluator.list_results(n_epoch="latest")) == 2
    assert len(evaluator.list_results(n_epoch=1)) == 2
    assert len(evaluator.list_results(method_name="od_v1")) == 0


def test_results_made_at_once_get_different_names(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(40))
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda _: Evaluator("net", "v1").request_evaluation(options=ONCE).result_name, range(4))
        )
    assert len(set(made)) == 4
    left = [path.name for path in factory.store.results_dir(run).iterdir() if path.name.startswith(".tmp")]
    assert left == []


def test_a_failed_evaluation_leaves_nothing(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(40))
    with pytest.raises(ValueError, match=r"unknown option 'thread'.*did you mean 'threads'"):
        Evaluator("net", "v1").request_evaluation(options={"thread": 2})
    with pytest.raises(ValueError, match="expected int"):
        Evaluator("net", "v1").request_evaluation(options={"threads": "two"})
    with pytest.raises(ValueError, match="method_name='od_v1'"):
        Evaluator("net", "v1").request_evaluation(method_name="od_v1")
    with pytest.raises(NotFoundError, match=r"no split 'vall'.*did you mean 'val'"):
        Evaluator("net", "v1").request_evaluation(options={"dataset_types": ["vall"]})
    assert Evaluator("net", "v1").list_results().empty
    folder = factory.store.results_dir(run)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_unknown_names_list_what_exists(standard_store, tmp_path):
    with pytest.raises(NotFoundError, match=r"no model 'nett'; did you mean 'net'.*models: 'net'"):
        Evaluator("nett", "v1", store=standard_store.root).request_evaluation()
    with pytest.raises(NotFoundError, match=r"no version 'v9'.*versions: 'v1'"):
        Evaluator("net", "v9", store=standard_store.root).list_results()
    with pytest.raises(NotFoundError, match="holds no runs"):
        Evaluator("net", "v1", store=tmp_path / "empty").get_result("x")


def test_nonfinite_logits_are_errors_and_stay_out_of_the_probability_metrics(factory, records):
    data = records.make_data(100, seed=6)
    data.logits[:10, 2] = np.nan
    data.logits[10, 0] = np.inf
    run = factory.run()
    factory.add_pass(run, "val", data)
    result = Evaluator("net", "v1").request_evaluation()
    row = result.metrics_summary(full=True).iloc[0]
    good = np.arange(11, 100)
    p = softmax(data.logits[good].astype(np.float64), axis=1)
    right = (p.argmax(1) == data.labels[good]).sum()
    assert row["counts"] == 100
    assert row["count_nonfinite"] == 11
    assert row["accuracy"] == pytest.approx(right / 100)
    assert row["net_entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9)
    assert row["auroc"] == pytest.approx(
        roc_auc_score(data.labels[good], p, multi_class="ovr", labels=range(5)), abs=1e-9
    )
    assert "11 of 100 units have NaN or infinity" in str(result.summary())
    codes = result.get_issues("val")["error_code"]
    assert codes.str.endswith("->nonfinite").sum() == 11


def test_unlabelled_units_have_no_code_and_no_error(factory, records):
    data = records.make_data(60, seed=7)
    data.labels[:20] = -1
    run = factory.run()
    factory.add_pass(run, "predict", data)
    result = Evaluator("net", "v1").request_evaluation()
    row = result.metrics_summary(full=True).iloc[0]
    assert (row["counts"], row["count_labeled"]) == (60, 40)
    view = result.get_view(filter="error_code is null")
    assert view["counts"].tolist() == [20]
    assert view["error_rate"].isna().all()


def test_no_labels_at_all(factory, records):
    data = records.make_data(30)
    data.labels[:] = -1
    run = factory.run()
    factory.add_pass(run, "predict", data)
    result = Evaluator("net", "v1").request_evaluation()
    row = result.metrics_summary().iloc[0]
    assert row["counts"] == 30
    assert row[["accuracy", "auroc", "auprc", "net_entropy_loss"]].isna().all()
    assert row["net_entropy"] > 0
    assert result.get_issues().empty
    assert "no usable label" in str(result.summary())


def test_problems_of_the_records_are_shown(factory, records):
    run = factory.run()
    first = records.make_data(50, seed=8)
    twice = records.make_data(50, seed=8)
    first.ids += twice.ids[:10]
    first.hashes += twice.hashes[:10]  # sampler padding: the same rows again
    first.hashes[55:] = [f"{n:032x}" for n in range(900, 905)]  # the same ids with other content
    first.logits = np.concatenate([first.logits, twice.logits[:10]])
    first.labels = np.concatenate([first.labels, twice.labels[:10]])
    first.features = None
    first.fields["weather"] += ["day"] * 10
    factory.add_pass(run, "val", first)
    factory.add_pass(run, "test", records.make_data(80), world_size=2, sealing=(0,))
    result = Evaluator("net", "v1").request_evaluation()
    table = result.metrics_summary(full=True).set_index("dataset")
    assert table.loc["val", "counts"] == 55
    assert table.loc["val", "duplicates_dropped"] == 5
    assert table.loc["val", "non_unique_ids"] == 5
    assert table.loc["val", "rows_read"] == 60
    assert bool(table.loc["test", "partial"])
    assert list(table.loc["test", "missing_ranks"]) == [1]
    text = str(result.summary())
    assert "warning: test (epoch 0): the pass was never finished (rank 1 did not seal it)" in text
    assert "5 input ids stand for more than one content" in text
    assert "5 repeated rows" in text
    kinds = [one["kind"] for one in result.problems if one["kind"] != "analysis"]
    assert kinds == ["non_unique_ids", "duplicates", "partial"]


def test_a_store_without_logits_gives_what_the_samples_hold(factory, records):
    data = records.make_data(90, seed=9)
    run = factory.run()
    factory.add_pass(run, "val", data, with_vectors=False)
    result = Evaluator("net", "v1").request_evaluation()
    row = result.metrics_summary().iloc[0]
    assert row["accuracy"] == pytest.approx((data.logits.argmax(1) == data.labels).mean())
    assert row[["auroc", "auprc", "net_entropy"]].isna().all()
    assert "no logits are stored" in str(result.summary())


def test_an_empty_pass_has_no_values(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(0))
    result = Evaluator("net", "v1").request_evaluation()
    row = result.metrics_summary().iloc[0]
    assert row["counts"] == 0
    assert row[["accuracy", "auroc", "auprc", "net_entropy", "net_entropy_loss"]].isna().all()
    assert [one["kind"] for one in result.problems] == ["empty"]
    assert result.get_issues().empty
    assert result.get_view("class").empty


def test_histogram_metrics_agree_with_exact(standard_store):
    evaluator = Evaluator("net", "v1", store=standard_store.root)
    exact = evaluator.request_evaluation(options=ONCE).metrics_summary(full=True)
    binned = evaluator.request_evaluation(options={**ONCE, "exact_cells": 0, "threads": 3}).metrics_summary(
        full=True
    )
    assert set(exact["ranking_method"]) == {"exact"}
    assert set(binned["ranking_method"]) == {"histogram"}
    for name in ("auroc", "auprc"):
        np.testing.assert_allclose(binned[name], exact[name], atol=1e-3)
    for name in ("counts", "accuracy", "net_entropy", "net_entropy_loss"):
        assert (binned[name] == exact[name]).all()


def test_odd_names(factory, records):
    run = factory.run("vit/b-16 ü", "2.0.1")
    factory.add_pass(run, "val/night", records.make_data(40))
    result = Evaluator("vit/b-16 ü", "2.0.1").request_evaluation("a/b..c")
    assert Evaluator("vit/b-16 ü", "2.0.1").get_result("a/b..c").result_name == "a/b..c"
    assert result.metrics_summary()["dataset"].tolist() == ["val/night"]


def test_result_json_says_what_was_read(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(40), n_epoch=3)
    result = Evaluator("net", "v1").request_evaluation()
    info = json.loads((result.folder / "result.json").read_text())
    assert info["passes"][0]["n_epoch"] == 3
    assert info["passes"][0]["attempt"].startswith("2026")
    assert (info["model_name"], info["n_epoch"], info["options"]) == ("net", "latest", {})
    assert not (ResultStore(factory.store, run).spill).exists()


# -- a service -------------------------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A real HTTP server that answers every GET with the status it was given."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_key_without_an_endpoint_is_an_error(factory, monkeypatch):
    with pytest.raises(ValueError, match="no endpoint is"):
        Evaluator("net", "v1", api_key="mldbg_secret")
    monkeypatch.setenv("MLD_API_KEY", "mldbg_secret")
    with pytest.raises(ValueError, match="MLD_API_KEY is set but no endpoint"):
        Evaluator("net", "v1")


def test_an_endpoint_that_does_not_answer_is_a_connection_error(factory, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    evaluator = Evaluator("net", "v1", api_endpoint=url, api_key="mldbg_secret")
    for call in (evaluator.request_evaluation, evaluator.list_results, lambda: evaluator.get_result("x")):
        with pytest.raises(ConnectionError, match="cannot reach the service") as caught:
            call()
        assert "mldbg_secret" not in str(caught.value)
    assert "mldbg_secret" not in repr(evaluator)
    monkeypatch.setenv("MLD_API_ENDPOINT", url)
    with pytest.raises(ConnectionError):
        Evaluator("net", "v1").list_results()


def test_a_wrong_key_is_an_authentication_error(factory, answering):
    url = answering(401)
    with pytest.raises(AuthenticationError, match="did not accept the API key"):
        Evaluator("net", "v1", api_endpoint=url, api_key="mldbg_wrong").list_results()
    with pytest.raises(PermissionError, match="set MLD_API_KEY"):
        Evaluator("net", "v1", api_endpoint=url).list_results()
    with pytest.raises(ConnectionError, match="HTTP 200"):
        Evaluator("net", "v1", api_endpoint=answering(200)).list_results()
