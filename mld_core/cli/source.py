"""Where results are read from: the service at MLD_API_ENDPOINT, or a store on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mld_core.cli.common import choose_run, find_result, newest_result, open_store
from mld_core.cli.remote import client_of, newest_run, remote_runs
from mld_core.evaluation.endpoint import Endpoint, resolve_endpoint
from mld_core.evaluation.errors import NotFoundError, known
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.results.result import Result
from mld_core.records.format.layout import RunKey, Store


class Source(Protocol):
    """Runs and their results."""

    def run(self, model: str | None, version: str | None) -> RunKey:
        """The run that was named; with no version the model's newest, with no names the newest of all."""
        ...

    def result(self, run: RunKey, name: str | None = None) -> Result:
        """A result of a run; without a name the newest."""
        ...

    def find(self, text: str, model: str | None = None) -> Result:
        """The result a text names: a result, `MODEL/VERSION`, or a version of `model` (default: newest)."""
        ...


def source(store: Path | None) -> Source:
    """The service, where one is set and no store was named; else the store.

    Raises:
        NotFoundError: There is no store, or it is empty.
        ValueError: There is a key but no endpoint.
    """
    service = resolve_endpoint() if store is None else None
    return StoreSource(open_store(store)) if service is None else ServiceSource(service)


class StoreSource:
    """A store on this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, model: str | None, version: str | None) -> RunKey:
        """See `Source`."""
        return choose_run(self._store, model, version)

    def result(self, run: RunKey, name: str | None = None) -> Result:
        """See `Source`."""
        if name is None:
            return newest_result(self._store, run)
        return Evaluator(run.model_name, run.version_name, store=self._store.root).get_result(name)

    def find(self, text: str, model: str | None = None) -> Result:
        """See `Source`."""
        return find_result(self._store, text, model)


class ServiceSource:
    """A team's service; what is read is copied here and stays."""

    def __init__(self, service: Endpoint) -> None:
        self._service = service
        self._client = client_of(service)

    def run(self, model: str | None, version: str | None) -> RunKey:
        """See `Source`; two names are taken as they are, what is read next tells whether they exist."""
        if model is not None and version is not None:
            return RunKey(model, version)
        return newest_run(self._client, model, version)

    def _evaluator(self, run: RunKey) -> Evaluator:
        return Evaluator(run.model_name, run.version_name, self._service.url, self._service.api_key)

    def result(self, run: RunKey, name: str | None = None) -> Result:
        """See `Source`."""
        evaluator = self._evaluator(run)
        if name is None:
            names = list(evaluator.list_results()["result_name"])
            if not names:
                raise NotFoundError(
                    f"{run.model_name} {run.version_name} has no results at {self._client.url} yet: run "
                    f"`mld evaluate {run.model_name} {run.version_name}`"
                )
            name = str(names[-1])
        return evaluator.get_result(name)

    def find(self, text: str, model: str | None = None) -> Result:
        """See `Source`; a run's name goes before a result's, which takes one question for each run."""
        runs = remote_runs(self._client, model, None)
        newest = model or newest_run(self._client, None, None).model_name
        for one in runs:
            run = RunKey(str(one["model_name"]), str(one["version_name"]))
            if text == f"{run.model_name}/{run.version_name}" or run == RunKey(newest, text):
                return self.result(run)
        owners = [
            RunKey(str(one["model_name"]), str(one["version_name"]))
            for one in runs
            for item in self._client.pages(f"/v1/runs/{one['run_id']}/results", {"result_name": text})
            if item["result_name"] == text
        ]
        if len(owners) == 1:
            return self.result(owners[0], text)
        if owners:
            named = known(f"{run.model_name}/{run.version_name}" for run in owners)
            raise NotFoundError(f"several results are named {text!r} (of {named}): name the run instead")
        versions = known(one["version_name"] for one in runs if one["model_name"] == newest)
        raise NotFoundError(
            f"nothing is named {text!r} at {self._client.url}: expected a result, MODEL/VERSION, or a "
            f"version of {newest!r} (versions: {versions}); `mld ls --remote` lists the runs"
        )
