"""Makes `before.zip` and `before.json`: stores, results and an export as the version of November 2026 wrote them.

Run in a checkout of commit c96d67a (the last with flat rooms; the imports below are its own), from its root:

    PYTHONPATH=.:integrations python .../tests/golden/make.py OUTPUT_FOLDER

What a later version writes is no business of these files: they are never made anew, only added to.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path.cwd()
sys.path[:0] = [str(HERE / "tests" / "evaluation"), str(HERE / "tests" / "report")]

OPTIONS = {"progress": False, "threads": 1, "repeats": 1}
TABLES = ("samples", "detections", "truths", "vectors")


def main(out: Path) -> None:
    """Write the stores, evaluate them, note what they say."""
    root = out / "store"
    os.environ["MLD_HOME"] = str(root)
    _classification(root)
    _detection(root)
    _detection3d(root)
    said = {model: _said(model, root) for model in ("net", "det", "lidar")}
    _export(out)
    (out / "before.json").write_text(json.dumps(said, indent=1, sort_keys=True))
    with zipfile.ZipFile(out / "before.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(root))


def _classification(root: Path) -> None:
    from store_factory import StoreFactory

    StoreFactory(root).standard()


def _detection(root: Path) -> None:
    import simulated_detector as simulation
    from mld_core.records.layout import RunKey, Store

    store, run = Store(root), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
    faults = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
    for epoch in (0, 1):
        scene = simulation.simulate(60, seed=4, faults=faults, jitter=epoch)
        simulation.write(store, run, "val", scene, n_epoch=epoch)


def _detection3d(root: Path) -> None:
    import road_store as roads
    from mld_core.records.layout import RunKey, Store

    store, run = Store(root), RunKey("lidar", "v1")
    store.ensure_run(run, {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "walker"]})
    true, spoilt, _ = roads.make_scenes(30)
    for epoch in (0, 1):
        rng = np.random.default_rng([5, epoch])
        said = [roads.detect(frame, rng, skill=0.8 + 0.1 * epoch) for frame in true]
        roads.write_pass(store, run, "val", spoilt, said, epoch)


def _said(model: str, root: Path) -> dict:
    """What the version that writes says of its own records and of its own result."""
    from ml_debugger import records
    from ml_debugger.evaluator import Evaluator

    evaluator = Evaluator(model, "v1", store=root)
    result = evaluator.request_evaluation("golden", None, options=OPTIONS)
    issues = result.get_issues()
    tables = {}
    for name in TABLES:
        try:
            table = records.load(model, "v1", table=name)
        except (ValueError, KeyError, LookupError):
            continue
        tables[name] = {"rows": table.num_rows, "columns": table.column_names}
    return {
        "tables": tables,
        "metrics": json.loads(result.metrics_summary().to_json(orient="records", double_precision=15)),
        "categories": json.loads(
            result.issue_category_summary().to_json(orient="records", double_precision=15)
        ),
        "issues": len(issues),
        "issue_columns": list(issues.columns),
        "results": list(evaluator.list_results()["result_name"]),
    }


def _export(out: Path) -> None:
    """The ZIP that a tracer's `export` makes, from the classification store."""
    from mld_core.records.export import export_run
    from mld_core.records.layout import RunKey, Store

    export_run(Store(out / "store"), RunKey("net", "v1"), out / "export.zip")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
