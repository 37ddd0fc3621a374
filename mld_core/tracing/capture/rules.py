"""Which layer's input or output is a feature, settled once for a run, and read off the capture's stash.

Features default to the input of the head: the last executed Linear or Conv layer that gives a column per
class (auxiliary heads are registered behind or beside it, so registration order says nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.tracing.capture.capture import DEFAULT_ALIAS, HEAD_TYPES, Capture, LeafCall, canonical
from mld_core.tracing.capture.features import channel_axis, describe, first_tensor, pool, stored_width
from mld_core.tracing.capture.outputs import looks_like_probabilities, scores_of
from mld_core.tracing.capture.reading import CLS_LOGITS

_TOLERANCE: Final = 2e-3  # bfloat16 layers: 8 bits of mantissa, compared after float()
_FACTOR: Final = 0.02  # of scores, as a logarithm; four of bfloat16's last places
_LEAST: Final = 1e-5  # no score below it is compared


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


def class_columns(output: Any, n_rows: int, n_class: int) -> Tensor | None:
    """A head layer's output as (B, K): as it is, or a conv head's map averaged over space."""
    if not isinstance(output, Tensor) or output.ndim < 2 or tuple(output.shape[:2]) != (n_rows, n_class):
        return None
    return output if output.ndim == 2 else output.detach().float().flatten(2).mean(2)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, as far as bfloat16 tells."""
    return torch.allclose(a.detach().float(), b.detach().float(), rtol=_TOLERANCE, atol=_TOLERANCE)


def is_activation_of(outer: Tensor, columns: Tensor) -> bool:
    """Whether `outer` is the softmax or the log-softmax of `columns` (and not `columns` itself)."""
    if same(outer, columns):
        return False
    x = columns.detach().float()
    return same(outer, x.softmax(1)) or same(outer, x.log_softmax(1))


def otherwise(outputs: Any, logits: Tensor) -> bool:
    """Whether the scores of a model's data samples are made of more than these logits; may wait for a device.

    Such as the sum of two heads, or a mean over augmentations.

    Args:
        outputs: what an evaluation step returned.
        logits: (n, K), of a hooked module.
    """
    scores = scores_of(outputs) if isinstance(outputs, list) else None
    if scores is None or scores.shape != logits.shape or not looks_like_probabilities(scores.detach().cpu()):
        return False
    columns = logits.detach().float()
    made = (columns.softmax(1), columns.sigmoid(), columns)
    given = _log(scores.detach().to(columns.device).float())
    far = [(given - _log(one)).abs().max() > _FACTOR for one in made]
    return all(map(bool, far))


def _log(scores: Tensor) -> Tensor:
    """A model that is sure gives scores that differ in their logarithms alone."""
    return scores.clamp_min(_LEAST).log()


class FeatureRules:
    """The features of one model.

    Attributes:
        rules: alias -> how it is made.
        problems: what is to be told, by kind.
    """

    def __init__(self, capture: Capture, known: Mapping[str, Mapping[str, Any]]) -> None:
        self.capture = capture
        self.rules: dict[str, FeatureRule] = {}
        self.problems: dict[str, str] = {}
        self._known = known
        self._searched_default = False

    def settle_features(self, logits: Tensor) -> None:
        """The default feature, of the first mode whose logits are decided."""
        if set(self.capture.targets) - {CLS_LOGITS} or self.rules or self._searched_default:
            return
        self._searched_default = True
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
        exact = [call for call, columns in layers if same(columns, logits)]
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

    def features(self, n_rows: int, call_no: int, number: int = 0, *, last: bool = True) -> dict[str, Tensor]:
        """Each alias's (B, D) tensor; an alias whose layer did not run or changed its width is left out.

        Args:
            n_rows: rows of the batch.
            call_no: which forward of the step made the logits, of those that count.
            number: which of all, 0: not known.
            last: no other that counts came after it.
        """
        for alias, layer in self.capture.targets.items():
            probe = self.capture.probes[layer]
            if alias not in self.rules and probe.call is not None and alias != CLS_LOGITS:
                tensor = first_tensor(probe.belongs(number, call_no)[1], n_rows)
                if tensor is not None:
                    self._add_rule(alias, layer, "output", tensor, probe.module)
        out: dict[str, Tensor] = {}
        for alias, rule in self.rules.items():
            probe = self.capture.probes[rule.layer]
            if probe.call is None:
                self.problems.setdefault(f"{alias}: silent", _silent_message(rule))
                continue
            if probe.compiled and not last:
                self.problems.setdefault(f"{alias}: compiled", _compiled_message(rule))
                continue
            args, output = probe.belongs(number, call_no)
            tensor = first_tensor(args if rule.side == "input" else output, n_rows)
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


def _compiled_message(rule: FeatureRule) -> str:
    return (
        f"Of `{canonical(rule.layer)}`, which runs compiled, only the last call in a step is seen, and the "
        f"logits are of an earlier forward: the feature {rule.alias!r} is missing there. Have the forward "
        "that the batch's own labels belong to be the last one, or train without torch.compile."
    )


def _shape_message(rule: FeatureRule, tensor: Tensor | None) -> str:
    found = "no tensor with the batch's rows" if tensor is None else f"shape {tuple(tensor.shape)}"
    return (
        f"The feature {rule.alias!r} has {rule.raw_width} columns in this run ({rule.rule}), a later batch "
        f"brought {found}; the feature is missing for such batches. A new version_name starts with a new "
        "width."
    )
