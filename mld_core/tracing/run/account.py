"""What is said about a run: its first lines in run.json, and the account at its end."""

from __future__ import annotations

import os
import shlex
import socket
from typing import Any

from mld_core.records.format.attempts import list_attempts, list_passes
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.options import Account
from mld_core.records.format.schema import HASH_KIND
from mld_core.records.write.retention import prune
from mld_core.tracing.batch.hashing_host import KIND
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.beside.uploads import where_to
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.sealing import RunWriter


def describe_run(
    store: Store, run: RunKey, hashed: str, options: RecorderOptions, guard: Guard, **more: Any
) -> dict[str, Any]:
    """Writes run.json's first lines; warns where another architecture goes by this model name.

    Returns:
        What run.json holds.
    """
    info: dict[str, Any] = {**more, "architecture_hash": hashed}
    if options.input_hash:
        info[HASH_KIND] = KIND
    if options.class_names is not None:
        info["class_names"] = list(options.class_names)
    stored = store.ensure_run(run, info)
    others = [r for r in store.runs() if r.model_name == run.model_name and r != run]
    known = [stored] + [store.run_info(r) for r in others[:1]]
    if any(k.get("architecture_hash") not in {None, hashed} for k in known):
        guard.tell_once(
            f"architecture:{run.model_name}",
            f"The architecture of model_name={run.model_name!r} differs from the one recorded first under "
            "this name. Records are kept apart by version_name; if this is another model, give it another "
            "model_name.",
        )
    return stored


def tell_start(guard: Guard, run: RunKey, store: Store, options: RecorderOptions) -> None:
    """Says once where records go."""
    guard.tell_once(
        f"start:{run}:{store.root}", f"Recording {run.model_name}/{run.version_name} to {store.root}"
    )
    uploads = where_to(options)
    if uploads:
        guard.tell_once("endpoint", uploads)


def tell_apart(guard: Guard, run: RunKey, store: Store, options: RecorderOptions) -> None:
    """Says once on each node that its disk is not rank 0's, which wrote run.json before it told the names."""
    if options.credentials()[0] or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if "architecture_hash" in store.run_info(run):
        return
    guard.tell_once(
        "apart",
        f"{store.root} on {socket.gethostname()} is not the folder that rank 0 records to: the nodes share "
        "no disk, so no pass is sealed there by all its ranks, and an evaluation sees the rows of one node "
        "only. Let MLD_HOME (or store=) name a folder that all nodes share, or give an api_endpoint, to "
        "which every node uploads; or join the stores afterwards: mld merge STORE_OF_NODE_0 STORE_OF_NODE_1 "
        "--into ALL.",
    )


def keep_store_small(session: RunWriter) -> None:
    """Applies `max_store_gb` at the end of a run; each warning is told before anything goes."""
    limit = session.options.max_store_gb
    if limit is not None:
        prune(
            session.store,
            keep_vectors=None,
            max_store_gb=limit,
            on_warning=lambda message: session.tell("max_store_gb", message),
        )


def _of_all_ranks(session: RunWriter) -> tuple[int, int, str]:
    """Rows and lost rows of the other ranks, as far as their seals are on this disk, and who counts."""
    if session.world_size == 1:
        return 0, 0, ""
    rows, lost = 0, 0
    sealed = dict.fromkeys(range(session.world_size), 0)
    for key in list_passes(session.store, session.run):
        for attempt in list_attempts(session.store, session.run, key):
            for rank in attempt.ranks if attempt.name == session.attempt else ():
                if rank.sealed is None:
                    continue
                sealed[rank.rank] = sealed.get(rank.rank, 0) + 1
                if rank.rank != session.rank:
                    rows += rank.sealed.rows.get("samples", 0)
                    lost += sum(rank.sealed.losses.values())
    seen = [rank for rank, passes in sealed.items() if passes or rank == session.rank]
    if len(seen) == 1:
        return (
            0,
            0,
            f" by this rank ({session.rank} of {session.world_size}; no other has sealed a pass here)",
        )
    if len(seen) == session.world_size and min(sealed.values()) == sealed[session.rank]:
        return rows, lost, f" by {session.world_size} ranks"
    return rows, lost, f" by {len(seen)} of {session.world_size} ranks, as far as they have sealed,"


def account_text(
    session: RunWriter, account: Account, share: tuple[float, float] | None, left_out: int = 0
) -> str:
    """Rows, losses, share of wall time and where, and the one command that evaluates.

    Args:
        session: the closed session.
        account: the writer's account.
        share: seconds spent in the training thread, seconds of wall time since the start, where measured.
        left_out: rows of this rank that were not recorded because recording took too much of the training.
    """
    if session.unsupported:
        return f"Nothing was recorded: {session.unsupported} is not supported."
    guard, run, store = session.guard, session.run, session.store
    command = ["mld", "evaluate", run.model_name, run.version_name]
    if store.root != Store().root:
        command += ["--store", str(store.root)]
    rows, lost, by = 0, 0, ""
    with guard.catch("reading what the other ranks sealed", lost="nothing; this rank's rows are counted"):
        rows, lost, by = _of_all_ranks(session)
    rows, lost = rows + account.rows_written, lost + account.rows_lost + guard.rows_lost
    lines = [f"{rows} rows recorded{by} to {store.run_dir(run)}, {lost} lost."]
    if share is not None:
        spent, wall = share
        lines.append(
            f"{spent:.2f} s of {wall:.1f} s were spent in the training thread "
            f"({100.0 * spent / max(wall, 1e-9):.2f} %), {account.blocked_seconds:.2f} s of it waiting for "
            "the disk."
        )
    if left_out:
        lines.append(f"{left_out} training rows were left out to spare the training (MLD_THIN=0 forbids it).")
    if session.unlabelled:
        lines.append(f"{session.unlabelled} rows have no label: nothing about them can be evaluated.")
    if session.spills:
        lines.append(f"{session.spills} batches found no staging slot and took a fresh one.")
    if guard.problems or account.reasons:
        reasons = "; ".join(f"{what}: {n} rows" for what, n in account.reasons.items())
        lines.append(f"Problems: {guard.summary()}{'; ' + reasons if reasons else ''}.")
    if session.uploads is not None:
        lines.append(session.uploads.summary())
    if rows:
        lines.append("Evaluate with: " + shlex.join(command))
    return "\n".join(lines)
