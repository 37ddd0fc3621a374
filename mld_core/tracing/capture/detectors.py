"""The detector in what a framework trains, and the hooks that keep references to its calls.

The rules of `mld_core.tracing.capture.capture` hold here too: no hook copies, waits or decides anything; a
hook is its own deep copy and comes back dead from a pickle, so copies of the model (EMA, a predictor's)
record nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mld_core.adapters.base import Adapter, Call, ModelCall
from mld_core.adapters.registry import UnknownDetectorError, families, find_adapter, unwrap
from mld_core.tracing.capture.capture import find_module
from mld_core.tracing.capture.compiling import is_compiling
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.capture.probe import Switch
from mld_core.tracing.guard import ConfigurationProblem

_DEPTH: Final = 3
_MOST_CALLS: Final = 64  # of one watched module in one forward; a runaway loop keeps no more alive


def find_detector(model: Any, task: str | None = None) -> Adapter:
    """The adapter of the one detector in `model`: itself, or below it, breadth first, three levels deep.

    Raises:
        UnknownDetectorError: no family knows the model or a part of it.
        ConfigurationProblem: several detectors; the message names them and says `model=`.
    """
    known = list(families(task))
    level: list[tuple[str, Any]] = [("", model)]
    found: dict[int, tuple[str, Any]] = {}
    for _ in range(_DEPTH + 1):
        below: list[tuple[str, Any]] = []
        for name, module in level:
            inner = unwrap(module)
            if any(family.detect(inner) for family in known):
                found.setdefault(id(inner), (name or "the model itself", module))
            elif isinstance(inner, nn.Module):
                below += [(f"{name}.{key}".lstrip("."), child) for key, child in inner.named_children()]
        level = below
    if len(found) > 1:
        names = ", ".join(f"{name} ({type(unwrap(part)).__name__})" for name, part in found.values())
        raise ConfigurationProblem(
            f"{type(model).__name__} holds {len(found)} detectors: {names}. Give model=<the one to record>."
        )
    return find_adapter(next(iter(found.values()))[1] if found else model, task)


def point_range(adapter: Adapter | None, given: Any) -> tuple[float, ...] | None:
    """The range of the point cloud in metres: the user's word, else what the model tells, else None.

    Raises:
        ConfigurationProblem: no six ascending numbers were given; or the family needs a range and there is
            none.
    """
    if given is not None:
        values = tuple(float(v) for v in given)
        if len(values) != 6 or any(values[i] >= values[i + 3] for i in range(3)):
            raise ConfigurationProblem(
                f"pc_range={given!r}: expected [x_min, y_min, z_min, x_max, y_max, z_max] in metres, each "
                "minimum below its maximum."
            )
        return values
    if adapter is None:
        return None
    found = adapter.pc_range()
    if found is None and adapter.needs_pc_range:
        raise ConfigurationProblem(
            f"{type(adapter.model).__name__} ({adapter.family}) does not tell the range of its bird's-eye "
            "view; give pc_range=[x_min, y_min, z_min, x_max, y_max, z_max] in metres, as in its config "
            "(point_cloud_range)."
        )
    return found


def has_detector(model: Any, task: str | None = None) -> bool:
    """Whether a family knows the model or a part of it."""
    try:
        find_detector(model, task)
    except UnknownDetectorError:
        return False
    return True


class CallProbe:
    """The hook of one module: its calls of the forward under way, oldest first, as far as they are needed."""

    def __init__(self, module: nn.Module, switch: Switch, adapter: Adapter | None, alias: str | None) -> None:
        self.module: nn.Module | None = module
        self.switch = switch
        self.adapter: Adapter | None = adapter
        self.alias = alias
        self.calls: list[Call] = []
        self.error: Exception | None = None

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook; what dynamo traces of it only sets an attribute."""
        if module is not self.module:
            return
        if is_compiling():
            self.calls = [Call(args, kwargs, output)]
        elif self.switch.armed and len(self.calls) < _MOST_CALLS:
            self.calls.append(self._kept(Call(args, kwargs, output)))

    def _kept(self, call: Call) -> Call:
        """What the adapter needs of a call; a hook must not raise into the model's forward."""
        if self.adapter is None:
            return call
        try:
            with torch.no_grad():
                return self.adapter.keep(self.alias, call)
        except Exception as error:  # noqa: BLE001 - told with the batch
            self.error = error
            return call

    def clear(self) -> None:
        """Lets go of every tensor."""
        self.calls = []
        self.error = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CallProbe:
        return self

    def __getstate__(self) -> dict[str, Any]:
        dead: dict[str, Any] = {"module": None, "adapter": None, "calls": [], "error": None}
        return {**dead, "switch": Switch(), "alias": self.alias}


