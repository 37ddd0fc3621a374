"""What maps to what, executed; where a package is not installed, from the plain data that its documentation names.

The predictions are those of a logistic regression of real digits with 20 labels changed.
"""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
import pytest
from docs_parts import DOCS, blocks, console, pages, run
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from typer.testing import CliRunner

from ml_debugger.records import load
from mld_core.cli.main import app

pytest.importorskip("torch")

FOLDER = DOCS / "coming-from"
N, CHANGED = 400, 20


def test_every_page_is_run():
    run_here = {"index", "wandb", "fiftyone", "cleanlab", "mlflow"}
    assert {page.stem for page in pages("coming-from")} == run_here | {"hosted-sdk"}  # test_docs_programs.py


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coming-from")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLD_HOME", str(folder / "store"))
        patch.delenv("MLD_API_ENDPOINT", raising=False)
        patch.delenv("MLD_API_KEY", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def known(store):
    """What every page presumes: arrays, and what the first page defines."""
    digits = load_digits()
    features, labels = digits.data[:N] / 16, digits.target[:N].copy()
    wrong = np.random.default_rng(0).choice(N, CHANGED, replace=False)
    labels[wrong] = (labels[wrong] + 3) % 10
    model = LogisticRegression(C=0.1, max_iter=200)
    given = {
        "ids": [f"digit-{number}" for number in range(N)],
        "labels": labels,
        "pred_probs": cross_val_predict(model, features, labels, cv=3, method="predict_proba"),
        "features": features,
        "wrong": {f"digit-{number}" for number in wrong},
    }
    given["logits"] = np.log(given["pred_probs"].clip(1e-12))
    return run(FOLDER / "index.md", given)


def check(known, version):
    """The version holds the same ids, labels and predictions as the first page's."""
    columns = ["input_id", "label", "prediction"]
    pd.testing.assert_frame_equal(
        load("stored", version).select(columns).to_pandas(), load("stored", "v1").select(columns).to_pandas()
    )


def test_predictions_that_are_there(known):
    assert load("stored", "v1")["input_id"].to_pylist() == known["ids"]
    assert load("stored", "v1", "vectors").num_rows == N
    assert known["result"].metrics_summary().loc[0, "counts"] == N


def test_wandb(known):
    frame = pd.DataFrame(known["pred_probs"]).add_prefix("score_")
    frame = frame.assign(id=known["ids"], truth=known["labels"])
    names = run(FOLDER / "wandb.md", {**known, "frame": frame})
    check(known, "from_wandb")
    assert names["for_wandb"].map(np.isscalar).all(axis=None)
    assert names["for_wandb"]["diagnosis"].str.contains("C01").any()


def test_fiftyone(known):
    classes = [f"class {number}" for number in range(10)]
    values = [known["ids"], [classes[k] for k in known["labels"]], list(known["logits"])]
    names = {**known, "classes": classes, "values": values}
    for name, code in blocks(FOLDER / "fiftyone.md").items():
        if name != "back":  # test_exchange_fiftyone.py, where FiftyOne is installed
            exec(code, names)
    check(known, "from_fiftyone")
    assert set(names["found"]) <= set(known["ids"])
    made = names["truth"]([{"label": "class 3", "bounding_box": [0.25, 0.5, 0.5, 0.25]}], 64, 48)
    np.testing.assert_allclose(made["boxes"], [[16, 24, 48, 36]])
    assert made["labels"].tolist() == [3]
    assert names["truth"]([], 64, 48)["boxes"].shape == (0, 4)


def test_cleanlab(known, store):
    pytest.importorskip("cleanlab")
    page, names = FOLDER / "cleanlab.md", dict(known)
    code = blocks(page)
    exec(code["bring_probabilities"], names)
    check(known, "from_cleanlab")
    (command,) = console(page)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    exec(code["back"], names)
    ours, theirs = set(names["suspects"]["input_id"]), set(names["names"].tolist())
    for found in (ours, theirs):  # both find most of the changed labels
        assert len(found & known["wrong"]) > CHANGED / 2


def test_mlflow(known):
    logged = pd.DataFrame(known["pred_probs"]).add_prefix("p").assign(id=known["ids"], label=known["labels"])
    names = run(FOLDER / "mlflow.md", {**known, "logged": logged})
    check(known, "from_mlflow")
    assert set(names["metrics"]) == {"val_accuracy", "val_auroc", "val_error_proba_auroc"}
    assert all(0 < value < 1 for value in names["metrics"].values())
