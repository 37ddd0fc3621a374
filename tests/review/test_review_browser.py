"""The review as a person does it, in a browser to the end: keys on the worst labels, the corrected data set, a training."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from app_building import need_pages
from noisy_digits import lowest, noisy_digits, trained

from ml_debugger.evaluator import Evaluator
from ml_debugger.review import apply
from mld_core.records.store.png import encode_png

pytestmark = pytest.mark.processes
KEYS = {"relabel": "1", "ok": "2", "ambiguous": "3"}


@pytest.fixture(autouse=True)
def _pages():
    need_pages()
    pytest.importorskip("fastapi", reason='the pages need FastAPI: pip install "ml-debugger[ui]"')


@pytest.fixture
def store(tmp_path, monkeypatch):
    root = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(root))
    return root


@pytest.fixture
def address(store, tmp_path):
    """`mld ui` on the store, once there is something in it."""
    started = []

    def start(*options):
        command = [sys.executable, "-m", "mld_core.cli.main", "ui", "--no-browser", "--port", "0", *options]
        log = (tmp_path / "ui.log").open("w")
        env = {**os.environ, "MLD_HOME": str(store), "MLD_AUTHOR": "ann"}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        started.append((process, log))
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, (tmp_path / "ui.log").read_text()
        return found[0]

    yield start
    for process, log in started:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        log.close()


def judged(sample, truth):
    """What a person who knows digits says of a sample, with the keys alone."""
    given, right = sample["truth"]["class"], int(truth[int(sample["id"])])
    offered = (sample["suggested"] or sample["said"] or {}).get("class")
    return "ok" if given == right else "relabel" if offered == right else "ambiguous"


def review(page, base, version, truth, looked_at):
    """Look at the worst labels of train one by one, a key each; returns what was said of which."""
    page.goto(f"{base}?page=samples&model=digits&version={version}&split=train&sort=label_quality")
    page.locator("[role=option]").first.wait_for()
    rows = page.evaluate(
        "path => fetch(path).then(answer => answer.json())",
        f"api/samples?model=digits&version={version}&split=train&sort=label_quality&limit={looked_at}",
    )["rows"]
    page.keyboard.press("Home")
    said = {}
    for sample in rows:
        page.locator("[role=option][aria-selected=true]").filter(has_text=sample["why"]).first.wait_for()
        kind = judged(sample, truth)
        with page.expect_response("**/api/verdicts") as answer:
            page.keyboard.press(KEYS[kind])
        (one,) = answer.value.json()["verdicts"]
        assert (one["row"], one["kind"]) == (sample["row"], kind)
        said[sample["id"]] = kind
    return said


def evaluated(seed):
    """A recorded training and its evaluation: data, truth, clean split, accuracy."""
    data, truth, val, wrong = noisy_digits(seed)
    before = trained(data, val, seed, f"s{seed}")
    Evaluator("digits", f"s{seed}").request_evaluation(options={"progress": False})
    return data, truth, val, wrong, before


@pytest.mark.slow
def test_keys_on_the_worst_labels_correct_the_data_set(browser, store, address, tmp_path):
    data, truth, _, wrong, _ = evaluated(0)
    pictures = tmp_path / "pictures"  # nothing was recorded: the data set's own files are shown
    pictures.mkdir()
    for row, image in enumerate(data.tensors[0].reshape(-1, 8, 8).numpy()):
        (pictures / f"{row}.png").write_bytes(encode_png(np.uint8(255 * image)))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address("--images", str(pictures / "{input_id}.png")))
    base = page.url.partition("?")[0]
    said = review(page, base, "s0", truth, 30)
    assert page.locator("[role=option] img").evaluate_all("all => all.every(one => one.naturalWidth === 8)")
    page.keyboard.press("z")
    page.get_by_text("1 taken back").first.wait_for()
    *_, last = said
    del said[last]
    fixed = apply(data, "digits", "s0", "train", store=store)
    assert fixed.skipped == []
    assert {str(one) for one in fixed.labels} == {one for one, kind in said.items() if kind == "relabel"}
    assert all(int(fixed[int(one)][1]) == truth[int(one)] for one in fixed.labels)
    assert len(set(fixed.labels) & {str(one) for one in wrong}) > 20
    page.goto(f"{base}?page=review&model=digits&version=s0&split=train")
    page.get_by_text("relabel.json").first.wait_for()
    page.close()


@pytest.mark.heavy
def test_what_was_reviewed_in_the_browser_makes_the_next_training_better(browser, store, address):
    gains, found = [], []
    base = ""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    for seed in range(5):
        data, truth, val, wrong, before = evaluated(seed)
        if not base:
            page.goto(address())
            base = page.url.partition("?")[0]
        said = review(page, base, f"s{seed}", truth, 180)
        corrected = {one for one, kind in said.items() if kind == "relabel"}
        fixed = apply(data, "digits", f"s{seed}", "train", store=store)
        assert fixed.skipped == []
        assert set(fixed.labels) == corrected
        found.append(len(corrected & {str(one) for one in wrong}) / len(wrong))
        gains.append(trained(fixed, val, seed) - before)
    page.close()
    print(
        f"corrected {np.round(found, 3)} of the planted labels; accuracy {np.round(gains, 4)}, "
        f"95 % from {lowest(gains):+.4f}"
    )
    assert lowest(gains) > 0
