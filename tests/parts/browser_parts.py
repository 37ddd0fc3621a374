"""Waiting for a page in the browser."""

import time


def settled(page):
    """Wait until what the page draws in its next frame is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(page, expression, value=True):
    """Ask until it is so. The page's policy forbids `eval`, which playwright's own wait needs."""
    deadline = time.monotonic() + 60
    while (found := page.evaluate(expression)) != value:
        assert time.monotonic() < deadline, f"{expression}: {found!r}, not {value!r}"
        page.wait_for_timeout(50)
