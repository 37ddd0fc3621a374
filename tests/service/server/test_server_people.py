"""People: every route obeys a person's role and the models they may see; proxies that are believed, and those not."""

import hashlib
import json
import os
import socket
import subprocess

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.records.format.layout import RunKey
from mld_core.service.client.api import Client
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import HEADER_PROTOCOL, PROTOCOL, ROLES, ROUTES, problem_name
from mld_core.service.server.app import create_app
from mld_core.service.server.proxies import Proxies
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Organization, Run, new_id
from mld_core.service.server.storage.people import checked, seen_runs, sees

pytestmark = pytest.mark.processes

HIDDEN, SHOWN = "secret-net", "open-net"
PATTERNS = ["open*"]

# What each route shows of a model that is not to be seen. A new route needs its line here.
NOTHING, GONE, REFUSED, LISTED, ADMINS, ROOTS = "nothing", "gone", "refused", "listed", "admins", "roots"
RULES = {
    ("GET", "/healthz"): NOTHING,
    ("GET", "/metrics"): ROOTS,
    ("GET", "/v1/openapi.json"): NOTHING,
    ("GET", "/v1/whoami"): NOTHING,
    ("POST", "/v1/runs"): REFUSED,
    ("GET", "/v1/runs"): LISTED,
    ("GET", "/v1/runs/{run_id}"): GONE,
    ("PATCH", "/v1/runs/{run_id}"): GONE,
    ("HEAD", "/v1/blobs/{sha256}"): GONE,
    ("PUT", "/v1/blobs/{sha256}"): REFUSED,  # without its bytes
    ("GET", "/v1/blobs/{sha256}"): GONE,
    ("POST", "/v1/runs/{run_id}/seals"): GONE,
    ("POST", "/v1/runs/{run_id}/ranks"): GONE,
    ("GET", "/v1/runs/{run_id}/passes"): GONE,
    ("GET", "/v1/runs/{run_id}/passes/{pass_id}"): GONE,
    ("POST", "/v1/runs/{run_id}/evaluations"): GONE,
    ("GET", "/v1/jobs"): LISTED,
    ("GET", "/v1/jobs/{job_id}"): GONE,
    ("DELETE", "/v1/jobs/{job_id}"): GONE,
    ("GET", "/v1/runs/{run_id}/results"): GONE,
    ("GET", "/v1/results"): LISTED,
    ("GET", "/v1/results/{result_id}"): GONE,
    ("GET", "/v1/results/{result_id}/files"): GONE,
    ("POST", "/v1/runs/{run_id}/removals"): ADMINS,
    ("GET", "/v1/removals"): ADMINS,
    ("POST", "/v1/keys"): ADMINS,
    ("GET", "/v1/keys"): ADMINS,
    ("DELETE", "/v1/keys/{key_id}"): ADMINS,
    ("POST", "/v1/people"): ADMINS,
    ("GET", "/v1/people"): ADMINS,
    ("PATCH", "/v1/people/{person_id}"): ADMINS,
    ("DELETE", "/v1/people/{person_id}"): ADMINS,
    ("POST", "/v1/runs/{run_id}/verdicts"): GONE,
    ("GET", "/v1/runs/{run_id}/verdicts"): GONE,
    ("POST", "/v1/organizations"): ROOTS,
    ("GET", "/v1/organizations"): ROOTS,
}
BODIES = {
    "/v1/runs": {"model_name": HIDDEN, "version_name": "v1"},
    "/v1/keys": {"name": "x", "scopes": ["read"]},
    "/v1/people": {"name": "x", "role": "owner"},
    "/v1/organizations": {"name": "default"},
    "/v1/runs/{run_id}/seals": {"manifest_sha256": "0" * 64},
    "/v1/runs/{run_id}/verdicts": {
        "verdicts": [
            {
                "kind": "ok",
                "dataset_type": "val",
                "input_id": "1",
                "author": "eve",
                "at": "2026-11-28T21:00:00.000001+00:00",
                "verdict_id": "0" * 16,
            }
        ]
    },
    "/v1/runs/{run_id}/removals": {"dry_run": True},
}


