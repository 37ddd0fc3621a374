"""`mld doctor`: what is installed, where the store is, and whether it is sound."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from mld_core.cli.common import (
    FAILED,
    NOTHING,
    JsonOption,
    StoreOption,
    clear_errors,
    store_in_folder,
)
from mld_core.cli.output import cell, emit, emit_json, note
from mld_core.records.format.layout import Store

PACKAGES = (
    *("ml-debugger", "numpy", "pyarrow", "pandas", "duckdb", "scikit-learn", "requests", "rich", "typer"),
    *("xxhash", "torch", "lightning", "pytorch-lightning", "transformers", "accelerate", "mmengine"),
    *("mmdet", "mmdet3d", "ultralytics", "numba", "ray"),
)


def doctor(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the files to compare their checksums.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which versions are installed and where the store is, and check the store.

    Exit code 1 where something is damaged or unfinished, 3 where there is no store. Nothing is changed.

    \b
    Examples:
      mld doctor
      mld doctor --quick --store /mnt/team/.mld
      mld doctor --json > report.json      to attach to a bug report
    """  # noqa: D301  click reads the mark
    with clear_errors():
        from mld_core.records.read.check import check_store

        place = store_in_folder(store)
        facts = _store_facts(place, store)
        there = place.root.is_dir() and bool(place.runs())
        findings = [] if not there else [asdict(one) for one in check_store(place, digests=not quick)]
        findings += _settings()
        if as_json:
            emit_json({"versions": versions(), "store": facts, "findings": findings})
        else:
            rows = [
                {"section": "version", "name": name, "value": value} for name, value in versions().items()
            ]
            rows += [
                {"section": "store", "name": name, "value": cell(value)} for name, value in facts.items()
            ]
            rows += [
                {"section": one["severity"], "name": one["kind"], "value": f"{one['path']}: {one['message']}"}
                for one in findings
            ]
            emit(rows, ("section", "name", "value"), as_json=False)
        if not there:
            note(
                f"mld: there are no runs at {place.root}: record a training first, or give --store DIR or "
                "MLD_HOME"
            )
            raise typer.Exit(NOTHING)
        if any(one["severity"] != "info" for one in findings):
            note("mld: the store has findings, see above")
            raise typer.Exit(FAILED)
        note("no problems found" + (" (checksums were not compared)" if quick else ""))


def versions() -> dict[str, str]:
    """Python and every package that matters, with "not installed" for those that are not."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: _version_of(name) for name in PACKAGES}


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _store_facts(store: Store, given: Path | None) -> dict[str, Any]:
    source = "--store" if given is not None else "MLD_HOME" if os.environ.get("MLD_HOME") else "default"
    return {
        "path": str(store.root),
        "chosen_by": source,
        "exists": store.root.is_dir(),
        "writable": os.access(store.root, os.W_OK) if store.root.is_dir() else None,
        "runs": len(store.runs()) if store.root.is_dir() else 0,
        "endpoint": os.environ.get("MLD_API_ENDPOINT") or None,
    }


def _settings() -> list[dict[str, Any]]:
    """Settings that contradict each other."""
    if os.environ.get("MLD_API_KEY") and not os.environ.get("MLD_API_ENDPOINT"):
        text = (
            "MLD_API_KEY is set but MLD_API_ENDPOINT is not: set both for a service, none for the local store"
        )
        return [{"kind": "settings", "severity": "warning", "path": "MLD_API_KEY", "message": text}]
    return []
