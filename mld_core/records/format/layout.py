"""Where records lie: the store's root, the folders of runs, passes, attempts and ranks; claiming a version.

`<root>/<model>/<version>/<split>/epoch-<e|none>/pass-<p>/<attempt>/rank-<r>/part-<seq>/<family>.parquet`,
each name encoded by `mld_core.records.format.names`. Beside the splits lie `run.json`, `.results/` and, after
`recreate`, markers `.generation-<k>`: records of a lower generation than the highest marker are unread at
once and removed by `mld gc`.
"""

import contextlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mld_core.records.format import names
from mld_core.records.format.bucket import BucketPath, bucket_path, is_bucket
from mld_core.records.format.manifest import FORMAT, make_dirs, read_json, utc_now, write_json

RUN_FILE = "run.json"
RESULTS_DIR = ".results"
BUCKETS_DIR = ".buckets"
"""In the store of this machine: results of stores in buckets, to which nothing is written."""
_GENERATION = re.compile(r"\.generation-(\d+)")
_EPOCH = re.compile(r"epoch-(none|-?\d+)")
_PASS = re.compile(r"pass-(\d+)")
_VERSION = re.compile(r"v(\d+)")


@dataclass(frozen=True)
class RunKey:
    """The two names of a run."""

    model_name: str
    version_name: str


@dataclass(frozen=True)
class PassKey:
    """One walk over one split: split, epoch (None: unknown, -1: before training), number in that epoch."""

    dataset_type: str
    n_epoch: int | None
    pass_no: int = 0


def store_root(root: str | Path | None = None) -> Path:
    """The absolute path of the store: the argument, else `MLD_HOME`, else `~/.mld`; or a place in a bucket.

    Raises:
        ValueError: `s3:` and no address of a bucket.
    """
    chosen = root if root is not None else os.environ.get("MLD_HOME") or "~/.mld"
    return bucket_path(chosen) if is_bucket(chosen) else Path(chosen).expanduser().absolute()


def _beside(root: BucketPath) -> Path:
    """The folder of this machine for what belongs to a store in a bucket."""
    home = os.environ.get("MLD_HOME")
    here = store_root("~/.mld" if is_bucket(home) else home)
    return here / BUCKETS_DIR / names.encode(root.address)


def epoch_folder(n_epoch: int | None) -> str:
    """The folder name of an epoch.

    >>> epoch_folder(3), epoch_folder(-1), epoch_folder(None)
    ('epoch-3', 'epoch--1', 'epoch-none')
    """
    return f"epoch-{'none' if n_epoch is None else int(n_epoch)}"


def parse_epoch(folder: str) -> tuple[int | None] | None:
    """The epoch of a folder name in a 1-tuple (since None is an epoch), or None if it is not ours."""
    match = _EPOCH.fullmatch(folder)
    if match is None:
        return None
    return (None,) if match[1] == "none" else (int(match[1]),)


def parse_pass(folder: str) -> int | None:
    """The pass number of a folder name, or None if it is not ours."""
    match = _PASS.fullmatch(folder)
    return int(match[1]) if match else None


def subfolders(path: Path) -> list[Path]:
    """The visible folders in `path`, sorted by name; none when it is missing or unreadable.

    Raises:
        UnreachableStoreError: it lies in a bucket that does not answer.
    """
    if isinstance(path, BucketPath):
        return [path / name for name, is_folder in path.entries() if is_folder and not name.startswith(".")]
    try:
        with os.scandir(path) as entries:
            found = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []
    return [path / name for name in sorted(found)]