def person(server, name, role, models=("*",)):
    """A key of a new person of the root organization."""
    api = server.api()
    body = {"name": f"{name} {os.urandom(4).hex()}", "role": role, "models": list(models)}
    made = api("POST", "/v1/people", json=body)
    assert made.status_code == 201, made.text
    key = api("POST", "/v1/keys", json={"name": name, "person_id": made.json()["person_id"]})
    assert key.json()["scopes"] == list(ROLES[role]), key.text
    return server.api(key.json()["key"]), made.json()


@pytest.fixture(scope="module")
def secret(server, recorded, records, tmp_path_factory):
    """Ids of everything of a model that is not to be seen, and of one that is."""
    api, ids = server.api(), {}
    factory = records.StoreFactory(tmp_path_factory.mktemp("people") / "store")
    for number, (model, name) in enumerate(((HIDDEN, "secret"), (SHOWN, "open"))):
        run = factory.standard(model, "v1", seed=number)
        run_id = api.sync(factory.store, run)
        asked = {"options": {"dataset_types": ["val"]}, "result_name": f"result of {model}"}
        job = api("POST", f"/v1/runs/{run_id}/evaluations", json=asked).json()
        done = api.finished(job["job_id"])
        one = api.get(f"/v1/runs/{run_id}/passes")["items"][0]["pass_id"]
        (rank,) = api.get(f"/v1/runs/{run_id}/passes/{one}")["ranks"]
        ids[name] = {
            "run_id": run_id,
            "job_id": job["job_id"],
            "result_id": done["result_id"],
            "pass_id": one,
            "sha256": rank["files"][0]["sha256"],
            "key_id": "key_" + "0" * 24,
            "person_id": "person_" + "0" * 24,
        }
        ids[f"{name} files"] = api.get(f"/v1/results/{done['result_id']}/files")["items"]
        ids[f"{name} rank"] = rank
    return factory, ids


def call(api, method, path, ids):
    options = {}
    if method in {"POST", "PATCH"}:
        options["json"] = BODIES.get(path, {})
    if method == "PUT":
        options = {"data": b"x", "headers": {"Upload-Length": "1"}}
    return api(method, path.format(**ids), **options)


def served():
    return {
        (method.upper(), path)
        for path, operations in create_app(None).openapi()["paths"].items()
        for method in operations
    }


def test_every_route_has_a_rule():
    assert served() == RULES.keys()


@pytest.mark.parametrize("role", ROLES)
def test_every_route_obeys_role_and_models(server, secret, role):
    _, ids = secret
    limited = role != "admin"
    api, _ = person(server, f"walk {role}", role, PATTERNS if limited else ["*"])
    scopes = {(route.method, route.path): route.scopes for route in ROUTES}
    for method, path in sorted(served()):
        rule, allowed = RULES[method, path], set(scopes[method, path]) & set(ROLES[role])
        answer = call(api, method, path, ids["secret"])
        if scopes[method, path] and not allowed:
            assert answer.status_code == 403, (method, path, answer.text)
            continue
        if rule == GONE and limited:
            assert answer.status_code == 404, (method, path, answer.text)
            assert call(api, method, path, ids["open"]).status_code != 404, (method, path)
        elif rule == REFUSED and limited:
            assert answer.status_code in {403, 409}, (method, path, answer.text)
        elif rule == LISTED:
            shown = HIDDEN in answer.text or ids["secret"]["run_id"] in answer.text
            assert shown != limited, (method, path)
            assert ids["open"]["run_id"] in answer.text
        elif rule == ROOTS:
            assert (answer.status_code == 403) == limited, (method, path, answer.text)
        elif rule == ADMINS:
            assert role == "admin"
            assert answer.status_code in {200, 201, 404, 422}, (method, path, answer.text)


