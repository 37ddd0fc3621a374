"""Label faults planted in a simulated detector's records: does the evaluation find them?

    python tests/benchmarks/faults/detection.py [--seeds 5] [--skill 1] [--epochs 3] [--only missing]

Each fault is planted alone and all together, with a control without faults; the records are written and
evaluated as a user's would be. P@k: share of the k most suspicious units (k = planted) that are planted ones;
reach: share of the planted that a candidate unit stands for at all, which P@k cannot exceed by much.
Baselines: what a user would sort by otherwise, and cleanlab's ObjectLab scores. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2] / "parts" / "data"))

from object_lab import as_theirs
from simulated_detector import FAULTS, Scene, simulate, write

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store

DOSES = {"missing": (0.03, 0.10), "shifted": (0.05,), "swapped": (0.05,), "spurious": (0.03,)}
GATES = {"missing": 0.80, "shifted": 0.70, "swapped": 0.85, "spurious": 0.60}
CODES = {"missing": "D20", "shifted": "D21", "swapped": "D22", "spurious": "D23"}
BASELINES = {
    "missing": ("score", "ObjectLab overlooked"),
    "shifted": ("lowest IoU", "ObjectLab badloc"),
    "swapped": ("score", "ObjectLab swap"),
    "spurious": ("miss score",),
}


@dataclass
class Ranked:
    """What a method ranks: keys of suspects, most suspicious first."""

    keys: list[Any]

    def precision(self, planted: set[Any], k: int) -> float:
        """Share of the first k that is planted."""
        return sum(key in planted for key in self.keys[:k]) / max(k, 1)

    def recall(self, planted: set[Any], k: int) -> float:
        """Share of the planted among the first k."""
        return len(planted & set(self.keys[:k])) / max(len(planted), 1)


def evaluate(
    scene: Scene, *, epochs: int = 1, seed: int = 0, plan: dict[str, float] | None = None, skill: float = 1.0
) -> tuple[pd.Series, pd.DataFrame]:
    """Write the records of a scene and of earlier epochs, evaluate the last: its metrics and units."""
    with tempfile.TemporaryDirectory() as folder:
        store, run = Store(folder), RunKey("simulated", "v1")
        store.ensure_run(run, {"task": "detection", "n_class": scene.n_class})
        for epoch in range(epochs - 1):
            early = simulate(scene.frames, seed=seed, faults=plan, jitter=epoch + 1, skill=skill)
            write(store, run, "val", early, n_epoch=epoch)
        write(store, run, "val", scene, n_epoch=epochs - 1)
        result = Evaluator("simulated", "v1", store=folder).request_evaluation(options={"progress": False})
        return result.metrics_summary(full=True).iloc[0], units_of(result)


def units_of(result: Any) -> pd.DataFrame:
    """The whole unit table."""
    return pd.concat([pd.read_parquet(path) for path in sorted(result.folder.glob("units-*.parquet"))])


def planted_keys(scene: Scene, fault: str) -> set[Any]:
    """Keys of what was planted: objects whose truth was removed, or (frame, gt_idx) of changed truths."""
    if fault == "missing":
        return set(scene.removed.tolist())
    number = _numbered(scene.truth_frame)
    rows = np.flatnonzero(scene.fault == 1 + FAULTS.index(fault))
    return {(int(scene.truth_frame[row]), int(number[row])) for row in rows}


def _numbered(frame: np.ndarray) -> np.ndarray:
    return np.arange(len(frame)) - np.searchsorted(frame, frame)


def suspects(units: pd.DataFrame, scene: Scene, fault: str, order: pd.Series, keep: pd.Series) -> Ranked:
    """Units of one kind by a falling score, each key once."""
    some = units[keep].assign(order_=order[keep]).sort_values("order_", ascending=False, kind="stable")
    frame = some["input_id"].str[3:].astype(int)
    if fault == "missing":
        first = np.searchsorted(scene.frame, frame)
        source = scene.object_of[first + some["det_idx"].to_numpy(int)]
        # Clutter has no object: a key of its own.
        keys = [int(one) if one >= 0 else (-1, row) for row, one in enumerate(source)]
    else:
        keys = list(zip(frame.tolist(), some["gt_idx"].astype(int).tolist(), strict=True))
    return Ranked(list(dict.fromkeys(keys)))


def rankings(units: pd.DataFrame, scene: Scene, fault: str) -> dict[str, Ranked]:
    """Ours and the baselines."""
    pred = units["unit_kind"] == "pred"
    asked = {
        "missing": pred & (units["tide_error"] == "bkg"),
        "shifted": pred & units["tide_error"].isin(["loc", "right"]) & units["suspicion"].notna(),
        "swapped": pred & (units["tide_error"] == "cls"),
        "spurious": ~pred,
    }[fault]
    made = {"ours": suspects(units, scene, fault, units["suspicion"], asked)}
    every = pred & units["tide_error"].isin(["loc", "right"])
    plain = {
        "missing": lambda: suspects(units, scene, fault, units["confidence"], asked),
        "shifted": lambda: suspects(units, scene, fault, -units["iou"], every),
        "swapped": lambda: suspects(units, scene, fault, units["confidence"], asked),
        "spurious": lambda: suspects(units, scene, fault, -units["miss_proba"], asked),
    }
    made[BASELINES[fault][0]] = plain[fault]()
    if len(BASELINES[fault]) > 1:
        made[BASELINES[fault][1]] = object_lab(scene, fault)
    return made


def object_lab(scene: Scene, fault: str) -> Ranked:
    """cleanlab's per-box scores on the same boxes."""
    from cleanlab.object_detection import rank

    labels, predictions, where = as_theirs(scene)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if fault == "missing":
            scores = rank.compute_overlooked_box_scores(labels=labels, predictions=predictions)
        elif fault == "shifted":
            scores = rank.compute_badloc_box_scores(labels=labels, predictions=predictions)
        else:
            scores = rank.compute_swap_box_scores(labels=labels, predictions=predictions)
    found = []
    for frame, values in enumerate(scores):
        for place, value in enumerate(np.asarray(values, float)):
            if np.isnan(value):
                continue
            if fault == "missing":
                row = int(where[frame][place])
                key: Any = int(scene.object_of[row]) if scene.object_of[row] >= 0 else (-1, row)
            else:
                key = (frame, place)
            found.append((value, len(found), key))
    return Ranked(list(dict.fromkeys(key for _, _, key in sorted(found, key=lambda one: one[:2]))))


