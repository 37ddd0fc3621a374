"""What is said about a run: its first lines in run.json, and the account at its end."""

from __future__ import annotations

import shlex
from typing import Any

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.options import Account
from mld_core.records.format.schema import HASH_KIND
from mld_core.records.write.retention import prune
from mld_core.tracing.batch.hashing_host import KIND
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.sealing import RunWriter
from mld_core.tracing.run.uploads import where_to


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


def account_text(session: RunWriter, account: Account, share: tuple[float, float] | None) -> str:
    """Rows, losses, share of wall time and where, and the one command that evaluates.

    Args:
        session: the closed session.
        account: the writer's account.
        share: seconds spent in the training thread, seconds of wall time since the start, where measured.
    """
    if session.unsupported:
        return f"Nothing was recorded: {session.unsupported} is not supported."
    guard, run, store = session.guard, session.run, session.store
    command = ["mld", "evaluate", run.model_name, run.version_name]
    if store.root != Store().root:
        command += ["--store", str(store.root)]
    lost = account.rows_lost + guard.rows_lost
    lines = [f"{account.rows_written} rows recorded to {store.run_dir(run)}, {lost} lost."]
    if share is not None:
        spent, wall = share
        lines.append(
            f"{spent:.2f} s of {wall:.1f} s were spent in the training thread "
            f"({100.0 * spent / max(wall, 1e-9):.2f} %), {account.blocked_seconds:.2f} s of it waiting for "
            "the disk."
        )
    if session.unlabelled:
        lines.append(f"{session.unlabelled} rows have no label: nothing about them can be evaluated.")
    if session.spills:
        lines.append(f"{session.spills} batches found no staging slot and took a fresh one.")
    if guard.problems or account.reasons:
        reasons = "; ".join(f"{what}: {n} rows" for what, n in account.reasons.items())
        lines.append(f"Problems: {guard.summary()}{'; ' + reasons if reasons else ''}.")
    if session.uploads is not None:
        lines.append(session.uploads.summary())
    if account.rows_written:
        lines.append("Evaluate with: " + shlex.join(command))
    return "\n".join(lines)
