"""Whatever byte of a part was changed: it reads, or one error names the file; nothing else comes out of it."""

import pytest
from store_factory import StoreFactory, make_data

from mld_core.records.format.parts import DamagedPartError, read_family, read_part_info, torn_reason


@pytest.fixture
def part(tmp_path):
    made = StoreFactory(tmp_path / "store")
    made.add_pass(run := made.run(), "val", make_data(30))
    return next(made.store.run_dir(run).rglob("samples.parquet"))


def told(folder):
    """What is said of the samples of a part; empty where they read."""
    try:
        read_family(folder, "samples")
    except DamagedPartError as error:
        return str(error)
    return ""


def test_a_changed_byte_is_told_with_the_file(part):
    whole, info = part.read_bytes(), read_part_info(part.parent)
    spoken = 0
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 0xFF
        part.write_bytes(data)
        said = torn_reason(part.parent, info) or told(part.parent)
        assert not said or str(part) in said
        spoken += bool(said)
    assert spoken > len(whole) // 3 / 8  # the checksums of a part's manifest tell the others apart
    part.write_bytes(whole)
    assert torn_reason(part.parent, info) is None
    assert told(part.parent) == ""


def test_a_name_in_a_footer_that_is_no_text_is_damage(part):
    whole, info = part.read_bytes(), read_part_info(part.parent)
    for place in range(len(whole)):
        if whole[place : place + 8] == b"input_id":
            data = bytearray(whole)
            data[place] = 0x9D
            part.write_bytes(data)
            said = torn_reason(part.parent, info) or told(part.parent)
            assert not said or str(part) in said