class Store:
    """A folder, or a place in a bucket, that holds the records of any number of runs.

    Cheap, picklable, holds nothing open. In a bucket it is read and never written.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = store_root(root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    # -- paths -----------------------------------------------------------------------------------------------

    def run_dir(self, run: RunKey) -> Path:
        """The folder of a run."""
        return self.root / names.encode(run.model_name) / names.encode(run.version_name)

    def results_dir(self, run: RunKey) -> Path:
        """The folder of a run's evaluation results (not created here), always one of this machine."""
        own = self.run_dir(run)
        if isinstance(self.root, BucketPath):
            own = _beside(self.root) / names.encode(run.model_name) / names.encode(run.version_name)
        return own / RESULTS_DIR

    def split_dir(self, run: RunKey, dataset_type: str) -> Path:
        """The folder of one split."""
        return self.run_dir(run) / names.encode(dataset_type)

    def pass_dir(self, run: RunKey, key: PassKey) -> Path:
        """The folder of one pass; its subfolders are attempts."""
        return self.split_dir(run, key.dataset_type) / epoch_folder(key.n_epoch) / f"pass-{int(key.pass_no)}"

    def rank_dir(self, run: RunKey, key: PassKey, attempt: str, rank: int) -> Path:
        """The folder of one rank in one attempt at a pass."""
        return self.pass_dir(run, key) / attempt / f"rank-{int(rank)}"

    # -- runs ------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunKey]:
        """All runs in the store, sorted by folder name. Folders that are not ours are passed over."""
        folders = ((model, version) for model in subfolders(self.root) for version in subfolders(model))
        return [key for model, version in folders if (key := run_of(model, version)) is not None]

    def claim_version(self, model_name: str) -> str:
        """Take the next free `v<k>` of a model by creating its folder exclusively; safe among processes."""
        parent = self.root / names.encode(model_name)
        make_dirs(parent)
        taken = [int(match[1]) for path in subfolders(parent) if (match := _VERSION.fullmatch(path.name))]
        number = max(taken, default=0) + 1
        while not _claimed(parent / f"v{number}"):
            number += 1
        return f"v{number}"

    def release_version(self, run: RunKey) -> bool:
        """Give back a claimed version in which nothing was recorded; False if something was."""
        folder = self.run_dir(run)
        if subfolders(folder):
            return False
        with contextlib.suppress(OSError):
            (folder / RUN_FILE).unlink(missing_ok=True)
            folder.rmdir()
        return not folder.exists()

    def ensure_run(self, run: RunKey, info: dict[str, Any]) -> dict[str, Any]:
        """Create `run.json`, or add the members it lacks; what is stored is never overwritten.

        Args:
            run: the run.
            info: plain values: task, class_names, n_class, architecture hash, features {alias: {width, rule}}

        Returns:
            What is stored now, `generation` included.
        """
        make_dirs(self.run_dir(run))
        generation = self.generation(run)
        stored = self._stored(run, generation)
        base = {"format": FORMAT, **asdict(run), "created_at": utc_now()}
        merged = {**base, **info, **stored, "generation": generation}
        if merged != stored:
            write_json(self.run_dir(run) / RUN_FILE, merged)
        return self.run_info(run)

    def run_info(self, run: RunKey) -> dict[str, Any]:
        """What `run.json` holds for the current generation; the two names and the generation at least."""
        generation = self.generation(run)
        return {**asdict(run), **self._stored(run, generation), "generation": generation}

    def update_run_info(self, run: RunKey, **changes: Any) -> dict[str, Any]:
        """Set members of `run.json` (last writer wins) and return what is stored now."""
        self.ensure_run(run, {})
        merged = {**self.run_info(run), **changes}
        write_json(self.run_dir(run) / RUN_FILE, merged)
        return self.run_info(run)

    def _stored(self, run: RunKey, generation: int) -> dict[str, Any]:
        data = read_json(self.run_dir(run) / RUN_FILE) or {}
        # What an older generation said about widths and classes must not bind the new one.
        return data if data.get("generation", 0) == generation else {}

    # -- generations -----------------------------------------------------------------------------------------

    def generation(self, run: RunKey) -> int:
        """The current generation of a run: 0 until `recreate` is called.

        Raises:
            OSError: the run's folder is there and can not be listed.
        """
        return generation_in(self.run_dir(run))

    def recreate(self, run: RunKey) -> int:
        """Start a new generation (`force_table_recreate`): earlier records of this run are unread at once.

        Returns:
            The new generation. Nothing is deleted here; `mld gc` does that.
        """
        folder = self.run_dir(run)
        make_dirs(folder)
        number = self.generation(run) + 1
        while not _claimed(folder / f".generation-{number}"):
            number += 1
        return number


def generation_in(folder: Path | str) -> int:
    """The generation of the run in a folder.

    Raises:
        OSError: the folder is there and can not be listed.
    """
    if isinstance(folder, BucketPath):
        found = [name for name, _ in folder.entries()]
        return max((int(match[1]) for name in found if (match := _GENERATION.fullmatch(name))), default=0)
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.startswith(".generation-")]
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(match[1]) for name in found if (match := _GENERATION.fullmatch(name))), default=0)


def _claimed(folder: Path) -> bool:
    """Make a folder; False if it was there, so exactly one of several processes gets it."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def run_of(model: Path, version: Path) -> RunKey | None:
    """The names of a run's folder, `root/model/version`, or None if the folder is not a run."""
    return named_run(model, version, read_json(version / RUN_FILE))


def named_run(model: Path, version: Path, data: dict[str, Any] | None) -> RunKey | None:
    """As `run_of`, where what its run.json holds was read already."""
    stored = (data or {}).get("model_name"), (data or {}).get("version_name")
    if isinstance(stored[0], str) and isinstance(stored[1], str):
        key = RunKey(stored[0], stored[1])
        # A folder that was copied or renamed by hand goes by what it is called now.
        if (names.encode(key.model_name), names.encode(key.version_name)) == (model.name, version.name):
            return key
    model_name, version_name = names.decode(model.name), names.decode(version.name)
    if model_name is None or version_name is None:
        return None
    has_epochs = any(parse_epoch(epoch.name) for split in subfolders(version) for epoch in subfolders(split))
    if data is None and not has_epochs:
        return None
    return RunKey(model_name, version_name)
