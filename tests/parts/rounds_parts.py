"""What tests of evaluations of boxes in rounds compare: units, tables, and metrics that no model of errors enters."""

from __future__ import annotations

import pandas as pd

from mld_core.evaluation.evaluator import Evaluator

BY_ANALYSIS = ("_lo", "_hi")
"""Ends of the columns that an evaluation in rounds has no value of, or from histograms."""


def evaluated(root, name, version="v1", **options):
    """The run "det" evaluated with a single repeat."""
    chosen = {"threads": 2, "repeats": 1, **options}
    return Evaluator("det", version, store=root).request_evaluation(name, options=chosen)


def units_of(result, dataset="val"):
    """The unit table of a split."""
    path = next(one["units"] for one in result.info["passes"] if one["dataset"] == dataset)
    return pd.read_parquet(result.folder / path)


def measured(result):
    """The metrics that no model of errors enters."""
    table = result.metrics_summary(full=True).set_index("dataset")
    left = [name for name in table if "proba" in name or name.endswith(BY_ANALYSIS) or "aurc" in name]
    return table.drop(columns=[*left, "augrc"])


def tables_of(result, *names):
    """Tables of a result by their names."""
    return {name: pd.read_parquet(result.folder / f"{name}.parquet") for name in names}


def facts_of(result, dataset="val"):
    """The facts of a split."""
    return next(one for one in result.info["facts"] if one["dataset"] == dataset)


EXACT = ("map", "ar_", "nds", "mat", "mas", "mao", "mav", "dap_", "auprc", "auroc", "ap40", "aos40")
"""How the metrics begin that are the same to the last bit; the others are sums, in another order."""


def same_figures(ours, theirs):
    """Metrics, classes, confusions and thresholds of two results are the same."""
    here, there = measured(ours), measured(theirs)
    whole = there.select_dtypes("integer").columns
    pd.testing.assert_frame_equal(here[whole], there[whole])
    exact = [name for name in there if name.startswith(EXACT)]
    pd.testing.assert_frame_equal(here[exact], there[exact], check_exact=True)
    pd.testing.assert_frame_equal(here, there, rtol=1e-12)
    here, there = (tables_of(one, "classes", "confusion") for one in (ours, theirs))
    for name in here:
        pd.testing.assert_frame_equal(here[name], there[name], check_exact=True)
    assert facts_of(ours)["score_thresholds"] == facts_of(theirs)["score_thresholds"]


def told_by(result):
    """What a result says of itself, in one text."""
    return " ".join(one["message"] for one in result.info["problems"])
