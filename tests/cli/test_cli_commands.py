"""The command line in a pipe: output, errors and exit codes of every command."""

import json
import os
import pty
import subprocess
import sys
import zipfile

import pytest

from ml_debugger.evaluator import Evaluator
from mld_core import __version__
from mld_core.cli.output import cell, plain
from mld_core.evaluation.codes.categories import CATEGORIES

COMMANDS = ("ls", "evaluate", "show", "compare", "export", "gc", "merge", "doctor")


def table(text):
    """Read tab-separated output: the first table, where an empty line ends it."""
    lines = [line.split("\t") for line in text.split("\n\n")[0].splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_version_and_help(mld):
    assert mld("--version").output.strip() == __version__
    told = mld("--help")
    assert told.exit_code == 0
    for name in COMMANDS:
        assert name in told.output
        own = mld(name, "--help").output
        assert "Examples:" in own
        assert "--json" in own
        assert "--store" in own
    assert "3  there is nothing of that name" in told.output


def test_ls(mld, evaluated):
    rows = table(mld("ls", "--store", evaluated).stdout)
    assert [(row["model"], row["version"]) for row in rows] == [("net", "v1"), ("net", "v2"), ("other", "v1")]
    assert rows[0]["datasets"] == "test,train,val"
    assert rows[0]["epochs"] == "3"
    assert rows[0]["results"] == "1"
    assert [row["version"] for row in table(mld("ls", "net", "--store", evaluated).stdout)] == ["v1", "v2"]
    passes = table(mld("ls", "other", "v1", "--store", evaluated).stdout)
    assert [(row["dataset"], row["epoch"], row["rows"], row["state"]) for row in passes] == [
        ("val", "0", "40", "partial")
    ]
    found = json.loads(mld("ls", "net", "v1", "--store", evaluated, "--json").stdout)
    assert {row["dataset"]: row["rows"] for row in found} == {"train": 300, "val": 200, "test": 150}
    assert [row["epoch"] for row in found if row["dataset"] == "test"] == [None]
    results = table(mld("ls", "net", "v1", "--results", "--store", evaluated).stdout)
    assert results[0]["method_name"] == "classification_v1"


def test_evaluate_takes_the_newest_run(mld, factory, records):
    factory.standard("zz", "v1")
    factory.standard("aa", "v1")
    factory.standard("mm", "v7")
    done = mld("evaluate", "--store", factory.store.root)
    assert done.exit_code == 0
    assert "result: mm_v7_classification_v1_" in done.stderr
    rows = table(done.stdout)
    assert [row["dataset"] for row in rows] == ["train", "val", "test"]
    expected = Evaluator("mm", "v7", store=factory.store.root).list_results()["result_name"][0]
    summary = Evaluator("mm", "v7", store=factory.store.root).get_result(expected).metrics_summary()
    assert float(rows[1]["accuracy"]) == pytest.approx(summary["accuracy"][1], rel=1e-5)
    assert float(rows[0]["error_proba_auroc"]) == pytest.approx(summary["error_proba_auroc"][0], rel=1e-5)
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) > 80  # not wrapped


def test_evaluate_options(mld, factory):
    factory.standard()
    store = factory.store.root
    found = json.loads(
        mld(
            "evaluate",
            "net",
            "v1",
            "--epoch",
            "all",
            "--dataset",
            "val",
            "--name",
            "mine",
            "--json",
            "--store",
            store,
        ).stdout
    )
    assert found["result_name"] == "mine"
    assert [(row["dataset"], row["n_epoch"]) for row in found["metrics"]] == [("val", 0), ("val", 1)]
    assert 0 < found["metrics"][0]["error_proba_auroc"] < 1
    assert sum(found["categories"][0][f"{name}_ratio"] for name in CATEGORIES) == pytest.approx(1)
    again = mld("evaluate", "net", "v1", "--name", "mine", "--store", store)
    assert again.exit_code == 2
    assert "exists and results are never changed" in again.stderr
    for arguments, code, words in [
        (("--epoch", "9"), 3, "epochs: 'none', 0, 1"),
        (("--epoch", "last"), 2, "expected latest, all or a whole number"),
        (("--dataset", "vall"), 3, "did you mean 'val'"),
        (("--method", "od_v1"), 2, "expected 'default'"),
    ]:
        done = mld("evaluate", "net", "v1", *arguments, "--store", store)
        assert (done.exit_code, words in done.stderr) == (code, True), done.output


