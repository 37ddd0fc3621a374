"""The evaluator's remote side: asks the service, waits, and brings the result's files here.

A result is downloaded once into `<MLD_HOME>/.service/<service>/…`, laid out as in any store, so that what the
user gets is the same `Result` as after a local evaluation, and works offline from then on.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mld_core.evaluation.errors import FilterError, NotFoundError, ResultExistsError, known, near
from mld_core.evaluation.results.store import RESULT_FILE, ResultStore
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import make_dirs, read_json, tmp_name, write_json
from mld_core.service.client.api import Client
from mld_core.service.client.endpoint import Endpoint
from mld_core.service.client.errors import ServiceError
from mld_core.service.client.sealed import service_id
from mld_core.service.client.transport import INTERACTIVE, STEADY
from mld_core.service.protocol import FINISHED_STATES, MAX_PAGE

if TYPE_CHECKING:
    from rich.progress import Progress

CACHE_DIR = ".service"
_SOURCE_FILE = ".source.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
_FIRST_LOOK, _LAST_LOOK = 0.1, 2.0
_NO_WORKER_SECONDS = 30.0
_LAST_WORD_SECONDS = 5.0
_ERRORS: Mapping[str, type[Exception]] = {
    "NotFoundError": NotFoundError,
    "ResultExistsError": ResultExistsError,
    "FilterError": FilterError,
    "ValueError": ValueError,
    "TypeError": TypeError,
    "KeyError": ValueError,
}
_LOCAL_OPTIONS = frozenset({"progress", "threads", "ray_address"})  # of this machine, not of the evaluation


class RemoteEvaluator:
    """Evaluations of one model version at a service.

    Args:
        service: its address and the key.
        store: its root is where results are kept.
        run: the model and its version.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, service: Endpoint, store: Store, run: RunKey) -> None:
        self._client = Client(service.url, service.api_key, INTERACTIVE)
        self._store = store
        self._run = run

    def request_evaluation(
        self,
        result_name: str | None,
        n_epoch: int | str | None,
        *,
        method_name: str,
        options: Mapping[str, Any],
    ) -> tuple[ResultStore, str]:
        """Ask for an evaluation and wait for it; Ctrl-C cancels it at the service, too.

        Raises:
            NotFoundError, ResultExistsError, ValueError: as the local evaluator.
            RuntimeError: it failed at the service; the message holds the reason.
            ConnectionError, AuthenticationError: see `Client`.
        """
        run_id = self._run_id()
        body = {
            "result_name": result_name,
            "n_epoch": n_epoch,
            "method_name": method_name,
            "options": {name: value for name, value in options.items() if name not in _LOCAL_OPTIONS},
        }
        asked: Future[dict[str, Any]] = Future()
        try:
            self._ask(asked, f"/v1/runs/{run_id}/evaluations", body)
            with _clear_errors():
                job = asked.result()
            job = self._finished(job, shown=options.get("progress"))
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # nothing was begun there, or nobody answers
                self._client.json("DELETE", f"/v1/jobs/{asked.result(_LAST_WORD_SECONDS)['job_id']}")
            raise
        if job.get("state") != "done":
            reason = job.get("reason") or f"the evaluation ended as {job.get('state')!r}"
            raise _ERRORS.get(str(job.get("error")), RuntimeError)(str(reason))
        info = self._client.json("GET", f"/v1/results/{job['result_id']}", patience=STEADY)
        return self._fetch(info)

    def _ask(self, asked: Future[dict[str, Any]], path: str, body: Mapping[str, Any]) -> None:
        """Queue a job from a thread, so that Ctrl-C just then does not lose the id of what it cancels."""

        def work() -> None:
            try:
                asked.set_result(self._client.json("POST", path, body=body, once=True))
            except Exception as error:  # noqa: BLE001 - raised where the answer is waited for
                asked.set_exception(error)

        # A daemon, not a pool: whoever leaves does not wait for a service that hangs.
        threading.Thread(target=work, daemon=True).start()

    def _finished(self, job: dict[str, Any], *, shown: bool | None) -> dict[str, Any]:
        """Ask until the job is over."""
        pause, begun = _FIRST_LOOK, time.monotonic()
        with _progress(shown) as progress:
            task = progress.add_task("queued", total=1.0)
            while job.get("state") not in FINISHED_STATES:
                waiting = job.get("state") == "queued" and time.monotonic() - begun > _NO_WORKER_SECONDS
                said = "queued (no worker has taken it yet: does one run?)" if waiting else job.get("stage")
                progress.update(
                    task,
                    completed=float(job.get("progress") or 0),
                    description=str(said or job.get("state")),
                )
                time.sleep(pause)
                pause = min(_LAST_LOOK, 1.3 * pause)
                # A service that is restarted goes on with its jobs; so do we.
                job = self._client.json("GET", f"/v1/jobs/{job['job_id']}", patience=STEADY)
        return job

    def infos(self) -> list[dict[str, Any]]:
        """The `result.json` of every result, oldest first."""
        found = [dict(item["info"]) for item in self._client.pages(f"/v1/runs/{self._run_id()}/results")]
        return sorted(found, key=lambda info: (str(info["completed_at"]), str(info["result_name"])))

    def get_result(self, result_name: str) -> tuple[ResultStore, str]:
        """Bring a stored result here.

        Raises:
            NotFoundError: there is none of that name; the message lists those that exist.
        """
        run_id = self._run_id()
        items = list(self._client.pages(f"/v1/runs/{run_id}/results", {"result_name": result_name}))
        for item in items:
            if item.get("result_name") == result_name:
                return self._fetch(item)
        there = [str(info["result_name"]) for info in self.infos()]
        raise NotFoundError(
            f"no result {result_name!r} for model {self._run.model_name!r} version "
            f"{self._run.version_name!r} at {self._client.url}{near(result_name, there)} (results: "
            f"{known(there)}); evaluate with request_evaluation()"
        )

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._client.url

    # -- looking up ------------------------------------------------------------------------------------------

    def _run_id(self) -> str:
        model, version, url = self._run.model_name, self._run.version_name, self._client.url
        query = {"model_name": model, "version_name": version}
        for item in self._client.pages("/v1/runs", query):
            if (item["model_name"], item["version_name"]) == (model, version):
                return str(item["run_id"])
        runs = self._client.page("/v1/runs", {"limit": MAX_PAGE, "order": "newest"})
        sync = "`mld sync` uploads what was recorded here"
        if not runs:
            raise NotFoundError(f"the service at {url} holds no runs: {sync}")
        models = list(dict.fromkeys(str(item["model_name"]) for item in runs))
        if model not in models:
            raise NotFoundError(
                f"no model {model!r}{near(model, models)} at {url} (models: {known(models)}); {sync}"
            )
        versions = [str(item["version_name"]) for item in runs if item["model_name"] == model]
        raise NotFoundError(
            f"model {model!r} has no version {version!r}{near(version, versions)} at {url} (versions: "
            f"{known(versions)}); {sync}"
        )

    # -- the local copy --------------------------------------------------------------------------------------

    def _fetch(self, item: Mapping[str, Any]) -> tuple[ResultStore, str]:
        """A result as files here; those that are here already are taken as they are."""
        service = service_id(self._client.url, str(self._client.whoami().get("organization_id", "")))
        cache = Store(self._store.root / CACHE_DIR / service)
        results = ResultStore(cache, self._run)
        result_name, result_id = str(item["result_name"]), str(item["result_id"])
        folder = results.folder(result_name)
        if not _is_copy(folder, result_id):
            make_dirs(results.root)
            tmp, old = results.root / tmp_name("download"), results.root / tmp_name("old")
            tmp.mkdir()
            try:
                self._download(tmp, result_id, dict(item["info"]))
                if folder.exists() and not _is_copy(folder, result_id):  # of a result that is gone there
                    folder.rename(old)
                tmp.rename(folder)
            except OSError:
                # Another process brought the same result here meanwhile: take that.
                if not _is_copy(folder, result_id):
                    raise
            finally:
                shutil.rmtree(tmp, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
        cache.ensure_run(self._run, {})
        return results, result_name

    def _download(self, folder: Path, result_id: str, info: dict[str, Any]) -> None:
        for file in self._client.pages(f"/v1/results/{result_id}/files"):
            name = str(file["name"])
            if _FILE_NAME.fullmatch(name) is None:  # it becomes a path on this machine
                raise ServiceError(f"the service at {self._client.url} names a file {name!r}", 200)
            self._client.download(str(file["sha256"]), folder / name, int(file["bytes"]))
        if not (folder / RESULT_FILE).exists():
            write_json(folder / RESULT_FILE, info)
        write_json(folder / _SOURCE_FILE, {"endpoint": self._client.url, "result_id": result_id})


def _is_copy(folder: Path, result_id: str) -> bool:
    return bool((read_json(folder / _SOURCE_FILE) or {}).get("result_id") == result_id)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """The service's refusals as the errors the local evaluator raises."""
    try:
        yield
    except ServiceError as error:
        said = f"{error.problem.get('detail') or error}"
        if error.name == "name-taken":
            raise ResultExistsError(
                f"{said}: read it with get_result(), or pass another result_name"
            ) from error
        if error.status == 404:
            raise NotFoundError(said) from error
        if error.status in {400, 422}:
            raise ValueError(said) from error
        raise


def _progress(shown: bool | None) -> Progress:
    """A bar on stderr, where a person looks; loaded where something is waited for."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    visible = console.is_terminal if shown is None else shown
    return Progress(*columns, console=console, transient=True, disable=not visible)
