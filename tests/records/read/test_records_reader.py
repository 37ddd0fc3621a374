from __future__ import annotations

import json
import os
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.parts import DamagedPartError
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read import dedup
from mld_core.records.read.reader import load, select
from mld_core.records.write.writer import Writer, WriterOptions

KEY = PassKey("val", 0)
FIRST, SECOND, THIRD = (f"2026010{day}T000000.000000Z-aaaaaa-000" for day in (1, 2, 3))


def ids_of(selection):
    return selection.table("samples", ["input_id"])["input_id"].to_pylist()


# -- de-duplication --------------------------------------------------------------------------------------------


def test_the_padding_of_a_distributed_sampler_counts_once(store, run, write_pass):
    # 10 items on 3 ranks: the sampler repeats the first two at the end.
    order = [*range(10), 0, 1]
    for rank in range(3):
        own = order[rank::3]
        rows = [
            (2 * index, len(own[2 * index : 2 * index + 2]), own[2 * index : 2 * index + 2])
            for index in range(2)
        ]
        batches = [
            (start, count, {"ids": list(map(str, part)), "batch_idx": start // 2})
            for start, count, part in rows
        ]
        write_pass(KEY, batches, rank=rank, world_size=3)
    (selection,) = select(store, run)
    assert sorted(map(int, ids_of(selection))) == list(range(10))
    report = selection.report
    assert (report.rows_read, report.duplicates_dropped, report.non_unique_ids) == (12, 2, 0)
    # The copy in the earlier batch stays, and vectors follow the samples.
    kept = selection.table("samples", ["rank_", "unit", "input_id"])
    assert selection.table("vectors", ["rank_", "unit", "input_id"]).equals(kept.cast(kept.schema))
    assert ("0", 0) in zip(kept["input_id"].to_pylist(), kept["unit"].to_pylist(), strict=True)


@pytest.mark.parametrize(
    ("ids", "hashes", "source", "kept", "dropped", "non_unique"),
    [
        (["a", "a", "b"], ["h", "h", "h"], "user", ["a", "b"], 1, 0),
        (["a", "a", "b"], ["h", "g", "h"], "user", ["a", "a", "b"], 0, 1),
        (["a", "a", "b"], ["h", "g", "h"], "dataset_index", ["a", "b"], 1, 0),
        (["a", "a", "b"], ["h", "g", "h"], "loader_index", ["a", "b"], 1, 0),
        (["a", "a", "b"], None, "user", ["a", "a", "b"], 0, 1),
        (["a", "a", "b"], None, "image_id", ["a", "a", "b"], 0, 1),
        (["a", "a", "b"], None, "loader_index", ["a", "b"], 1, 0),
        (["a", "a", "b"], None, "dataset_index", ["a", "b"], 1, 0),
        (["a", "a", "a"], ["h", None, None], "user", ["a", "a", "a"], 0, 1),
        (["a", "a", "a"], ["h", None, None], "dataset_index", ["a"], 2, 0),
    ],
)
@pytest.mark.parametrize("split", ["val", "test", "predict", "val/1", "test/extra"])
def test_rules_of_evaluation_splits(
    store, run, write_pass, split, ids, hashes, source, kept, dropped, non_unique
):
    write_pass(PassKey(split, 0), [(0, 3, {"ids": ids, "hashes": hashes, "source": source})])
    (selection,) = select(store, run)
    assert ids_of(selection) == kept
    assert selection.report == dedup.DedupReport(3, dropped, non_unique, 0)
    assert selection.n_rows == len(kept)


@pytest.mark.parametrize("split", ["train", "train/2", "validation", "deploying", "mine"])
def test_other_splits_count_as_drawn(store, run, write_pass, split):
    write_pass(PassKey(split, 0), [(0, 3, {"ids": ["a", "a", "a"], "hashes": ["h"] * 3})])
    (selection,) = select(store, run)
    assert selection.n_rows == 3
    assert selection.report == dedup.DedupReport(3, 0, 0, 0)


def test_rows_without_an_id_all_count(store, run, write_pass):
    write_pass(KEY, [(0, 3, {"ids": [None, None, "a"]})])
    assert select(store, run)[0].n_rows == 3


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["h", "g", None]),
        st.sampled_from(["user", "dataset_index"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.sampled_from([None, False, False, True]),
        st.sampled_from([None, "0", "1"]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(ROWS)
def test_duplicates_agree_with_the_rule_spelled_out(rows):
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 7
    keys = pa.table(
        {
            "unit": pa.array(range(len(rows)), pa.int64()),
            "rank_": pa.array(columns[4], pa.int32()),
            "input_id": pa.array(columns[0], pa.string()),
            "id_source": pa.array(columns[2], pa.string()).dictionary_encode(),
            "input_hash": pa.array(columns[1], pa.string()),
            "batch_idx": pa.array(columns[3], pa.int32()),
            "sampler_repeat": pa.array(columns[5], pa.bool_()),
            "loader_place": pa.array(columns[6], pa.string()),
        }
    )
    drop, non_unique = dedup.duplicates(keys)
    kept = [index for index in range(len(rows)) if not drop[index]]
    for index, (name, content, source, batch, rank, repeat, place) in enumerate(rows):
        before = [
            other
            for at, other in enumerate(rows)
            if (other[3], other[4], at) < (batch, rank, index) and other[0] == name and not other[5]
        ]
        by_index = source == "dataset_index"
        same = any(
            (by_index and other[2] == source)
            or (not by_index and content is not None and other[2] != "dataset_index" and other[1] == content)
            or (place is not None and other[6] == place)
            for other in before
        )
        assert bool(drop[index]) == bool(repeat or same)
    counts = Counter(rows[index][0] for index in kept)
    assert non_unique == sum(count > 1 for count in counts.values())


# -- attempts --------------------------------------------------------------------------------------------------


def test_the_newest_sealed_attempt_wins_else_the_newest(store, run, write_pass):
    write_pass(KEY, [(0, 3, {})], attempt=FIRST)
    write_pass(KEY, [(0, 4, {})], attempt=SECOND, seal=False)
    (selection,) = select(store, run)
    assert (selection.attempt, selection.n_rows, selection.sealed) == (FIRST, 3, True)
    write_pass(KEY, [(0, 5, {})], attempt=THIRD)
    assert select(store, run)[0].n_rows == 5
    for name in (FIRST, THIRD):
        shutil.rmtree(store.pass_dir(run, KEY) / name)
    (selection,) = select(store, run)
    assert (selection.attempt, selection.sealed, selection.missing_ranks) == (SECOND, False, [0])


def test_a_partial_attempt_names_the_ranks_that_are_missing(store, run, write_pass):
    write_pass(KEY, [(0, 3, {})], rank=1, world_size=4)
    write_pass(KEY, [(0, 2, {"ids": ["x", "y"]})], rank=3, world_size=4, seal=False)
    (selection,) = select(store, run)
    assert selection.missing_ranks == [0, 2, 3]
    assert selection.n_rows == 5
    assert "ranks [0, 2, 3] have not sealed" in repr(selection)


def test_a_resumed_epoch_keeps_the_rows_before_the_checkpoint(store, run, write_pass):
    key = PassKey("train", 0)
    steps = lambda first, last: [(10 * step, 10, {"step": step}) for step in range(first, last)]  # noqa: E731
    write_pass(key, steps(0, 7), attempt=FIRST, seal=False)
    second = [(10 * (step - 4), 10, {"step": step}) for step in range(4, 9)]
    write_pass(key, second, attempt=SECOND, seal=False, continues=FIRST, resume_step=4)
    third = [(10 * (step - 6), 10, {"step": step}) for step in range(6, 10)]
    write_pass(key, third, attempt=THIRD, continues=SECOND, resume_step=6)
    (selection,) = select(store, run)
    table = selection.table("samples", ["global_step", "unit", "rank_"])
    assert table["global_step"].to_pylist() == [step for step in range(10) for _ in range(10)]
    assert selection.report.superseded_rows == 30 + 30
    assert selection.n_rows == 100
    assert len(set(table["unit"].to_pylist())) == 100  # unit names one row of the selection
    vectors = selection.table("vectors", ["unit"])
    assert vectors["unit"].equals(table["unit"])


def test_a_resume_from_an_older_checkpoint_binds_the_whole_chain(store, run, write_pass):
    key = PassKey("train", 0)
    write_pass(key, [(0, 10, {"step": 0}), (10, 10, {"step": 1})], attempt=FIRST, seal=False)
    write_pass(key, [(0, 10, {"step": 2})], attempt=SECOND, seal=False, continues=FIRST, resume_step=2)
    write_pass(key, [(0, 10, {"step": 1})], attempt=THIRD, continues=SECOND, resume_step=1)
    (selection,) = select(store, run)
    assert selection.table()["global_step"].to_pylist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize(("continues", "resume_step"), [(FIRST, None), ("gone-000", 5), (SECOND, 5)])
def test_a_chain_that_leads_nowhere_takes_nothing(store, run, write_pass, continues, resume_step):
    key = PassKey("train", 0)
    write_pass(key, [(0, 10, {"step": 0})], attempt=FIRST, seal=False)
    write_pass(key, [(0, 5, {"step": 1})], attempt=SECOND, continues=continues, resume_step=resume_step)
    assert select(store, run)[0].n_rows == 5


def test_rows_without_a_step_do_not_survive_a_resume(store, run, write_pass):
    key = PassKey("train", 0)
    write_pass(key, [(0, 10, {}), (10, 10, {"step": 0})], attempt=FIRST, seal=False)
    write_pass(key, [(0, 5, {"step": 1})], attempt=SECOND, continues=FIRST, resume_step=1)
    (selection,) = select(store, run)
    assert (selection.n_rows, selection.report.superseded_rows) == (15, 10)


# -- selection -------------------------------------------------------------------------------------------------


def test_latest_goes_by_time_of_sealing_for_each_split(store, run, write_pass):
    for key in (PassKey("val", 5), PassKey("train", 5), PassKey("val", 2), PassKey("train", None)):
        write_pass(key, [(0, 3, {})])
    write_pass(PassKey("val", 9), [(0, 3, {})], seal=False)
    found = {item.key.dataset_type: item.key.n_epoch for item in select(store, run)}
    assert found == {"val": 2, "train": None}
    assert [item.key.n_epoch for item in select(store, run, dataset_type="val", n_epoch=None)] == [2, 5, 9]
    assert [item.key.n_epoch for item in select(store, run, dataset_type=["train"], n_epoch=None)] == [
        None,
        5,
    ]
    assert [item.key.dataset_type for item in select(store, run, n_epoch=5)] == ["train", "val"]
    assert select(store, run, dataset_type="test") == []
    assert select(store, RunKey("none", "v1")) == []


def test_the_last_sealed_pass_of_an_epoch_or_all(store, run, write_pass):
    for number in range(3):
        write_pass(PassKey("val", 0, number), [(0, number + 1, {})], seal=number < 2)
    (selection,) = select(store, run)
    assert selection.key.pass_no == 1
    assert [item.key.pass_no for item in select(store, run, passes="all")] == [0, 1, 2]


@pytest.mark.parametrize(
    "kwargs", [{"passes": "first"}, {"n_epoch": "last"}, {"n_epoch": True}, {"n_epoch": 1.5}]
)
def test_wrong_arguments_are_told(store, run, kwargs):
    with pytest.raises(ValueError, match="expected"):
        select(store, run, **kwargs)


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 1000])
def test_batches_of_two_families_run_side_by_side(store, run, write_pass, batch_rows):
    hashes = [str(row % 90) for row in range(100)]
    ids = [f"id-{row % 90}" for row in range(100)]
    for rank in range(2):
        batches = [
            (
                start,
                10,
                {
                    "ids": [f"{rank}{name}" for name in ids[start : start + 10]],
                    "hashes": hashes[start : start + 10],
                },
            )
            for start in range(0, 100, 10)
        ]
        write_pass(KEY, batches, rank=rank, world_size=2, roll_mb=0.003)
    (selection,) = select(store, run)
    samples = list(selection.batches("samples", ["unit", "rank_"], batch_rows))
    vectors = list(selection.batches("vectors", ["unit", "rank_", "feat"], batch_rows))
    assert [batch.num_rows for batch in samples] == [batch.num_rows for batch in vectors]
    assert [batch.num_rows for batch in samples[:-1]] == [batch_rows] * (len(samples) - 1)
    for one, other in zip(samples, vectors, strict=True):
        assert one.equals(other.select(["unit", "rank_"]))
        feat = to_numpy(other["feat"], other.schema.field("feat"))
        np.testing.assert_array_equal(feat[:, 0], np.asarray(one["unit"]).astype(np.float16))
    assert sum(batch.num_rows for batch in samples) == selection.n_rows == 180


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["zstd", "none"]),
)
def test_any_sequence_of_batches_round_trips(tmp_path_factory, sizes, world, seal, codec):
    from_conftest = {"fsync": False, "roll_mb": 0.002, "codec": codec}
    store, run = Store(tmp_path_factory.mktemp("any")), RunKey("m/ö", "v.1")
    key = PassKey("split/ä", -1)
    expected = []
    for rank in range(world):
        writer = Writer(
            store, run, attempt="a-000", rank=rank, world_size=world, options=WriterOptions(**from_conftest)
        )
        handle = writer.open(key)
        start = 0
        for size in sizes:
            units = np.arange(start, start + size)
            table = pa.table({"unit": units, "rank_": np.full(size, rank, np.int32), "x": units * 2})
            writer.put(handle, lambda table=table: {"samples": table}, rows=size, nbytes=table.nbytes)
            expected += [(rank, unit, 2 * unit) for unit in units.tolist()]
            start += size
        if seal:
            assert writer.wait([writer.seal(handle)], 20)
        writer.close(20)
    (selection,) = select(store, run, n_epoch=-1)
    assert selection.sealed == seal
    table = selection.table()
    got = (
        list(zip(*(table[name].to_pylist() for name in ("rank_", "unit", "x")), strict=True))
        if expected
        else []
    )
    assert got == expected
    assert table.num_rows == selection.n_rows == len(expected)


