"""Lists of very many runs: order, search, tags; the commands that read them."""

import json
import re
import secrets
import sqlite3
import statistics

import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app

pytestmark = pytest.mark.processes

RUNS = 50_000


@pytest.fixture(scope="module")
def many(parts, tmp_path_factory):
    """A server that knows fifty thousand runs, written straight into its database."""
    process = parts.ServerProcess(tmp_path_factory.mktemp("many") / "data", workers=0).start()
    run_id = process.api().run("a first", "run", task="classification")
    with sqlite3.connect(process.data / "mld.sqlite3", timeout=60) as database:
        columns = [row[1] for row in database.execute("pragma table_info(runs)") if row[1] != "pk"]
        (first,) = database.execute(f"select {','.join(columns)} from runs where id = ?", (run_id,))
        template = dict(zip(columns, first, strict=True)) | {"info": json.dumps({"note": "x" * 2000})}
        rows = [
            template
            | {
                "id": f"run_{secrets.token_hex(12)}",
                "model_name": f"model{number % 50}",
                "version_name": f"v{number}",
                "search": f"model{number % 50}\nv{number}",
                "created_at": f"2027-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000000+00:00",
            }
            for number in range(RUNS)
        ]
        marks = ",".join(f":{name}" for name in columns)
        database.executemany(f"insert into runs ({','.join(columns)}) values ({marks})", rows)
    yield process
    process.stop()


def names(answer):
    return [item["version_name"] for item in answer["items"]]


def test_a_page_of_fifty_thousand_runs_is_quick_in_every_order(many):
    api = many.api()
    quick = statistics.median(api("GET", "/v1/whoami").elapsed.total_seconds() for _ in range(9))
    asked = [
        ({"order": "newest"}, [f"v{RUNS - 1 - number}" for number in range(100)]),
        ({"order": "newest", "model_name": "model7", "limit": 2}, ["v49957", "v49907"]),
        ({"name": "V4999", "order": "newest", "limit": 3}, ["v49999", "v49998", "v49997"]),
        ({"name": "no such name"}, []),
        ({"since": "2027-01-01T13:53:18", "limit": 5}, ["v49998", "v49999"]),
        ({"tag": "nobody's"}, []),
    ]
    for params, expected in asked:
        assert names(api.get("/v1/runs", params=params)) == expected
        taken = [api("GET", "/v1/runs", params=params).elapsed.total_seconds() for _ in range(5)]
        assert statistics.median(taken) < 0.1 + 5 * quick, params
    first = api.get("/v1/runs", params={"order": "newest", "limit": 3})
    following = api.get("/v1/runs", params={"order": "newest", "limit": 3, "cursor": first["next"]})
    assert names(following) == ["v49996", "v49995", "v49994"]


def test_a_search_reads_one_index_whatever_the_letters(many):
    key = many.new_key("read", "write", organization="letters")
    api = many.api(key)
    for version in ("Ölbild", "other"):
        api.run("Ärger im Netz", version)
    assert names(api.get("/v1/runs", params={"name": "ärger"})) == ["Ölbild", "other"]
    assert names(api.get("/v1/runs", params={"name": "ÖLB"})) == ["Ölbild"]
    assert names(api.get("/v1/runs", params={"name": "%"})) == []
    with sqlite3.connect(many.data / "mld.sqlite3", timeout=60) as database:
        query = "select * from runs where organization_pk = 1 and instr(search, 'v4999') > 0 order by pk desc limit 9"
        plan = [row[3] for row in database.execute(f"explain query plan {query}")]
    assert any("runs_by_search" in step for step in plan), plan


def test_tags_a_note_and_the_archive(many, monkeypatch):
    api = many.api()
    run_id = api.get("/v1/runs", params={"model_name": "model1", "version_name": "v1"})["items"][0]["run_id"]
    made = api(
        "PATCH", f"/v1/runs/{run_id}", json={"tags": ["baseline", "2026", "baseline"], "note": "the good one"}
    )
    assert (made.json()["tags"], made.json()["note"]) == (["2026", "baseline"], "the good one")
    assert made.json()["info"]["note"] == "x" * 2000  # what it is stays
    (found,) = api.get("/v1/runs", params={"tag": "baseline"})["items"]
    assert (found["run_id"], found["tags"], found["archived"]) == (run_id, ["2026", "baseline"], False)
    assert api("PATCH", f"/v1/runs/{run_id}", json={"archived": True}).json()["archived"] is True
    assert [one["run_id"] for one in api.get("/v1/runs", params={"archived": True})["items"]] == [run_id]
    assert api.get("/v1/runs", params={"archived": False, "tag": "baseline"})["items"] == []
    for tags in (["two words"], [""], ["x" * 101], ["t"] * 51):
        assert api("PATCH", f"/v1/runs/{run_id}", json={"tags": tags}).status_code == 422
    monkeypatch.setenv("MLD_API_ENDPOINT", many.url)
    monkeypatch.setenv("MLD_API_KEY", many.key)
    listed = CliRunner().invoke(app, ["ls", "--remote", "--tag", "baseline", "--json"])
    assert [one["version"] for one in json.loads(listed.stdout)] == ["v1"], listed.output
    nobody = CliRunner().invoke(app, ["ls", "--remote", "--tag", "nobody's"])
    assert (nobody.exit_code, "with tag" in nobody.output) == (3, True)


def pages_read(server):
    """Lists of runs that were asked for."""
    text = server.api()("GET", "/metrics").text
    line = r'mld_requests_total\{method="GET",route="/v1/runs",status="200"\} ([0-9.]+)'
    found = re.search(line, text)
    return float(found[1]) if found else 0.0


def test_the_commands_read_a_page_and_not_all(many, monkeypatch):
    monkeypatch.setenv("MLD_API_ENDPOINT", many.url)
    monkeypatch.setenv("MLD_API_KEY", many.key)
    before = pages_read(many)
    listed = CliRunner().invoke(app, ["ls", "--remote", "--json"])
    found = json.loads(listed.stdout)
    assert len(found) == 200
    assert found[-1]["version"] == f"v{RUNS - 1}"
    shown = CliRunner().invoke(app, ["show"])
    assert "has no results" in shown.output
    assert pages_read(many) - before <= 4  # all of them would be fifty each time
