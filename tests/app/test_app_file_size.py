"""Every sample is in the file, and with 100,000 of them it stays below 15 MB."""

import json
import re

import numpy as np
import pytest
from app_building import need_pages

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.classification import method, stage
from mld_core.report import write_report

LIMIT = 15_000_000


@pytest.fixture(scope="module", params=[10_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def rows(request):
    return request.param


@pytest.fixture(scope="module")
def large(rows, records, tmp_path_factory):
    """A result over samples of 200 classes with long ids; the analysis is not needed for the size."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("large") / "store")
    run = factory.run("large", "v1", n_class=200)
    rng = np.random.default_rng(0)
    data = records.make_data(rows, classes=200, strength=3.0)
    data.ids = [
        f"/data/a/rather/long/path/to/the/images/of/the/validation/set/{number:09d}.png"
        for number in range(rows)
    ]
    data.features = rng.normal(size=(rows, 16)).astype(np.float32)
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


def test_every_sample_is_in_the_file(large, rows, tmp_path):
    need_pages()
    written = write_report(large, tmp_path / "large.html")
    assert written.bytes < LIMIT
    data = json.loads(
        re.search(r'id="mld-data">(.*?)</script>', written.path.read_text("utf-8"), re.DOTALL)[1]
    )
    (held,) = data["passes"]
    assert held["rows"] == rows
    assert {one["length"] for one in held["columns"] if one["type"] != "json"} == {rows}
    assert written.left_out == []
