"""Which tensor is the logits and which is the feature: decided once per mode from one watched batch.

Logits are what the model says: the output of its own call where that parses as (B, K) logits (DeiT's mean of
two heads, GoogLeNet's main output), except where that is only the softmax or log-softmax of the head layer's
output; then the head layer's output. Of several modules the last one called speaks, a trained one before a
frozen one of the same shape. Features default to the input of the head: the last executed Linear or
Conv layer that gives K columns (auxiliary heads are registered behind or beside it, so registration order
says nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.tracing.capture.capture import DEFAULT_ALIAS, HEAD_TYPES, Capture, LeafCall, canonical
from mld_core.tracing.capture.features import channel_axis, describe, first_tensor, pool, stored_width
from mld_core.tracing.capture.outputs import find_logits, looks_like_probabilities

MOST_MISSES: Final = 100  # watching costs a hook on every module, and the first labels are waited for
OUTPUTS: Final = "<outputs>"  # what the event brought along, rather than a module's output
_TOLERANCE: Final = 2e-3  # bfloat16 layers: 8 bits of mantissa, compared after float()


@dataclass(frozen=True)
class LogitsSource:
    """Where the logits come from in one mode: a module's name ("" is the model), or `OUTPUTS`."""

    name: str
    is_head: bool = False
    activation: str = "logits"


@dataclass(frozen=True)
class FeatureRule:
    """How one alias is made; fixed for the whole run and stated in run.json."""

    alias: str
    layer: str
    side: str
    axis: int
    raw_width: int
    rule: str

    @property
    def width(self) -> int:
        """The width stored."""
        return stored_width(self.raw_width)

    def as_info(self) -> dict[str, Any]:
        """The entry of run.json."""
        return {
            "width": self.width,
            "raw_width": self.raw_width,
            "rule": self.rule,
            "layer": canonical(self.layer),
            "side": self.side,
            "axis": self.axis,
        }


@dataclass
class Captured:
    """One batch: logits (B, K) as the model has them, features per alias (B, D); references, not copies."""

    logits: Tensor
    source: LogitsSource
    features: dict[str, Tensor]


def class_columns(output: Any, n_rows: int, n_class: int) -> Tensor | None:
    """A head layer's output as (B, K): as it is, or a conv head's map averaged over space."""
    if not isinstance(output, Tensor) or output.ndim < 2 or tuple(output.shape[:2]) != (n_rows, n_class):
        return None
    return output if output.ndim == 2 else output.detach().float().flatten(2).mean(2)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.detach().float(), b.detach().float(), rtol=_TOLERANCE, atol=_TOLERANCE)


def _is_activation_of(outer: Tensor, columns: Tensor) -> bool:
    """Whether `outer` is the softmax or the log-softmax of `columns` (and not `columns` itself)."""
    if _same(outer, columns):
        return False
    x = columns.detach().float()
    return _same(outer, x.softmax(1)) or _same(outer, x.log_softmax(1))


