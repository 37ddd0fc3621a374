"""`classification_v1` in rounds: counts, sample, cells, units, ranking; fits and joins in between.

What a machine holds at once is a batch of rows, the sample and the tables of the cells. The result is the
same kind of result; what this way does not compute, its notes say.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.answers import Reference
from mld_core.evaluation.analysis.stages import Split, SplitGroup, StageOutput
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.classification.gather import same_hashes, train_selection
from mld_core.evaluation.classification.ranking import EXACT_CELLS, rank, rank_by_histograms
from mld_core.evaluation.classification.rounds.block import (
    SAMPLE,
    Counted,
    Draw,
    Drawn,
    RoundSplit,
    count_kernel,
    draw_kernel,
    joined,
)
from mld_core.evaluation.classification.rounds.cells import (
    Asked,
    CellTables,
    Ground,
    cells_kernel,
)
from mld_core.evaluation.classification.rounds.fits import Fitting, Joined, Sample, fit
from mld_core.evaluation.classification.rounds.outcome import Outcome
from mld_core.evaluation.classification.rounds.scoring import Fits, score_kernel
from mld_core.evaluation.classification.rounds.tables import output_of
from mld_core.evaluation.classification.scalars import (
    ClassificationSplit,
    ClassificationState,
    Ranking,
    scalars_kernel,
)
from mld_core.evaluation.engine.executor import Round
from mld_core.evaluation.engine.passes import PassSource, count_classes, unit_file
from mld_core.evaluation.engine.rounds import PartWalk, Rounds, numbered
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.read.parts import parts_of

SCORED_CELLS = 2**22
"""Units x (classes and features) of a batch of the rounds, at most, but for batches of 1,024."""


@dataclass
class Walking:
    """A pass on its way through the rounds."""

    split: Split
    context: ClassificationSplit
    walks: list[PartWalk]
    scratch: Path
    counted: Counted
    analysed: RoundSplit | None
    ranking: Ranking | None = None
    distinct: int = 0

    @property
    def counts(self) -> ClassificationState:
        """Of the first round."""
        return self.counted.scalars


def begin(split: Split, rounds: Rounds, info: Mapping[str, Any], options: Mapping[str, Any]) -> Walking:
    """The first round of a pass: how many units, which are wrong, and the keys of all of them."""
    source = PassSource.of(split.selection)
    n_class = source.logits_width or count_classes(source, info)
    context = ClassificationSplit(
        split.dataset,
        split.n_epoch,
        n_class,
        source.user_fields(),
        has_logits=source.logits_width is not None,
        sigmoid=split.selection.sigmoid,
    )
    layers = split.features or ("logits",)
    vectors = tuple(dict.fromkeys(["logits", *layers])) if context.has_logits else ()
    width = n_class + sum(split.width(name) or 0 for name in vectors if name != "logits")
    rows = int(np.clip(SCORED_CELLS // max(width, 1), 1_024, 32_768))
    walks = [PartWalk(part, 0, vectors, rows) for part in parts_of(split.selection)]
    scratch = split.units.parent / f".{split.units.stem}"
    (scratch / "keys").mkdir(parents=True)
    work = Round(f"scalars of {split.dataset}", count_kernel, Counted(), context)
    found = rounds.over(work, [_only(walk, ("logits",)) for walk in walks], scratch / "keys")
    counted = found.state
    split.n_class, split.rows = n_class, counted.scalars.counts
    split.errors, split.labeled = counted.scalars.errors, counted.scalars.labeled
    analysed = None
    if context.has_logits and split.labeled:
        key = _group_key(split, context, options.get("group_key"))
        salts = tuple(str(number) for number in range(int(options.get("repeats", 3))))
        analysed = RoundSplit(context, layers, key, salts)
    return Walking(split, context, numbered(walks, found.rows), scratch, counted, analysed)


def _only(walk: PartWalk, vectors: tuple[str, ...]) -> PartWalk:
    kept = tuple(name for name in walk.vectors if name in vectors)
    return PartWalk(walk.part, walk.first, kept, walk.batch_rows)


def _group_key(split: Split, context: ClassificationSplit, key: str | None) -> str | None:
    if key is not None and key not in context.user_fields:
        users = ", ".join(repr(name) for name in context.user_fields) or "none"
        raise ValueError(
            f"option group_key={key!r}: {split.dataset!r} has no such column of yours (recorded: {users}); "
            "record it with additional_fields"
        )
    return key


def finish(
    walking: Walking,
    group: SplitGroup,
    results: ResultStore,
    rounds: Rounds,
    reference: Reference | None,
    *,
    sample: int = SAMPLE,
) -> tuple[StageOutput, Reference | None]:
    """The other rounds of a pass; its unit table is written, its analysis comes back."""
    split, context = walking.split, walking.context
    hashed = _join(walking, group, results)
    fits: Fits | None = None
    if walking.analysed is not None:
        fits = _fit(walking, walking.analysed, hashed, group, rounds, reference, sample)
        work: Round[Any] = Round(
            f"units of {split.dataset}", score_kernel, Outcome.empty(len(fits.regions), DIAGNOSES), fits
        )
    else:
        work = Round(f"units of {split.dataset}", scalars_kernel, ClassificationState(), context)
    folder = walking.scratch / "units"
    folder.mkdir()
    found = rounds.over(work, walking.walks, folder).state
    _gather_units(folder, split.units, context)
    if context.has_logits and split.labeled:
        walking.ranking = _rank(walking, rounds, int(group.options.get("exact_cells", EXACT_CELLS)))
    shutil.rmtree(walking.scratch)
    output = output_of(walking.split, walking.counted, fits, found, group.options, results)
    return output, None if fits is None else fits.own


def _fit(
    walking: Walking,
    analysed: RoundSplit,
    hashed: Joined,
    group: SplitGroup,
    rounds: Rounds,
    reference: Reference | None,
    most: int,
) -> Fits:
    split, workers = walking.split, rounds.workers
    draw = Draw.of(analysed, walking.counts.labeled, walking.counts.errors, most)
    drawing = Round(f"sample of {split.dataset}", draw_kernel, Drawn(), draw)
    drawn = rounds.over(drawing, walking.walks).state
    with workers:
        block = joined([analysed.read(piece, workers) for piece in drawn.pieces])
        drawn.pieces.clear()  # beside the sample itself
        chosen = Sample.of(block, draw)
        with workers.stage(f"cells ({split.dataset})"):
            thin = {name: values[chosen.thin] for name, values in block.layers.items()}
            ground = Ground.of(thin, split.labeled, split.n_class, workers)
    counting = Round(
        f"cells of {split.dataset}",
        cells_kernel,
        CellTables.empty(analysed, len(ground.flat)),
        Asked(analysed, ground),
    )
    tables = rounds.over(counting, walking.walks).state
    with workers:
        return fit(Fitting(chosen, ground, tables, hashed, reference, group.options), workers)


def _rank(walking: Walking, rounds: Rounds, most: int) -> Ranking:
    """Exact up to `most` units x classes, of which this machine holds the logits; else from histograms."""
    context = walking.context
    if walking.counts.counts * context.n_class <= most:
        batches = PassSource.of(walking.split.selection).batches
        return rank(rounds.workers, context, batches, walking.counts.counts, exact_cells=most)
    walks = [_only(walk, ("logits",)) for walk in walking.walks]

    def run(work: Round[Any]) -> Any:
        return rounds.over(work, walks).state

    return rank_by_histograms(run, context, 2 * rounds.workers.threads + 1)


def _join(walking: Walking, group: SplitGroup, results: ResultStore) -> Joined:
    """What DuckDB finds in the keys of all units: distinct inputs, conflicting ones, those of train."""
    keys = sorted((walking.scratch / "keys").glob("*.parquet"))
    nothing = np.empty(0, dtype=str)
    if not keys:
        return Joined(nothing, None, hashed=False)
    train = _train_hashes(walking, group)
    views = {"train": train} if train else {}
    with database(results.spill, keys=keys, numbered=False, **views) as connection:

        def asked(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql).fetchall()

        distinct, some = asked(
            "SELECT count(DISTINCT coalesce(input_hash, input_id)), count(input_hash) FROM keys"
        )[0]
        walking.distinct = int(distinct)
        if not some:
            return Joined(nothing, None, hashed=False)
        conflicting = asked(
            "SELECT input_hash FROM keys WHERE gt IS NOT NULL AND input_hash IS NOT NULL "
            "GROUP BY input_hash HAVING count(DISTINCT gt) > 1 ORDER BY input_hash"
        )
        leaked = None
        if train and asked("SELECT count(input_hash) FROM train")[0][0]:
            leaked = asked(
                "SELECT DISTINCT input_hash FROM keys SEMI JOIN train USING (input_hash) ORDER BY input_hash"
            )
    return Joined(
        np.array([one for (one,) in conflicting], dtype=str),
        None if leaked is None else np.array([one for (one,) in leaked], dtype=str),
        hashed=True,
    )


def _train_hashes(walking: Walking, group: SplitGroup) -> list[Path]:
    """A file with the hashes of the train rows that count, where they are of the same kind; else none."""
    split = walking.split
    train = None if split.dataset == "train" else train_selection(split, group)
    if train is None or not same_hashes(split, train):
        return []
    target = walking.scratch / "train.parquet"
    schema = pa.schema([("input_hash", pa.string())])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in train.batches("samples", ["input_hash"], 65_536):
            writer.write_batch(pa.RecordBatch.from_arrays([batch.column(0).cast(pa.string())], schema=schema))
    return [target]


def _gather_units(folder: Path, target: Path, context: ClassificationSplit) -> None:
    """One unit table from those of the parts, a row group at a time."""
    with unit_file(target, context.schema) as writer:
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=65_536):
                    writer.write_table(pa.Table.from_batches([batch], context.schema))
            path.unlink()
