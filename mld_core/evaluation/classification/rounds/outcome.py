"""What the units of a pass come to: the merged state of the fourth round, and the figures it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.classification.rounds.block import Block
from mld_core.evaluation.codes import categories
from mld_core.evaluation.codes.categories import ALEATORIC, CATEGORIES, OPERATIONAL
from mld_core.evaluation.codes.diagnosis import Diagnoses, Diagnosis
from mld_core.evaluation.statistics.bootstrap import CALIBRATION_BINS, METRICS, metrics_of_counts
from mld_core.evaluation.statistics.histograms import BINS, log_odds_bin

if TYPE_CHECKING:
    from mld_core.evaluation.classification.rounds.scoring import Judged


@dataclass
class Outcome:
    """Counts and sums over any set of units.

    Attributes:
        total: (65536,) labelled units by the log-odds of their error probability.
        wrong: (65536,) the wrong ones of them.
        square: Sum of (error probability - wrong) squared.
        gap: (15,) sum of error probability - wrong by bins of the former.
        six: (6,) labelled units of each category.
        five: (5,) the same without the aleatoric rule.
        overlay: Labelled units under the aleatoric overlay.
        covered: Sum of the error probabilities in the two coverage categories.
        projected: (6,) unlabelled units of each projected category.
        n_hat: Sum of the probabilities that labels are wrong, where another one is more plausible.
        codes: (codes, 2) units that carry each, and that carry it for sure.
        of_regions: (regions, codes) units of each region that carry each.
        sizes: (regions, 2) labelled units of each region, and wrong ones.
        steady: (regions, 2) units, and sum of the shares of halves that find dense errors around them.
        medoid: (regions, 2) the least squared distance to the centroid of its cell, and whose it is.
    """

    total: NDArray[np.int64]
    wrong: NDArray[np.int64]
    square: float
    gap: NDArray[np.float64]
    six: NDArray[np.int64]
    five: NDArray[np.int64]
    overlay: int
    covered: float
    projected: NDArray[np.int64]
    n_hat: float
    codes: NDArray[np.int64]
    of_regions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    steady: NDArray[np.float64]
    medoid: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        block: Block,
        judged: Judged,
        found: Diagnoses,
        distance: NDArray[np.float32],
        regions: int,
    ) -> Outcome:
        """Count a block; `distance` is to the centroids of the cells, `regions` how many there are."""
        known, flags = block.known, judged.answers.flags
        proba = judged.answers.error_proba
        wrong = (block.errors == 1).astype(np.float64)
        bins = log_odds_bin(np.log(np.maximum(proba, 1e-300)))
        fifteenth = np.clip((proba * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
        suspect = known & (judged.posterior.best != block.labels)
        five = categories.five_way(flags)
        inside = np.flatnonzero(judged.region >= 0)
        return cls(
            np.bincount(bins[known], minlength=BINS),
            np.bincount(bins[known & (wrong == 1)], minlength=BINS),
            float(((proba - wrong)[known] ** 2).sum()),
            np.bincount(fifteenth[known], weights=(proba - wrong)[known], minlength=CALIBRATION_BINS).astype(
                np.float64
            ),
            np.bincount(judged.category[known], minlength=len(CATEGORIES)),
            np.bincount(five[known], minlength=ALEATORIC),
            int((categories.overlay(flags) & known).sum()),
            float(proba[known & (judged.category <= OPERATIONAL)].sum()),
            np.bincount(judged.projected[~known], minlength=len(CATEGORIES)),
            float(judged.posterior.wrong[suspect].sum()),
            codes_of(found),
            codes_of_regions(found, judged.region, inside, regions),
            _sizes(judged, inside, regions),
            _steady(judged, inside, regions),
            _nearest(distance, judged.region, block.rows, inside, regions),
        )

    @classmethod
    def empty(cls, regions: int, registry: Sequence[Diagnosis[Any]]) -> Outcome:
        """The outcome of no units, of which the diagnoses of `registry` are asked."""
        count = len(registry)
        whole = [
            np.zeros(size, np.int64) for size in (BINS, BINS, len(CATEGORIES), ALEATORIC, len(CATEGORIES))
        ]
        return cls(
            whole[0],
            whole[1],
            0.0,
            np.zeros(CALIBRATION_BINS),
            whole[2],
            whole[3],
            0,
            0.0,
            whole[4],
            0.0,
            np.zeros((count, 2), np.int64),
            np.zeros((regions, count), np.int64),
            np.zeros((regions, 2), np.int64),
            np.zeros((regions, 2)),
            np.tile([np.inf, -1.0], (regions, 1)),
        )

    def merge(self, other: Outcome) -> Outcome:
        """The outcome of both."""
        made = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        closer = other.medoid[:, 0] < self.medoid[:, 0]
        made["medoid"] = np.where(closer[:, None], other.medoid, self.medoid)
        return Outcome(**made)

    def metrics(self) -> dict[str, float | None]:
        """Metrics of the error probability, ranked by 65,536 bins of its log-odds."""
        units = int(self.total.sum())
        if units == 0:
            return dict.fromkeys(METRICS)
        return metrics_of_counts(self.wrong, self.total, self.square, self.gap, float(units))

    def ratios(self) -> dict[str, float | None]:
        """The shares of `categories.category_ratios`."""
        units, safe = max(int(self.six.sum()), 1), int(self.six[: OPERATIONAL + 1].sum())
        made: dict[str, float | None] = {
            f"{name}_ratio": float(count / units) for name, count in zip(CATEGORIES, self.six, strict=True)
        }
        made["aleatoric_overlay_ratio"] = self.overlay / units
        for name, count in zip(CATEGORIES[:ALEATORIC], self.five, strict=True):
            made[f"five_way_{name}_ratio"] = float(count / units)
        made["expected_risk_coverage"] = self.covered / safe if safe else None
        return made


def codes_of(found: Diagnoses) -> NDArray[np.int64]:
    """(codes, 2) units that carry each, and that carry it for sure."""
    place = {one.code: number for number, one in enumerate(found.registry)}
    made = np.zeros((len(place), 2), np.int64)
    for code, count in found.counts.items():
        made[place[code]] = count, found.sure[code]
    return made


def codes_of_regions(
    found: Diagnoses, region: NDArray[np.int32], inside: NDArray[np.int64], regions: int
) -> NDArray[np.int64]:
    """(regions, codes) units of each region, `inside` being those of one, that carry each."""
    place = {one.code: number for number, one in enumerate(found.registry)}
    made = np.zeros((regions, len(place)), np.int64)
    for code, mask in found.masks.items():
        made[:, place[code]] = np.bincount(region[inside][mask[inside]], minlength=regions)[:regions]
    return made


def _sizes(judged: Judged, inside: NDArray[np.int64], regions: int) -> NDArray[np.int64]:
    where, errors = judged.region[inside], judged.errors[inside]
    made = [np.bincount(where[errors >= least], minlength=regions) for least in (0, 1)]
    return np.stack(made, axis=1).astype(np.int64)


def _steady(judged: Judged, inside: NDArray[np.int64], regions: int) -> NDArray[np.float64]:
    share = judged.replays.dense[:, inside].mean(axis=0)
    where = judged.region[inside]
    return np.stack(
        [np.bincount(where, minlength=regions), np.bincount(where, weights=share, minlength=regions)], axis=1
    )[:regions].astype(np.float64)


def _nearest(
    distance: NDArray[np.float32],
    region: NDArray[np.int32],
    rows: NDArray[np.int64],
    inside: NDArray[np.int64],
    regions: int,
) -> NDArray[np.float64]:
    made = np.tile([np.inf, -1.0], (regions, 1))
    order = inside[np.lexsort((rows[inside], distance[inside], region[inside]))]
    first = order[np.unique(region[order], return_index=True)[1]]
    made[region[first]] = np.stack([distance[first], rows[first]], axis=1)
    return made
