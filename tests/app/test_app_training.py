"""How trainings stand, as the pages are told: once, and as server-sent events while a real one goes on."""

import json
import time
from contextlib import contextmanager

import psutil
import pytest
from app_parts import opened
from server_parts import wait_for
from zygote import Process

from ml_debugger.evaluator import Evaluator
from mld_core.app.problems import ProblemError
from mld_core.app.training.watch import MOST_STREAMS, MOST_STREAMS_EACH, Streams
from mld_core.evaluation.live.figures import write_figures
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.views.training.curves import Memory, curves

pytestmark = pytest.mark.processes

OPTIONS = {"progress": False, "threads": 1, "repeats": 1}
RUN = RunKey("followed", "v1")


def test_figures_come_from_records_then_from_beside_then_from_results(records, planted, tmp_path):
    factory, memory = records.StoreFactory(tmp_path), Memory()
    run, store = factory.run(n_class=6), factory.store
    assert curves(store, run, memory)["state"] == "none"
    for epoch in range(2):
        factory.add_pass(
            run, "val", planted(records, 300, seed=1, jitter=epoch).data, n_epoch=epoch, batch=150
        )
    told = curves(store, run, memory)
    first, last = told["rows"]
    assert (first["of"], first["epoch"], last["epoch"], first["rows"]) == ("records", 0, 1, 300)
    assert set(first["values"]) == {"accuracy", "error_rate"}
    assert (told["unread"], told["splits"], first["categories"]) == (0, ["val"], None)
    assert [(one["name"], one["first"]) for one in told["metrics"]] == [
        ("accuracy", True),
        ("error_rate", False),
    ]

    (attempt,) = store.pass_dir(run, PassKey("val", 1)).iterdir()
    analysis = {
        "metrics": {"error_proba_auroc": 0.75},
        "categories": {"hotspot_ratio": 0.25},
        "wrong_labels": 7,
    }
    row = {"generation": 0, "sealed_at": "1", "state": "something new", "notes": [], "analysis": analysis}
    write_figures(attempt, {**row, "metrics": {"accuracy": 0.5}})
    (live,) = [one for one in curves(store, run, memory)["rows"] if one["of"] == "live"]
    assert live["values"] == {"accuracy": 0.5, "error_proba_auroc": 0.75, "wrong_labels": 7}
    assert live["categories"]["hotspot"] == 0.25

    result = Evaluator(*vars(run).values(), store=store.root).request_evaluation("r", options=OPTIONS)
    (shown,) = [one for one in curves(store, run, memory)["rows"] if one["of"] == "result"]
    exact = result.metrics_summary(full=True).to_dict("records")[0]
    assert (shown["epoch"], shown["result"]) == (1, "r")
    assert shown["values"]["accuracy"] == pytest.approx(exact["accuracy"], abs=1e-6)
    assert shown["values"]["error_proba_auroc"] == pytest.approx(exact["error_proba_auroc"], abs=1e-5)
    assert sum(share or 0 for share in shown["categories"].values()) == pytest.approx(1, abs=1e-5)


def test_a_page_opens_before_all_records_are_read(records, tmp_path):
    factory = records.StoreFactory(tmp_path)
    run = factory.run(n_class=5)
    for epoch in range(3):
        factory.add_pass(run, "val", records.make_data(50, seed=epoch), n_epoch=epoch)
    memory = Memory()
    none = curves(factory.store, run, memory, seconds=0)
    assert (none["unread"], len(none["rows"]), none["metrics"]) == (3, 3, [])
    assert curves(factory.store, run, memory, seconds=600)["unread"] == 0
    assert curves(factory.store, run, memory, seconds=0)["unread"] == 0


def test_a_pass_that_cannot_be_read_says_so_and_the_others_are_shown(records, tmp_path):
    factory = records.StoreFactory(tmp_path)
    run = factory.run(n_class=5)
    for epoch in range(2):
        factory.add_pass(run, "val", records.make_data(50, seed=epoch), n_epoch=epoch)
    for file in factory.store.pass_dir(run, PassKey("val", 0)).rglob("samples.parquet"):
        file.write_bytes(b"PAR1 nothing PAR1")
    broken, whole = curves(factory.store, run, Memory())["rows"]
    assert broken["values"] == {}
    assert broken["notes"] == ["1 part of it is torn"]
    assert whole["values"]["accuracy"] > 0


