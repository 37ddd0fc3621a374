"""The evaluator: from the records of a run to a stored result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from mld_core import __version__
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.engine.executor import Reporter, Workers
from mld_core.evaluation.engine.rounds import ENGINES
from mld_core.evaluation.errors import NotFoundError, known, near
from mld_core.evaluation.results.result import PageWriter, Result
from mld_core.evaluation.results.store import FORMAT, ResultStore, find_run, utc_now
from mld_core.explained import explained
from mld_core.records.format.layout import Store
from mld_core.records.read.reader import PassSelection, select

METHODS: Mapping[str, str] = {
    "classification": "classification_v1",
    "detection": "od_v1",
    "detection3d": "od3d_v1",
}
"""Task of a run and the method that `method_name="default"` stands for."""

STAGES = 16
"""Stages a method goes through for one pass, at most; only the figures of progress depend on it."""

_LIST_COLUMNS = ("result_name", "method_name", "n_epoch", "created_at", "completed_at", "options")

Epochs = int | Literal["latest"] | None

_OPTIONS: Mapping[str, tuple[type, ...]] = {
    "dataset_types": (list, tuple),
    "threads": (int,),
    "engine": (str,),
    "ray_address": (str,),
    "exact_cells": (int,),
    "progress": (bool,),
    "error_proba_thresh": (float,),
    "risk_tolerance": (float,),
    "group_key": (str,),
    "repeats": (int,),
    "null_run": (bool,),
}

_RANGES: Mapping[str, tuple[float, float]] = {
    "error_proba_thresh": (0, 1),
    "risk_tolerance": (0, 1),
    "repeats": (1, 20),
    "threads": (1, 1024),
}
"""Lowest and highest value; the ends of a probability are not allowed."""


class Elsewhere(Protocol):
    """Evaluations that are made and kept at another place, as a service's client offers them."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    def request_evaluation(
        self, result_name: str | None, n_epoch: Epochs, *, method_name: str, options: Mapping[str, Any]
    ) -> tuple[ResultStore, str]:
        """Evaluate there, and bring the result here."""
        ...

    def infos(self) -> list[dict[str, Any]]:
        """The `result.json` of every result, oldest first."""
        ...

    def get_result(self, result_name: str) -> tuple[ResultStore, str]:
        """Bring a result here."""
        ...


