"""Under `mld run`: each framework gets its callback at the moment a program imports it.

Nothing is imported before the program does. Lightning has entry points (`_auto`); of the others the class
that runs a training is told, when it is made, to take the callback along:

* `transformers.Trainer`: as one more of the `callbacks` it is given;
* MMEngine's `Runner`: as a hook registered behind those of the config;
* Ultralytics: `attach` to each model and to a trainer made without one. The processes of a training on
  several devices are started with the callbacks of the first.

A callback of the user's own, there or added later, stays the only one. A program that ends without any of
them is told what to do.
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = ["arm"]

_LAUNCHERS: Final = ("torchrun", "accelerate", "deepspeed", "mpirun", "horovodrun")
_TRACE: Final = (
    "mld run: no Lightning, Hugging Face, MMEngine or Ultralytics training was seen in this program, so "
    "nothing was recorded. A loop of its own is recorded with one line in it, before the loop:\n"
    "    from ml_debugger.{module} import trace\n"
    "    {call}"
)


def arm() -> None:
    """Waits for the frameworks' modules; asks at the end whether anything was recorded."""
    os.environ["MLD_AUTO"] = "1"  # Lightning's entry points
    waiting: dict[str, Callable[[ModuleType], None]] = {
        "transformers.trainer": _transformers,
        "mmengine.runner.runner": _mmengine,
        "ultralytics.engine.model": _ultralytics_model,
        "ultralytics.engine.trainer": _ultralytics_trainer,
    }
    sys.meta_path.insert(0, _Waiting(waiting))
    atexit.register(_say_what_was_missing)


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it has a module told to a function once it is executed."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self.waiting = waiting

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """The module's own spec; None for every other module."""
        del path, target
        then = self.waiting.pop(name, None)
        if then is None:
            return None
        spec = importlib.util.find_spec(name)  # asks this finder again, which no longer waits for it
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            try:
                then(module)
            except Exception as error:  # noqa: BLE001 - a program runs in any case
                sys.stderr.write(f"mld run: {name} is not recorded: {error!r}\n")

        loader.exec_module = exec_module
        return spec


def _around(kind: Any, name: str, replaced: Callable[..., Any]) -> None:
    """`kind.name` becomes `replaced(inner, self, *args, **kwargs)`."""
    inner = getattr(kind, name)

    @functools.wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replaced(inner, self, *args, **kwargs)

    setattr(kind, name, method)


def _safely(what: str, add: Callable[[], Any]) -> Any:
    try:
        return add()
    except Exception as error:  # noqa: BLE001 - a training goes on in any case
        sys.stderr.write(f"mld run: {what} is not recorded: {error!r}\n")
        return None


def _transformers(module: ModuleType) -> None:
    def init(inner: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        def with_ours() -> inspect.BoundArguments:
            from ml_debugger.huggingface import (  # needs the Trainer
                AutoMLDebuggerCallback,
                MLDebuggerCallback,
            )

            bound = inspect.signature(inner).bind(self, *args, **kwargs)
            given = list(bound.arguments.get("callbacks") or [])
            if not any(_is(callback, MLDebuggerCallback) for callback in given):
                bound.arguments["callbacks"] = [*given, AutoMLDebuggerCallback()]
            return bound

        bound = _safely("this Trainer", with_ours)
        return inner(self, *args, **kwargs) if bound is None else inner(*bound.args, **bound.kwargs)

    _around(module.Trainer, "__init__", init)


def _mmengine(module: ModuleType) -> None:
    def init(inner: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)

        def add() -> None:
            from ml_debugger.mmengine import MLDebuggerHook  # needs the Runner

            if not any(isinstance(hook, MLDebuggerHook) for hook in self.hooks):
                self.register_hook(MLDebuggerHook())

        _safely("this Runner", add)

    _around(module.Runner, "__init__", init)


def _ultralytics_model(module: ModuleType) -> None:
    _around(module.Model, "__init__", _attached)


def _ultralytics_trainer(module: ModuleType) -> None:
    _around(module.BaseTrainer, "__init__", _attached)


def _attached(inner: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    inner(self, *args, **kwargs)

    def add() -> None:
        from ml_debugger.ultralytics import join  # needs torch

        join(self)

    _safely(f"this {type(self).__name__}", add)


def _is(callback: Any, kind: type) -> bool:
    return isinstance(callback, kind) or (isinstance(callback, type) and issubclass(callback, kind))


def _say_what_was_missing() -> None:
    """At the end of a program that used PyTorch, and of the first rank only."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    launches = (
        Path(sys.argv[0] if sys.argv else "").name in _LAUNCHERS
        or getattr(main, "name", "").startswith(("torch.distributed", "accelerate.commands"))
    )  # fmt: skip
    recorded = "mld_core.tracing.run.recorder" in sys.modules
    if "torch" not in sys.modules or recorded or launches or os.environ.get("RANK", "0") != "0":
        return
    if "accelerate" in sys.modules:
        call = "trace(accelerator, model, train=train_loader, val=val_loader)"
        text = _TRACE.format(module="accelerate", call=call)
    else:
        call = "model, train_loader, val_loader = trace(model, train=train_loader, val=val_loader)"
        text = _TRACE.format(module="torch", call=call)
    sys.stderr.write(text + "\n")
