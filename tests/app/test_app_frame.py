"""`Result.show()`: in a notebook the page in a frame, elsewhere a file that the browser opens."""

import json
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest
from app_building import need_pages
from browser_parts import until

from ml_debugger.evaluator import Evaluator


@pytest.fixture(scope="module")
def result(shown_store):
    need_pages()
    evaluator = Evaluator("net <i>", "v/1", store=shown_store.root)
    return evaluator.get_result(evaluator.list_results()["result_name"].iloc[0])


@pytest.fixture
def kernel(monkeypatch):
    """What a notebook's kernel shows: IPython is not asked for more than these two."""
    shown = []
    shell = SimpleNamespace(has_trait=lambda name: name == "kernel")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    return shown


def test_the_page_lives_in_a_frame_of_a_notebook(result, kernel, browser, tmp_path):
    result.show(height=700)
    (frame,) = kernel
    assert len(repr(frame)) < 80, "a notebook without HTML is not flooded"
    around = tmp_path / "notebook.html"
    head = '<!doctype html><meta charset="utf-8"><title>notebook</title>'
    around.write_text(head + frame._repr_html_(), "utf-8")
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
    page = context.new_page()
    wrong = []
    page.on("console", lambda said: wrong.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(around.as_uri())
    inside = page.frame_locator("iframe")
    inside.locator("main article, main li, main table").first.wait_for(timeout=60_000)
    first = page.frames[1].evaluate("document.body.innerText")
    inside.get_by_role("link", name="Samples").or_(inside.get_by_role("button", name="Samples")).first.click()
    until(page.frames[1], f"document.body.innerText !== {json.dumps(first)}")
    assert page.frames[1].evaluate("document.documentElement.scrollWidth") <= 1000
    assert page.evaluate("document.querySelector('iframe').getBoundingClientRect().height") >= 700
    assert page.title() == "notebook", "the notebook is out of the page's reach"
    assert wrong == []
    context.close()


def test_elsewhere_the_browser_opens_it_or_its_path_is_said(result, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    result.show()
    path = Path(unquote(urlparse(opened[0]).path))
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == ""

    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    result.show()
    said = capsys.readouterr().out
    assert Path(said.split("the page is ")[1].strip()).exists()
