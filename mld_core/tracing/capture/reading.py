"""Which tensor of a step is the class logits: what the loss was computed from, else rules that never guess.

With a loss (`by_loss`) its own graph says which output, of which kind, against which target. Without one
(`by_rules`): nothing below a module's output whose batch dimension fits is looked at; of several tensors that
fit, the width must equal a class count known from elsewhere (the model's, the user's, the labels seen). What
stays ambiguous, or is no single-label classification, is refused in one sentence with the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from mld_core.tracing.capture.capture import LeafCall
from mld_core.tracing.capture.graph import Origin
from mld_core.tracing.capture.outputs import as_rows, find_logits, leaves
from mld_core.tracing.paths import Path, at, spelled, tensors_at

OUTPUTS: Final = "<outputs>"  # what the event brought along, rather than a module's output
CLS_LOGITS: Final = "cls_logits"  # the alias in `target_layers` that names the logits
_VOCABULARY: Final = 2000  # more columns for each token than a tag set has


@dataclass(frozen=True)
class LogitsSource:
    """How the logits of one mode are read.

    Attributes:
        name: a module's name ("" is the model), or `OUTPUTS`.
        is_head: of a layer of known width; a map is averaged over space.
        activation: "logits", "probabilities" (of the kind), "one logit" or "one probability" (two classes,
            of the second).
        path: where in what the module gave; None: found by its shape.
        call: which call of the module in the step.
        picked: (axis, index) selections on the way to the loss.
        kind: "softmax" or "sigmoid", as the loss says; "" without one.
    """

    name: str
    is_head: bool = False
    activation: str = "logits"
    path: Path | None = None
    call: int = 0
    picked: tuple[tuple[int, int], ...] = ()
    kind: str = ""

    @cached_property
    def is_binary(self) -> bool:
        """Whether one number per sample stands for two classes."""
        return self.activation.startswith("one ")

    def read(self, value: Any, n_rows: int | None, n_class: int | None) -> Tensor | None:
        """The tensor (B, K) in what the module gave, (B, 1) of one logit; None where it does not fit."""
        if self.path is None:
            return find_logits(value, n_rows, n_class)
        tensor = _selected(at(value, self.path) if self.path else value, self.picked)
        if tensor is None or (n_rows is not None and tensor.shape[:1] != (n_rows,)):
            return None
        if self.is_binary:
            return tensor.reshape(-1, 1) if tensor.numel() == tensor.shape[0] else None
        rows = as_rows(tensor)
        return rows if rows is None or n_class in {None, rows.shape[1]} else None


def _selected(tensor: Any, picked: tuple[tuple[int, int], ...]) -> Tensor | None:
    """A floating tensor with a batch axis, behind the selections; None where they do not fit."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return None
    try:
        for axis, index in picked:
            tensor = tensor.select(axis, index)
    except IndexError:
        return None
    return tensor.detach() if tensor.ndim else None


@dataclass(frozen=True)
class Refusal:
    """Why nothing is recorded.

    Attributes:
        task: what the model does, if that is why; "" where it is not clear which tensor is meant.
        reason: one sentence, with the fix where there is one.
        of_rows: the loss uses some rows of an output; an evaluation is read by the rules all the same.
    """

    task: str
    reason: str
    of_rows: bool = False


def place_of(value: Any, logits: Tensor) -> Path | None:
    """Where `logits` stands in what a module gave; None where it was made of several tensors."""
    for path, tensor in tensors_at(value):
        rows = as_rows(tensor)
        if rows is not None and rows.data_ptr() == logits.data_ptr() and rows.shape == logits.shape:
            return path
    return None


Weight = tuple[
    bool, int
]  # of an origin: its target is the batch's labels; how much of the batch it was given


def _unknown(_: Origin) -> Weight:
    return False, 0


def _never(_: Origin) -> bool:
    return False


