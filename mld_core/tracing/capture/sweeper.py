"""Lets go of what compiled hooks keep of calls that nobody asked for.

A hook that dynamo traced can not look at the switch (it would be compiled again whenever that is turned), so
it keeps the arguments and the output of every call, a whole batch with its graph, until the next recorded
one. A module outside the compiled region sees the call end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mld_core.tracing.capture.compiling import is_compiling


class Sweeper:
    """The hook of an eager module around a compiled one: its own deep copy, dead in a pickle."""

    def __init__(self, module: nn.Module, wanted: Callable[[], bool], clear: Callable[[], None]) -> None:
        self.module: nn.Module | None = module
        self.wanted: Callable[[], bool] | None = wanted
        self.clear: Callable[[], None] | None = clear

    def after(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - as torch calls it
        """Forward hook: between events nothing is kept."""
        if is_compiling() or module is not self.module or self.wanted is None:
            return
        if not self.wanted() and self.clear is not None:
            self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sweeper:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"module": None, "wanted": None, "clear": None}


def eager_around(modules: dict[str, nn.Module], name: str) -> nn.Module | None:
    """The module whose hooks run eagerly when the compiled one called `name` has returned, or None."""
    if getattr(modules[name], "_orig_mod", None) is not None:
        return modules[name]  # the wrapper of torch.compile(module)
    return modules[name.rpartition(".")[0]] if name else None