def figures(
    fault: str, dose: float, seeds: list[int], frames: int, *, mixed: bool, skill: float, epochs: int
) -> dict[str, Any]:
    """Mean P@k of every method, recall@2k, reach, and the flagged set's precision of ours."""
    plan = {name: (0.05 if name != "spurious" else 0.03) for name in FAULTS} if mixed else {}
    plan[fault] = dose
    rows: dict[str, list[float]] = {}
    for seed in seeds:
        scene = simulate(frames, seed=seed, faults=plan, skill=skill)
        _, units = evaluate(scene, epochs=epochs, seed=seed, plan=plan, skill=skill)
        planted = planted_keys(scene, fault)
        k = len(planted)
        for name, ranked in rankings(units, scene, fault).items():
            rows.setdefault(name, []).append(ranked.precision(planted, k))
            rows.setdefault(f"{name} r@2k", []).append(ranked.recall(planted, 2 * k))
            rows.setdefault(f"{name} reach", []).append(ranked.recall(planted, len(ranked.keys)))
        flagged = units["diagnosis"].map(lambda codes: CODES[fault] in list(codes))
        chosen = suspects(units, scene, fault, units["suspicion"], flagged)
        rows.setdefault("set", []).append(chosen.precision(planted, len(chosen.keys)))
        rows.setdefault("set recall", []).append(chosen.recall(planted, len(chosen.keys)))
        rows.setdefault("size", []).append(len(chosen.keys))
        rows.setdefault("planted", []).append(k)
    return {name: float(np.mean(values)) for name, values in rows.items()} | {
        "low": min(rows["ours"]),
        "high": max(rows["ours"]),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--epochs", type=int, default=3, help="recorded epochs")
    parser.add_argument("--skill", type=float, default=1.0, help="of the simulated detector")
    parser.add_argument("--only", choices=FAULTS)
    parser.add_argument("--no-mixed", action="store_true", help="each fault alone only")
    arguments = parser.parse_args()
    seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    how = {"skill": arguments.skill, "epochs": arguments.epochs}
    metrics, units = evaluate(simulate(arguments.frames, seed=seeds[0], skill=arguments.skill))
    print(
        f"{arguments.frames} frames, about 5 objects each, seeds {seeds[0]} to {seeds[-1]}, {arguments.epochs} "
        f"recorded epochs; without faults the detector has mAP {metrics['auprc']:.3f}, AP50 "
        f"{metrics['map_50']:.3f}, precision {metrics['precision']:.3f}, recall {metrics['recall']:.3f}, "
        f"error_proba AUROC {metrics['error_proba_auroc']:.3f}, ECE {metrics['error_proba_ece']:.3f} "
        f"({metrics['error_proba_source']})\n"
    )
    print(
        "| fault | dose | planted | reach | P@k (lowest to highest) | recall@2k | baselines, P@k | gate | "
        "flagged: units, precision, recall |\n|---|---|---|---|---|---|---|---|---|"
    )
    for fault in FAULTS if arguments.only is None else (arguments.only,):
        for dose in DOSES[fault]:
            alone = arguments.no_mixed or dose != DOSES[fault][0]
            for mixed in (False,) if alone else (False, True):
                print(
                    row(fault, dose, mixed, figures(fault, dose, seeds, arguments.frames, mixed=mixed, **how))
                )
    counts = {
        code: int(units["diagnosis"].map(lambda all_, code=code: code in list(all_)).sum())
        for code in CODES.values()
    }
    print(
        f"\nWithout faults, of {len(units)} units: {', '.join(f'{code} {n}' for code, n in counts.items())}"
    )


def row(fault: str, dose: float, mixed: bool, found: dict[str, Any]) -> str:
    """One line of the table."""
    baselines = ", ".join(f"{name} {found[name]:.2f}" for name in BASELINES[fault])
    met = "met" if found["ours"] >= GATES[fault] else "**missed**"
    return (
        f"| {fault}{' (with the others)' if mixed else ''} | {dose:.0%} | {found['planted']:.0f} | "
        f"{found['ours reach']:.2f} | **{found['ours']:.2f}** ({found['low']:.2f} to {found['high']:.2f}) | "
        f"{found['ours r@2k']:.2f} | {baselines} | {GATES[fault]:.2f} {met} | "
        f"{CODES[fault]}: {found['size']:.0f}, {found['set']:.2f}, {found['set recall']:.2f} |"
    )


if __name__ == "__main__":
    main()