def test_what_hangs_on_a_run_is_seen_with_it_and_a_digest_is_not_enough(server, secret):
    _, ids = secret
    api, who = person(server, "writer", "writer", PATTERNS)
    for file in ids["secret files"]:
        assert api("GET", f"/v1/blobs/{file['sha256']}").status_code == 404
    for file in ids["open files"]:
        assert api("GET", f"/v1/blobs/{file['sha256']}").ok
    assert api.get("/v1/runs", params={"name": "net"})["items"][-1]["model_name"] == SHOWN
    # A manifest of their own that names files of the other model.
    hidden = ids["secret rank"]
    run_id = api.run("open-thief", "v1", task="classification")
    stolen = {**hidden["manifest"], "attempt": {**hidden["manifest"]["attempt"], "model_name": "open-thief"}}
    text = json.dumps(stolen).encode()
    assert api.put(text).status_code == 201
    asked = {"manifest_sha256": hashlib.sha256(text).hexdigest()}
    answer = api("POST", f"/v1/runs/{run_id}/seals", json=asked)
    assert (answer.status_code, problem_name(answer.json())) == (409, "missing-blobs")
    digests = {file["sha256"] for file in hidden["files"]}
    assert set(answer.json()["missing"]) == digests
    opening = stolen["attempt"]
    names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
    of_1_0 = {**{name: opening[name] for name in names}, "manifest": stolen, "opening": opening}
    assert set(api.seal(run_id, of_1_0).json()["missing"]) == digests
    # With the bytes it is theirs.
    for sha256 in digests:
        content = server.api()("GET", f"/v1/blobs/{sha256}").content
        assert api("HEAD", f"/v1/blobs/{sha256}").status_code == 404
        assert api.put(content).status_code == 201
        assert api("GET", f"/v1/blobs/{sha256}").content == content
    assert api("POST", f"/v1/runs/{run_id}/seals", json=asked).status_code == 201
    made = api.get(f"/v1/runs/{run_id}")
    assert made["owner"] == who["name"]
    assert [one["run_id"] for one in api.get("/v1/runs", params={"owner": who["name"]})["items"]] == [run_id]


def test_a_person_who_sees_some_models_syncs_as_anybody(server, secret):
    factory, _ = secret
    _, made = person(server, "syncer", "writer", PATTERNS)
    key = server.api()("POST", "/v1/keys", json={"name": "k", "person_id": made["person_id"]}).json()["key"]
    job = Uploader(factory.store, Client(server.url, key))
    states = {rank.run.model_name: job.send(rank).state for rank in job.plan([RunKey(SHOWN, "v1")])}
    assert states == {SHOWN: "there"}


def test_roles_change_and_people_are_refused_at_once(server):
    api, made = person(server, "changing", "viewer")
    admin, where = server.api(), f"/v1/people/{made['person_id']}"
    assert api("POST", "/v1/runs", json={"model_name": "m", "version_name": "v"}).status_code == 403
    assert admin("PATCH", where, json={"role": "writer", "models": ["m*"]}).json()["models"] == ["m*"]
    assert api("POST", "/v1/runs", json={"model_name": "m", "version_name": "v"}).ok
    whoami = api.get("/v1/whoami")
    assert (whoami["person"], whoami["role"], whoami["models"]) == (made["name"], "writer", ["m*"])
    for body in (
        {"role": "owner"},
        {"models": []},
        {"role": "admin"},
        {"models": ["*a*b*c*"]},
        {"models": [""]},
        {"models": ["x" * 301]},
    ):
        answer = admin("PATCH", where, json=body)
        assert (answer.status_code, problem_name(answer.json())) == (422, "invalid"), body
    twice = admin("POST", "/v1/people", json={"name": made["name"], "role": "viewer"})
    assert (twice.status_code, problem_name(twice.json())) == (409, "conflict")
    other = server.api(server.new_key("admin", organization="elsewhere"))
    assert other("PATCH", where, json={"role": "viewer"}).status_code == 404
    assert other("POST", "/v1/keys", json={"name": "x", "person_id": made["person_id"]}).status_code == 404
    assert admin("DELETE", where).json()["disabled_at"]
    assert api("GET", "/v1/whoami").status_code == 401
    late = admin("POST", "/v1/keys", json={"name": "x", "person_id": made["person_id"]})
    assert (late.status_code, problem_name(late.json())) == (409, "conflict")


