"""What hooks have to know of torch.compile: whether a line is being traced, a module compiled, a call over.

A hook is an object that is called: Dynamo before 2.3 can not call a bound method, which ends a region and,
with `fullgraph=True`, raises into the step.

Hooks ask with every call, so that `is_compiling` is looked up here but once: it is the function of each
PyTorch that its Dynamo knows.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

try:
    is_compiling = torch.compiler.is_compiling  # since 2.3
except AttributeError:
    try:
        from torch._utils import is_compiling  # since 2.1
    except ImportError:
        from torch._dynamo.external_utils import is_compiling  # 2.0

_TORCH: Final = tuple(int(part) for part in torch.__version__.split(".")[:2])
_traced = itertools.count(1)


def _initialized() -> bool:
    return torch.cuda._initialized  # noqa: SLF001


# Dynamo of 2.1 also compiles what a hook calls, and raises at the public function.
cuda_is_initialized: Callable[[], bool] = _initialized if _TORCH < (2, 2) else torch.cuda.is_initialized


def next_traced() -> int:
    """A number of its own for each call that is traced."""
    return next(_traced)


# Whether Dynamo takes that number as a constant, of which it makes no guard: seen from 2.6 on, while 2.2 to
# 2.4 raise into the step. torch.compiler.assume_constant_result sets the same, but imports Dynamo for it.
COUNTS_TRACED: Final = _TORCH >= (2, 6)
next_traced._dynamo_marked_constant = COUNTS_TRACED  # type: ignore[attr-defined]  # noqa: SLF001

# Modules compiled from outside: a wrapper around them is compiled and they do not know it.
_compiled_from_outside: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def say_compiled(module: nn.Module) -> None:
    """Note that calls of `module` run through torch.compile, which a framework did around it."""
    _compiled_from_outside.add(module)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of `module` run through torch.compile.

    Wrapped, by `.compile()`, by Lightning, or through a compiled method of the instance (as MMEngine does).
    """
    return (
        getattr(module, "_orig_mod", None) is not None
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
        or module in _compiled_from_outside
        or any(
            inspect.isfunction(v) and hasattr(v, "_torchdynamo_orig_callable") for v in vars(module).values()
        )
    )


class Sweeper:
    """The hook of an eager module around a compiled one: its own deep copy, dead in a pickle.

    It lets go of what compiled hooks keep of calls that nobody asked for. A hook that dynamo traced can not
    look at the switch (it would be compiled again whenever that is turned), so it keeps the arguments and the
    output of every call, a whole batch with its graph, until the next recorded one. A module outside the
    compiled region sees the call end.
    """

    def __init__(self, module: nn.Module, wanted: Callable[[], bool], clear: Callable[[], None]) -> None:
        self.module: nn.Module | None = module
        self.wanted: Callable[[], bool] | None = wanted
        self.clear: Callable[[], None] | None = clear

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - as torch calls it
        """Forward hook: between events nothing is kept."""
        if is_compiling() or module is not self.module or self.wanted is None:
            return
        if not self.wanted() and self.clear is not None:
            self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sweeper:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"module": None, "wanted": None, "clear": None}


class CriterionHook:
    """The hook on a criterion: its own deep copy, dead in a pickle or without its recorder; traced as none.

    Args:
        module: it is on.
        see: a method that is given what the module makes; its object is not kept alive.
    """

    def __init__(self, module: nn.Module | None, see: Callable[[Any], None] | None) -> None:
        self.module = module
        self.see = None if see is None else weakref.WeakMethod(see)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - as torch calls it
        """Forward hook."""
        if is_compiling() or module is not self.module or self.see is None:
            return
        see = self.see()
        if see is not None:
            see(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> CriterionHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return CriterionHook, (None, None)


def eager_around(modules: dict[str, nn.Module], name: str) -> nn.Module | None:
    """The module whose hooks run eagerly when the compiled one called `name` has returned, or None."""
    if getattr(modules[name], "_orig_mod", None) is not None:
        return modules[name]  # the wrapper of torch.compile(module)
    return modules[name.rpartition(".")[0]] if name else None
