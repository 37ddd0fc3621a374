from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.records.format import names

ANY_TEXT = st.text(alphabet=st.characters(), max_size=300)


@settings(deadline=None)
@given(ANY_TEXT)
def test_every_name_becomes_one_safe_component_and_comes_back(name):
    folder = names.encode(name)
    assert folder
    assert len(folder.encode("ascii")) <= names.MAX_BYTES
    assert not set(folder) & set("/\\.\0: ")
    if not names.is_cut(folder):
        assert names.decode(folder) == name


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_different_names_never_share_a_folder(one, other):
    assert (names.encode(one) == names.encode(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a%2Fb", "a.b", ".results", "ab\0c", "名前", "é", "run.json", "v~1", "\ud800"],
)
def test_awkward_names_round_trip(name):
    assert names.decode(names.encode(name)) == name


def test_long_names_are_cut_and_stay_apart():
    long = "x" * 400
    folder = names.encode(long)
    assert len(folder) == names.MAX_BYTES
    assert names.is_cut(folder)
    assert names.decode(folder) is None
    assert folder != names.encode(long + "y")
    wide = names.encode("é" * 100)
    assert len(wide) <= names.MAX_BYTES
    assert wide.split("~")[0].count("%") * 3 == len(wide.split("~")[0])  # no escape was cut in the middle


@pytest.mark.parametrize("folder", ["a.b", "a%2e", "a%2", "a b", "", "%FF"])
def test_folders_of_others_are_not_decoded(folder):
    assert names.decode(folder) is None


def test_a_name_that_is_no_text_is_told_with_the_fix():
    with pytest.raises(TypeError, match=r"got 3 .*use str"):
        names.encode(3)
