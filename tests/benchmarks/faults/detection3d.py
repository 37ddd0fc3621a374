"""Planted 3D faults and how well the diagnoses find them, one command: `python tests/benchmarks/faults/detection3d.py`.

A simulated LiDAR detector on simulated roads (tests/evaluation/road_simulation.py): 600 frames, three epochs. Faults
are planted in labels or predictions; each row is the mean and the range over the seeds, beside the usual baseline and
the target. With `--write` the table goes to docs/evaluation.md. Exit status 1 where a target is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "parts" / "data"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import road_simulation as roads
from _table import markdown, write_section

from mld_core.evaluation.detection3d.diagnoses import diagnose_roads
from mld_core.evaluation.detection3d.offsets import offsets_of
from mld_core.evaluation.metrics.nuscenes import match_by_distance


def precision_at(score, hit, k):
    """Share of hits among the k units of the highest score."""
    rows = np.flatnonzero(~np.isnan(score))
    top = rows[np.argsort(-score[rows], kind="stable")[:k]]
    return float(hit[top].mean()) if len(top) else float("nan")


def recall_at(score, hit, k):
    """Share of the hits among the k units of the highest score."""
    rows = np.flatnonzero(~np.isnan(score))
    top = rows[np.argsort(-score[rows], kind="stable")[:k]]
    return float(hit[top].sum() / max(hit.sum(), 1))


def pair_hits(road, evidence):
    """(N,) kept predictions whose truth has a planted fault."""
    hit = np.zeros(len(evidence.predictions), bool)
    matched = evidence.truth >= 0
    hit[matched] = road.hit[evidence.truth[matched]]
    return hit


def missing(share):
    def scenario(seed):
        road = roads.missing_labels(roads.simulate(seed=seed), share, seed)
        evidence = roads.evidence(road)
        made = diagnose_roads(evidence)
        _, _, at_two = match_by_distance(evidence.predictions, road.removed, 10)
        hit = (at_two >= 0) & (evidence.truth < 0)
        k = int(hit.sum())
        fp = np.where(evidence.truth < 0, evidence.predictions.score, np.nan)
        name = f"missing boxes {share:.0%}"
        yield name, "T20 P@k", precision_at(made.suspicion["T20"], hit, k), precision_at(fp, hit, k), 0.80
        yield (
            name,
            "T20 recall@2k",
            recall_at(made.suspicion["T20"], hit, 2 * k),
            recall_at(fp, hit, 2 * k),
            0.90,
        )
        yield name, "planted ones the detector found (k / planted)", k / len(road.removed), None, None

    return scenario


def shifted(epochs):
    def scenario(seed):
        road = roads.shifted_labels(roads.simulate(seed=seed), seed=seed)
        evidence = roads.evidence(road, epochs=epochs)
        made, pairs, hit = diagnose_roads(evidence), offsets_of(evidence), pair_hits(road, evidence)
        k = int(hit.sum())
        offset = np.full(len(hit), np.nan)
        offset[evidence.pair_row] = pairs.flat
        name = f"boxes shifted by 1 m, 5%{'' if epochs else ', one epoch'}"
        target = 0.70 if epochs else None
        yield (
            name,
            "T21 P@k",
            precision_at(made.suspicion["T21"], hit, k),
            precision_at(offset, hit, k),
            target,
        )
        flagged = made.predictions["T21"]
        yield name, "T21 precision of flagged", float(hit[flagged].mean()), None, None
        yield name, "T21 recall of flagged", float(flagged[hit].mean()), None, None

    return scenario


def flips(seed):
    road = roads.flipped_labels(roads.simulate(seed=seed), seed=seed)
    evidence = roads.evidence(road)
    made, pairs, hit = diagnose_roads(evidence), offsets_of(evidence), pair_hits(road, evidence)
    turned = np.full(len(hit), np.nan)
    profile = evidence.profile
    oriented = profile.oriented[pairs.label] & (profile.period[pairs.label] > 4)
    turned[evidence.pair_row[oriented]] = pairs.errors[oriented, 2]
    speed = np.zeros(len(hit))
    speed[evidence.pair_row] = np.hypot(*road.true_velocity[evidence.pair_truth].T)
    for who, rows, target in (("moving", speed > 1, 0.90), ("all", speed >= 0, 0.70)):
        k = int((hit & rows).sum())
        ours, theirs = (np.where(rows, one, np.nan) for one in (made.suspicion["T22"], turned))
        yield (
            "yaw flips in labels 5%",
            f"T22 P@k, {who}",
            precision_at(ours, hit, k),
            precision_at(theirs, hit, k),
            target,
        )
    flagged = made.predictions["T22"]
    yield "yaw flips in labels 5%", "T22 precision of flagged", float(hit[flagged].mean()), None, None
    yield "yaw flips in labels 5%", "T22 recall of flagged", float(flagged[hit].mean()), None, None


def range_fault(seed):
    road = roads.range_dropout(roads.simulate(seed=seed), label=0)
    made = diagnose_roads(roads.evidence(road))
    cells = {(row["class"], row["range_bin"]) for row in made.drop_offs}
    real = {(0, 3), (0, 4)}
    yield (
        "car predictions beyond 30 m deleted",
        "T11 planted bins flagged (30-40, 40-50 m)",
        len(cells & real) / 2,
        None,
        1.0,
    )
    yield (
        "car predictions beyond 30 m deleted",
        "T11 false bins",
        float(len(cells - real - {(0, 5)})),
        None,
        -1.0,
    )


def sector_fault(seed):
    road = roads.sector_dropout(roads.simulate(seed=seed), seed=seed)
    made = diagnose_roads(roads.evidence(road))
    flagged = np.zeros(road.frames, bool)
    flagged[[row["frame"] for row in made.dropouts]] = True
    name = "sector of 30 degrees silent in 5% of frames"
    yield name, "T12 frame recall", float(flagged[road.frames_hit].mean()), None, 0.95
    precision = float(road.frames_hit[flagged].mean()) if flagged.any() else 0.0
    yield name, "T12 frame precision", precision, None, 0.90


def control(seed):
    road = roads.simulate(seed=seed)
    made = diagnose_roads(roads.evidence(road))
    kept = len(made.predictions["T01"])
    for code in ("T20", "T21", "T22"):
        yield (
            "none (control)",
            f"{code} share of predictions flagged",
            made.predictions[code].sum() / kept,
            None,
            None,
        )
    yield "none (control)", "T11 bins flagged", float(len(made.drop_offs)), None, -1.0
    yield "none (control)", "T12 share of frames flagged", len(made.dropouts) / road.frames, None, -0.01


SCENARIOS = {
    "control": control,
    "missing3": missing(0.03),
    "missing10": missing(0.10),
    "shifted": shifted(True),
    "shifted1": shifted(False),
    "flips": flips,
    "range": range_fault,
    "sector": sector_fault,
}


def main() -> int:
    """Run all scenarios; a negative target is an upper bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[30, 31, 32])
    parser.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--write", action="store_true", help="write the table to docs/evaluation.md")
    chosen = parser.parse_args()
    rows, started = defaultdict(list), time.perf_counter()
    for name in chosen.scenarios:
        for seed in chosen.seeds:
            for fault, metric, value, baseline, target in SCENARIOS[name](seed):
                rows[fault, metric, target].append((value, baseline))
    table, failed = [], 0
    for (fault, metric, target), values in rows.items():
        ours = np.array([value for value, _ in values])
        others = [baseline for _, baseline in values if baseline is not None]
        text = f"{ours.mean():.3f} ({ours.min():.3f}-{ours.max():.3f})"
        against = f"{np.mean(others):.3f}" if others else ""
        met, bound = "", ""
        if target is not None:
            bound = f">= {target:.2f}" if target > 0 else f"<= {-target:g}"
            good = ours.mean() >= target if target > 0 else ours.max() <= -target
            met, failed = ("yes" if good else "**no**"), failed + (not good)
        table.append((fault, metric, text, against, bound, met))
    made = markdown(("fault", "measure", "ours, mean (range)", "baseline", "target", "met"), table)
    print(made)
    print(f"\n{len(chosen.seeds)} seeds, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if chosen.write:
        how = f"`python tests/benchmarks/faults/detection3d.py --write`; seeds {', '.join(map(str, chosen.seeds))}."
        write_section("evaluation.md", "faults3d", f"{how}\n\n{made}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