@contextmanager
def trained(folder):
    process = Process("followed_script", folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def sealed(folder, epoch):
    """When an epoch was sealed."""
    (folder / "epochs").write_text(str(epoch + 1))
    return float(
        wait_for(lambda: (folder / f"sealed-{epoch}").exists() and (folder / f"sealed-{epoch}").read_text())
    )


def events(answer):
    """(seconds, runs) of each event that comes."""
    for line in answer.iter_lines(chunk_size=1):
        if line.startswith(b"data: "):
            yield time.time(), json.loads(line[6:])["runs"]


def test_what_is_sealed_is_told_within_two_seconds_and_so_is_a_death(tmp_path):
    """A real process that is killed in the middle of a pass."""
    names = {"runs": "followed/v1"}
    with trained(tmp_path) as process:
        wait_for(lambda: list(tmp_path.rglob("attempt.json")))
        with opened(Store(tmp_path / "store")) as ann:
            assert ann.get("training", **names)["runs"][0]["state"] == "training"
            url = f"{ann.base}/ui/api/training/events"
            with ann.http.get(url, params=names, stream=True, timeout=60) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                told = events(answer)
                assert next(told)[1][0]["rows"] == []
                for epoch in range(2):
                    at = sealed(tmp_path, epoch)
                    places = set()
                    while places < {("train", epoch), ("val", epoch)}:
                        came, (run,) = next(told)
                        places = {(row["split"], row["epoch"]) for row in run["rows"] if row["values"]}
                    assert came - at < 2
                    print(f"epoch {epoch}: told {came - at:.2f} s after it was sealed")
                wait_for(
                    lambda: ann.get("training", **names)["runs"][0]["state_text"].endswith("train, epoch 2")
                )
                process.kill()
                died = time.time()
                while run["state"] != "died":
                    came, (run,) = next(told)
                assert came - died < 5
                assert "train, epoch 2" in run["state_text"]
                assert len(run["rows"]) == 4
            # The list of runs says it, too.
            assert ann.get("runs")["runs"][0]["state"] == "died"


def test_a_stream_ends_with_who_listens_and_costs_little_while_nothing_is_new(shown_store):
    names = {"runs": "boxes/v1,lidar/v1,fresh/v1"}
    with opened(shown_store) as ann:
        url = f"{ann.base}/ui/api/training/events"
        first = ann.http.get(url, params=names, stream=True, timeout=60)
        told = events(first)
        _, runs = next(told)
        assert [one["model"] for one in runs] == ["boxes", "lidar", "fresh"]
        assert {row["of"] for one in runs[:2] for row in one["rows"]} == {"result"}
        assert runs[0]["metrics"][0]["title"] == "mAP"
        me = psutil.Process()
        before, begun = sum(me.cpu_times()[:2]), time.monotonic()
        time.sleep(2)
        share = (sum(me.cpu_times()[:2]) - before) / (time.monotonic() - begun)
        print(f"three runs that nothing is new of: {100 * share:.1f} % of a core")
        assert share < 0.25
        others = [
            ann.http.get(url, params=names, stream=True, timeout=60) for _ in range(MOST_STREAMS_EACH - 1)
        ]
        assert [one.status_code for one in others] == [200] * len(others)
        refused = ann.ask("training/events", **names)
        assert refused.status_code == 429
        assert refused.json()["fix"]
        for one in (first, *others):
            one.close()
        wait_for(
            lambda: (
                (again := ann.http.get(url, params=names, stream=True, timeout=60)).status_code == 200
                and (again.close() or True)
            )
        )


def test_there_are_so_many_streams_and_no_more():
    streams = Streams()
    for number in range(MOST_STREAMS):
        streams.enter(f"reader {number // 2}")
    with pytest.raises(ProblemError):
        streams.enter("one more")
    streams.leave("reader 0")
    streams.enter("one more")
    assert streams.open == MOST_STREAMS


def test_what_is_not_there_is_not_followed(shown_store):
    with opened(shown_store) as ann:
        for path in ("training", "training/events"):
            assert ann.ask(path, runs="boxes/v9").status_code == 404
            assert ann.ask(path, runs="").status_code == 400
            assert ann.ask(path, runs="boxes").status_code == 400
            assert ann.ask(path, runs=",".join(f"boxes/v{n}" for n in range(11))).status_code == 400
        told = ann.get("training", runs="net%20%3Ci%3E/v%2F1")["runs"]
        assert (told[0]["model"], told[0]["version"]) == ("net <i>", "v/1")
        assert (
            ann.http.get(
                f"{ann.base}/ui/api/training",
                params={"runs": "boxes/v1"},
                headers={"host": "x.y"},
                timeout=60,
            ).status_code
            == 403
        )
