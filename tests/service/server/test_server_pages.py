"""The pages at the team's server: a key opens a session, and shows what its holder may see, and no more."""

import json
import os
from pathlib import Path

import pytest
import requests
from app_building import need_pages
from server_parts import wait_for

from mld_core.records.format.layout import RunKey

pytestmark = pytest.mark.processes

SHOWN, HIDDEN, FOREIGN = RunKey("open-net", "v1"), RunKey("hidden-net", "v1"), RunKey("foreign-net", "v1")
OPTIONS = {"options": {"repeats": 1}}


class Reader:
    """A person with a key at the pages."""

    def __init__(self, server, key):
        self.base, self.http = server.url, requests.Session()
        self.http.trust_env = False
        self.signed = self.http.post(f"{self.base}/ui/session", json={"key": key}, timeout=60)
        answer = self.ask("session")
        self.session = answer.json()
        self.head = {"x-mld-csrf": self.session.get("csrf", "")}

    def ask(self, path, **query):
        return self.http.get(f"{self.base}/ui/api/{path}", params=query, timeout=120)

    def get(self, path, run=None, **query):
        names = {"model": run.model_name, "version": run.version_name} if run else {}
        answer = self.ask(path, **names, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path, body, run=None):
        names = {"model": run.model_name, "version": run.version_name} if run else {}
        return self.http.post(
            f"{self.base}/ui/api/{path}", json={**names, **body}, headers=self.head, timeout=60
        )


