"""How `input_hash` was made is stored with a pass, and hashes are compared within one kind only."""

from __future__ import annotations

import pytest

from mld_core.records.format.layout import PassKey
from mld_core.records.format.schema import FIRST_HASH_KIND, HASH_KIND
from mld_core.records.read.reader import select

KEY = PassKey("val", 0)


@pytest.mark.parametrize(
    ("kinds", "left", "told"),
    [
        (("xxh3", "xxh3"), 3, "xxh3"),
        ((None, None), 3, FIRST_HASH_KIND),
        ((None, FIRST_HASH_KIND), 3, FIRST_HASH_KIND),
        (("xxh3", None), 4, None),
    ],
)
def test_equal_hashes_of_two_kinds_are_not_one_content(store, run, new_writer, put, kinds, left, told):
    for rank, kind in enumerate(kinds):
        writer = new_writer(rank=rank, world_size=2)
        handle = writer.open(KEY, meta={HASH_KIND: kind} if kind else {})
        put(writer, handle, 2 * rank, 2, ids=["a", f"b{rank}"], hashes=["h", None], source="input_id")
        assert writer.wait([writer.seal(handle)], 10)
    (selection,) = select(store, run)
    assert selection.hash_kind == told
    assert selection.n_rows == left
    assert selection.report.non_unique_ids == (left == 4)
    assert selection.table("samples", ["input_hash"])["input_hash"].to_pylist().count("h") == left - 2


def test_an_index_is_the_identity_whatever_the_kind(store, run, new_writer, put):
    for rank, kind in enumerate(("xxh3", "device")):
        writer = new_writer(rank=rank, world_size=2)
        handle = writer.open(KEY, meta={HASH_KIND: kind})
        put(writer, handle, 2 * rank, 2, ids=["7", str(rank)], hashes=[None, None], source="loader_index")
        assert writer.wait([writer.seal(handle)], 10)
    assert select(store, run)[0].n_rows == 3