def test_columns_and_families_that_are_not_there_are_told(store, run, write_pass):
    write_pass(KEY, [(0, 3, {})])
    (selection,) = select(store, run)
    with pytest.raises(KeyError, match="no column"):
        selection.table("samples", ["weather"])
    with pytest.raises(ValueError, match="expected one of 'samples'"):
        selection.table("boxes")
    with pytest.raises(ValueError, match="at least 1"):
        selection.batches(batch_rows=0)
    assert selection.table("detections").num_rows == 0
    assert not selection.has("detections")


def test_a_vector_that_changes_its_width_or_dtype_is_told(store, run, write_pass):
    write_pass(KEY, [(0, 3, {}), (3, 3, {"width": 8})])
    with pytest.raises(ValueError, match="changed its type or width"):
        select(store, run)[0].table("vectors")
    write_pass(PassKey("val", 1), [(0, 3, {"width": 16}), (3, 3, {"width": 8, "dtype": "float32"})])
    (selection,) = select(store, run, n_epoch=1)
    with pytest.raises(ValueError, match="changed its dtype"):
        selection.table("vectors")
    assert (
        selection.table("vectors", ["unit"]).num_rows if False else selection.table("samples").num_rows == 6
    )


def test_load_puts_the_place_in_front(store, run, write_pass):
    write_pass(PassKey("val", 0), [(0, 3, {})])
    write_pass(PassKey("val", 0, 1), [(0, 4, {})])
    write_pass(PassKey("train", None), [(0, 2, {"extra": {"weather": ["dry", "wet"]}})])
    table = load(run.model_name, run.version_name, store=store.root)
    assert table.column_names[:3] == ["dataset_type", "n_epoch", "pass_no"]
    places = Counter(zip(*(table[name].to_pylist() for name in table.column_names[:3]), strict=True))
    assert places == {("val", 0, 0): 3, ("val", 0, 1): 4, ("train", None, 0): 2}
    assert Counter(table["weather"].to_pylist()) == {None: 7, "dry": 1, "wet": 1}
    vectors = load(run.model_name, run.version_name, "vectors", dataset_type="val", n_epoch=0, store=store)
    assert vectors.schema.field("feat").type == pa.list_(pa.float32(), 16)
    assert vectors["feat"].to_pylist()[2] == [2.0] * 16
    assert load(run.model_name, run.version_name, n_epoch=77, store=store).num_rows == 0
    assert load(run.model_name, run.version_name, "truths", store=store).num_rows == 0