class Evaluator:
    """Evaluates the records of one model version and keeps the results.

    Args:
        model_name: Name of the model, as given to the tracer or the callback.
        version_name: Name of the version.
        store: Folder of the local store; default `MLD_HOME`, else `~/.mld`.
        elsewhere: Where evaluations are made instead of here.
        page: What `Result.report` writes with.
        reporter: Makes what is told of the stages, of how many there will be; default a bar on a terminal.
    """

    def __init__(
        self,
        model_name: str,
        version_name: str,
        *,
        store: str | Path | None = None,
        elsewhere: Elsewhere | None = None,
        page: PageWriter | None = None,
        reporter: Callable[[int], Reporter] | None = None,
    ) -> None:
        self.model_name = model_name
        self.version_name = version_name
        self._store = Store(store)
        self._elsewhere = elsewhere
        self._page = page
        self._reporter = reporter

    def __repr__(self) -> str:
        where = self._elsewhere.url if self._elsewhere else self._store.root
        return f"Evaluator({self.model_name!r}, {self.version_name!r}, {str(where)!r})"

    def request_evaluation(
        self,
        result_name: str | None = None,
        n_epoch: Epochs = "latest",
        *,
        method_name: str = "default",
        options: Mapping[str, Any] | None = None,
    ) -> Result:
        """Evaluate recorded passes and store the result.

        Args:
            result_name: Name of the result; None makes `{model}_{version}_{method}_{YYYYMMDD}` (UTC), with
                `_2`, ... where that is taken.
            n_epoch: "latest" = the last sealed pass of each split; an epoch; None = every epoch.
            method_name: "default" = the method of the run's task (`classification_v1`, `od_v1`, `od3d_v1`).
            options: `dataset_types` (list of splits); `risk_tolerance` (an error probability strictly between
                0 and 1 that replaces the threshold t2 of the issue categories); `group_key` (a column you
                recorded, e.g. scene or patient: units of one group never stand on both sides of a fold, and
                are drawn together in the intervals; default: the input hash); `repeats` (how often the
                cross-fit is repeated with other folds, default 3); `null_run` (bool: also analyse shuffled
                errors, which doubles the time, for `null_hotspot_ratio`); `error_proba_thresh` (detection
                only, default 0.8); `threads`; `exact_cells` (up to this many units x classes the ranking
                metrics are exact); `progress` (bool; default: on a terminal); `engine`
                ("memory", the default; "rounds" walks over the parts of a pass and holds a sample alone, with
                cells in place of neighbours; "ray" does the same on a Ray cluster; `MLD_ENGINE` is the
                default where it is set); `ray_address` (of the cluster; default `RAY_ADDRESS`, else a
                cluster of this machine).

        Raises:
            NotFoundError: The model, version, epoch or split is not in the store.
            ResultExistsError: `result_name` is taken.
            ValueError: An unknown method or option.
            ConnectionError: A service or a Ray cluster was named and cannot be reached.
            AuthenticationError: The service did not accept the key.
        """
        chosen = _check_options(dict(options or {}))
        if self._elsewhere is not None:
            made = self._elsewhere.request_evaluation(
                result_name, n_epoch, method_name=method_name, options=chosen
            )
            return self._open(*made)
        results = self._results()
        if result_name is not None:
            results.check_free(result_name)
        method = self._method(results, method_name)
        selections = self._select(results, n_epoch, chosen.get("dataset_types"))
        chosen = _with_engine(chosen)
        created = utc_now()
        today = datetime.now(timezone.utc).strftime("%Y%m%d")
        wanted = result_name or f"{self.model_name}_{self.version_name}_{method}_{today}"
        told = self._reporter or partial(Reporter, enabled=chosen.get("progress"))
        with results.writing() as folder, told(STAGES * len(selections)) as reporter:
            engine = Workers(chosen.get("threads"), reporter)
            found = _function_of(method)(results, selections, folder, engine, options=chosen)
            info = {
                "format": FORMAT,
                "result_name": wanted,
                "model_name": self.model_name,
                "version_name": self.version_name,
                "method_name": method,
                "n_epoch": n_epoch,
                "options": chosen,
                "created_at": created,
                "completed_at": utc_now(),
                "package_version": __version__,
                **found,
            }
            name = results.publish(folder, info, numbered=result_name is None)
        return self._open(results, name)

    def list_results(
        self, result_name: str | None = None, *, method_name: str | None = None, n_epoch: Epochs = None
    ) -> pd.DataFrame:
        """The results of this model version, oldest first.

        Args:
            result_name: Only the result of this name.
            method_name: Only results of this method.
            n_epoch: Only results that were asked for this ("latest") or that hold this epoch (an int). None =
                all.

        Returns:
            Columns result_name, method_name, n_epoch (as it was asked for; None = every epoch), created_at,
            completed_at, options.
        """
        rows = [
            {name: info.get(name) for name in _LIST_COLUMNS}
            for info in (self._results().all() if self._elsewhere is None else self._elsewhere.infos())
            if result_name in {None, info["result_name"]}
            and method_name in {None, info["method_name"]}
            and (n_epoch is None or _holds(info, n_epoch))
        ]
        return pd.DataFrame(rows, columns=list(_LIST_COLUMNS), dtype="object")

    def get_result(self, result_name: str) -> Result:
        """Read a stored result.

        Raises:
            NotFoundError: There is no result of that name; the message lists those that exist.
        """
        if self._elsewhere is not None:
            return self._open(*self._elsewhere.get_result(result_name))
        return self._open(self._results(), result_name)

    def _open(self, results: ResultStore, name: str) -> Result:
        return Result(results, name, diagnoses=BY_CODE, page=self._page)

    # -- checks --------------------------------------------------------------------------------------------

    def _results(self) -> ResultStore:
        return ResultStore(self._store, find_run(self._store, self.model_name, self.version_name))

    def _method(self, results: ResultStore, method_name: str) -> str:
        task = results.store.run_info(results.run).get("task", "classification")
        method = METHODS.get(str(task)) if method_name == "default" else method_name
        if method is None:
            raise ValueError(
                f"this version has no evaluation method for task {task!r} (tasks: {known(METHODS)})"
            )
        if method != METHODS.get(str(task)):
            raise ValueError(
                f"method_name={method_name!r}{near(method_name, METHODS.values())}: expected 'default' or, "
                f"for task {task!r}, {METHODS.get(str(task))!r}"
            )
        return method

    def _select(
        self, results: ResultStore, n_epoch: Epochs, dataset_types: list[str] | None
    ) -> list[PassSelection]:
        if n_epoch not in {"latest", None} and type(n_epoch) is not int:
            raise ValueError(
                f"n_epoch={n_epoch!r}: expected 'latest', a whole number, or None for every epoch"
            )
        found = select(results.store, results.run, dataset_type=None, n_epoch=n_epoch, passes="last")
        if not found:
            every = select(results.store, results.run, dataset_type=None, n_epoch=None, passes="last")
            epochs = sorted({-2 if one.key.n_epoch is None else one.key.n_epoch for one in every})
            there = known("none" if epoch == -2 else epoch for epoch in epochs)
            raise NotFoundError(
                f"model {self.model_name!r} version {self.version_name!r} has no records"
                + (f" of epoch {n_epoch} (epochs: {there})" if every else ": trace a run first")
            )
        if dataset_types is None:
            return found
        splits = sorted({one.key.dataset_type for one in found})
        for name in dataset_types:
            if name not in splits:
                raise NotFoundError(
                    f"no split {name!r}{near(name, splits)} among the records (splits: {known(splits)})"
                )
        return [one for one in found if one.key.dataset_type in dataset_types]


