"""At the end of a run: what was skipped and why is told, and what each test took is noted (`make quick` reads it)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

COMMAND = "apt-get update && apt-get install -y --no-install-recommends"
PACKAGE = re.compile(r"install the package ([\w.+-]+)")
"""How the reason of a skip names the system package that would end it."""


def lines(reasons: Counter[str]) -> list[str]:
    """The summary's lines from the reasons, each with its number of tests (a file that is skipped whole counts one)."""
    made = [f"{count:5}  {reason}" for reason, count in reasons.most_common()]
    absent: Counter[str] = Counter()
    for reason, count in reasons.items():
        if found := PACKAGE.search(reason):
            absent[found[1]] += count
    if absent:
        parts = ", ".join(f"{count} for want of the system package {name}" for name, count in absent.items())
        made.append(f"{parts}. As root: {COMMAND} {' '.join(absent)}")
    return made


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """The skips, in place of pytest's own list, which names every line of every file; the seconds, into its cache."""
    if config.getoption("collectonly"):
        return
    took: Counter[str] = Counter()
    for report in (one for group in terminalreporter.stats.values() for one in group):
        if hasattr(report, "duration") and hasattr(report, "when"):
            took[report.nodeid] += report.duration
    if cache := getattr(config, "cache", None):
        known = cache.get("mld/seconds", {})
        cache.set("mld/seconds", {**known, **{test: round(seconds, 2) for test, seconds in took.items()}})
    reports = terminalreporter.stats.get("skipped", [])
    texts = [one.longrepr[2] if isinstance(one.longrepr, tuple) else str(one.longrepr) for one in reports]
    if texts:
        terminalreporter.section(f"{len(texts)} skipped")
        for line in lines(Counter(text.removeprefix("Skipped: ") for text in texts)):
            terminalreporter.write_line(line)
