"""Who gets in: the token of the address, the session, Host, the header of writes, files of the page and no others."""

import pytest
import requests
from app_parts import Client, serving

from mld_core.app.static_files import inside


@pytest.fixture(scope="module")
def place(shown_store):
    with serving(shown_store, hosts=["proxy.lan"]) as (base, token):
        yield base, Client(base, token), token


def test_a_token_is_worth_one_session(shown_store):
    with serving(shown_store) as (base, token):
        assert requests.get(f"{base}/ui/", timeout=60).status_code == 401
        assert requests.get(f"{base}/ui/", params={"token": "guess"}, timeout=60).status_code == 401
        first = Client(base, token)
        assert first.opened.status_code == 200
        assert "token" not in first.opened.url
        other = requests.get(f"{base}/ui/", params={"token": token}, timeout=60)
        assert other.status_code == 401
        assert "mld ui" in other.json()["fix"]
        again = first.http.get(f"{base}/ui/", params={"token": token, "page": "home"}, timeout=60)
        assert again.url.endswith("/ui/?page=home")


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(shown_store):
    with serving(shown_store) as (base, token):
        answer = requests.get(f"{base}/ui/", params={"token": token}, timeout=60, allow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"] == "./"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie


@pytest.mark.parametrize("path", ["/ui/", "/ui/api/session", "/ui/api/runs", "/ui/assets/x.js", "/", "/docs"])
def test_nothing_is_answered_without_a_session(place, path):
    answer = requests.get(place[0] + path, timeout=60)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:99", 200),
        ("[::1]:8766", 200),
        ("proxy.lan", 200),
        ("PROXY.lan:443", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_only_known_names_are_asked(place, host, status):
    # A cookie of requests' own jar would stay at home under another name.
    (cookie,) = place[1].http.cookies
    head = {"host": host, "cookie": f"{cookie.name}={cookie.value}"}
    assert requests.get(f"{place[0]}/ui/api/session", headers=head, timeout=60).status_code == status


def test_a_write_needs_the_header_and_a_json_body(place):
    base, client, _ = place
    body = {"model": "boxes", "version": "v1", "note": "x"}
    address = f"{base}/ui/api/runs/note"
    assert client.http.post(address, json=body, timeout=60).status_code == 403
    assert (
        client.http.post(address, json=body, headers={"x-mld-csrf": "guess"}, timeout=60).status_code == 403
    )
    head = {"x-mld-csrf": client.session["csrf"], "content-type": "text/plain"}
    assert client.http.post(address, data="{}", headers=head, timeout=60).status_code == 415
    head["content-type"] = "application/json"
    assert client.http.post(address, data=b"x" * 2_100_000, headers=head, timeout=60).status_code == 413
    assert client.http.post(address, data="{", headers=head, timeout=60).status_code == 400
    assert requests.post(address, json=body, headers=head, timeout=60).status_code == 401


def test_every_answer_carries_the_headers_that_keep_a_browser_safe(place):
    for path in ("/ui/", "/ui/api/session", "/ui/api/nothing"):
        head = place[1].http.get(place[0] + path, timeout=60).headers
        assert head["x-content-type-options"] == "nosniff"
        assert head["x-frame-options"] == "DENY"
        policy = head["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "server" not in head


def test_a_frame_is_allowed_where_it_was_asked_for(shown_store):
    with serving(shown_store, frames=["http://localhost:8888"]) as (base, token):
        head = Client(base, token).opened.headers
        assert "frame-ancestors http://localhost:8888" in head["content-security-policy"]
        assert "x-frame-options" not in head


@pytest.mark.parametrize(
    "path",
    [
        "../app/pages.py",
        "assets/../../pages.py",
        "..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "%2e%2e/%2e%2e/pyproject.toml",
        "/etc/passwd",
        "..\\..\\x",
        "x%00.js",
    ],
)
def test_no_path_leads_out_of_the_page(place, path):
    prepared = requests.Request("GET", f"{place[0]}/ui/x").prepare()
    prepared.url = f"{place[0]}/ui/{path}"
    prepared.headers.update(place[1].http.headers)
    cookies = "; ".join(f"{one.name}={one.value}" for one in place[1].http.cookies)
    prepared.headers["cookie"] = cookies
    answer = requests.Session().send(prepared, timeout=60)
    assert answer.status_code in {400, 404}
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


def test_files_of_the_page_lie_in_its_folder(tmp_path):
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "a.js").write_text("1")
    (tmp_path / "secret").write_text("2")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert inside(folder, "assets/a.js") is not None
    for path in (
        "../secret",
        "link",
        "assets",
        "assets/b.js",
        "assets/../../secret",
        str(tmp_path / "secret"),
    ):
        assert inside(folder, path) is None