def _function_of(method: str) -> Callable[..., dict[str, Any]]:
    """What evaluates; loaded here, since to read a result needs none of it."""
    if method == METHODS["classification"]:
        from mld_core.evaluation.classification.method import evaluate_classification

        return evaluate_classification
    from mld_core.evaluation.detection.method import evaluate_boxes
    from mld_core.evaluation.detection3d.profile import ROADS

    return evaluate_boxes if method == METHODS["detection"] else partial(evaluate_boxes, profile=ROADS)


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"unknown option {name!r}{near(name, _OPTIONS)} (options: {known(_OPTIONS)})")
        if value is not None and not isinstance(value, _OPTIONS[name]):
            kinds = " or ".join(kind.__name__ for kind in _OPTIONS[name])
            raise ValueError(explained(f"option {name}={value!r}: expected {kinds}"))
        if value is not None and name in _RANGES:
            _check_range(name, value)
    given = {name: value for name, value in options.items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _with_engine(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the engine that `MLD_ENGINE` names, where they name none."""
    wished = options.get("engine") or os.environ.get("MLD_ENGINE") or "memory"
    if wished not in ENGINES:
        where = "option engine" if "engine" in options else "MLD_ENGINE"
        raise ValueError(f"{where}={wished!r}{near(wished, ENGINES)}: expected one of {known(ENGINES)}")
    if "ray_address" in options and wished != "ray":
        raise ValueError(
            f"option ray_address={options['ray_address']!r}: engine={wished!r} joins no cluster; give "
            "engine='ray', or leave the address out"
        )
    rest = {name: value for name, value in options.items() if name != "engine"}
    return rest if wished == "memory" else {**rest, "engine": wished}


def _check_range(name: str, value: Any) -> None:
    low, high = _RANGES[name]
    if int in _OPTIONS[name]:
        fits, what = low <= value <= high, f"a whole number from {low} to {high}"
    else:
        fits, what = low < value < high, f"strictly between {low} and {high}"
    if isinstance(value, bool) or not fits:
        raise ValueError(explained(f"option {name}={value!r}: expected {what}"))


def _holds(info: Mapping[str, Any], n_epoch: int | str) -> bool:
    return info["n_epoch"] == n_epoch or any(one["n_epoch"] == n_epoch for one in info["passes"])
