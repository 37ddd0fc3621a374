"""Export of a run: one ZIP with a Parquet file per pass and family, and one JSON manifest.

The rows are those a reader would get (newest sealed attempts, de-duplicated). Vectors stay FixedSizeBinary
with dtype and shape in the column's metadata, which the manifest repeats. Nothing is held in memory but one
batch.
"""

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from mld_core.records.format import names
from mld_core.records.format.layout import PassKey, RunKey, Store, epoch_folder
from mld_core.records.format.manifest import FORMAT, plain, utc_now, work_folder, write_json
from mld_core.records.format.parts import VECTOR_ROW_GROUP, file_digest, file_name, write_options
from mld_core.records.format.schema import FAMILIES
from mld_core.records.format.vectors import is_vector
from mld_core.records.read.reader import PassSelection, select

MANIFEST_FILE = "manifest.json"


def export_path(
    run: RunKey, output_path: str | Path | None = None, n_epoch: int | Literal["latest"] | None = None
) -> Path:
    """Where an export goes: a path without `.zip` is a directory, to which the default file name is added.

    >>> export_path(RunKey("resnet", "v1"), "out", 3).as_posix()
    'out/resnet_v1_epoch-3.zip'
    """
    suffix = "" if n_epoch is None else "_latest" if n_epoch == "latest" else f"_{epoch_folder(n_epoch)}"
    default = f"{names.encode(run.model_name)}_{names.encode(run.version_name)}{suffix}.zip"
    if output_path is None:
        return Path.cwd() / default
    path = Path(output_path).expanduser()
    return path if path.suffix.lower() == ".zip" else path / default


def export_run(
    store: Store,
    run: RunKey,
    output_path: str | Path | None = None,
    n_epoch: int | Literal["latest"] | None = None,
) -> Path:
    """Write the ZIP, whole or not at all.

    Args:
        store: where the records are.
        run: the run.
        output_path: see `export_path`; an existing file is replaced.
        n_epoch: an epoch, "latest", or None = all.

    Returns:
        The path of the ZIP.

    Raises:
        ValueError: nothing was recorded for that run and epoch. OSError: the target can not be written.
    """
    found = select(store, run, n_epoch=n_epoch, passes="all")
    if not found:
        there = sorted({str(item.key.n_epoch) for item in select(store, run, n_epoch=None)})
        raise ValueError(
            f"nothing to export for model {run.model_name!r} version {run.version_name!r}, "
            f"n_epoch={n_epoch!r} in {store.root}; recorded epochs: {', '.join(there) or 'none'}"
        )
    target = export_path(run, output_path, n_epoch)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; give the export a path of its own")
    target.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(target.parent, "export") as work:
        archive = work / "export.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, allowZip64=True) as bundle:
            passes = [_add_pass(bundle, item, work) for item in found]
            manifest = {
                "format": FORMAT,
                **dataclasses.asdict(run),
                "created_at": utc_now(),
                "run": plain(store.run_info(run)),
                "passes": passes,
            }
            write_json(work / MANIFEST_FILE, manifest, fsync=False)
            bundle.write(work / MANIFEST_FILE, MANIFEST_FILE, zipfile.ZIP_DEFLATED)
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        archive.replace(target)
    return target


def _folder(key: PassKey) -> str:
    return f"{names.encode(key.dataset_type)}/{epoch_folder(key.n_epoch)}/pass-{key.pass_no}"


def _add_pass(bundle: zipfile.ZipFile, item: PassSelection, work: Path) -> dict[str, Any]:
    files: dict[str, Any] = {}
    report = item.report
    for family in FAMILIES:
        if family != "samples" and not item.has(family):
            continue
        path = work / file_name(family)
        rows, vectors = _write(item, family, path)
        inside = f"{_folder(item.key)}/{file_name(family)}"
        files[inside] = {
            "family": family,
            "rows": rows,
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
            "vectors": vectors,
        }
        bundle.write(path, inside)
        path.unlink()
    return {
        **dataclasses.asdict(item.key),
        "task": item.task,
        "attempt": item.attempt,
        "sealed": item.sealed,
        "sealed_at": item.sealed_at,
        "missing_ranks": item.missing_ranks,
        "torn": item.torn,
        "losses": item.losses,
        "duplicates_dropped": report.duplicates_dropped,
        "non_unique_ids": report.non_unique_ids,
        "superseded_rows": report.superseded_rows,
        "meta": plain(item.meta),
        "files": files,
    }


def _write(item: PassSelection, family: str, path: Path) -> tuple[int, dict[str, Any]]:
    schema = item.schema(family)
    options = write_options(family, schema, "zstd")
    group = options.pop("row_group_size")
    rows = 0
    with pq.ParquetWriter(str(path), schema, **options) as out:
        for batch in item.batches(family, batch_rows=group if family != "vectors" else VECTOR_ROW_GROUP):
            out.write_batch(batch, row_group_size=group)
            rows += batch.num_rows
    vectors = {
        field.name: {key.decode(): value.decode() for key, value in field.metadata.items()}
        for field in schema
        if is_vector(field)
    }
    return rows, vectors