def test_problems_are_told_on_stderr(mld, evaluated):
    done = mld("evaluate", "other", "v1", "--store", evaluated)
    assert done.exit_code == 0
    assert "warning: val (epoch 0): the pass was never finished (rank 1 did not seal it)" in done.stderr


def test_show(mld, evaluated):
    default = mld("show", "--store", evaluated)
    assert "result: net_v2_classification" in default.stderr
    issues = table(
        mld("show", "net", "v1", "--issues", "--dataset", "val", "--limit", 4, "--store", evaluated).stdout
    )
    assert len(issues) == 4
    assert {row["dataset"] for row in issues} == {"val"}
    assert all(row["gt"] != row["prediction"] for row in issues)
    code = issues[0]["error_code"]
    coded = json.loads(mld("show", "net", "v1", "--code", code, "--json", "--store", evaluated).stdout)
    assert {row["error_code"] for row in coded} == {code}
    view = table(
        mld(
            "show",
            "net",
            "v1",
            "--view",
            "class",
            "--where",
            "confidence > 0.2",
            "--dataset",
            "val",
            "--store",
            evaluated,
        ).stdout
    )
    assert {row["dataset"] for row in view} == {"val"}
    assert len(view) == 5
    adjusted = table(
        mld(
            "show", "--view", "class", "--adjust", "weather", "--metric", "accuracy", "--store", evaluated
        ).stdout
    )
    assert {"error_rate_adj", "accuracy_adj"} <= adjusted[0].keys()
    assert len(table(mld("show", "--classes", "--dataset", "val", "--store", evaluated).stdout)) == 5
    assert (
        sum(
            int(row["counts"])
            for row in table(mld("show", "--confusion", "--dataset", "val", "--store", evaluated).stdout)
        )
        == 200
    )
    names = {row["column"] for row in table(mld("show", "--columns", "--store", evaluated).stdout)}
    assert {"confidence", "weather", "category"} <= names
    full = table(mld("show", "--full", "--store", evaluated).stdout)
    assert full[0]["model_name"] == "net"


def test_compare(mld, evaluated):
    done = mld("show", "net", "v2", "--against", "v1", "--store", evaluated)
    rows = {row["dataset"]: row for row in table(done.stdout)}
    assert int(rows["val"]["n_fixed"]) > 0
    assert int(rows["val"]["n_paired"]) == 200
    found = json.loads(mld("show", "net", "v2", "--against", "v1", "--json", "--store", evaluated).stdout)
    assert len(
        [one for one in found["changed"] if one["change"] == "fixed" and one["dataset"] == "val"]
    ) == int(rows["val"]["n_fixed"])


def test_compare_command(mld, evaluated):
    store = ("--store", evaluated)
    done = mld("compare", "net/v1", "net/v2", *store)
    assert done.exit_code == 0
    rows = {row["dataset"]: row for row in table(done.stdout)}
    assert int(rows["val"]["n_fixed"]) > int(rows["val"]["n_regressed"]) >= 0
    by_version = json.loads(mld("compare", "v1", "v2", "--model", "net", "--json", *store).stdout)
    assert set(by_version) == {
        *("a", "b", "units", "metrics", "changed", "transitions", "classes", "regions", "codes"),
    }
    assert by_version["a"].startswith("net_v1")
    assert sum(one["counts"] for one in by_version["transitions"] if one["dataset"] == "val") == 200
    moved = next(
        one for one in by_version["metrics"] if (one["dataset"], one["metric"]) == ("val", "accuracy")
    )
    assert moved["delta_lo"] < moved["delta"] < moved["delta_hi"]
    by_name = mld("compare", by_version["a"], by_version["b"], "--changed", "--dataset", "val", *store)
    assert len(table(by_name.stdout)) == int(rows["val"]["n_fixed"]) + int(rows["val"]["n_regressed"])
    assert mld("compare", "net/v1", "net/v2", "--fail-on-regression", *store).exit_code == 0
    worse = mld("compare", "net/v2", "net/v1", "--fail-on-regression", *store)
    assert worse.exit_code == 1
    assert "more units regressed than were fixed" in worse.stderr
    for arguments, code, words in [
        (("net/v1", "net/v9"), 3, "no version"),
        (("net/v1", "nobody/v1"), 3, "has no version 'nobody/v1'"),
        (("net/v1", "net/v2", "--dataset", "vall"), 3, "did you mean 'val'"),
        (("net/v1",), 2, "Missing argument"),
    ]:
        done = mld("compare", *arguments, *store)
        assert done.exit_code == code, done.output
        assert words in done.stderr


