"""From a model to its adapter: unwrap, ask each family in order, or say what was looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from mld_core.adapters.base import Adapter

_WRAPPERS: Final = ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module")
_MAX_WRAPPERS: Final = 8
_OURS: Final = f"{__package__}."

_registered: list[type[Adapter]] = []
_unloaded: list[Callable[[], None]] = []


class UnknownDetectorError(ValueError):
    """No adapter knows the model."""


def load_first(load: Callable[[], None]) -> None:
    """Calls `load`, which registers families, before any other is registered or asked.

    A classifier is recorded without ever loading a detector's adapter.
    """
    _unloaded.append(load)


def _load() -> None:
    while _unloaded:
        _unloaded.pop()()


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Adds a family; usable as a decorator. Asked before those that were registered earlier."""
    if not adapter.__module__.startswith(_OURS):  # one of ours may be imported by itself, before the others
        _load()
    if adapter not in _registered:
        _registered.insert(0, adapter)
    return adapter


def families(task: str | None = None) -> Iterator[type[Adapter]]:
    """The registered families of a task, in the order they are asked."""
    _load()
    yield from (a for a in _registered if task is None or a.task == task)


def type_names(model: Any) -> list[tuple[str, str]]:
    """(module, class) of the model's type and its bases: how families are told apart without importing them.

    >>> type_names(1)[0]
    ('builtins', 'int')
    """
    return [(cls.__module__, cls.__name__) for cls in type(model).__mro__]


def unwrap(model: Any) -> Any:
    """The model inside torch.compile, DDP, FSDP and Fabric wrappers."""
    for _ in range(_MAX_WRAPPERS):
        inner = next((v for name in _WRAPPERS if (v := _own_module(model, name)) is not None), None)
        if inner is None:
            return model
        model = inner
    return model


def _own_module(model: Any, name: str) -> Any:
    value = getattr(model, "_modules", {}).get(name)
    return value if value is not None else vars(model).get(name) if hasattr(model, "__dict__") else None


def find_adapter(model: Any, task: str | None = None) -> Adapter:
    """The adapter of a model.

    Raises:
        UnknownDetectorError: no family knows it; the message names those asked and how to add one.
    """
    inner = unwrap(model)
    for family in families(task):
        if family.detect(inner):
            return family(inner)
    refusals = [why for family in families(task) if (why := family.refuses(inner))]
    if refusals:
        raise UnknownDetectorError(refusals[0])
    names = ", ".join(family.family for family in families(task)) or "none"
    kind = f"{type(inner).__module__}.{type(inner).__qualname__}"
    raise UnknownDetectorError(
        f"{kind} is not a detector of a known family (asked: {names}). Subclass "
        "mld_core.adapters.base.Adapter and mld_core.adapters.registry.register it, or subclass the tracer "
        "(docs/usage.md, own detectors)."
    )
