"""What every 3D head reader answers: which limits it has, what to watch, where final detections come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin
from mld_core.adapters.settings import Setting, number, read

NOTHING: Final = Call((), {}, None)


class Head(ABC):
    """Reads one kind of head. Holds references to the model and the head, no other state.

    Attributes:
        kind: short name, as run.json shows it.
        signature: attributes that tell a head of this kind.
        enters: whether the features go into the module watched as "features", or come out of it.
        model: the detector.
        module: the head.
    """

    kind: ClassVar[str]
    signature: ClassVar[tuple[str, ...]] = ()
    enters: ClassVar[bool] = True

    def __init__(self, model: Any, module: Any) -> None:
        self.model = model
        self.module = module

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Whether a module is a head of this kind: by its attributes, never by its class alone."""
        return has(module, *cls.signature)

    @abstractmethod
    def n_class(self) -> int | None:
        """Foreground classes, None if the head does not tell."""

    def class_names(self) -> list[str] | None:
        """Names in label order, None if the head has none."""
        return flat_names(read(self.module, "class_names"))

    @abstractmethod
    def places(self) -> tuple[Setting | None, Setting | None, Setting | None]:
        """Where post-processing reads score, overlap and number; None: nowhere, or not to be set."""

    def shared(self) -> tuple[list[list[int]], int | None]:
        """Labels of each task or class with a limit of its own on the number of detections, and that limit.

        No groups: the limit of `places` is the frame's.
        """
        return [], None

    def limits(self) -> Thresholds:
        """What post-processing reads now; of limits of tasks or classes their sum."""
        stated = Thresholds.stated(*(None if p is None else number(p.get()) for p in self.places()))
        groups, most = self.shared()
        if not groups:
            return stated
        return replace(stated, max_detections=None if most is None else most * len(groups))

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """Where `limits` are to be set."""
        asked = zip(self.places(), vars(limits).values(), strict=True)
        return [(place, value) for place, value in asked if place is not None and value is not None]

    @abstractmethod
    def watched(self) -> dict[str, Any]:
        """Alias -> module whose calls `origin` needs."""

    def keep(self, alias: str, call: Call) -> Call:
        """The part of a watched call that `origin` needs; under "features" what the class layer sees."""
        if alias == "features":
            return entered(call) if self.enters else Call((), {}, call.output)
        return Call((), {}, self.kept(call))

    def kept(self, call: Call) -> Any:
        """Of a call of another watched module what `origin` needs, None: nothing of use."""
        return copied(call.output)

    @abstractmethod
    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """Where the detections of frame `index` come from; None where the call does not tell."""

    def capped(self, frame: NativeFrame, limits: Thresholds) -> bool:
        """Whether the limit on their number may have cut some off: a group has as many as it lets pass."""
        groups, most = self.shared()
        if most is None:
            return limits.max_detections is not None and len(frame) >= limits.max_detections
        counts = frame.labels.bincount(minlength=max(map(max, groups)) + 1).tolist()
        return any(sum(counts[label] for label in group) >= most for group in groups)

    def activation(self) -> tuple[str, int | None]:
        """(activation, background column) that turn the logits into class scores."""
        return "sigmoid", None


def each_class(config: Any, n_class: int | None) -> tuple[list[list[int]], int | None]:
    """OpenPCDet's classes and the limit of each, where POST_PROCESSING suppresses them one by one."""
    suppression = read(config, "NMS_CONFIG")
    if not read(suppression, "MULTI_CLASSES_NMS") or not n_class:
        return [], None
    most = number(read(suppression, "NMS_POST_MAXSIZE"))
    return [[label] for label in range(n_class)], None if most is None else int(most)


def copied(value: Any) -> Any:
    """The same tensors in containers of ours: predict() of several frameworks writes into the head's dicts.

    >>> inner = {"hm": 1}
    >>> copied([inner])[0] is inner
    False
    """
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


def cloned(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A copy of a dict of tensors in which those under `names` are cloned: they are written to in place."""
    return {
        key: value.detach().clone() if key in names and isinstance(value, Tensor) else value
        for key, value in values.items()
    }


def last(call: ModelCall, alias: str) -> Any:
    """What was kept of the latest call of a watched module, None if it was not called."""
    calls = call.watched.get(alias)
    return calls[-1].output if calls else None


def entered(call: Call, alias: str | None = None) -> Call:
    """A watched call reduced to what went in: the features before a layer."""
    del alias
    return Call((), {}, call.args[0] if call.args else next(iter(call.kwargs.values()), None))


def flat_names(value: Any) -> list[str] | None:
    """Class names of a list, or of a list of lists (tasks), in order.

    >>> flat_names([["car"], ["truck", "bus"]])
    ['car', 'truck', 'bus']
    """
    if not isinstance(value, (list, tuple)) or not value:
        return None
    names = [n for part in value for n in (part if isinstance(part, (list, tuple)) else [part])]
    return [str(n) for n in names] if all(isinstance(n, str) for n in names) else None


def total_classes(value: Any) -> int | None:
    """A class count, or the sum over tasks.

    >>> total_classes([1, 2, 2]), total_classes(3), total_classes(None)
    (5, 3, None)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return sum(value)
    return None


def has(module: Any, *names: str) -> bool:
    """Whether an object has all these attributes."""
    return all(hasattr(module, name) for name in names)
