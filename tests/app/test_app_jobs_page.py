"""The page of all evaluations: what is being made, how long it takes, cancelled, and why one failed."""

import json

import pytest
from app_building import need_pages
from app_pages import AXE, Opened, Served

from mld_core.app.job_routes import left
from mld_core.app.jobs.protocol import Job
from mld_core.records.format.layout import RunKey

pytestmark = pytest.mark.processes

RUN = RunKey("net", "v1")


@pytest.mark.parametrize(
    ("running", "others", "expected"),
    [
        ({"seconds": 3.0, "rows": 200}, [], None),
        ({"seconds": 3.0, "rows": 200}, [("done", 10.0, 100)], 17.0),
        ({"seconds": 3.0, "rows": None}, [("done", 10.0, 100)], 7.0),
        ({"seconds": 30.0, "rows": 200}, [("done", 10.0, 100)], None),
        ({"seconds": 3.0, "rows": 100}, [("failed", 9.0, 100), ("done", 5.0, 100), ("done", 9.0, 100)], 2.0),
    ],
    ids=["unknown", "twice the rows", "rows unknown", "longer than before", "the last that was done"],
)
def test_time_left_is_told_by_what_was_made_before(running, others, expected):
    job = Job("now", RUN, "running", **running)
    before = [Job(str(n), RUN, state, seconds=s, rows=rows) for n, (state, s, rows) in enumerate(others)]
    assert left(job, [job, *before]) == expected
    assert left(job, [job, Job("x", RunKey("other", "v1"), "done", seconds=9.0)]) is None


def test_evaluations_are_listed_cancelled_and_told_why_they_failed(browser, records, tmp_path):
    need_pages()
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("fresh", "v1", n_class=3)
    rows = records.make_data(40_000, seed=1)  # not through before it is cancelled
    factory.add_pass(run, "val", rows, n_epoch=0)
    factory.run("empty", "v1", n_class=3)
    served = Served(browser, factory.store, tmp_path / "ui.log")
    one = Opened(served, {"page": "jobs"})
    page = one.page
    try:
        page.get_by_text("No evaluation was begun from a page yet").wait_for()
        head = {"x-mld-csrf": json.loads(page.request.get(f"{served.base}api/session").text())["csrf"]}

        def start(model):
            body = {"model": model, "version": "v1"}
            return page.request.post(f"{served.base}api/jobs", data=body, headers=head)

        assert start("fresh").ok
        row = page.locator("tr", has_text="fresh")
        row.get_by_role("button", name="Cancel the evaluation of fresh v1").wait_for()
        assert "40,000" in row.inner_text()
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        if AXE.exists():
            assert one.serious() == []
        row.get_by_role("button").click()
        row.get_by_text("cancelled").wait_for()
        start("empty")
        page.locator("tr", has_text="empty").get_by_text("failed").wait_for(timeout=60_000)
        assert "empty" in page.locator(".reason").inner_text()
        assert one.problems == []
    finally:
        one.context.close()
        served.stop()
