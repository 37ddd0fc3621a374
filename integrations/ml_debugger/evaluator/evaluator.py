"""The evaluator with everything a user wants of it: results of a service, and pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mld_core.evaluation import evaluator
from mld_core.evaluation.results.result import Comparison, Result
from mld_core.records.format.layout import RunKey, Store

__all__ = ["Comparison", "Evaluator", "Result"]


class Evaluator(evaluator.Evaluator):
    """Evaluates the records of one model version and keeps the results.

    Example:
        ::

            result = Evaluator("resnet18", "v1").request_evaluation()
            result.get_summary()

    Args:
        model_name: Name of the model, as given to the tracer or the callback.
        version_name: Name of the version.
        api_endpoint: Address of a service; default `MLD_API_ENDPOINT`, else the local store.
        api_key: Its key; default `MLD_API_KEY`.
        store: Folder of the local store, or `s3://bucket/prefix`, read in place; default `MLD_HOME`,
            else `~/.mld`. Beats `MLD_API_ENDPOINT`.

    Raises:
        ValueError: A key without an endpoint, or an address that is none.
    """

    def __init__(
        self,
        model_name: str,
        version_name: str,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        *,
        store: str | Path | None = None,
    ) -> None:
        # The rooms above the evaluation are handed in here; a local evaluation loads neither.
        from mld_core.service.client.endpoint import resolve_endpoint

        elsewhere = None
        local = store is not None and api_endpoint is None and api_key is None
        service = None if local else resolve_endpoint(api_endpoint, api_key)
        if service is not None:
            from mld_core.service.client.remote import RemoteEvaluator

            run = RunKey(model_name, version_name)
            elsewhere = RemoteEvaluator(service, Store(store), run)
        super().__init__(model_name, version_name, store=store, elsewhere=elsewhere, page=_write_page)


def _write_page(result: Result, path: str | Path, image_fn: Callable[[str, str], Any] | None) -> Path:
    from mld_core.report import write_report  # only who wants a page needs it

    return write_report(result, path, image_fn=image_fn).path