def by_loss(
    origins: Sequence[Origin],
    n_rows: int | None,
    weigh: Callable[[Origin], Weight] = _unknown,
    mixed: Callable[[Origin], bool] = _never,
) -> tuple[LogitsSource, Origin] | Refusal | None:
    """What the loss says; None where it says nothing that is known.

    Args:
        origins: of `Graph.origins`.
        n_rows: rows of the batch where the labels tell.
        weigh: what speaks for an origin's being of the batch in hand, rather than of other samples.
        mixed: whether its targets hold several classes because samples of one class each were mixed.
    """
    classes = [o for o in origins if o.kind in {"softmax", "sigmoid"}]
    if not classes:
        real = [o for o in origins if o.kind == "regression"]
        if not real:
            return None
        shape = tuple(real[0].output.tensor.shape)
        return Refusal(
            "regression",
            f"the loss compares {_name(real[0])}, shape {shape}, with real numbers (a distance, no class).",
        )
    # Of parts of one output the first (auxiliary ones stand behind it), of several modules the last that ran.
    outer = min((o.output.name.count("."), bool(o.output.name)) for o in classes)
    last = [o for o in classes if (o.output.name.count("."), bool(o.output.name)) == outer][-1].output.name
    calls = [o for o in classes if o.output.name == last]
    first = calls[0] if len(calls) == 1 else max(calls, key=weigh)  # of equals the first
    others = [o for o in classes if o is not first and not same_target(first.target, o.target)]
    if others and len(calls) > 1 and weigh(first)[0]:
        # Further calls of the module, compared with what is no label of the batch, are of other samples.
        others = [o for o in others if o.output.name != last or weigh(o)[0]]
    if others:
        named = ", ".join(_name(o) for o in (first, *others))
        return Refusal(
            "",
            f"{named} answer different targets; say which one is meant: "
            f"target_layers={{'{CLS_LOGITS}': '<module path>'}} and label_fn(batch) for its labels.",
        )
    return _read_as(first, n_rows, mixed)


def _read_as(
    origin: Origin, n_rows: int | None, mixed: Callable[[Origin], bool]
) -> tuple[LogitsSource, Origin] | Refusal:
    output = origin.output
    if origin.between:
        return Refusal(
            "",
            f"the class logits are computed outside any module, from {_name(origin)} of shape "
            f"{tuple(output.tensor.shape)}: put that product into a module (torch.nn.Linear), or return the "
            "logits from the step.",
        )
    tensor = _selected(output.tensor, origin.picked)
    assert tensor is not None
    rows = as_rows(tensor)
    one_each = tensor.ndim == 1 or tensor.numel() == tensor.shape[0]
    activation = "probabilities" if origin.kind == "sigmoid" and not origin.of_logits else "logits"
    if origin.kind == "sigmoid" and one_each:
        activation = "one logit" if origin.of_logits else "one probability"
    elif rows is None or (tensor.ndim == 2 and origin.entered and origin.entered[-1] != tensor.shape[1]):
        return _dense(origin, tensor)
    elif rows.shape[1] < 2:
        return Refusal("", f"{_name(origin)} gives one column per sample, from which no class can be read.")
    elif origin.kind == "sigmoid" and _several(origin.target, tuple(rows.shape)) and not mixed(origin):
        return Refusal("multi-label", "the loss's targets hold several classes per sample, or none.")
    if n_rows is None and origin.entered and tensor.ndim <= len(origin.entered):
        n_rows = origin.entered[0]  # no label was found in the batch by its name
    if n_rows is not None and tensor.shape[0] != n_rows:
        return Refusal(
            "",
            f"{_name(origin)} gives {tensor.shape[0]} rows for {n_rows} samples, of which the loss uses "
            "some: give label_fn(batch) with as many labels, or return the batch's logits from the step.",
            of_rows=True,
        )
    source = LogitsSource(
        output.name,
        activation=activation,
        path=output.path,
        call=output.call,
        picked=origin.picked,
        kind=origin.kind,
    )
    return source, origin


def _dense(origin: Origin, tensor: Tensor) -> Refusal:
    """What it is that is answered for each token or pixel; or columns of which the loss uses some."""
    shape = tuple(tensor.shape)
    told = f"{_name(origin)} gives shape {shape}"
    if tensor.ndim >= 4:
        return Refusal("segmentation", f"{told}: one answer per pixel.")
    if tensor.ndim == 3 and shape[-1] >= _VOCABULARY:
        return Refusal("language modelling", f"{told}: one token of {shape[-1]} for each position.")
    if tensor.ndim == 3:
        return Refusal("token classification", f"{told}: one answer for each position of a sequence.")
    return Refusal(
        "",
        f"{told}, of which the loss uses {origin.entered}: return the logits that the loss is given from the "
        "step, as 'logits'.",
    )


def _name(origin: Origin) -> str:
    name = f"`{origin.output.name}`" if origin.output.name else "the model's output"
    return name + spelled(origin.output.path)


