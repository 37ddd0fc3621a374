"""The `epochs` table, and the sample an analysis looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mld_core.evaluation.live.figures import Epochs, write_figures
from mld_core.evaluation.live.memory import refusal
from mld_core.evaluation.live.sampled import sample_rows, stratified
from mld_core.records.format.layout import PassKey
from mld_core.records.format.manifest import write_json
from mld_core.records.read.reader import select


def test_of_each_pass_the_newest_attempt_of_this_generation_counts(tmp_path: Path, records) -> None:
    factory = records.StoreFactory(tmp_path)
    run = factory.run()
    places = [("val", 0), ("val", 1), ("val", 0)]  # epoch 0 again, in a newer attempt
    for number, (split, epoch) in enumerate(places):
        factory.add_pass(run, split, records.make_data(20, seed=number), n_epoch=epoch)
    table = Epochs(factory.store, run)
    assert table.rows() == []
    for key in (PassKey("val", 0), PassKey("val", 1)):
        for attempt in sorted(factory.store.pass_dir(run, key).iterdir()):
            row = {"generation": 0, "sealed_at": f"{key.n_epoch}", "attempt": attempt.name}
            write_figures(attempt, row)
    newest = max(path.name for path in factory.store.pass_dir(run, PassKey("val", 0)).iterdir())
    assert next(row["attempt"] for row in table.rows()) == newest
    assert len(table.rows()) == 2
    newer = next(factory.store.pass_dir(run, PassKey("val", 1)).iterdir())
    write_json(newer / "figures.json", {"format": 99, "generation": 0, "sealed_at": "1"})
    assert len(table.rows()) == 1, "a newer release's row is left alone"
    factory.store.recreate(run)
    assert table.rows() == []


def test_a_sample_has_its_share_of_every_stratum() -> None:
    strata = np.repeat(np.arange(4), [7000, 2000, 900, 100])
    np.random.default_rng(0).shuffle(strata)
    kept = stratified(strata, 1000)
    assert kept.sum() == 1000
    assert np.abs(np.bincount(strata[kept]) - [700, 200, 90, 10]).max() <= 1
    assert stratified(strata, 10_000).all()


def test_a_sampled_pass_reads_as_its_rows_of_the_whole(tmp_path: Path, records) -> None:
    factory = records.StoreFactory(tmp_path)
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(500))
    (whole,) = select(factory.store, run)
    some = sample_rows(whole, 60)
    assert some.n_rows == 60
    samples, vectors = some.table("samples"), some.table("vectors")
    assert samples.num_rows == vectors.num_rows == 60
    ids = whole.table("samples")["input_id"].to_pylist()
    rows = [ids.index(one) for one in samples["input_id"].to_pylist()]
    assert vectors["logits"].to_pylist() == [
        whole.table("vectors")["logits"].to_pylist()[row] for row in rows
    ]
    assert [batch.num_rows for batch in some.batches("vectors", ["logits"], 25)] == [25, 25, 10]
    assert sample_rows(whole, 500) is whole


def test_more_memory_than_there_is_is_refused() -> None:
    assert refusal(1) == ""
    assert "memory" in refusal(2**60)