def test_load_of_an_unknown_run_lists_those_there_are(store, run, monkeypatch):
    with pytest.raises(ValueError, match=r"there are: 'model\.a' 'v1'"):
        load("nobody", "v1", store=store)
    monkeypatch.setenv("MLD_HOME", str(store.root / "empty"))
    with pytest.raises(ValueError, match="there are: none"):
        load("nobody", "v1")
    with pytest.raises(ValueError, match="expected one of"):
        load(run.model_name, run.version_name, "boxes")


# -- damage ----------------------------------------------------------------------------------------------------


def three_parts(store, run, put, *, seal):
    writer = Writer(store, run, attempt=FIRST, options=WriterOptions(roll_mb=0.001, fsync=False))
    handle = writer.open(KEY)
    for start in range(0, 30, 10):
        put(writer, handle, start, 10)
        writer.flush(10)
    if seal:
        assert writer.wait([writer.seal(handle)], 10)
    writer.close(10)
    folder = store.rank_dir(run, KEY, FIRST, 0)
    return folder, sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize(
    "damage", ["truncate", "remove file", "remove part", "empty", "end", "grow", "part.json"]
)
def test_torn_parts_are_left_out_and_named(store, run, put, seal, damage):
    _, parts = three_parts(store, run, put, seal=seal)
    assert len(parts) == 3
    victim = parts[1] / "vectors.parquet"
    size = victim.stat().st_size
    if damage == "truncate":
        os.truncate(victim, size // 2)
    elif damage == "remove file":
        victim.unlink()
    elif damage == "remove part":
        shutil.rmtree(parts[1])
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "end":
        victim.write_bytes(victim.read_bytes()[:-4] + b"XXXX")
    elif damage == "footer":
        data = victim.read_bytes()
        victim.write_bytes(data[:-200] + b"\xff" * 190 + data[-10:])
    elif damage == "grow":
        victim.write_bytes(victim.read_bytes() + b"PAR1")
    else:
        (parts[1] / "part.json").write_text("{")
    (selection,) = select(store, run)
    unseen = (damage == "remove part" and not seal) or (damage == "part.json" and seal)
    assert len(selection.torn) == (0 if unseen else 1)
    kept = [*range(10), *range(20, 30)] if not (damage == "part.json" and seal) else list(range(30))
    assert selection.table("samples")["unit"].to_pylist() == kept
    assert selection.table("vectors")["unit"].to_pylist() == kept
    assert all(parts[1].name in reason for reason in selection.torn)


def test_damage_inside_a_file_is_an_error_that_names_it(store, run, put):
    _, parts = three_parts(store, run, put, seal=True)
    victim = parts[1] / "samples.parquet"
    data = bytearray(victim.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = b"\xff" * (len(data) - footer - 4)
    victim.write_bytes(data)
    with pytest.raises(DamagedPartError, match="mld doctor"):
        select(store, run)[0].table("samples")
    shutil.rmtree(parts[1])
    assert select(store, run)[0].n_rows == 20


def test_torn_and_foreign_manifests_never_crash_a_reader(store, run, put):
    folder, _ = three_parts(store, run, put, seal=True)
    (folder / "seal.json").write_text('{"format": 1, "parts"')
    (selection,) = select(store, run)
    assert (selection.sealed, selection.n_rows) == (False, 30)
    (folder / "attempt.json").write_text("")
    assert select(store, run) == []


def test_records_of_a_newer_format_are_left_out_with_a_warning(store, run, put, write_pass):
    folder, _ = three_parts(store, run, put, seal=True)
    data = json.loads((folder / "seal.json").read_text())
    (folder / "seal.json").write_text(json.dumps({**data, "format": 99}))
    with pytest.warns(UserWarning, match="format 99, this release reads up to 1; upgrade"):
        assert select(store, run) == []


def test_members_of_later_releases_are_ignored(store, run, put):
    folder, _ = three_parts(store, run, put, seal=True)
    data = json.loads((folder / "seal.json").read_text())
    data["attempt"]["new"] = data["new"] = 1
    (folder / "seal.json").write_text(json.dumps(data))
    assert select(store, run)[0].n_rows == 30
