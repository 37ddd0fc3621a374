"""Reading and setting what frameworks keep in dicts, ConfigDicts, EasyDicts and plain attributes alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mld_core.adapters.outputs import as_array


def read(holder: Any, *names: str) -> Any:
    """The first of `names` that `holder` has (as a key or an attribute) and that is not None.

    >>> read({"nms_thr": 0.2}, "iou_thr", "nms_thr"), read(None, "a")
    (0.2, None)
    """
    for name in names:
        value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        if value is not None:
            return value
    return None


def follow(holder: Any, path: str) -> Any:
    """What `read` finds step by step along a dotted path, None where a step is missing.

    >>> follow({"post": {"nms": {"thr": 0.2}}}, "post.nms.thr")
    0.2
    """
    for name in path.split("."):
        holder = read_child(holder, name)
        if holder is None:
            return None
    return holder


def read_child(holder: Any, name: str) -> Any:
    """As `read` for one name; knows the children of an `nn.ModuleDict` too."""
    children = getattr(holder, "_modules", None)
    if isinstance(children, Mapping) and children.get(name) is not None:
        return children[name]
    return read(holder, name)


def number(value: Any) -> float | None:
    """A number, or the smallest of a list or tensor of numbers; None of anything else.

    >>> number(0.1), number([0.8, 0.55]), number("x")
    (0.1, 0.55, None)
    """
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value)
    found = numbers(value)
    return min(found) if found else None


def numbers(value: Any) -> list[float] | None:
    """The numbers of a list, an array or a tensor (coders turn lists into tensors); None if not those."""
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        value = as_array(value).reshape(-1).tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return None
    found = [float(v) for v in value if isinstance(v, (int, float, np.number)) and not isinstance(v, bool)]
    return found if len(found) == len(value) else None


@dataclass(frozen=True)
class Setting:
    """One place where a model reads a limit: `holder[name]` or `holder.name`."""

    holder: Any
    name: str

    def get(self) -> Any:
        """The value as it is, None where there is none."""
        return read(self.holder, self.name)

    def put(self, value: Any) -> None:
        """Sets it, as a key or an attribute: whichever the holder has."""
        if isinstance(self.holder, dict):
            self.holder[self.name] = value
        else:
            setattr(self.holder, self.name, value)


@contextlib.contextmanager
def changed(wanted: Sequence[tuple[Setting, Any]]) -> Iterator[None]:
    """Within it the settings that exist have the wanted values; a list stays a list of as many.

    >>> config = {"score_thr": 0.1}
    >>> with changed([(Setting(config, "score_thr"), 0.5)]):
    ...     config["score_thr"]
    0.5
    >>> config
    {'score_thr': 0.1}
    """
    before: list[tuple[Setting, Any]] = []
    try:
        for setting, value in wanted:
            old = setting.get()
            if old is None and not _states(setting):
                continue
            before.append((setting, old))
            setting.put([value] * len(old) if isinstance(old, (list, tuple)) else value)
        yield
    finally:
        for setting, old in reversed(before):
            setting.put(old)


def _states(setting: Setting) -> bool:
    """Whether the holder has the setting, be it None."""
    if isinstance(setting.holder, Mapping):
        return setting.name in setting.holder
    return setting.holder is not None and hasattr(setting.holder, setting.name)
