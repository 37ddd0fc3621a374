"""What the commands ask a team's service: its runs, their passes, the newest run."""

from __future__ import annotations

from typing import Any

from mld_core.evaluation.endpoint import Endpoint, resolve_endpoint
from mld_core.evaluation.errors import NotFoundError, known, near
from mld_core.records.format.layout import RunKey
from mld_core.service.client.api import Client
from mld_core.service.client.transport import INTERACTIVE

RUN_COLUMNS = ("model", "version", "task", "created_at", "updated_at")
PASS_COLUMNS = ("dataset", "epoch", "pass", "rows", "state", "ranks", "attempt")


def the_service(endpoint: str | None = None) -> Endpoint:
    """The service that is set up.

    Raises:
        NotFoundError: none is.
    """
    found = resolve_endpoint(endpoint)
    if found is None:
        raise NotFoundError("no service is named: set MLD_API_ENDPOINT and MLD_API_KEY, or give --endpoint")
    return found


def client_of(service: Endpoint) -> Client:
    """A client that says within seconds that nobody answers."""
    return Client(service.url, service.api_key, INTERACTIVE)


def remote_runs(client: Client, model: str | None, version: str | None) -> list[dict[str, Any]]:
    """The runs of the key's organization, as they are answered.

    Raises:
        NotFoundError: there is none of that name; the message lists what exists.
    """
    runs = list(client.pages("/v1/runs"))
    named = [
        one
        for one in runs
        if model in {None, one["model_name"]} and (version is None or version == one["version_name"])
    ]
    if not named:
        models = list(dict.fromkeys(str(one["model_name"]) for one in runs))
        asked = f"model {model!r}" + (f" version {version!r}" if version is not None else "")
        spelled = near(model, models) if model is not None else ""
        raise NotFoundError(
            f"the service at {client.url} holds no runs: `mld sync` uploads what was recorded here"
            if not runs
            else f"no {asked}{spelled} at {client.url} (models: {known(models)})"
        )
    return named


def newest_run(client: Client, model: str | None, version: str | None) -> RunKey:
    """The run that was named; with no version the model's newest, with no names the newest of all."""
    found = max(remote_runs(client, model, version), key=lambda one: str(one["created_at"]))
    return RunKey(str(found["model_name"]), str(found["version_name"]))


def run_row(one: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of `RUN_COLUMNS`."""
    task = (one.get("info") or {}).get("task")
    times = {name: one.get(name) for name in ("created_at", "updated_at")}
    return {"model": one["model_name"], "version": one["version_name"], "task": task, **times}


def pass_rows(client: Client, run_id: str) -> list[dict[str, Any]]:
    """The passes of a run as rows of `PASS_COLUMNS`: the newest attempt at each that all ranks sealed."""
    rows = []
    for one in client.pages(f"/v1/runs/{run_id}/passes"):
        attempts = one.get("attempts") or [{}]
        chosen = next((item for item in reversed(attempts) if item.get("sealed")), attempts[-1])
        rows.append(
            {
                "dataset": one["dataset_type"],
                "epoch": one["n_epoch"],
                "pass": one["pass_no"],
                "rows": (chosen.get("rows") or {}).get("samples"),
                "state": "sealed" if one.get("sealed") else "partial",
                "ranks": chosen.get("ranks"),
                "attempt": chosen.get("attempt"),
            }
        )
    return rows
