"""How the per-split analyses plug in."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mld_core.evaluation.analysis.stages import StageOutput
from mld_core.evaluation.classification.method import evaluate_classification
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import split_order
from mld_core.records.read.reader import select


class Distance:
    """A stage that needs the vectors, the train split and the reference."""

    name = "distance"

    def __init__(self):
        self.order = []

    def __call__(self, split, group, engine):
        self.order.append(split.dataset)
        train = group.get("train")
        centre = np.concatenate(list(train.vectors("pool", rows=50))).astype(np.float64).mean(axis=0)
        own = np.concatenate(list(split.vectors("pool", rows=64))).astype(np.float64)
        assert own.shape == (split.rows, 8)
        far = np.linalg.norm(own - centre, axis=1)
        truth, said = split.column("gt"), split.column("prediction")
        assert (split.column("is_error") == (truth != said)).all()
        codes = [f"CLS{t}->{y}|{(y + 1) % 5}" for t, y in zip(truth, said, strict=True)]
        return StageOutput(
            columns={
                "error_proba": np.where(far > 3, far / 10, np.nan),
                "category": pa.array(["hotspot" if wrong else "stable_coverage" for wrong in truth != said]),
                "diagnosis": pa.array([["C01", "C10"]] * split.rows),
                "severity": np.full(split.rows, 3),
                "error_code": pa.array(codes),
            },
            metrics={"error_proba_auroc": 0.5, "error_proba_auroc_lo": 0.4, "error_proba_source": "cse"},
            categories={
                "hotspot_ratio": split.errors / split.rows,
                "ref_split": group.reference(split).dataset,
            },
            facts={"t2": 0.1},
            notes=("a note of the stage",),
        )


class Reader:
    """A later stage that sees what the earlier one returned."""

    name = "reader"

    def __call__(self, split, group, engine):
        assert split.facts["t2"] == 0.1
        flagged = split.column("category") == "hotspot"
        return StageOutput(columns={"local_error_rate": flagged.astype(np.float32)})


@pytest.fixture
def staged(factory, tmp_path):
    run = factory.standard()
    first = Distance()
    folder = tmp_path / "result"
    folder.mkdir()
    results = ResultStore(factory.store, run)
    found = evaluate_classification(
        results, select(factory.store, run), folder, Workers(2), options={}, stages=(first, Reader())
    )
    return folder, found, first


def test_reference_candidates_run_first(staged):
    assert staged[2].order == ["val", "test", "train"]


def test_columns_of_stages_reach_the_unit_table(staged):
    folder, found, _ = staged
    assert [one["dataset"] for one in found["passes"]] == ["train", "val", "test"]
    for one in found["passes"]:
        units = pd.read_parquet(folder / one["units"])
        assert len(units) == one["counts"]
        assert set(units["category"]) == {"hotspot", "stable_coverage"}
        assert ((units["category"] == "hotspot") == units["is_error"]).all()
        assert units["error_proba"].isna().any()
        assert units["error_proba"].notna().any()
        assert units["local_error_rate"].tolist() == units["is_error"].astype(float).tolist()
        assert units["error_code"].str.contains("|", regex=False).all()
        assert units["severity"].dtype == "int8"
        assert list(units["diagnosis"].iloc[0]) == ["C01", "C10"]
        assert units["label_quality"].isna().all()
    assert not list(folder.glob("base-*"))


def test_metrics_ratios_facts_and_notes_reach_the_tables(staged):
    folder, found, _ = staged
    metrics = pd.read_parquet(folder / "metrics.parquet").set_index("dataset")
    assert metrics["error_proba_auroc"].tolist() == [0.5] * 3
    assert metrics["error_proba_auroc_lo"].tolist() == [0.4] * 3
    assert set(metrics["error_proba_source"]) == {"cse"}
    categories = pd.read_parquet(folder / "categories.parquet").set_index("dataset")
    assert categories.loc["val", "hotspot_ratio"] == pytest.approx(metrics.loc["val", "error_rate"])
    assert categories["stable_coverage_ratio"].isna().all()
    # No split has 30 errors and 30 rights in val or test: each is its own reference.
    assert categories["ref_split"].tolist() == ["train", "val", "test"]
    assert [one["t2"] for one in found["facts"]] == [0.1] * 3
    # A note that is true of every pass is told once and names them.
    notes = [one["message"] for one in found["problems"] if one["kind"] == "analysis"]
    assert notes == ["train (epoch 1), val (epoch 1), test (no epoch): a note of the stage"]


def test_split_order():
    names = ["z", "predict", "test", "val/1", "train", "val", "a"]
    assert sorted(names, key=split_order) == ["train", "val", "val/1", "test", "predict", "a", "z"]
