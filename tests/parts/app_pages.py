"""`mld ui` as a process of its own, and its pages in a browser with all that goes wrong on them."""

import os
import re
import subprocess
import sys
from urllib.parse import urlencode

from browser_parts import settled, until
from folders import ROOT

AXE = ROOT / "mld_core" / "app" / "web" / "node_modules" / "axe-core" / "axe.min.js"


class Served:
    """A running `mld ui` and the session that its address opened."""

    def __init__(self, browser, store, log):
        self.store, self.browser = store, browser
        command = [sys.executable, "-m", "mld_core.cli.main", "ui", "--no-browser", "--port", "0"]
        environment = {**os.environ, "MLD_HOME": str(store.root), "MLD_AUTHOR": "ann"}
        self.log = log.open("w")
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        address = re.search(r"http://\S+", self.process.stdout.readline())
        assert address, log.read_text()
        self.base = address[0].split("?")[0]
        context = browser.new_context()
        context.new_page().goto(address[0])
        self.session = context.storage_state()
        context.close()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()
        self.log.close()


def said_of(said, problems):
    """What the console says, but for Chromium's own remarks on drawing WebGL without a graphics card."""
    if "GL Driver Message" not in said.text:
        problems.append(f"{said.type}: {said.text}")


class Opened:
    """A page with all that went wrong on it."""

    def __init__(self, served, query, **options):
        self.served = served
        options = {"viewport": {"width": 1280, "height": 900}, "storage_state": served.session, **options}
        self.context = served.browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on("console", lambda said: said_of(said, self.problems))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.go(query)

    def go(self, query):
        self.page.goto(f"{self.served.base}?{urlencode(query)}" if query else self.served.base)
        self.drawn()

    def drawn(self):
        """Wait until nothing is being read any more."""
        until(self.page, "!!document.querySelector('h1, h2') && !document.querySelector('.wait, .stale')")
        settled(self.page)

    def outside(self):
        own = ("data:", "blob:", self.served.base)
        return [url for url in self.requests if not url.startswith(own)]

    def serious(self):
        """What axe finds serious or worse, as texts."""
        self.page.evaluate(AXE.read_text("utf-8") + "; undefined")
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['html'][:160]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:3]
        ]