def test_patterns_mean_the_same_here_and_in_both_databases(postgres, tmp_path):
    names = [
        "net",
        "Net",
        "net1",
        "a.net",
        "a%b",
        "a_b",
        "axb",
        "[ab]",
        "a",
        "a?b",
        "a\\b",
        "a*b",
        "ab",
        "ünet",
    ]
    patterns = ["*", "net*", "*net", "a%b", "a_b", "a?b", "[ab]", "a\\b", "a*b", "*e*", "Net", "ü*", "a*"]
    where = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
    subprocess.run([postgres.tool("createdb"), *where, "patterns"], check=True)
    urls = (
        f"sqlite:///{tmp_path / 'patterns.sqlite3'}",
        f"postgresql+psycopg://mld@127.0.0.1:{postgres.port}/patterns",
    )
    for url in urls:
        database = Database(url)
        database.migrate()
        with database.write() as session:
            owner = Organization(id="org_1", name="us", is_root=True, blob_bytes=0, created_at="x")
            session.add(owner)
            session.flush()
            facts = {"organization_pk": owner.pk, "version_name": "v", "info": {}, "created_at": "x"}
            session.add_all(Run(id=new_id("run"), model_name=name, updated_at="x", **facts) for name in names)
        for given in (*([one] for one in patterns), ["net*", "a"]):
            principal = Principal(
                "k", "k", owner.pk, "org_1", "us", True, frozenset(), None, models=tuple(given)
            )
            with database.read() as session:
                found = set(session.scalars(select(Run.model_name).where(seen_runs(session, principal))))
            assert found == {name for name in names if sees(given, name)}, (url, given)
        database.close()


def test_an_admin_sees_all():
    with pytest.raises(ValueError, match="an admin sees all"):
        checked("admin", ["net*"])
    assert checked("admin", ["*"]) == ["*"]


# -- proxies --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(parts, tmp_path_factory):
    """A server that believes the proxy at 127.0.0.1."""
    settings = {"trusted_proxies": "127.0.0.0/8", "user_header": "X-Forwarded-User", "workers": 0}
    data = tmp_path_factory.mktemp("behind") / "data"
    server = parts.ServerProcess(data, **settings, connections=40).start()
    yield server
    server.stop()


def test_a_trusted_proxy_signs_people_in(behind):
    _, made = person(behind, "ann", "writer", PATTERNS)
    nobody = behind.api("")
    told = {"X-Forwarded-User": made["name"], "X-Forwarded-For": "203.0.113.9"}
    whoami = nobody.get("/v1/whoami", headers=told)
    assert (whoami["person"], whoami["scopes"], whoami["models"]) == (
        made["name"],
        ["read", "write"],
        PATTERNS,
    )
    body = {"model_name": "open-1", "version_name": "v"}
    refused = nobody("POST", "/v1/runs", json=body, headers=told)
    assert (refused.status_code, problem_name(refused.json())) == (403, "forbidden")
    assert (
        nobody("POST", "/v1/runs", json=body, headers={**told, HEADER_PROTOCOL: PROTOCOL}).status_code == 201
    )
    assert nobody("GET", "/v1/keys", headers=told).status_code == 403
    stranger = nobody("GET", "/v1/whoami", headers={"X-Forwarded-User": "nobody of ours"})
    assert stranger.status_code == 401
    # A key goes before the header.
    assert behind.api().get("/v1/whoami", headers=told)["key_name"] == "first key"
    behind.api()("DELETE", f"/v1/people/{made['person_id']}")
    assert nobody("GET", "/v1/whoami", headers=told).status_code == 401