class LayerProbe(CallProbe):
    """The hooks of a module of `target_layers`: its output as it is.

    Of a module that writes into the dict it is given and returns it (OpenPCDet's) the output is the one map
    or sequence that it wrote; where there are none or several, their names alone are kept, for the message.
    """

    _given: Mapping[str, int] | None = None

    def before(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: what stands in the dict that the module is given."""
        self._given = None
        if module is self.module and self.switch.armed and not is_compiling():
            first = args[0] if args else None
            if isinstance(first, Mapping):
                self._given = {name: id(value) for name, value in first.items()}

    def _kept(self, call: Call) -> Call:
        output, given = call.output, self._given or {}
        if isinstance(output, Mapping):
            written = {name: value for name, value in output.items() if given.get(name) != id(value)}
            maps = [v for v in written.values() if isinstance(v, torch.Tensor) and v.ndim in {3, 4}]
            output = maps[0] if len(maps) == 1 else sorted(map(str, written))
        return Call((), {}, output)


@dataclass
class HeldCall:
    """The detector's call as it was when it returned: what the user's step does to it later is its own.

    Attributes:
        call: with detached tensors, small ones cloned.
        layers: alias of `target_layers` -> the layer's latest output in that call.
        holder: watches the large tensors.
    """

    call: ModelCall
    layers: dict[str, Any]
    holder: Holder


class RootProbe(CallProbe):
    """The hooks of the detector itself: its latest call, with what the watched modules did in it."""

    def __init__(
        self,
        module: nn.Module,
        switch: Switch,
        adapter: Adapter | None,
        watched: Mapping[str, CallProbe],
        layers: Mapping[str, CallProbe],
    ) -> None:
        super().__init__(module, switch, adapter, None)
        self.watched = dict(watched)
        self.layers = dict(layers)
        self.training = False
        self.replayed = False  # within the walk over the training data
        self.held: HeldCall | None = None

    @property
    def inner(self) -> list[CallProbe]:
        """The probes of the other hooked modules."""
        return [*self.watched.values(), *self.layers.values()]

    def before(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002 - as torch calls it
        """Forward pre-hook: what the watched modules did so far belongs to a call before this one."""
        if module is not self.module or is_compiling():
            return
        for probe in self.inner:
            probe.clear()

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        if module is not self.module:
            return
        if is_compiling():
            self.calls = [Call(args, kwargs, output)]
            self.training = module.training
        elif self.switch.armed:
            self.switch.saw_call()
            self.calls, self.held = [], None
            self.training = module.training
            try:
                self.held = self._hold(self._kept(Call(args, kwargs, output)))
            except Exception as error:  # noqa: BLE001 - told with the batch
                self.error = error

    def take(self) -> HeldCall | None:
        """The latest call; of a compiled module it is held only now."""
        if self.held is None and self.calls:
            self.held = self._hold(self.calls[-1])
        return self.held

    def _hold(self, call: Call) -> HeldCall:
        holder = Holder()
        thresholds = None
        with contextlib.suppress(Exception):  # parse asks again, and its error is told
            thresholds = self.adapter.thresholds() if self.adapter is not None else None
        watched = {alias: tuple(probe.calls) for alias, probe in self.watched.items()}
        kept = ModelCall(
            holder.keep(call.args, content=False),
            holder.keep(call.kwargs, content=False),
            holder.keep(call.output, own=True),
            holder.keep(watched),
            self.training,
            thresholds,
            self.replayed,
        )
        layers = {alias: probe.calls[-1].output for alias, probe in self.layers.items() if probe.calls}
        return HeldCall(kept, holder.keep(layers, own=True), holder)

    def clear(self) -> None:
        """Lets go of every tensor."""
        super().clear()
        self.held = None

    def __getstate__(self) -> dict[str, Any]:
        dead: dict[str, Any] = {
            "watched": {},
            "layers": {},
            "training": False,
            "replayed": False,
            "held": None,
        }
        return {**super().__getstate__(), **dead}


class DetectorCapture:
    """The hooks on one detector.

    Args:
        adapter: of the detector; its `watched()` modules are hooked too. None: `model` alone is hooked.
        target_layers: alias -> module path whose output is kept as well.
        model: the detector, where it has no adapter.

    Raises:
        ConfigurationProblem: a path in `target_layers` does not exist.
    """

    def __init__(
        self,
        adapter: Adapter | None,
        target_layers: Mapping[str, str] | None = None,
        *,
        model: nn.Module | None = None,
    ) -> None:
        inner = model if adapter is None else adapter.model
        assert inner is not None
        self.adapter = adapter
        self.model: nn.Module = inner
        self.switch = Switch()
        self._handles: list[RemovableHandle] = []
        watched = {
            alias: self._hook(CallProbe(module, self.switch, adapter, alias))
            for alias, module in ({} if adapter is None else adapter.watched()).items()
        }
        layers = {
            alias: self._hook_layer(LayerProbe(find_module(self.model, path)[1], self.switch, adapter, alias))
            for alias, path in (target_layers or {}).items()
        }
        self.root = RootProbe(self.model, self.switch, adapter, watched, layers)
        self._handles.append(self.model.register_forward_pre_hook(self.root.before))
        self._hook(self.root)

    def _hook(self, probe: CallProbe) -> CallProbe:
        assert probe.module is not None
        self._handles.append(probe.module.register_forward_hook(probe.after, with_kwargs=True))
        return probe

    def _hook_layer(self, probe: LayerProbe) -> CallProbe:
        assert probe.module is not None
        self._handles.append(probe.module.register_forward_pre_hook(probe.before))
        return self._hook(probe)

    @property
    def heard(self) -> bool:
        """Whether the detector was called since `begin`."""
        return self.root.held is not None or bool(self.root.calls)

    def begin(self) -> None:
        """Clears the stash and arms the hooks."""
        self.clear()
        self.switch.armed = True

    def end(self) -> None:
        """Disarms the hooks and lets go of every tensor."""
        self.switch.armed = False
        self.switch.streams.clear()
        self.clear()

    def clear(self) -> None:
        """Lets go of every tensor."""
        for probe in (self.root, *self.root.inner):
            probe.clear()

    def note(self, args: tuple[Any, ...], output: Any) -> None:
        """A call that no hook saw, of a class that does not go through `Module.__call__`."""
        if not self.heard:
            self.root.after(self.model, args, {}, output)

    def take(self) -> HeldCall | None:
        """The detector's latest call since `begin`."""
        return self.root.take()

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Calls within are of the walk over the training data."""
        self.root.replayed = True
        try:
            yield
        finally:
            self.root.replayed = False

    def error(self) -> Exception | None:
        """What `Adapter.keep` raised in that call."""
        return next((p.error for p in (self.root, *self.root.inner) if p.error is not None), None)

    def close(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.end()
