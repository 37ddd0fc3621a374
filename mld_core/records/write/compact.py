"""Joining small parts when a pass is sealed.

Only neighbours are joined, so rows keep their order, and only parts well below the roll size: a pass written
at full speed is never encoded twice. The joined parts get names of their own (`merged-<seq>`), which count
for nobody until `seal.json` lists them; the parts they replace stay until then. A crash at any moment leaves
either the old parts or the new ones in force.
"""

import shutil
from pathlib import Path

import pyarrow as pa

from mld_core.records.format.manifest import PartInfo, fsync_dir
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import joined, read_family, write_part

Schemas = dict[str, pa.Schema]
Part = tuple[PartInfo, Schemas]


def groups(parts: list[Part], roll_bytes: int) -> list[list[Part]]:
    """Neighbouring parts to join: each below half the roll size, together within it, of one schema.

    The sizes are those in memory, so one group never takes more memory than one part did.
    """
    found: list[list[Part]] = []
    size = 0
    small_before = False
    for part in parts:
        raw = part[0].raw_bytes
        small = raw < roll_bytes // 2
        fits = small and small_before and size + raw <= roll_bytes
        if fits and all(same_schemas(own, part[1]) for _, own in found[-1]):
            found[-1].append(part)
            size += raw
        else:
            found.append([part])
            size = raw
        small_before = small
    return found


def same_schemas(one: Schemas, other: Schemas) -> bool:
    """Whether the families that both have are of one schema, metadata included."""
    return all(one[family].equals(other[family], check_metadata=True) for family in one.keys() & other.keys())


def compact(folder: Path, parts: list[Part], options: WriterOptions) -> list[PartInfo]:
    """Join small neighbouring parts of a rank folder.

    Args:
        folder: the rank folder.
        parts: its parts in order, with the schema of each family.
        options: codec, roll size, fsync, test hook.

    Returns:
        The parts that are to be sealed, in order. The old ones are still there.

    Raises:
        OSError, pyarrow.ArrowException, DamagedPartError: nothing was changed; seal the parts as they are.
    """
    result: list[PartInfo] = []
    made: list[str] = []
    try:
        for group in groups(parts, options.roll_bytes):
            if len(group) == 1:
                result.append(group[0][0])
                continue
            options.step("compact:group")
            name = f"merged-{len(made):06d}"
            made.append(name)
            # What a seal that failed halfway may have left under this name.
            shutil.rmtree(folder / name, ignore_errors=True)
            infos = [info for info, _ in group]
            raw_bytes = sum(info.raw_bytes for info in infos)
            pieces = [{family: read_family(folder / i.name, family) for family in i.files} for i in infos]
            result.append(write_part(folder, name, joined(pieces), options, raw_bytes))
        if made and options.fsync:
            fsync_dir(folder)
    except BaseException:
        for name in made:
            shutil.rmtree(folder / name, ignore_errors=True)
        raise
    return result
