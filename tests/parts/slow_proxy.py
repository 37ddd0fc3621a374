"""A proxy before an HTTP server: every request waits, and how many there are at once is counted."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from urllib.parse import urlsplit


class SlowProxy:
    """Passes requests on unchanged (so that their signature holds) after `seconds` each.

    Attributes:
        requests: How many came.
        most: The largest number of them at once.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.there, self.seconds = urlsplit(url).netloc, seconds
        self.requests = self.most = self._now = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

            def do_GET(self) -> None:
                proxy.pass_on(self)

            do_HEAD = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def pass_on(self, asked: http.server.BaseHTTPRequestHandler) -> None:
        """One request and its answer."""
        with self._lock:
            self.requests += 1
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.seconds)
            link = http.client.HTTPConnection(self.there)
            link.request(asked.command, asked.path, headers=dict(asked.headers.items()))
            answer = link.getresponse()
            body = answer.read()
            link.close()
        finally:
            with self._lock:
                self._now -= 1
        asked.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                asked.send_header(name, value)
        length = answer.getheader("Content-Length") if asked.command == "HEAD" else str(len(body))
        asked.send_header("Content-Length", length or "0")
        asked.end_headers()
        asked.wfile.write(body)

    def stop(self) -> None:
        """Take no more."""
        self.server.shutdown()
        self.server.server_close()