def test_several_results_are_compared_with_one(mld, evaluated):
    store = ("--store", evaluated)
    done = mld("compare", "net/v1", "net/v2", "net/v1", *store)
    assert done.exit_code == 0, done.output
    rows = [row for row in table(done.stdout) if row["dataset"] == "val"]
    assert [row["place"] for row in rows] == ["1", "2"]
    better, same = rows
    assert int(better["n_fixed"]) > int(better["n_regressed"])
    assert float(better["holm_p"]) == pytest.approx(min(1.0, 2 * float(better["mcnemar_p"])))
    assert (same["n_fixed"], same["n_regressed"], same["better"]) == ("0", "0", "0")
    told = json.loads(mld("compare", "net/v2", "net/v1", "net/v1", "--json", *store).stdout)
    assert len(told["names"]) == 3
    (together,) = (one for one in told["together"] if one["dataset"] == "val")
    assert together["n_common"] == together["n_all"] + together["n_some"] + together["n_none"] == 200
    worse = mld("compare", "net/v2", "net/v1", "net/v1", "--fail-on-regression", *store)
    assert worse.exit_code == 1
    assert "val of net_v1" in worse.stderr
    many = mld("compare", *["net/v1"] * 12, *store)
    assert many.exit_code == 2
    assert "11 results to compare with the first: expected 1 to 10" in many.stderr


def test_show_regions(mld, evaluated):
    done = mld("show", "net", "v2", "--regions", "--store", evaluated)
    assert done.exit_code == 0
    assert done.stdout.startswith("dataset\tn_epoch\tregion_id\tn\terrors")


def test_wrong_names_are_one_line_and_code_3(mld, evaluated):
    for arguments, words in [
        (("ls", "nett"), "did you mean 'net'"),
        (("ls", "net", "v9"), "versions: 'v1', 'v2'"),
        (("evaluate", "nett"), "models: 'net', 'other'"),
        (("show", "net", "v1", "--result", "x"), "evaluate with request_evaluation()"),
        (("show", "net", "v1", "--issues", "--dataset", "vall"), "datasets: 'train', 'val', 'test'"),
        (("export", "net", "v9"), "versions:"),
        (("gc", "nett"), "did you mean"),
        (("show", "net", "v2", "--against", "v9"), "no version 'v9'"),
    ]:
        done = mld(*arguments, "--store", evaluated)
        assert done.exit_code == 3, (arguments, done.output)
        assert words in done.stderr
        assert done.stderr.startswith("mld: ")
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


def test_a_run_without_results_says_what_to_do(mld, factory):
    factory.standard()
    done = mld("show", "--store", factory.store.root)
    assert done.exit_code == 3
    assert "run `mld evaluate net v1`" in done.stderr


def test_usage_errors_are_code_2(mld, evaluated):
    for arguments, words in [
        (("show", "--view", "wether"), "did you mean 'weather'"),
        (("show", "--view", "class", "--where", "gt ="), "expected a number"),
        (("show", "--issues", "--where", "gt = 1"), "not by a view"),
        (("show", "--category", "hotspots"), "did you mean 'hotspot'"),
        (("show", "--nonsense"), "No such option"),
        (("evaluate", "--threads", "0"), "'--threads'"),
    ]:
        done = mld(*arguments, "--store", evaluated)
        assert (done.exit_code, words in done.stderr) == (2, True), (arguments, done.output)


@pytest.mark.parametrize("command", ["ls", "evaluate", "show", "export", "gc", "doctor"])
def test_missing_and_empty_stores(mld, tmp_path, command):
    missing = mld(command, "--store", tmp_path / "nowhere")
    assert missing.exit_code == 3
    assert str(tmp_path / "nowhere") in missing.stderr
    assert "--store DIR" in missing.stderr
    (tmp_path / "empty").mkdir()
    empty = mld(command, "--store", tmp_path / "empty")
    assert empty.exit_code == 3
    assert "no runs" in empty.stderr
    assert len(empty.stderr.splitlines()) == 1
    assert list((tmp_path / "empty").iterdir()) == []


def test_mld_home_is_the_default_store(mld, evaluated, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(evaluated))
    assert len(table(mld("ls").stdout)) == 3


def test_export(mld, evaluated, tmp_path):
    done = mld("export", "net", "v1", "-o", tmp_path / "out", "--epoch", "1", "--store", evaluated)
    assert done.exit_code == 0
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "out"))
    assert zipfile.is_zipfile(path)
    found = json.loads(
        mld("export", "net", "v1", "-o", tmp_path / "x.zip", "--json", "--store", evaluated).stdout
    )
    assert found["path"] == str(tmp_path / "x.zip")
    assert found["bytes"] == os.path.getsize(tmp_path / "x.zip")
    assert mld("export", "net", "v1", "--epoch", "77", "--store", evaluated).exit_code == 2


