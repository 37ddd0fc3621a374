"""Forward hooks that keep a reference to what a layer was given and gave, and the choice of which layers.

No hook copies, synchronises or decides anything: events decide what is recorded (a stray forward reaches
nobody). Nothing is probed with an extra forward either, which would move BatchNorm statistics and generators
and hang under
FSDP: the first real batch of each mode is watched, then only the hooks that are needed stay.

What the hooks must stand:

- `copy.deepcopy(model)` (EMA) copies the hooks with it: a probe is its own deep copy and ignores every module
  but its own, so copies never record.
- Pickling (ddp_spawn, `torch.save(model)`): hooks are plain objects; a pickled probe comes back dead.
- Dynamo traces hook bodies: they only set an attribute. Hooks added to a submodule after the first compiled
  call never fire (`skip_nnmodule_hook_guards`), so inside compiled regions they are set at once and never
  removed.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mld_core.tracing.capture.compiling import Sweeper, eager_around, is_compiled, is_compiling
from mld_core.tracing.capture.graph import Graph, Origin, compiled_beside, hangs_on
from mld_core.tracing.capture.probe import Probe, Switch
from mld_core.tracing.guard import ConfigurationProblem

_WRAPPER_PARTS: Final = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_KEPT_LEAF_CALLS: Final = 16
DEFAULT_ALIAS: Final = "features"
HEAD_TYPES: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def canonical(name: str) -> str:
    """A module path without the parts that DDP, FSDP and torch.compile put into it.

    >>> canonical("module._orig_mod.layer4.1.conv2")
    'layer4.1.conv2'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def find_module(model: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The (name, module) at `path`, with or without wrapper prefixes.

    Raises:
        ConfigurationProblem: no such module; the message lists near matches.
    """
    modules = dict(model.named_modules())
    if path in modules:
        return path, modules[path]
    short = {canonical(name): name for name in reversed(list(modules))}
    if path in short:
        return short[path], modules[short[path]]
    near = difflib.get_close_matches(path, [n for n in short if n], n=5, cutoff=0.4) or list(short)[-5:]
    raise ConfigurationProblem(
        f"target_layers: the model {type(model).__name__} has no module {path!r}. Near matches: "
        f"{', '.join(repr(n) for n in near)}. Give one of the names in dict(model.named_modules())."
    )


class LeafCall:
    """One executed leaf layer."""

    __slots__ = ("args", "module", "name", "output")

    def __init__(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.name = name
        self.module = module
        self.args = args
        self.output = output


class Watcher:
    """Hooks on every module for one batch: the outermost submodule calls and the last leaf layers executed.

    Outermost without pre-hooks: when a module has returned, the calls of its own submodules noted before it
    are inner ones and are dropped.
    """

    def __init__(self, model: nn.Module, switch: Switch, *, ignore_root: bool) -> None:
        self.switch = switch
        self.asleep = False
        self.graph = Graph()
        self.said: list[Origin] = []  # of a loss that the model itself returned
        self.outer: list[LeafCall] = []
        self.leaves: deque[LeafCall] = deque(maxlen=_KEPT_LEAF_CALLS)
        self._names: dict[int, tuple[str, bool, bool]] = {}
        self._handles: list[RemovableHandle] = []
        for name, module, inside in _with_compiled(model):
            root_too = not ignore_root and not is_compiled(model)  # a compiled one has its probe
            if inside or not (name or root_too) or isinstance(module, torch.jit.ScriptModule):
                continue
            has_parameters = next(iter(module.parameters(recurse=False)), None) is not None
            leaf = has_parameters and next(iter(module.children()), None) is None
            answers = next(iter(module.parameters()), None) is not None  # a metric or a criterion does not
            self._names[id(module)] = (name, leaf, answers)
            self._handles.append(module.register_forward_hook(self))

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of every module."""
        if is_compiling() or self.asleep or not self.switch.armed:
            return
        entry = self._names.get(id(module))
        if entry is None:
            return
        name, leaf, answers = entry
        if answers and torch.is_grad_enabled():
            self.graph.saw(name, output)
        if not name:
            own = output.get("loss") if isinstance(output, Mapping) else None
            self.said = self.said or ([] if own is None else self.graph.origins(own))
            return
        prefix = name + "."
        while self.outer and self.outer[-1].name.startswith(prefix):
            self.outer.pop()
        call = LeafCall(name, module, args, output)
        self.outer.append(call)
        self.switch.saw_call()
        if leaf:
            self.leaves.append(call)

    def clear(self) -> None:
        """Lets go of the tensors."""
        self.outer.clear()
        self.leaves.clear()
        self.said = []
        self.graph.clear()

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        return self

    def __getstate__(self) -> dict[str, Any]:
        dead: dict[str, Any] = {
            "switch": Switch(),
            "asleep": True,
            "graph": Graph(),
            "said": [],
            "outer": [],
            "leaves": deque(),
        }
        return {**dead, "_names": {}, "_handles": []}


def _with_compiled(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, module, lies inside a compiled region) of every module; the compiled one itself is outside."""
    regions: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(region) for region in regions)
        yield name, module, inside
        if is_compiled(module):
            regions.append(name + "." if name else "")


def _likely_heads(model: nn.Module, n_class: int | None) -> list[tuple[str, nn.Module]]:
    """Inside compiled regions: layers that can make the class logits, by width or, unknown, the last two."""
    found: list[tuple[str, nn.Module]] = [
        (name, module)
        for name, module, inside in _with_compiled(model)
        if inside and isinstance(module, HEAD_TYPES)
    ]
    if n_class is None:
        return found[-2:]
    widths = {name: getattr(m, "out_features", getattr(m, "out_channels", None)) for name, m in found}
    return [(name, module) for name, module in found if widths[name] == n_class]


class Capture:
    """The hooks on one model.

    Args:
        model: the module whose forward is traced.
        target_layers: alias -> module path whose output is a feature; None: the caller picks a head later.
        ignore_root: never hook the model itself (a LightningModule's root hook fires with the step's result
            under DDP and not at all on one device).
        n_class: classes, where known; narrows the search inside compiled regions.
        known: paths of layers known to be needed (a resumed run's choice), hooked at once.

    Raises:
        ConfigurationProblem: a path in `target_layers` does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target_layers: Mapping[str, str] | None = None,
        ignore_root: bool = False,
        n_class: int | None = None,
        known: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.switch = Switch()
        self.lost_sight = False
        self.beside: list[Origin] = []
        self.ignore_root = ignore_root
        self.targets: dict[str, str] = {}
        self.probes: dict[str, Probe] = {}
        self.watcher: Watcher | None = None
        self._asleep: Watcher | None = None  # its hooks are part of a compiled region
        self._handles: list[RemovableHandle] = []
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        for alias, path in (target_layers or {}).items():
            name, _ = find_module(model, path)
            self.targets[alias] = name
            self.probe(name, check_version=True)
        for path in known:
            with contextlib.suppress(
                ConfigurationProblem
            ):  # the model changed; its architecture hash says so
                self.probe(find_module(model, path)[0])
        if not ignore_root and "" not in self.probes:
            self.probe("")
        self.compiled_heads = tuple(name for name, _ in _likely_heads(model, n_class))
        for name in self.compiled_heads:
            self.probe(name)
        self._sweep()

    def _sweep(self) -> None:
        regions = [
            name for name, module, inside in _with_compiled(self.model) if not inside and is_compiled(module)
        ]
        around = {id(m): m for name in regions if (m := eager_around(self._modules, name)) is not None}
        for module in around.values():
            sweeper = Sweeper(module, lambda: self.switch.armed, self.clear)
            self._handles.append(module.register_forward_hook(sweeper))

    def probe(self, name: str, *, check_version: bool = False) -> Probe:
        """The probe on the module `name`, set if it is not there yet."""
        if name not in self.probes:
            module = self._modules[name]
            probe = Probe(module, name, self.switch, check_version=check_version)
            self._handles.append(module.register_forward_hook(probe))
            self.probes[name] = probe
        return self.probes[name]

    def module(self, name: str) -> nn.Module:
        """The module called `name`."""
        return self._modules[name]

    def begin(self, *, watch: bool, training: bool = False) -> None:
        """Clears the stash and arms the hooks for a batch.

        Args:
            watch: with the hooks on every module.
            training: the loss tells which call of a module counts; see `Probe`.
        """
        self.clear()
        self.switch.training = training
        self.lost_sight = False
        if watch and self.watcher is None:
            self.watcher = self._asleep or Watcher(self.model, self.switch, ignore_root=self.ignore_root)
            self.watcher.asleep, self._asleep = False, None
        self.switch.armed = True

    def end(self) -> None:
        """Disarms the hooks and lets go of every tensor."""
        self.switch.armed = False
        self.switch.streams.clear()
        self.clear()

    def stop_watching(self) -> None:
        """Removes the watcher's hooks, or, where a region was compiled with them, lets them do nothing.

        The region would be compiled again without them.
        """
        if self.watcher is not None and self._compiled_around():
            self.watcher.clear()
            self.watcher.asleep, self._asleep = True, self.watcher
        elif self.watcher is not None:
            self.watcher.close()
        self.watcher = None

    def origins(self, loss: Any) -> list[Origin]:
        """The hooked outputs that a loss was computed from; of a watched batch, before backward.

        `lost_sight` says afterwards whether it was computed from an earlier call of what runs compiled,
        `beside` what it was computed from in such calls besides.
        """
        graph, compiled = Graph() if self.watcher is None else self.watcher.graph, []
        for name, probe in self.probes.items():
            # What runs compiled is seen by its probe alone.
            if probe.call is not None and not graph.knows(name):
                graph.saw(name, probe.call[1])
                compiled.append(probe.call[1])
        found = graph.origins(loss)
        self.lost_sight = not found and not hangs_on(loss, compiled)
        self.beside = compiled_beside(loss, compiled) if found and compiled else []
        return found

    def then(self, name: str, act: Callable[[], None]) -> None:
        """Has something done in each step when the module `name`, or else the last hooked one, has run."""
        last = name if name in self.probes else next(reversed(self.probes), None)
        for probe in self.probes.values():
            probe.then = act if probe.name == last else None

    def _compiled_around(self) -> bool:
        """Whether modules ran inside a region that the user compiled around them (a step)."""
        eager = {
            name
            for name, module, inside in _with_compiled(self.model)
            if not inside and not is_compiled(module)
        }
        return any(probe.compiled for name, probe in self.probes.items() if name in eager)

    def calls(self, name: str) -> list[tuple[Any, Any]]:
        """The calls of a module in this step that count: (positional arguments, output)."""
        probe, watcher = self.probes.get(name), self.watcher
        if probe is not None and probe.call is not None:
            return probe.calls()
        noted = [] if watcher is None else [*watcher.outer, *watcher.leaves]
        return list({id(c.output): (c.args, c.output) for c in noted if c.name == name}.values())

    def leaf_calls(self) -> list[LeafCall]:
        """Executed leaf layers, in order: those watched, then those probed inside compiled regions."""
        calls = list(self.watcher.leaves) if self.watcher is not None else []
        seen = {call.name for call in calls}
        for name, probe in self.probes.items():
            module = self._modules[name]
            if name not in seen and probe.call is not None and isinstance(module, HEAD_TYPES):
                calls.append(LeafCall(name, module, *probe.call))
        return calls

    def outer_calls(self) -> list[LeafCall]:
        """The model's own calls, then outermost submodule calls, the last one's first; with parameters only.

        Of several calls of one module the earlier come first, those that do not count behind the others.
        """
        root = self.probes.get("")
        calls = (
            [] if root is None else [LeafCall("", self.model, *call) for call in [*root.calls(), *root.aside]]
        )
        if self.watcher is None:
            return calls
        last = {call.name: place for place, call in enumerate(self.watcher.outer)}
        return calls + [
            call
            for call in sorted(self.watcher.outer, key=lambda call: -last[call.name])
            # A metric or a softmax has no parameters: its (B, K) output is nobody's logits.
            if next(iter(call.module.parameters()), None) is not None
        ]

    @property
    def heard(self) -> bool:
        """Whether a hooked layer ran since `begin`."""
        for probe in self.probes.values():
            if probe.counted is not None or probe.plain is not None:
                return True
        return self.watcher is not None and bool(self.watcher.outer)

    def clear(self) -> None:
        """Lets go of every tensor."""
        for probe in self.probes.values():
            probe.clear()
        if self.watcher is not None:
            self.watcher.clear()

    def close(self) -> None:
        """Removes every hook."""
        for watcher in (self.watcher, self._asleep):
            if watcher is not None:
                watcher.close()
        self.watcher = self._asleep = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.end()
        self.probes.clear()
