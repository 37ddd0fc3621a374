"""100,000 samples: the page stays below 15 MB and is made in a short time."""

import json
import re
import time

import numpy as np
import pytest
from app_building import need_pages

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.classification import method, stage
from mld_core.report import write_report

ROWS = 100_000
LIMIT = 15_000_000


@pytest.fixture(scope="module")
def large(records, tmp_path_factory):
    """A result over 100,000 samples of 200 classes with long ids; the analysis is not needed for the size."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("large") / "store")
    run = factory.run("large", "v1", n_class=200)
    rng = np.random.default_rng(0)
    data = records.make_data(ROWS, classes=200, strength=3.0)
    data.ids = [
        f"/data/a/rather/long/path/to/the/images/of/the/validation/set/{number:09d}.png"
        for number in range(ROWS)
    ]
    data.features = rng.normal(size=(ROWS, 16)).astype(np.float32)
    factory.add_pass(run, "val", data, n_epoch=0, batch=10_000)
    patch = pytest.MonkeyPatch()
    patch.setattr(
        method.evaluate_classification,
        "__kwdefaults__",
        {**method.evaluate_classification.__kwdefaults__, "stages": ()},
    )
    result = Evaluator("large", "v1", store=factory.store.root).request_evaluation(
        "r", options={"progress": False}
    )
    patch.undo()
    assert stage.CLASSIFICATION_STAGES
    return result


def test_every_sample_is_in_the_file(large, tmp_path):
    need_pages()
    written = write_report(large, tmp_path / "large.html")
    assert written.bytes < LIMIT
    data = json.loads(
        re.search(r'id="mld-data">(.*?)</script>', written.path.read_text("utf-8"), re.DOTALL)[1]
    )
    (held,) = data["passes"]
    assert held["rows"] == ROWS
    assert {one["length"] for one in held["columns"] if one["type"] != "json"} == {ROWS}
    assert written.left_out == []


def test_size_and_what_is_said_about_it(large, tmp_path):
    begun = time.perf_counter()
    written = write_report(
        large,
        tmp_path / "large.html",
        image_fn=lambda dataset, one: (
            np.random.default_rng(len(one)).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        ),
        former=True,
    )
    seconds = time.perf_counter() - begun
    assert written.bytes < LIMIT
    assert seconds < 60
    data = json.loads(re.search(r'id="data">(.*?)</script>', written.path.read_text("utf-8"), re.DOTALL)[1])
    detail = data["details"]["0"]
    assert detail["codes_total"] > len(detail["codes"]) == 200
    assert sum(detail["map"]["grid"]["n"]) == ROWS
    assert detail["map"]["grid"]["bins"] == 64
    assert detail["map"]["shown"] < 3_000
    assert detail["confusion"]["left_out"] == 170
    said = " ".join(written.left_out)
    for text in (
        "of 100,000 samples",
        "of 200 classes",
        "most frequent error codes",
        "worst 12 of each group",
    ):
        assert text in said