def raw(port, *headers):
    """A request as it is written; the status."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        lines = ["GET /v1/whoami HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        return int(sock.recv(100).split()[1])


def test_a_header_that_came_twice_names_nobody(behind):
    _, made = person(behind, "twice", "viewer")
    one = f"X-Forwarded-User: {made['name']}"
    assert raw(behind.port, one) == 200
    assert raw(behind.port, one, one) == 401
    assert raw(behind.port, one, one.lower()) == 401


def test_forged_headers_of_others_are_ignored(server, parts, tmp_path):
    _, made = person(server, "forged", "admin")
    told = {"X-Forwarded-User": made["name"], "X-Forwarded-For": "10.0.0.1", "Remote-User": made["name"]}
    assert server.api("")("GET", "/v1/whoami", headers=told).status_code == 401  # off by default
    settings = {"trusted_proxies": "10.0.0.0/8", "user_header": "X-Forwarded-User", "workers": 0}
    other = parts.ServerProcess(tmp_path / "data", **settings).start()
    try:
        _, made = person(other, "forged", "admin")
        told["X-Forwarded-User"] = made["name"]
        assert other.api("")("GET", "/v1/whoami", headers=told).status_code == 401
        assert '"remote": "127.0.0.1"' in other.log.read_text()
        assert "10.0.0.1" not in other.log.read_text()
    finally:
        other.stop()


def test_who_asks_is_the_last_that_no_proxy_has():
    proxies = Proxies(["10.0.0.0/8", "::1"], "X-User")
    assert proxies.client("10.1.1.1", "1.1.1.1, 2.2.2.2, 10.9.9.9") == "2.2.2.2"
    assert proxies.client("10.1.1.1", "") == "10.1.1.1"
    assert proxies.client("10.1.1.1", "10.2.2.2") == "10.1.1.1"
    assert proxies.client("2.2.2.2", "1.1.1.1") == "2.2.2.2"
    assert proxies.client("::1", "nonsense") == "nonsense"
    assert proxies.trusts("::ffff:10.3.3.3")
    assert proxies.person("2.2.2.2", {"x-user": "ann"}) == ""
    with pytest.raises(ValueError, match="trusted_proxies"):
        Proxies(["proxy.example.org"])


def test_wrong_keys_and_connections_count_for_the_address_behind_the_proxy(behind):
    """A team behind one proxy is not one stranger: what one does costs the others nothing."""
    wrong = behind.api("mldbg_" + "1" * 24 + "_" + "2" * 64)
    loud, quiet = {"X-Forwarded-For": "203.0.113.1"}, {"X-Forwarded-For": "203.0.113.2"}
    codes = [wrong("GET", "/v1/whoami", headers=loud).status_code for _ in range(60)]
    assert 429 in codes
    assert wrong("GET", "/v1/whoami", headers=quiet).status_code == 401
    held = []
    try:
        body = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        for number in range(14):  # more than the share of one address, each its own
            sock = socket.create_connection(("127.0.0.1", behind.port), 10)
            sock.sendall(f"{body}X-Forwarded-For: 203.0.113.{number + 10}\r\n".encode())
            held.append(sock)
        assert behind.api("").session.get(f"{behind.url}/healthz", headers=quiet, timeout=10).ok
        assert behind.api().get("/v1/whoami")["key_name"] == "first key"
    finally:
        for sock in held:
            sock.close()


# -- the command ----------------------------------------------------------------------------------------------


def test_mld_keys_here_and_at_the_service(server, monkeypatch):
    made = server.mld("keys", "add", "carol", "--role", "viewer", "--models", "a*", "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    assert server.api(key).get("/v1/whoami")["models"] == ["a*"]
    changed = server.mld("keys", "roles", "carol", "--role", "writer", "--json")
    assert json.loads(changed.stdout)["role"] == "writer"
    listed = {one["name"]: one for one in json.loads(server.mld("keys", "people", "--json").stdout)}
    assert (listed["carol"]["role"], listed["carol"]["models"]) == ("writer", ["a*"])
    assert "there is no person" in server.mld("keys", "roles", "nobody", "--role", "viewer").stderr
    wrong = server.mld("keys", "add", "dora", "--role", "owner")
    assert wrong.returncode != 0
    assert "viewer, writer, admin" in wrong.stderr

    monkeypatch.setenv("MLD_API_ENDPOINT", server.url)
    monkeypatch.setenv("MLD_API_KEY", server.key)

    def mld(*arguments):
        done = CliRunner().invoke(app, ["keys", *arguments, "--remote", "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    second = mld("add", "carol")
    assert (second["person"], second["scopes"]) == ("carol", ["read", "write"])
    assert mld("roles", "carol", "--models", "b*")["models"] == ["b*"]
    assert {one["name"] for one in mld("people")} >= {"carol"}
    assert [one["person"] for one in mld("list")].count("carol") == 2
    erin = mld("add", "erin", "--role", "writer")
    assert server.api(erin["key"])("GET", "/v1/keys").status_code == 403
    assert mld("revoke", erin["key_id"])["revoked_at"]
    assert mld("revoke", "carol")["disabled_at"]
    for one in (key, second["key"], erin["key"]):
        assert server.api(one)("GET", "/v1/whoami").status_code == 401
    done = server.mld("keys", "revoke", "erin")
    assert (done.returncode, "refused" in done.stderr) == (0, True)
    assert "add them by another name" in server.mld("keys", "add", "erin").stderr