@pytest.fixture(scope="module")
def team(server, records, planted, tmp_path_factory):
    """Two organizations; the first has a run that is evaluated, one that is not, and people of every role."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("pages") / "store")
    for number, run in enumerate((SHOWN, HIDDEN, FOREIGN)):
        factory.run(run.model_name, run.version_name, n_class=6)
        for split, seed in (("train", 1), ("val", 2)):
            data = planted(records, 300, seed=seed + number, noise=0.08).data
            factory.add_pass(run, split, data, n_epoch=0, batch=150)
    keys = {"admin": server.new_key("read", "write", "admin", organization="pages", name="root")}
    keys["other"] = server.new_key("read", "write", "admin", organization="elsewhere", name="root")
    admin = server.api(keys["admin"])
    for name, role, models in (
        ("vera", "viewer", ["open*"]),
        ("will", "writer", ["*"]),
        ("uma", "writer", ["*"]),
    ):
        made = admin("POST", "/v1/people", json={"name": name, "role": role, "models": models})
        assert made.status_code == 201, made.text
        key = admin("POST", "/v1/keys", json={"name": name, "person_id": made.json()["person_id"]})
        keys[name] = key.json()["key"]
    ids = {run: admin.sync(factory.store, run) for run in (SHOWN, HIDDEN)}
    ids[FOREIGN] = server.api(keys["other"]).sync(factory.store, FOREIGN)
    job = admin("POST", f"/v1/runs/{ids[SHOWN]}/evaluations", json=OPTIONS).json()
    assert admin.finished(job["job_id"])["state"] == "done"
    return keys, ids


@pytest.fixture(scope="module")
def vera(server, team):
    return Reader(server, team[0]["vera"])


@pytest.fixture(scope="module")
def will(server, team):
    return Reader(server, team[0]["will"])


def test_a_stranger_sees_the_page_and_nothing_of_its_data(server):
    page = requests.get(f"{server.url}/ui/", timeout=60)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    for path in ("session", "runs", "run", "samples", "picture", "vocabulary", "nothing"):
        answer = requests.get(f"{server.url}/ui/api/{path}", timeout=60)
        assert answer.status_code == 401, path
        assert answer.json()["sign_in"] is True
    head = {"authorization": f"Bearer {server.key}"}
    assert requests.get(f"{server.url}/ui/api/runs", headers=head, timeout=60).status_code == 401


def test_a_key_is_traded_for_a_cookie_out_of_reach_of_scripts_and_of_other_sites(server, team):
    address = f"{server.url}/ui/session"
    made = requests.post(address, json={"key": team[0]["vera"]}, timeout=60)
    assert made.status_code == 204
    cookie = made.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert team[0]["vera"] not in made.headers["set-cookie"]
    assert (
        requests.post(address, json={"key": "mldbg_" + "0" * 24 + "_" + "0" * 64}, timeout=60).status_code
        == 401
    )
    assert requests.post(address, data={"key": team[0]["vera"]}, timeout=60).status_code == 415
    assert requests.post(address, json={"key": "x" * 5000}, timeout=60).status_code == 413
    assert requests.post(address, json=["key"], timeout=60).status_code == 400
    only_sends = server.new_key("write", organization="pages", name="job")
    assert requests.post(address, json={"key": only_sends}, timeout=60).status_code == 403


def test_a_viewer_looks_at_the_runs_of_their_patterns(vera):
    assert vera.session["may"] == []
    assert vera.session["local"] is False
    assert vera.session["store"] is None
    runs = vera.get("runs")["runs"]
    assert [(one["model"], one["state"]) for one in runs] == [(SHOWN.model_name, "evaluated")]
    assert runs[0]["metric"]["last"] is not None
    assert vera.get("evaluation", SHOWN)["place"]["split"] == "val"
    page = vera.get("samples", SHOWN, limit=5)
    assert page["total"] == 300
    row = page["rows"][0]["row"]
    assert vera.get("sample", SHOWN, row=row)["probabilities"]
    assert vera.get("verdicts", SHOWN)["total"] == 0


def test_a_viewer_follows_the_trainings_of_their_patterns(vera):
    (run,) = vera.get("training", runs="open-net/v1")["runs"]
    assert {(row["split"], row["of"]) for row in run["rows"]} == {("train", "result"), ("val", "result")}
    url = f"{vera.base}/ui/api/training/events"
    with vera.http.get(url, params={"runs": "open-net/v1"}, stream=True, timeout=60) as stream:
        assert stream.status_code == 200
        lines = (line for line in stream.iter_lines(chunk_size=1) if line.startswith(b"data: "))
        (told,) = json.loads(next(lines)[6:])["runs"]
        assert told["rows"] == run["rows"]
    for path in ("training", "training/events"):
        for names in ("hidden-net/v1", "foreign-net/v1", "no-net/v1", "open-net/v1,hidden-net/v1"):
            assert vera.ask(path, runs=names).status_code == 404
        assert (
            requests.get(f"{vera.base}/ui/api/{path}", params={"runs": "open-net/v1"}, timeout=60).status_code
            == 401
        )


@pytest.mark.parametrize("run", [HIDDEN, FOREIGN, RunKey("no-net", "v1")])
@pytest.mark.parametrize(
    "path",
    [
        "run",
        "evaluation",
        "samples",
        "sample",
        "facets",
        "confusion",
        "columns",
        "verdicts",
        "suspects",
        "export",
    ],
)
def test_what_is_not_to_be_seen_is_not_there(vera, path, run):
    answer = vera.ask(path, model=run.model_name, version=run.version_name, row=0, id="1")
    assert answer.status_code == 404
    told = answer.text.replace(run.model_name, "")  # what was asked may be repeated
    assert not any(one.model_name in told for one in (HIDDEN, FOREIGN))


def test_a_viewer_changes_nothing(vera):
    row = vera.get("samples", SHOWN)["rows"][0]["row"]
    bodies = {
        "verdicts": {"items": [{"row": row, "kind": "ok"}]},
        "runs/tags": {"tags": ["x"]},
        "runs/note": {"note": "x"},
        "pictures": {"images": "/etc/{input_id}"},
        "jobs": {},
    }
    for path, body in bodies.items():
        answer = vera.post(path, body, SHOWN)
        assert answer.status_code == 403, path
        assert "look" in answer.json()["detail"]


def test_a_writer_reviews_under_their_name_and_the_team_sees_it(server, team, will, vera):
    row = will.get("samples", SHOWN)["rows"][0]
    body = {"items": [{"row": row["row"], "kind": "hard"}]}
    given = will.post("verdicts", body, SHOWN)
    assert given.status_code == 200, given.text
    assert given.json()["verdicts"][0]["author"] == "will"
    heard = vera.get("verdicts", SHOWN)["rows"][0]["heard"][0]
    assert (heard["author"], heard["kind"], heard["mine"]) == ("will", "hard", False)
    said = server.api(team[0]["admin"]).get(f"/v1/runs/{team[1][SHOWN]}/verdicts")["items"]
    assert said[-1]["input_id"] == row["id"]
    uma = Reader(server, team[0]["uma"])
    ids = [given.json()["verdicts"][0]["id"]]
    assert uma.post("verdicts/undo", {"ids": ids}, SHOWN).status_code == 409  # another's word
    assert will.post("verdicts/undo", {"ids": ids}, SHOWN).json()["undone"] == 1
    assert vera.get("verdicts", SHOWN)["total"] == 0


def test_a_writer_evaluates_from_the_page_in_the_teams_queue(server, team, vera):
    writer = Reader(server, team[0]["uma"])
    names = {"model": HIDDEN.model_name, "version": HIDDEN.version_name}
    made = writer.post("jobs", names)
    assert made.status_code == 200, made.text
    job = made.json()
    assert vera.ask(f"jobs/{job['job_id']}").status_code == 404  # nor are its runs hers to see
    assert all(one["model"] == SHOWN.model_name for one in vera.get("jobs")["jobs"])
    api = server.api(team[0]["uma"])
    assert api.finished(job["job_id"])["state"] == "done"
    done = writer.get(f"jobs/{job['job_id']}")
    assert (done["state"], done["progress"], done["stage"]) == ("done", 1.0, "done")
    assert done["seconds"] >= 0
    assert done["rows"] == 600  # train and val, as `mld ui` counts them
    assert api.get(f"/v1/jobs/{job['job_id']}")["rows"] == 600
    assert writer.get("jobs")["jobs"][0]["rows"] == 600
    assert writer.get("evaluation", HIDDEN)["place"]["result"] == done["result"]
    # The same of the same records is this job; once something was said of a sample, it is another question.
    assert writer.post("jobs", names).json()["job_id"] == job["job_id"]
    row = writer.get("samples", HIDDEN)["rows"][0]["row"]
    assert writer.post("verdicts", {"items": [{"row": row, "kind": "hard"}]}, HIDDEN).status_code == 200
    again = writer.post("jobs", {**names, "like": done["result"]}).json()
    assert again["job_id"] != job["job_id"]
    assert [one["job_id"] for one in writer.get("jobs")["jobs"]][:2] == [again["job_id"], job["job_id"]]
    ended = writer.http.delete(
        f"{writer.base}/ui/api/jobs/{again['job_id']}",
        headers={**writer.head, "content-type": "application/json"},
        timeout=60,
    )
    assert ended.status_code == 200, ended.text
    assert api.finished(again["job_id"])["state"] in {"cancelled", "done"}
    admin = server.api(team[0]["admin"])
    assert all(one["state"] == "done" for one in [admin.get(f"/v1/jobs/{job['job_id']}")])
    admin("POST", f"/v1/runs/{team[1][HIDDEN]}/removals", json={"results": [done["result"]]})


def test_the_pages_stand_on_postgresql_and_s3(parts, postgres, s3, records, planted, tmp_path):
    """What needs the other database and the other storage, once: lists, results, evaluations, verdicts."""
    at = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
    parts.subprocess.run([postgres.tool("createdb"), *at, "pages"], check=True)
    url = f"postgresql://mld@127.0.0.1:{postgres.port}/pages"
    place = {"database": url, "storage": f"s3://{s3.bucket}/pages", "s3_endpoint": s3.url}
    process = parts.ServerProcess(tmp_path / "data", workers=1, **place)
    process.env |= s3.env
    process.start()
    try:
        factory = records.StoreFactory(tmp_path / "store")
        run = factory.run("far-net", "v1", n_class=6)
        for split in ("train", "val"):
            factory.add_pass(run, split, planted(records, 150, seed=4, noise=0.1).data, n_epoch=0)
        process.api().sync(factory.store, run)
        reader = Reader(process, process.key)
        assert reader.get("runs", search="state = 'recorded'")["total"] == 1
        job = reader.post("jobs", {"model": "far-net", "version": "v1"}).json()
        done = process.api().finished(job["job_id"], 180)
        assert (done["state"], done["reason"]) == ("done", None)
        assert reader.get(f"jobs/{job['job_id']}")["result"] == reader.get("run", run)["run"]["result"]
        assert reader.get("evaluation", run)["counts"]["units"] == 150
        rows = reader.get("samples", run, sort="-confidence", limit=20)["rows"]
        assert len(rows) == 20
        assert reader.get("sample", run, row=rows[0]["row"])["probabilities"]
        body = {"items": [{"row": rows[0]["row"], "kind": "hard"}]}
        assert reader.post("verdicts", body, run).status_code == 200
        assert reader.get("verdicts", run)["total"] == 1
        assert reader.post("runs/tags", {"tags": ["far"]}, run).status_code == 200
        assert reader.get("runs", search="tag = 'far'")["total"] == 1
        gone = reader.post("runs/bulk", {"runs": [{"model": "far-net", "version": "v1"}], "do": "remove"})
        assert gone.json()["failed"] == 0, gone.text
        assert reader.get("runs")["total"] == 0
    finally:
        process.stop()


def test_tags_and_notes_are_the_teams(server, team, will, vera):
    assert will.post("runs/tags", {"tags": ["night"]}, SHOWN).status_code == 200
    assert will.post("runs/note", {"note": "look again"}, SHOWN).status_code == 200
    row = vera.get("runs", search="tag = 'night'")["runs"][0]
    assert (row["tags"], row["note"]) == (["night"], "look again")
    run = server.api(team[0]["admin"]).get(f"/v1/runs/{team[1][SHOWN]}")
    assert (run["tags"], run["note"]) == (["night"], "look again")
    assert will.post("runs/tags", {"tags": ["two words"]}, SHOWN).status_code == 400


def test_a_write_needs_the_header_of_its_session(will):
    for head in ({}, {"x-mld-csrf": "guess"}):
        answer = will.http.post(f"{will.base}/ui/api/runs/note", json={}, headers=head, timeout=60)
        assert answer.status_code == 403


def test_a_session_ends_with_its_key_and_when_it_is_left(server, team):
    admin = server.api(team[0]["admin"])
    key = admin("POST", "/v1/keys", json={"name": "brief", "scopes": ["read"]}).json()
    reader = Reader(server, key["key"])
    assert reader.ask("runs").status_code == 200
    admin("DELETE", f"/v1/keys/{key['key_id']}")
    assert reader.ask("runs").status_code == 401
    leaving = Reader(server, team[0]["will"])
    kept = dict(leaving.http.cookies)
    assert leaving.http.delete(f"{server.url}/ui/session", timeout=60).status_code == 403
    gone = leaving.http.delete(f"{server.url}/ui/session", headers=leaving.head, timeout=60)
    assert gone.status_code == 204
    assert requests.get(f"{server.url}/ui/api/runs", cookies=kept, timeout=60).status_code == 401


def test_only_an_admin_deletes(server, team, will):
    body = {"runs": [{"model": HIDDEN.model_name, "version": HIDDEN.version_name}], "do": "remove"}
    assert will.post("runs/bulk", {**body, "dry_run": True}).status_code == 403
    admin = Reader(server, team[0]["admin"])
    gone = admin.post("runs/bulk", {**body, "dry_run": True}).json()["rows"][0]["gone"]
    assert gone["rows"] == 600
    assert admin.get("run", HIDDEN)["run"]["state"] == "recorded"
    assert admin.post("runs/bulk", {**body, "do": "archive"}).json()["failed"] == 0
    assert [one["model"] for one in admin.get("runs", archived=True)["runs"]] == [HIDDEN.model_name]
    assert admin.post("runs/bulk", {**body, "do": "restore"}).json()["failed"] == 0


def test_a_person_signs_in_looks_and_signs_out_in_a_browser(browser, server, team):
    need_pages()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems, asked = [], []
    page.on("console", lambda said: problems.append(f"{said.type}: {said.text}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/ui/")
    page.get_by_label("Key").fill("mldbg_" + "0" * 24 + "_" + "0" * 64)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("wrong, expired or revoked").wait_for()
    page.get_by_label("Key").fill(team[0]["vera"])
    page.keyboard.press("Enter")
    page.locator("h1", has_text="wrong").wait_for()  # the only run they see opens at once
    page.locator("[role=option]").first.wait_for()
    assert page.get_by_role("group", name="Verdict").count() == 0  # a viewer gives none
    assert page.evaluate("document.cookie") == ""
    page.keyboard.press("?")
    page.get_by_text("Signed in as vera").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Key").wait_for()
    # Chromium notes every answer of 401 itself.
    left = [one for one in problems if "401" not in one and not one.startswith(("verbose", "debug"))]
    assert left == []
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked)
    context.close()


def below(folder, name):
    """What lies in folders of this name, while somebody removes them."""
    found = [(folders, files) for where, folders, files in os.walk(folder) if Path(where).name == name]
    return [one for folders, files in found for one in (*folders, *files)]


def test_what_is_removed_is_gone_from_the_pages_at_once(server, records, planted, team, tmp_path):
    """A sample first, then the run; nothing of its bytes stays in the pages' folder."""
    keys, _ = team
    admin, reader = server.api(keys["admin"]), Reader(server, keys["admin"])
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("brief-net", "v1", n_class=6)
    for split in ("train", "val"):
        factory.add_pass(run, split, planted(records, 120, seed=9).data, n_epoch=0)
    run_id = admin.sync(factory.store, run)
    job = admin("POST", f"/v1/runs/{run_id}/evaluations", json=OPTIONS).json()
    assert admin.finished(job["job_id"])["state"] == "done"
    rows = reader.get("samples", run)["rows"]
    assert rows
    folder = server.data / "pages"
    assert list(folder.rglob("brief-net"))
    body = {"input_ids": [rows[0]["id"]]}
    assert admin("POST", f"/v1/runs/{run_id}/removals", json=body).status_code in {200, 201}
    assert (
        reader.ask("samples", model="brief-net", version="v1").status_code == 404
    )  # its result went with it
    assert admin("POST", f"/v1/runs/{run_id}/removals", json={}).status_code in {200, 201}
    assert reader.ask("run", model="brief-net", version="v1").status_code == 404
    assert all(one["model"] != "brief-net" for one in reader.get("runs")["runs"])
    wait_for(lambda: not any(below(folder, "brief-net")), 90)
