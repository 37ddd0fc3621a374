"""Where results are read from: the service at MLD_API_ENDPOINT, or a store on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mld_core.cli.common import choose_run, open_store
from mld_core.evaluation.errors import NotFoundError, known, near
from mld_core.evaluation.results.store import ResultStore, find_run
from mld_core.records.format.layout import RunKey, Store
from mld_core.service.client.endpoint import Endpoint, resolve_endpoint
from mld_core.service.protocol import MAX_PAGE, SEARCHES_SINCE

if TYPE_CHECKING:
    from mld_core.evaluation.evaluator import Evaluator
    from mld_core.evaluation.results.result import Result
    from mld_core.evaluation.results.summary import Summary
    from mld_core.service.client.api import Client
    from mld_core.service.client.remote import RemoteEvaluator


class Source(ABC):
    """Runs and their results."""

    place = ""
    """Where that is, as the end of a phrase; empty for this machine."""

    @abstractmethod
    def run(self, model: str | None, version: str | None) -> RunKey:
        """The run that was named; with no version the model's newest, with no names the newest of all."""

    @abstractmethod
    def evaluator(self, run: RunKey) -> Evaluator:
        """The evaluator of a run."""

    @abstractmethod
    def results(self, run: RunKey) -> list[str]:
        """The names of a run's results, oldest first."""

    @abstractmethod
    def where(self, run: RunKey, name: str) -> tuple[ResultStore, str]:
        """A result that lies here, or was brought here.

        Raises:
            NotFoundError: There is none of that name.
        """

    @abstractmethod
    def names(self) -> list[RunKey]:
        """Every run there is."""

    @abstractmethod
    def find(self, text: str, model: str | None = None) -> Result:
        """The result a text names.

        A result, `MODEL/VERSION`, a version of `model` (default: of the newest run's), or a model.
        """

    def holds(self, model: str, version: str | None = None) -> bool:
        """Whether there is a run of these names."""
        return any(run.model_name == model and version in {None, run.version_name} for run in self.names())

    def result(self, run: RunKey, name: str | None = None) -> Result:
        """A result of a run; without a name the newest.

        Raises:
            NotFoundError: There is none yet, or none of that name.
        """
        found = self._named(run, name)
        # What reads a result, and not what makes one: that brings much more with it.
        from mld_core.evaluation.diagnoses import BY_CODE
        from mld_core.evaluation.results.result import Result

        return Result(*found, diagnoses=BY_CODE)

    def summary(self, run: RunKey, name: str | None = None) -> tuple[Summary, Store]:
        """What `mld show` prints of a result, read without what a table of its units takes; and its store.

        Raises:
            NotFoundError: As of `result`.
        """
        results, found = self._named(run, name)
        from mld_core.evaluation.diagnoses import BY_CODE
        from mld_core.evaluation.results.summary import read_summary

        return read_summary(results, *results.load(found), BY_CODE), results.store

    def _named(self, run: RunKey, name: str | None) -> tuple[ResultStore, str]:
        names = [name] if name is not None else self.results(run)
        if not names:
            asked = f"{run.model_name} {run.version_name}"
            raise NotFoundError(f"{asked} has no results{self.place} yet: run `mld evaluate {asked}`")
        return self.where(run, names[-1])

    def _owned(self, text: str, owners: list[RunKey]) -> Result:
        """The result of that name of the one run that has it."""
        if len(owners) > 1:
            named = known(f"{run.model_name}/{run.version_name}" for run in owners)
            raise NotFoundError(f"several results are named {text!r} (of {named}): name the run instead")
        return self.result(owners[0], text)


def source(store: Path | None) -> Source:
    """The service, where one is set and no store was named; else the store.

    Raises:
        NotFoundError: There is no store, or it is empty.
        ValueError: There is a key but no endpoint.
    """
    service = resolve_endpoint() if store is None else None
    return StoreSource(open_store(store, reads=True)) if service is None else ServiceSource(service)