def test_gc(mld, factory, records):
    run = factory.standard()
    store = factory.store.root
    small = table(mld("gc", "--max-gb", "0.000001", "--dry-run", "--store", store).stdout)
    assert {row["kind"] for row in small} == {"features"}
    rows = table(mld("gc", "--dry-run", "--keep-vectors", "1", "--min-age", "0", "--store", store).stdout)
    assert {row["kind"] for row in rows} == {"features"}
    before = mld("ls", "net", "v1", "--json", "--store", store).stdout
    done = mld("gc", "--keep-vectors", "1", "--min-age", "0", "--store", store)
    assert done.exit_code == 0
    assert "freed" in done.stderr
    assert mld("ls", "net", "v1", "--json", "--store", store).stdout == before
    assert mld("gc", "net", "--max-gb", "1", "--store", store).exit_code == 2
    factory.store.recreate(run)
    factory.add_pass(run, "val", records.make_data(10))
    assert mld("evaluate", "--store", store, "--dataset", "val").exit_code == 0
    assert "old generation" in mld("gc", "net", "v1", "--dry-run", "--min-age", "0", "--store", store).stdout


def test_merge(mld, records, tmp_path):
    for name, version in (("a", "v1"), ("b", "v2")):
        records.StoreFactory(tmp_path / name).standard("net", version)
    done = mld("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "all")
    assert done.exit_code == 0
    assert {row["state"] for row in table(done.stdout)} == {"copied"}
    assert [row["version"] for row in table(mld("ls", "--store", tmp_path / "all").stdout)] == ["v1", "v2"]
    again = mld("merge", tmp_path / "a", "--into", tmp_path / "all", "--json")
    assert {row["state"] for row in json.loads(again.stdout)} == {"skipped"}
    assert mld("merge", tmp_path / "c", "--into", tmp_path / "all").exit_code == 3
    assert mld("merge", tmp_path / "all", "--into", tmp_path / "all").exit_code == 2


def test_doctor_on_a_sound_store(mld, factory, records):
    factory.add_pass(factory.run(), "val", records.make_data(30))
    done = mld("doctor", "--store", factory.store.root)
    assert done.exit_code == 0
    rows = table(done.stdout)
    assert {row["name"] for row in rows if row["section"] == "version"} >= {
        "ml-debugger",
        "duckdb",
        "torch",
        "python",
    }
    facts = {row["name"]: row["value"] for row in rows if row["section"] == "store"}
    assert facts["path"] == str(factory.store.root)
    assert facts["chosen_by"] == "--store"
    assert "no problems found" in done.stderr


def test_doctor_finds_what_is_damaged_or_unfinished(mld, factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(30))
    part = next(factory.store.run_dir(run).rglob("samples.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(bytes(data))
    done = mld("doctor", "--store", factory.store.root, "--json")
    assert done.exit_code == 1
    assert any(one["severity"] == "error" for one in json.loads(done.stdout)["findings"])
    factory.add_pass(run, "test", records.make_data(30), world_size=2, sealing=(0,))
    assert "unsealed pass" in mld("doctor", "--quick", "--store", factory.store.root).stdout


def test_doctor_says_that_a_key_without_endpoint_is_of_no_use(mld, factory, records, monkeypatch):
    factory.add_pass(factory.run(), "val", records.make_data(30))
    monkeypatch.setenv("MLD_API_KEY", "mldbg_secret")
    done = mld("doctor", "--store", factory.store.root)
    assert done.exit_code == 1
    assert "MLD_API_ENDPOINT is not" in done.stdout
    assert "mldbg_secret" not in done.output


def test_an_unreachable_service_is_code_1(mld, evaluated, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(evaluated))
    monkeypatch.setenv("MLD_API_ENDPOINT", "http://127.0.0.1:9")
    done = mld("evaluate", "net", "v1")
    assert done.exit_code == 1
    assert "cannot reach the service at http://127.0.0.1:9" in done.stderr
    # A store that was named is local, whatever the environment says.
    assert mld("show", "net", "v1", "--store", evaluated).exit_code == 0


def test_cells_hold_no_tabs_or_lines():
    assert cell("a\tb\nc") == "a b c"
    assert cell([1, None, "x"]) == "1,,x"
    assert cell({"E": True}) == '{"E": true}'
    assert cell(True) == "true"
    assert plain(float("nan")) is None


@pytest.mark.processes
def test_on_a_terminal_there_are_tables_that_fit(evaluated):
    """The real command on a pseudo-terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mld_core.cli.main", "show", "net", "v1", "--store", str(evaluated)],
        stdout=follower,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(follower)
    data = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        data += piece
    assert process.wait(60) == 0, process.stderr.read()
    os.close(leader)
    text = data.decode()
    assert "Metrics (entropies: sums in nats)" in text
    assert "\t" not in text


def test_a_pipe_gets_categories_and_actions_too(mld, evaluated):
    text = mld("show", "net", "v2", "--store", evaluated).stdout
    metrics, categories, actions = (table(one) for one in text.split("\n\n"))
    assert [row["dataset"] for row in metrics] == [row["dataset"] for row in categories]
    assert sum(float(categories[0][f"{name}_ratio"]) for name in CATEGORIES) == pytest.approx(1, abs=1e-4)
    assert {"dataset", "code", "severity", "counts", "action"} == actions[0].keys()
    figures = [cell for row in (*metrics, *categories) for cell in row.values() if "." in cell]
    assert figures
    assert all(len(cell.replace(".", "").lstrip("-0")) <= 6 for cell in figures)
    found = json.loads(mld("show", "net", "v2", "--store", evaluated, "--json").stdout)
    assert len(found["actions"]) == len(actions)


@pytest.mark.parametrize("width", [80, 140])
def test_issues_on_a_terminal_are_one_line_each(mld, evaluated, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("mld_core.cli.show.on_terminal", lambda: True)
    text = mld("show", "net", "v2", "--issues", "--limit", "15", "--store", evaluated).stdout
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    frame = Evaluator("net", "v2", store=evaluated).get_result(newest_result(evaluated)).get_issues(limit=15)
    assert lines[0].split()[0] == "dataset"
    for _, row in frame.iterrows():
        assert sum(row["input_id"] in line for line in lines) == 1
    said = " ".join(text.split())
    for action in frame["recommended_action"].dropna().unique():
        assert said.count(action) == 1
    assert "severity" in text


def test_all_columns_fit_a_terminal(mld, evaluated, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("mld_core.cli.evaluate.on_terminal", lambda: True)
    text = mld("show", "net", "v2", "--full", "--store", evaluated).stdout.split("\n\n")
    metrics, categories = text[0].splitlines(), text[1].splitlines()
    assert max(len(line) for line in (*metrics, *categories)) <= 80
    assert any(line.startswith("error_proba_ece_hi ") for line in metrics)
    assert any(line.startswith("expected_risk_coverage ") for line in categories)


def test_issues_of_a_split_without_epochs(mld, evaluated, monkeypatch):
    monkeypatch.setattr("mld_core.cli.show.on_terminal", lambda: True)
    done = mld("show", "net", "v2", "--issues", "--dataset", "test", "--limit", "3", "--store", evaluated)
    assert done.exit_code == 0, done.stderr
    assert "epoch" not in done.stdout.splitlines()[0]
    assert "only the first 3 rows are shown" in done.stderr


def newest_result(store):
    return Evaluator("net", "v2", store=store).list_results()["result_name"].iloc[-1]


def test_show_repeats_the_receipt_of_the_run(mld, factory):
    run = factory.standard("told", "v1")
    store = factory.store.root
    assert mld("evaluate", "told", "v1", "--store", store).exit_code == 0
    assert "\nrecorded:" not in mld("show", "told", "v1", "--store", store).stderr
    factory.store.update_run_info(run, receipt="logits: head.fc (B, 10), softmax · labels: batch[1]")
    assert "recorded: logits: head.fc (B, 10), softmax" in mld("show", "told", "v1", "--store", store).stderr
    found = json.loads(mld("show", "told", "v1", "--store", store, "--json").stdout)
    assert found["receipt"].endswith("batch[1]")


HEAVY = (
    "torch",
    "lightning",
    "transformers",
    "pandas",
    "sklearn",
    "scipy",
    "duckdb",
    "requests",
    "sqlalchemy",
)


@pytest.mark.processes
@pytest.mark.parametrize("asked", ["--help", "evaluate --help", "serve --help", "ls"])
def test_what_a_command_does_not_need_is_not_loaded(evaluated, asked):
    code = (
        "import sys; from mld_core.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        f"print([n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *asked.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "MLD_HOME": str(evaluated)}
    )
    assert done.stdout
    assert done.stderr.strip() == "[]"
