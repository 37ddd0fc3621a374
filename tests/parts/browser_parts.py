"""Waiting for a page in the browser."""


def settled(page):
    """Wait until what the page draws in its next frame is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def all_drawn(page):
    """Wait until every chart of the page is drawn."""
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg, canvas'))"
    )
    settled(page)
