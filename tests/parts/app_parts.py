"""The pages' server on a port of its own, and a person who asks it."""

import socket
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import requests
import uvicorn

from mld_core.app.local import config_of, listen
from mld_core.app.pages import local_app
from mld_core.app.session import LocalSignIn

OPTIONS = {"progress": False, "threads": 2, "repeats": 1}
HOSTILE = (
    "plain",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../../etc/passwd#",
    "ü 'q' \\ ",
)
"""What the ids of val begin with."""

NAMES = ["<b>cat</b>", "dog & co", "cow", "it's", "pig", "a class with a rather long name"]


class Client:
    """A person at the pages: their session, and the header that writes carry."""

    def __init__(self, base, token):
        self.base = base
        self.http = requests.Session()
        self.opened = self.http.get(f"{base}/ui/", params={"token": token}, timeout=60)
        self.session = self.get("session")

    def ask(self, path, **query):
        query = {name.removesuffix("_"): value for name, value in query.items() if value is not None}
        return self.http.get(f"{self.base}/ui/api/{path}", params=query, timeout=120)

    def get(self, path, **query):
        found = self.ask(path, **query)
        assert found.status_code == 200, found.text
        return found.json()

    def post(self, path, body, **headers):
        head = {"x-mld-csrf": self.session["csrf"], **headers} if hasattr(self, "session") else headers
        return self.http.post(f"{self.base}/ui/api/{path}", json=body, headers=head, timeout=60)

    def delete(self, path):
        head = {"x-mld-csrf": self.session["csrf"], "content-type": "application/json"}
        return self.http.delete(f"{self.base}/ui/api/{path}", headers=head, timeout=60)


@contextmanager
def serving(store, author="ann", **options):
    """A server on a port of its own, and its address with the token."""
    sign_in = LocalSignIn(author)
    listening = listen(0)
    app = local_app(store, sign_in, **options)
    server = uvicorn.Server(config_of(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", sign_in.token
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def opened(store, author="ann", **options):
    """A person at a server of their own."""
    with serving(store, author, **options) as (base, token):
        yield Client(base, token)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def token_of(address):
    return parse_qs(urlsplit(address).query)["token"][0]
