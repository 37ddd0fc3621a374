"""What the tracer does around a detector, in its smallest form: hooks on what the adapter watches, then parse."""

from __future__ import annotations

from typing import Any

import pytest

from mld_core.adapters.base import Call, ModelCall
from mld_core.adapters.registry import find_adapter, unwrap


class Watched:
    """A model whose calls come back as the adapter's `ModelCall`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapter = find_adapter(model)
        self._calls: dict[str, list[Call]] = {}
        for alias, module in self.adapter.watched().items():
            module.register_forward_hook(self._hook(alias), with_kwargs=True)

    def _hook(self, alias: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._calls.setdefault(alias, []).append(self.adapter.keep(alias, Call(args, kwargs, output)))

        return hook

    def __call__(self, *args: Any, **kwargs: Any) -> ModelCall:
        self._calls = {}
        thresholds = self.adapter.thresholds()
        output = self.model(*args, **kwargs)
        own = self.adapter.keep(None, Call(args, kwargs, output))
        training = bool(getattr(unwrap(self.model), "training", False))
        return ModelCall(own.args, own.kwargs, own.output, dict(self._calls), training, thresholds)


@pytest.fixture
def watched() -> type[Watched]:
    return Watched
