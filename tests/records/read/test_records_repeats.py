"""Rows that a sampler repeated, as the recorder knew: they do not count, whatever else stands in them."""

import pytest

from mld_core.records.format.layout import PassKey
from mld_core.records.read.reader import select

LAST = [False, True]


def _ids(selection):
    return selection.table("samples", ["input_id"])["input_id"].to_pylist()


@pytest.mark.parametrize("hashes", [None, ["h9", "other"]])
def test_a_repeat_counts_once_without_a_hash_and_with_another_one(store, run, write_pass, hashes):
    key = PassKey("val", 0, 0)
    write_pass(key, [(0, 2, {"ids": ["a", "b"], "source": "input_id", "hashes": hashes})], world_size=2)
    more = {"ids": ["c", "a"], "source": "input_id", "hashes": hashes, "repeats": LAST}
    write_pass(key, [(0, 2, more)], rank=1, world_size=2)
    (selection,) = select(store, run)
    assert _ids(selection) == ["a", "b", "c"]
    report = selection.report
    assert (report.rows_read, report.duplicates_dropped, report.non_unique_ids) == (4, 1, 0)


def test_a_repeat_in_an_earlier_batch_takes_no_rows_place(store, run, write_pass):
    key = PassKey("test", 0, 0)
    late = {"ids": ["b", "a"], "source": "loader_index", "batch_idx": 1}
    write_pass(key, [(0, 2, late)], world_size=2)
    write_pass(
        key, [(0, 2, {"ids": ["c", "a"], "source": "loader_index", "repeats": LAST})], rank=1, world_size=2
    )
    (selection,) = select(store, run)
    assert _ids(selection) == ["b", "a", "c"]


def test_a_place_of_the_data_set_that_ranks_drew_twice_counts_once(store, run, write_pass):
    """The ids are the user's, and the content looks otherwise; another id at that place is another sample."""
    key = PassKey("val", 0, 0)
    first = {"ids": ["a", "b"], "source": "input_id", "hashes": ["h1", "h2"], "places": ["0", "1"]}
    write_pass(key, [(0, 2, first)], world_size=2)
    more = {"ids": ["a", "crop", "a"], "source": "input_id", "places": ["0", "1", None]}
    write_pass(key, [(0, 3, {**more, "hashes": ["h3", "h4", "h5"]})], rank=1, world_size=2)
    (selection,) = select(store, run)
    assert _ids(selection) == ["a", "b", "crop", "a"], "the last one's place is not known, so it stays"
    assert (selection.report.duplicates_dropped, selection.report.non_unique_ids) == (1, 1)


def test_training_counts_as_it_was_drawn(store, run, write_pass):
    key = PassKey("train", 0, 0)
    write_pass(key, [(0, 2, {"ids": ["a", "b"], "repeats": LAST})])
    (selection,) = select(store, run)
    assert _ids(selection) == ["a", "b"]


@pytest.mark.parametrize("column", ["sampler_repeat", "loader_place"])
def test_a_store_that_does_not_know_of_them_is_read_as_before(store, run, write_pass, column):
    """Written before: the column is not there."""
    key = PassKey("val", 0, 0)
    write_pass(key, [(0, 2, {"ids": ["a", "b"], "without": column})])
    (selection,) = select(store, run)
    assert _ids(selection) == ["a", "b"]
    assert selection.report.duplicates_dropped == 0