def same_target(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two losses are given the same answers; for watched batches only, it may wait for a device."""
    if a is None or b is None:
        return True
    if a.shape != b.shape:
        return a.shape[:1] == b.shape[:1] and a.ndim != b.ndim  # indices and what was made of them
    return bool(torch.equal(a, b.to(a.dtype)))


def _several(target: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether rows of zeros and ones hold more, or fewer, than one class."""
    if target is None or tuple(target.shape) != shape:
        return False
    sums = target.float().sum(1)
    return bool(((sums - 1).abs() > 1e-3).any())


class Hand(Protocol):
    """The batch in hand, to compare with what calls were given and what losses were compared with."""

    def given(self, value: Any) -> int:
        """How many of its parts are in what a call was given."""

    def answers(self, target: Tensor | None) -> bool:
        """Whether a target is its labels."""

    def mixed(self, target: Tensor | None) -> bool:
        """Whether a target made in the step holds each sample's own class, and others."""

    def reorders(self, value: Any) -> bool:
        """Whether a call was given its samples in another order."""


@dataclass(frozen=True)
class Known:
    """What is known without looking at a model's output.

    Attributes:
        count: the number of classes, as the user or the model states it.
        smallest: one more than the largest label seen.
        binary: all labels seen are zeros and ones; False without labels.
        hand: the batch itself; None where it cannot be compared with.
    """

    count: int | None = None
    smallest: int = 2
    binary: bool = False
    hand: Hand | None = None


Decision = tuple[LogitsSource, Tensor] | Refusal | None


def by_rules(call: LeafCall, n_rows: int | None, known: Known, *, answers: bool = True) -> Decision:
    """What can be said of one output without a loss; None where it does not answer for the batch.

    Args:
        call: of a module, or what an event brought, under the name `OUTPUTS`.
        n_rows: rows of the batch where known.
        known: of the classes.
        answers: what a module gave speaks for the batch; what a step returned may be anything.
    """
    name, value = call.name, call.output
    fewest = max(2, known.smallest)
    found = [rows for leaf in leaves(value) if (rows := as_rows(leaf)) is not None and rows.shape[1] > 1]
    found = [t for t in found if n_rows in {None, t.shape[0]}]
    stated = [t for t in found if t.shape[1] == known.count]
    wide = stated or [t for t in found if t.shape[1] >= fewest]
    widths = {int(t.shape[1]) for t in wide}
    if len(widths) > 1 and fewest in widths:
        widths = {fewest}
    if len(widths) == 1:
        width = widths.pop()
        if width not in {known.count, fewest} and _as_given(call, (int(wide[0].shape[0]), width)):
            return Refusal(
                "", f"{_told(wide)}, the shape of what it was given: say n_class=<number of classes>."
            )
        logits = find_logits(value, n_rows, width)
        assert logits is not None
        return LogitsSource(name, path=place_of(value, logits)), logits
    if not answers:
        return None
    if widths:
        return Refusal(
            "", f"{_told(wide)}, and the number of classes is not known: give n_class=<number of classes>."
        )
    return _without_columns(call, n_rows, known)


def _without_columns(call: LeafCall, n_rows: int | None, known: Known) -> Decision:
    """A module's output that holds no columns of classes."""
    first = next((t for t in leaves(call.output) if t.is_floating_point() and t.ndim), None)
    if first is None or n_rows not in {None, first.shape[0]}:
        return None
    shape = tuple(first.shape)
    if n_rows is not None and first.numel() == n_rows and known.binary and known.count in {None, 2}:
        path = next((path for path, t in tensors_at(call.output) if t is first), None)
        source = LogitsSource(call.name, activation="one logit", path=path)
        return source, first.detach().reshape(-1, 1)
    if first.ndim > 2 and call.name:
        return None  # a feature map of a part
    if first.ndim == 1 or shape[1:] == (1,):
        return Refusal(
            "",
            f"It returned shape {shape}, one number z per sample, which stands for two classes only where "
            "the labels are zeros and ones.",
        )
    if first.ndim == 2:
        return Refusal(
            "",
            f"It returned shape {shape}, but the labels go up to {known.smallest - 1}: if what was taken for "
            "the labels is another column of the batch (an index), give label_fn(batch).",
        )
    return Refusal("", f"It returned shape {shape}.")


def _told(found: Sequence[Tensor]) -> str:
    return "It returned " + ", ".join(f"shape {tuple(t.shape)}" for t in found)


def _as_given(call: LeafCall, shape: tuple[int, ...]) -> bool:
    """Whether an output has the shape of the input: an autoencoder's, which answers no class."""
    size = shape[0] * shape[1]
    return any(t.shape[:1] == shape[:1] and t.numel() == size for _, t in tensors_at(call.args))
