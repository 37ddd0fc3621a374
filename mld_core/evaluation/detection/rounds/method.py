"""Boxes in rounds: what the pass has, matches, kept predictions, sample, cells, units; fits in between.

What a machine holds at once is a part, the sample, the tables of the cells, and what metrics over every
recorded box are computed from. The result is the same kind of result; what this way does not compute, its
notes say.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.answers import Reference
from mld_core.evaluation.analysis.stages import Handed, Split, SplitGroup, StageOutput
from mld_core.evaluation.classification.rounds.block import SAMPLE, Draw, Drawn, draw_kernel, joined
from mld_core.evaluation.classification.rounds.cells import Asked, CellTables, Ground, cells_kernel
from mld_core.evaluation.classification.rounds.fits import Fitting, Joined, Sample, fit_scores
from mld_core.evaluation.classification.rounds.scoring import Fits
from mld_core.evaluation.classification.scalars import ClassificationSplit
from mld_core.evaluation.detection.events import for_classes
from mld_core.evaluation.detection.metrics import Events, Measured, Recorded, Remarks, evaluated_pass
from mld_core.evaluation.detection.profile import Profile, Told
from mld_core.evaluation.detection.records import BoxHead, BoxRecords, names_of_classes, read_boxes
from mld_core.evaluation.detection.rounds.block import BoxBlock, BoxSplit
from mld_core.evaluation.detection.rounds.estimator import refine
from mld_core.evaluation.detection.rounds.kept import Judging, Kept, KeptWalk, keep_kernel
from mld_core.evaluation.detection.rounds.matched import (
    Matched,
    TruthSizes,
    match_kernel,
    thresholds_of,
    usual_of,
)
from mld_core.evaluation.detection.rounds.parts import BoxWalk, Seen, look_kernel, walks_of
from mld_core.evaluation.detection.rounds.scoring import Scored, Scoring, box_kernel
from mld_core.evaluation.detection.rounds.tables import output_of, write_units
from mld_core.evaluation.detection.stage import ERROR_PROBA_THRESH, NO_T2, NO_TRUTH, FrameErrors, miss_t2_of
from mld_core.evaluation.engine.executor import Round
from mld_core.evaluation.engine.rounds import Rounds
from mld_core.evaluation.metrics.boxes import Floats
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.evaluated import EvaluatedPass
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.vectors import vector_width

SCORED_CELLS = 2**22
"""Kept predictions x (classes and features) of a batch of the rounds, at most, but for batches of 1,024."""


@dataclass
class Walking:
    """A pass on its way through the rounds.

    Attributes:
        split: The pass.
        walks: Its parts.
        scratch: Folder of what rounds write.
        head: What all of it has.
        class_names: (K,) names of the classes.
        notes: What there is to say about that.
        recorded: Its recorded predictions.
        truths: Its truths.
        measured: The metrics over all recorded predictions, as a `Measured` without events.
        cuts: Scores below which boxes were left out.
        own: What the kind of boxes gathered of them, of each part.
        told: What parts are told of the pass; None where the kind of boxes gathers nothing.
    """

    split: Split
    walks: list[BoxWalk]
    scratch: Path
    head: BoxHead
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    recorded: Recorded
    truths: TruthSizes
    measured: Measured
    cuts: Floats
    own: list[Any]
    told: Told | None = None

    def one_part(self) -> BoxRecords:
        """The boxes of one part: every part has the same columns."""
        return self.walks[0].records() if self.walks else read_boxes(self.split.selection, {}, self.head)

    @property
    def thresholds(self) -> Floats:
        """(K,) its own operating score thresholds."""
        return thresholds_of(self.recorded, self.truths, self.head.n_class)

    def tell(self, judging: Judging, kept: Kept) -> Judging:
        """By what parts are judged once all of them are known."""
        gathering = judging.profile.gathering
        if gathering is None or not self.walks:
            return judging
        self.told = gathering.told(self.own, kept.own, self.class_names)
        kept.own.clear()
        self.own.clear()
        return replace(judging, profile=replace(judging.profile, geometry=self.told.geometry))


def evaluate_in_rounds(
    results: ResultStore, group: SplitGroup, rounds: Rounds, info: dict[str, Any], profile: Profile
) -> list[EvaluatedPass]:
    """The passes of a group in rounds over their parts; what is said of their units is found in `scratch`."""
    begun = {id(one): begin(one, rounds, info, profile, results) for one in group.splits}
    # The reference split is told by the counts of all recorded predictions, as long as these stand there.
    limits = {id(one): begun[id(group.reference(one))].thresholds for one in group.splits}
    kept = {}
    for split in group.splits:
        walking = begun[id(split)]
        thresholds = for_classes(limits[id(split)], walking.head.n_class)
        judging = Judging(profile, thresholds, _layers(split), group.options.get("group_key"))
        found = keep(walking, rounds, judging)
        kept[id(split)] = walking.tell(judging, found), found
    for split in group.splits:
        found = kept[id(split)][1]
        split.rows, split.labeled, split.errors = (
            found.events.kept + found.events.missed,
            found.judged,
            found.wrong,
        )
    references: dict[str, Reference | None] = {}
    for split in group.in_reference_order():
        other = group.reference(split)
        known = None if other is split else references.get(other.dataset)
        output, own = finish(begun[id(split)], *kept[id(split)], group, results, rounds, known)
        references[split.dataset], split.scratch[Handed.name] = own, output
    made = []
    for split in group.splits:
        walking, (judging, found) = begun[id(split)], kept[id(split)]
        has_logits = "logits" in split.selection.schema("vectors").names
        measured = replace(walking.measured, events=found.events)
        remarks = Remarks(walking.notes, has_logits, walking.cuts)
        made.append(evaluated_pass(split, profile.name, measured, judging.thresholds, remarks))
    return made


def begin(
    split: Split, rounds: Rounds, info: dict[str, Any], profile: Profile, results: ResultStore
) -> Walking:
    """The first two rounds of a pass: what it has, and every recorded prediction against the truths."""
    walks = walks_of(split.selection, info)
    scratch = split.units.parent / f".{split.units.stem}"
    (scratch / "keys").mkdir(parents=True)
    seen = rounds.over(Round(f"classes of {split.dataset}", look_kernel, Seen()), walks).state
    head = seen.head(split.selection, info)
    walks = [replace(walk, head=head) for walk in walks]
    matching = Round(f"matches of {split.dataset}", match_kernel, Matched(), profile)
    found = rounds.over(matching, walks, scratch / "keys").state
    starts = np.cumsum([0, *(one.frames for one in found.parts)]).tolist()
    walks = [replace(walk, first_frame=start) for walk, start in zip(walks, starts, strict=False)]
    recorded, truths = found.recorded(), found.truths()
    states = found.figures()
    names = names_of_classes(info, head.n_class)
    measured = Measured(
        Events.none(head.n_class),
        recorded,
        found.costs(),
        _distinct(scratch / "keys", results),
        profile.figures(states, names) if states else None,
    )
    split.n_class = head.n_class
    counted = ~recorded.ignored
    split.labeled, split.errors = int(counted.sum()), int((counted & ~recorded.right).sum())
    return Walking(
        split,
        walks,
        scratch,
        head,
        names,
        seen.notes,
        recorded,
        truths,
        measured,
        found.cuts(),
        found.own(),
    )


def _distinct(keys: Path, results: ResultStore) -> int:
    """Distinct inputs, by hash, else by id; those without either count as one."""
    files = sorted(keys.glob("*.parquet"))
    if not files:
        return 0
    with database(results.spill, keys=files) as connection:
        sql = (
            "SELECT count(DISTINCT one) + coalesce(max((one IS NULL)::INT), 0) "
            "FROM (SELECT coalesce(nullif(input_hash, ''), input_id) AS one FROM keys)"
        )
        return int(connection.execute(sql).fetchall()[0][0])


def keep(walking: Walking, rounds: Rounds, judging: Judging) -> Kept:
    """The third round: events at the thresholds."""
    zero = Kept(Events.none(walking.head.n_class))
    work = Round(f"kept of {walking.split.dataset}", keep_kernel, zero, judging)
    found = rounds.over(work, walking.walks).state
    starts = np.cumsum([0, *found.by_part]).tolist()
    walking.walks = [replace(walk, first=start) for walk, start in zip(walking.walks, starts, strict=False)]
    return found


def _layers(split: Split) -> dict[str, tuple[int, str]]:
    """Alias -> width and dtype of the stored features."""
    schema = split.selection.schema("vectors")
    return {
        name: (vector_width(schema.field(name)), schema.field(name).metadata[b"dtype"].decode())
        for name in split.features
    }


def finish(
    walking: Walking,
    judging: Judging,
    kept: Kept,
    group: SplitGroup,
    results: ResultStore,
    rounds: Rounds,
    reference: Reference | None,
    *,
    sample: int = SAMPLE,
) -> tuple[StageOutput, Reference | None]:
    """The other rounds of a pass; its unit table is written, its analysis comes back."""
    split, options = walking.split, group.options
    layers = split.features if kept.featured else ("logits",)
    n_class = walking.head.n_class
    context = ClassificationSplit(split.dataset, split.n_epoch, n_class + 1, {})
    salts = tuple(str(number) for number in range(int(options.get("repeats", 3))))
    boxes = BoxSplit(context, layers, None, salts)
    width = n_class + 1 + sum(one for one, _ in _layers(split).values())
    rows = int(np.clip(SCORED_CELLS // max(width, 1), 1_024, 32_768))
    fits: Fits | None = None
    if kept.judged:
        fits = _fit(walking, boxes, kept, judging, rows, group, rounds, reference, sample)
    tolerance = options.get("risk_tolerance")
    asked = Scoring(
        judging,
        boxes,
        fits,
        rows,
        usual_of(walking.truths, n_class, walking.told),
        NO_T2 if fits is None else fits.used.t2,
        miss_t2_of(*kept.truths, tolerance),
        float(options.get("error_proba_thresh") or ERROR_PROBA_THRESH),
        labelled=kept.events.labelled > 0,
    )
    folder = walking.scratch / "units"
    folder.mkdir()
    found = rounds.over(
        Round(f"units of {split.dataset}", box_kernel, Scored(), asked), walking.walks, folder
    ).state
    proba = FrameErrors.merge(found.errors).proba() if found.errors else None
    if not write_units(folder, split.units, proba):
        pq.write_table(judging.profile.columns.schema(walking.one_part()).empty_table(), split.units)
    shutil.rmtree(walking.scratch)
    if split.rows == 0:
        return StageOutput(), None
    if kept.events.labelled == 0:
        return StageOutput(notes=(NO_TRUTH,)), None
    output = output_of(split, fits, found, judging, proba, results, walking.told)
    return output, None if fits is None else fits.own


def _fit(
    walking: Walking,
    boxes: BoxSplit,
    kept: Kept,
    judging: Judging,
    batch_rows: int,
    group: SplitGroup,
    rounds: Rounds,
    reference: Reference | None,
    most: int,
) -> Fits:
    split, workers = walking.split, rounds.workers
    walks = [KeptWalk(walk, judging, batch_rows) for walk in walking.walks]
    draw = Draw.of(boxes, kept.judged, kept.wrong, most)
    drawn = rounds.over(Round(f"sample of {split.dataset}", draw_kernel, Drawn(), draw), walks).state
    with workers:
        block: BoxBlock = joined([boxes.read(piece, workers) for piece in drawn.pieces])
        drawn.pieces.clear()  # beside the sample itself
        chosen = Sample.of(block, draw)
        with workers.stage(f"cells ({split.dataset})"):
            thin = {name: values[chosen.thin] for name, values in block.layers.items()}
            ground = Ground.of(thin, kept.judged, boxes.n_class, workers)
    zero = CellTables.empty(boxes, len(ground.flat))
    counting = Round(f"cells of {split.dataset}", cells_kernel, zero, Asked(boxes, ground))
    tables = rounds.over(counting, walks).state
    nothing = Joined(np.empty(0, dtype=str), None, hashed=False)
    with workers:
        fitting = Fitting(chosen, ground, tables, nothing, reference, group.options)
        return fit_scores(fitting, workers, refine)[0]