class StoreSource(Source):
    """A store on this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, model: str | None, version: str | None) -> RunKey:
        """See `Source`."""
        return choose_run(self._store, model, version)

    def evaluator(self, run: RunKey) -> Evaluator:
        """See `Source`."""
        from mld_core.evaluation.evaluator import Evaluator

        return Evaluator(run.model_name, run.version_name, store=self._store.root)

    def results(self, run: RunKey) -> list[str]:
        """See `Source`."""
        return [str(info["result_name"]) for info in self._of(run).all()]

    def where(self, run: RunKey, name: str) -> tuple[ResultStore, str]:
        """See `Source`."""
        return self._of(run), name

    def _of(self, run: RunKey) -> ResultStore:
        return ResultStore(self._store, find_run(self._store, run.model_name, run.version_name))

    def names(self) -> list[RunKey]:
        """See `Source`."""
        return self._store.runs()

    def find(self, text: str, model: str | None = None) -> Result:
        """See `Source`; a result's name goes before a run's."""
        runs = self._store.runs()
        owners = [
            run
            for run in runs
            if any(info["result_name"] == text for info in ResultStore(self._store, run).all())
            and model in {None, run.model_name}
        ]
        if owners:
            return self._owned(text, owners)
        for run in runs:
            if text == f"{run.model_name}/{run.version_name}":
                return self.result(run)
        chosen = model if model is not None else self.run(None, None).model_name
        if model is None and not self.holds(chosen, text) and self.holds(text):
            return self.result(self.run(text, None))
        return self.result(find_run(self._store, chosen, text))


class ServiceSource(Source):
    """A team's service; what is read is copied here and stays."""

    def __init__(self, service: Endpoint) -> None:
        self._service = service
        self.client = client_of(service)
        self.place = f" at {service.url}"

    def run(self, model: str | None, version: str | None) -> RunKey:
        """See `Source`; two names are taken as they are, what is read next tells whether they exist."""
        if model is not None and version is not None:
            return RunKey(model, version)
        return self.newest(model, version)

    def newest(self, model: str | None, version: str | None) -> RunKey:
        """The newest of the runs of these names."""
        found = max(self.runs(model, version, most=1), key=lambda one: str(one["created_at"]))
        return RunKey(str(found["model_name"]), str(found["version_name"]))

    def runs(
        self, model: str | None, version: str | None = None, *, tag: str | None = None, most: int = MAX_PAGE
    ) -> list[dict[str, Any]]:
        """The newest runs of the key's organization, at most `most`; of those the oldest first.

        Raises:
            NotFoundError: There is none of that name or tag; the message lists what exists.
        """
        asked = {"model_name": model, "version_name": version, "tag": tag}
        given = {name: value for name, value in asked.items() if value is not None}
        found = self.client.page("/v1/runs", {"limit": min(most, MAX_PAGE), "order": "newest", **given})
        named = [
            one
            for one in found  # a service of the version before lists them all
            if model in {None, one["model_name"]}
            and version in {None, one["version_name"]}
            and (tag is None or tag in one.get("tags", ()))
        ]
        if named:
            return sorted(named, key=lambda one: str(one["created_at"]))
        runs = self.client.page("/v1/runs", {"limit": MAX_PAGE, "order": "newest"})
        if not runs:
            sync = "`mld sync` uploads what was recorded here"
            raise NotFoundError(f"the service{self.place} holds no runs: {sync}")
        models = list(dict.fromkeys(str(one["model_name"]) for one in runs))
        words = [f"model {model!r}"] * (model is not None) + [f"version {version!r}"] * (version is not None)
        what = " ".join([*words, *[f"with tag {tag!r}"] * (tag is not None)])
        spelled = near(model, models) if model is not None else ""
        raise NotFoundError(f"no {what}{spelled}{self.place} (models: {known(models)})")

    def names(self) -> list[RunKey]:
        """See `Source`."""
        return [RunKey(str(one["model_name"]), str(one["version_name"])) for one in self.runs(None)]

    def evaluator(self, run: RunKey) -> Evaluator:
        """See `Source`."""
        from mld_core.evaluation.evaluator import Evaluator

        return Evaluator(run.model_name, run.version_name, elsewhere=self._remote(run))

    def _remote(self, run: RunKey) -> RemoteEvaluator:
        from mld_core.service.client.remote import RemoteEvaluator

        return RemoteEvaluator(self._service, Store(), run)

    def results(self, run: RunKey) -> list[str]:
        """See `Source`."""
        return [str(info["result_name"]) for info in self._remote(run).infos()]

    def where(self, run: RunKey, name: str) -> tuple[ResultStore, str]:
        """See `Source`."""
        return self._remote(run).get_result(name)

    def find(self, text: str, model: str | None = None) -> Result:
        """See `Source`; a run's name goes before a result's."""
        runs = self.runs(model)
        newest = model or self.newest(None, None).model_name
        for names in (text.partition("/")[::2], text.rpartition("/")[::2], (newest, text)):
            if all(names) and self._there(RunKey(*names), runs):
                return self.result(RunKey(*names))
        owners = [
            RunKey(str(one["model_name"]), str(one["version_name"]))
            for one in self._with_result(text, runs)
            if model in {None, one["model_name"]}
        ]
        if owners:
            return self._owned(text, owners)
        if model is None and self.holds(text):
            return self.result(self.run(text, None))
        versions = known(one["version_name"] for one in runs if one["model_name"] == newest)
        raise NotFoundError(
            f"nothing is named {text!r}{self.place}: expected a result, MODEL/VERSION, or a "
            f"version of {newest!r} (versions: {versions}); `mld ls --remote` lists the runs"
        )

    def _there(self, run: RunKey, runs: list[dict[str, Any]]) -> bool:
        """Whether there is this run, be it older than the newest ones that were listed."""
        asked = {"model_name": run.model_name, "version_name": run.version_name}
        if self.client.minor >= SEARCHES_SINCE:
            runs = self.client.page("/v1/runs", asked)
        return any(asked.items() <= one.items() for one in runs)

    def _with_result(self, name: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The runs that have a result of that name."""
        if self.client.minor >= SEARCHES_SINCE:
            items = self.client.pages("/v1/results", {"result_name": name})
            return [self.client.json("GET", f"/v1/runs/{item['run_id']}") for item in items]
        return [
            one
            for one in runs
            for item in self.client.pages(f"/v1/runs/{one['run_id']}/results", {"result_name": name})
            if item["result_name"] == name
        ]


def the_service(endpoint: str | None = None) -> Endpoint:
    """The service that is set up.

    Raises:
        NotFoundError: None is.
    """
    found = resolve_endpoint(endpoint)
    if found is None:
        raise NotFoundError("no service is named: set MLD_API_ENDPOINT and MLD_API_KEY, or give --endpoint")
    return found


def client_of(service: Endpoint) -> Client:
    """A client that says within seconds that nobody answers."""
    from mld_core.service.client.api import Client
    from mld_core.service.client.transport import INTERACTIVE

    return Client(service.url, service.api_key, INTERACTIVE)
