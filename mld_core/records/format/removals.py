"""Samples that were taken out of a run: `<run>/.removed/<time>-<random>.jsonl`, one JSON object a line.

A line names a sample by the SHA-256 of its id, so that what was removed for privacy is not written down anew.
It counts for every reader from the moment it is there; `mld_core.records.write.removal` then takes the rows
out of the parts and notes in each rank's seal (`meta["removed"]`) what that was done for, and of such a rank
nothing needs to be looked at any more. Files only grow, and two people never write the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import fsync_dir, make_dirs, utc_now

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from mld_core.records.format.attempts import RankFolder

FOLDER = ".removed"
REMOVED = "removed"
"""In the meta of a seal: digests of the ids whose rows are out of its parts."""


def id_digest(input_id: str) -> str:
    """What stands for a sample's id.

    >>> id_digest("17")[:16]
    '4523540f1504cd17'
    """
    return hashlib.sha256(input_id.encode("utf-8", "surrogatepass")).hexdigest()


class Removals:
    """The removed samples of one run."""

    def __init__(self, store: Store, run: RunKey) -> None:
        self.folder = store.run_dir(run) / FOLDER

    def append(self, digests: Iterable[str], dataset_type: str | None = None) -> None:
        """Note samples (by `id_digest`) as removed, in one split or in all; durable on return.

        Raises:
            OSError: the disk refuses.
        """
        facts = {"dataset_type": dataset_type, "at": utc_now()}
        known = self._read()
        fresh = [one for one in dict.fromkeys(digests) if not {(one, None), (one, dataset_type)} & known]
        if not fresh:
            return
        make_dirs(self.folder)
        stamp = utc_now().replace(":", "").replace("-", "").split("+")[0]
        path = self.folder / f"{stamp}-{secrets.token_hex(3)}.jsonl"
        with path.open("xb") as file:
            file.write(b"".join(json.dumps({"input": one, **facts}).encode() + b"\n" for one in fresh))
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(self.folder)

    def of_split(self, dataset_type: str) -> frozenset[str]:
        """Digests of what is removed from a split."""
        return frozenset(digest for digest, split in self._read() if split in {None, dataset_type})

    def everywhere(self) -> frozenset[str]:
        """Digests of what is removed from every split."""
        return frozenset(digest for digest, split in self._read() if split is None)

    def all(self) -> frozenset[str]:
        """Digests of what is removed from any split."""
        return frozenset(digest for digest, _ in self._read())

    def _read(self) -> set[tuple[str, str | None]]:
        found: set[tuple[str, str | None]] = set()
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else ():
            found |= {one for line in path.read_bytes().splitlines() if (one := _parse(line)) is not None}
        return found


def _parse(line: bytes) -> tuple[str, str | None] | None:
    """A line, or None where it was torn: whoever wrote it was not told that it is done."""
    try:
        data: dict[str, Any] = json.loads(line)
        return str(data["input"]), data.get("dataset_type")
    except (KeyError, TypeError, ValueError):
        return None


def pending(rank: RankFolder, digests: frozenset[str]) -> frozenset[str]:
    """Which of these samples may still have rows in a rank's parts."""
    return digests - set(rank.sealed.meta.get(REMOVED) or ()) if rank.sealed is not None else digests


def marks(ids: pa.ChunkedArray | pa.Array, digests: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Which of these ids are removed, bool (N,).

    >>> import pyarrow as pa
    >>> marks(pa.array(["17", None, "4"]), frozenset({id_digest("4")})).tolist()
    [False, False, True]
    """
    import numpy as np  # noqa: PLC0415 - whoever only names a sample does without

    if not digests:
        return np.zeros(len(ids), dtype=np.bool_)
    values = ids.to_pylist()
    gone = {one for one in set(values) if one is not None and id_digest(one) in digests}
    if not gone:
        return np.zeros(len(values), dtype=np.bool_)
    return np.fromiter((one in gone for one in values), dtype=np.bool_, count=len(values))
