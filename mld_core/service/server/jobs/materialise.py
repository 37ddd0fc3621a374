"""Lays the sealed records of a run out as an ordinary store, so that the ordinary evaluator reads them.

Parquet files are hard links to the stored blobs where that is possible, else copies. Names of a client's
(model, version, split) become folder names here only, and only through
`mld_core.records.format.names.encode`, which leaves letters, digits, `_`, `-`, `%` and `~`; names of
attempts and parts were checked when they were sealed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import aliased, undefer

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.manifest import ATTEMPT_FILE, SEAL_FILE, make_dirs, write_json
from mld_core.records.format.parts import file_name
from mld_core.records.format.removals import Removals
from mld_core.records.store.verdict import Verdict, of_members
from mld_core.records.store.verdicts import Verdicts
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Blob, Pass, Run, SaidVerdict, Seal, SealFile
from mld_core.service.server.storage.removals import samples_of


def parse_epoch(text: str) -> int | None:
    """The epoch of its stored form.

    >>> parse_epoch("none"), parse_epoch("-1")
    (None, -1)
    """
    return None if text == "none" else int(text)


def generation_of(info: dict[str, Any]) -> int:
    """The generation a run's info or an opening manifest names; 0 if it names none."""
    found = info.get("generation", 0)
    return found if isinstance(found, int) and 0 <= found < 1_000_000 else 0


def lay_out(
    database: Database,
    storage: Storage,
    root: Path,
    *,
    run_pk: int,
    organization_id: str,
    run: RunKey,
    info: dict[str, Any],
) -> Store:
    """Write a store that holds this one run with all that was sealed.

    Args:
        database: where the seals are.
        storage: where the blobs are.
        root: an empty folder.
        run_pk: the run's key in the database.
        organization_id: whose it is.
        run: its names.
        info: its run.json.

    Raises:
        FileNotFoundError: a sealed blob is not in the storage.
    """
    store = Store(root)
    with database.read() as session:
        removed = samples_of(session, session.get_one(Run, run_pk))
        found = session.execute(
            select(Pass, Seal, Blob.sha256)
            .join(Seal, Seal.pass_pk == Pass.pk)
            .outerjoin(Blob, Blob.pk == Seal.manifest_blob_pk)
            .where(Pass.run_pk == run_pk)
            .options(undefer(Seal.manifest))
        ).all()
    _lay_verdicts(database, store, run_pk=run_pk, run=run)
    generation = max([generation_of(info), *(generation_of(seal.opening) for _, seal, _ in found)])
    make_dirs(store.run_dir(run), fsync=False)
    if generation:
        (store.run_dir(run) / f".generation-{generation}").mkdir()
    names = {"model_name": run.model_name, "version_name": run.version_name}
    store.ensure_run(run, {**info, **names})
    for split in {split for _, split, _ in removed}:
        Removals(store, run).append((digest for digest, own, _ in removed if own == split), split)
    for owner, seal, blob in found:
        manifest = cast("str | None", blob)
        key = PassKey(owner.dataset_type, parse_epoch(owner.epoch), owner.pass_no)
        folder = store.rank_dir(run, key, seal.attempt, seal.rank_no)
        lay_seal(database, storage, folder, organization_id=organization_id, seal=seal, manifest=manifest)
    return store


def lay_seal(
    database: Database,
    storage: Storage,
    folder: Path,
    *,
    organization_id: str,
    seal: Seal,
    manifest: str | None,
) -> None:
    """Write the folder of one sealed rank.

    Args:
        database: where the seals are.
        storage: where the blobs are.
        folder: the rank's folder.
        organization_id: whose it is.
        seal: the seal.
        manifest: digest of its seal.json; None where the row holds it.

    Raises:
        FileNotFoundError: a sealed blob is not in the storage.
    """
    make_dirs(folder, fsync=False)
    _files(database, storage, folder, seal.pk, organization_id)
    write_json(folder / ATTEMPT_FILE, seal.opening, fsync=False)
    if manifest is None:  # sealed through protocol 1.0, at a server of that time
        write_json(folder / SEAL_FILE, seal.manifest, fsync=False)
    else:
        link(storage.local(organization_id, manifest), folder / SEAL_FILE)


def _lay_verdicts(database: Database, store: Store, *, run_pk: int, run: RunKey) -> None:
    """What people said of the model's samples, whichever version they looked at."""
    versions = aliased(Run)
    with database.read() as session:
        rows = session.execute(
            select(versions.version_name, SaidVerdict.said)
            .join(versions, versions.pk == SaidVerdict.run_pk)
            .join(Run, (Run.pk == run_pk) & (Run.organization_pk == versions.organization_pk))
            .where(versions.model_name == Run.model_name)
            .order_by(SaidVerdict.pk)
        ).all()
    books: dict[str, list[Verdict]] = {}
    for version, said in rows:
        books.setdefault(version, []).append(of_members(said))
    for version, verdicts in books.items():
        Verdicts(store, RunKey(run.model_name, version)).take_in(verdicts)


def _files(database: Database, storage: Storage, folder: Path, seal_pk: int, organization_id: str) -> None:
    query = (
        select(SealFile.part, SealFile.family, Blob.sha256)
        .join(Blob, Blob.pk == SealFile.blob_pk)
        .where(SealFile.seal_pk == seal_pk)
    )
    with database.read() as session:
        rows = session.execute(query).all()
    for part, family, sha256 in rows:
        target = folder / part / file_name(family)
        target.parent.mkdir(exist_ok=True)
        link(storage.local(organization_id, sha256), target)


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where that is not possible."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