class HeadChooser:
    """Chooses logits and features of one model, and reads them off the capture's stash afterwards."""

    def __init__(
        self, capture: Capture, *, n_class: int | None, known: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.capture = capture
        self.n_class = n_class
        self.sources: dict[bool, LogitsSource] = {}
        self.rules: dict[str, FeatureRule] = {}
        self.problems: dict[str, str] = {}
        self._known = known
        self._searched_default = False
        self._misses = {True: 0, False: 0}

    def needs_watch(self, *, training: bool) -> bool:
        """Whether the next batch in this mode has to be watched."""
        return training not in self.sources and not self.gave_up(training=training)

    def gave_up(self, *, training: bool) -> bool:
        """Whether so many batches of this mode held no logits that none is looked into any more."""
        return self._misses[training] >= MOST_MISSES

    def miss(self, *, training: bool) -> bool:
        """A batch held no logits. True: it was one too many, and the hooks on every module are gone."""
        if training in self.sources:
            return False
        self._misses[training] += 1
        if self.gave_up(training=training):
            self.capture.stop_watching()
        return self.gave_up(training=training)

    def take(
        self, n_rows: int | None, outputs: Any, *, training: bool, min_class: int = 2
    ) -> Captured | None:
        """The batch's logits and features, or None where nothing parses.

        Args:
            n_rows: rows of the batch, None where the labels do not say.
            outputs: what the event brought (a model output, a step's return value), or None.
            training: the model's mode; logits are chosen for each mode by itself.
            min_class: at least this many columns (one more than the largest label seen).
        """
        source = self.sources.get(training)
        logits = self._read(source, outputs, n_rows) if source is not None else None
        if logits is None:
            source, logits = self._choose(outputs, n_rows, min_class)
            if source is None or logits is None:
                return None
            self._settle(source, logits, training=training)
        assert source is not None
        self.n_class = int(logits.shape[1])
        return Captured(logits, source, self._features(int(logits.shape[0])))

    def _read(self, source: LogitsSource, outputs: Any, n_rows: int | None) -> Tensor | None:
        if source.name == OUTPUTS:
            value = outputs
        else:
            probe = self.capture.probes.get(source.name)
            value = probe.call[1] if probe is not None and probe.call is not None else None
        if value is None:
            return None
        if source.is_head and self.n_class is not None and isinstance(value, Tensor):
            return class_columns(value, int(value.shape[0]) if n_rows is None else n_rows, self.n_class)
        return find_logits(value, n_rows, self.n_class)

    def _choose(
        self, outputs: Any, n_rows: int | None, min_class: int
    ) -> tuple[LogitsSource | None, Tensor | None]:
        candidates: list[tuple[str, Any]] = [] if outputs is None else [(OUTPUTS, outputs)]
        outer = self.capture.outer_calls()
        candidates += [(call.name, call.output) for call in outer]
        # A compiled step that returns losses only shows nothing else of what happened inside.
        heads = self.capture.compiled_heads
        candidates += [(c.name, c.output) for c in reversed(self.capture.leaf_calls()) if c.name in heads]
        # A stated number of classes picks among several candidates; it may also be wrong.
        for n_class in dict.fromkeys((self.n_class, None)):
            for name, value in candidates:
                logits = find_logits(value, n_rows, n_class)
                if logits is None or n_class not in {None, logits.shape[1]}:
                    continue
                # A stated width stands, however large a label is (255 for "none").
                if n_class is None and logits.shape[1] < min_class:
                    continue
                return self._trace_back(*self._among_rivals(name, logits, outer))
        return None, None

    def _among_rivals(self, name: str, logits: Tensor, outer: list[LeafCall]) -> tuple[str, Tensor]:
        """Of modules that gave outputs of one shape, a trained one before a frozen one; a tie is told."""
        chosen = next((call for call in outer if name and call.name == name), None)
        if chosen is None:
            return name, logits
        fed = {id(value) for value in chosen.args} if isinstance(chosen.args, tuple) else set()
        rivals = [
            call
            for call in outer
            if call.name != name
            and id(call.output) not in fed
            and isinstance(call.output, Tensor)
            and call.output.shape == logits.shape
        ]
        if rivals and not _trainable(chosen.module):
            trained = next((call for call in rivals if _trainable(call.module)), None)
            return (name, logits) if trained is None else (trained.name, trained.output.detach())
        names = [name, *(call.name for call in rivals if _trainable(call.module))]
        if len(names) > 1:
            self.problems["rivals"] = (
                f"Several modules gave an output of shape {tuple(logits.shape)}: "
                f"{', '.join(f'`{canonical(n)}`' for n in names)}. `{canonical(name)}`, which ran last, is "
                "recorded against the batch's labels. If another one answers them, return {'loss': ..., "
                "'logits': ...} from the step, or give model=<that module> and label_fn(batch)."
            )
        return name, logits

    def _trace_back(self, name: str, logits: Tensor) -> tuple[LogitsSource, Tensor]:
        """The head layer's output where `logits` is only its softmax or log-softmax, else `logits` itself."""
        for call in reversed(self.capture.leaf_calls()):
            columns = class_columns(call.output, int(logits.shape[0]), int(logits.shape[1]))
            if columns is not None and call.name != name and _is_activation_of(logits, columns):
                return LogitsSource(call.name, is_head=True), columns
        activation = "probabilities" if looks_like_probabilities(logits.detach().cpu()) else "logits"
        return LogitsSource(name, activation=activation), logits

    def _settle(self, source: LogitsSource, logits: Tensor, *, training: bool) -> None:
        """Keeps the decision and the hooks it needs; the features are settled with the first mode decided."""
        self.sources[training] = source
        if source.name != OUTPUTS and self.capture.probes.get(source.name) is None:
            # The probe missed this call; the watcher's references serve for it.
            self.capture.probe(source.name).call = self._watched(source.name)
        if not self.capture.targets and not self.rules and not self._searched_default:
            self._searched_default = True
            self._find_default_feature(logits)
        self.capture.stop_watching()

    def _watched(self, name: str) -> tuple[Any, Any] | None:
        watcher = self.capture.watcher
        for call in reversed([*watcher.leaves, *watcher.outer] if watcher is not None else []):
            if call.name == name:
                return call.args, call.output
        return None

    def _find_default_feature(self, logits: Tensor) -> None:
        n_rows, n_class = int(logits.shape[0]), int(logits.shape[1])
        head = self._known_head() or self._head(logits, n_rows, n_class)
        if head is None:
            self.problems["features"] = (
                f"No Linear or Conv layer with {n_class} output columns was seen before the logits, so no "
                "features are recorded, only logits. Name a layer with target_layers={'features': '<module "
                "path>'}; in a compiled model, create the tracer before the model runs."
            )
            return
        tensor = first_tensor(head.args, n_rows)
        if tensor is None:
            self.problems["features"] = (
                f"The input of the head layer `{canonical(head.name)}` has no tensor with {n_rows} rows; "
                "only logits are recorded. Name a layer with target_layers={'features': '<module path>'}."
            )
            return
        self._add_rule(DEFAULT_ALIAS, head.name, "input", tensor, head.module)
        if head.name not in self.capture.probes:
            self.capture.probe(head.name).call = (head.args, head.output)

    def _known_head(self) -> LeafCall | None:
        """The layer an earlier process of this run settled on."""
        layer = self._known.get(DEFAULT_ALIAS, {}).get("layer")
        for call in reversed(self.capture.leaf_calls()):
            if canonical(call.name) == layer:
                return call
        return None

    def _head(self, logits: Tensor, n_rows: int, n_class: int) -> LeafCall | None:
        """The layer that made the logits, else the widest-input layer with K columns, the last one of equals.

        Widest: a LoRA adapter's last layer has K columns too, but a handful of inputs.
        """
        made = [
            (call, columns)
            for call in self.capture.leaf_calls()
            if (columns := class_columns(call.output, n_rows, n_class)) is not None
        ]
        layers = [(call, c) for call, c in made if isinstance(call.module, HEAD_TYPES)] or made
        exact = [call for call, columns in layers if _same(columns, logits)]
        if exact:
            return exact[-1]
        best: LeafCall | None = None
        best_width = -1
        for call, _ in layers:
            width = _input_width(call, n_rows)
            if width >= best_width:
                best, best_width = call, width
        return best

    def _add_rule(self, alias: str, layer: str, side: str, tensor: Tensor, module: nn.Module | None) -> None:
        shape = tuple(int(n) for n in tensor.shape)
        axis = channel_axis(shape, module)
        rule = describe(shape, axis, side=side, layer=canonical(layer))
        self.rules[alias] = FeatureRule(alias, layer, side, axis, shape[axis], rule)

    def _features(self, n_rows: int) -> dict[str, Tensor]:
        """Each alias's (B, D) tensor; an alias whose layer did not run or changed its width is left out."""
        for alias, layer in self.capture.targets.items():
            probe = self.capture.probes[layer]
            if alias not in self.rules and probe.call is not None:
                tensor = first_tensor(probe.call[1], n_rows)
                if tensor is not None:
                    self._add_rule(alias, layer, "output", tensor, probe.module)
        out: dict[str, Tensor] = {}
        for alias, rule in self.rules.items():
            probe = self.capture.probes[rule.layer]
            if probe.call is None:
                self.problems.setdefault(f"{alias}: silent", _silent_message(rule))
                continue
            tensor = first_tensor(probe.call[0] if rule.side == "input" else probe.call[1], n_rows)
            if tensor is None or tensor.ndim <= rule.axis or tensor.shape[rule.axis] != rule.raw_width:
                self.problems.setdefault(f"{alias}: shape", _shape_message(rule, tensor))
                continue
            if probe.changed_in_place():
                self.problems.setdefault(
                    f"{alias}: in place",
                    f"The output of `{canonical(rule.layer)}` is changed in place by the layer after it; the "
                    f"recorded feature {alias!r} is the changed value. Name the following layer to say so, "
                    "or set inplace=False.",
                )
            out[alias] = pool(tensor, rule.axis)
        return out


def _trainable(module: nn.Module) -> bool:
    """Whether training changes the module: a distillation's teacher, frozen, is not what is debugged."""
    return any(parameter.requires_grad for parameter in module.parameters())


def _input_width(call: LeafCall, n_rows: int) -> int:
    tensor = first_tensor(call.args, n_rows)
    if tensor is None:
        return 0
    shape = tuple(int(n) for n in tensor.shape)
    return shape[channel_axis(shape, call.module)]


def _silent_message(rule: FeatureRule) -> str:
    return (
        f"The hook on `{canonical(rule.layer)}` did not fire in a recorded batch, so the feature "
        f"{rule.alias!r} is missing there. A layer inside a compiled model can only be hooked before the "
        "first compiled call: create the tracer (or the callback) before the model runs."
    )


def _shape_message(rule: FeatureRule, tensor: Tensor | None) -> str:
    found = "no tensor with the batch's rows" if tensor is None else f"shape {tuple(tensor.shape)}"
    return (
        f"The feature {rule.alias!r} has {rule.raw_width} columns in this run ({rule.rule}), a later batch "
        f"brought {found}; the feature is missing for such batches. A new version_name starts with a new "
        "width."
    )
