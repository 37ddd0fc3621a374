"""What a loss was computed from, read in its autograd graph: nothing is run, patched or put on a stack.

A loss that is about to be sent backward holds in `grad_fn` how it was made. Walking back from it until a node
*is* the one that made a tensor which a forward hook saw names the module output the loss was computed from,
the operations between, and often the target itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from mld_core.tracing.paths import Path, tensors_at

_MOST_NODES: Final = 600
_END: Final = 4  # operations
# Prefixes of the nodes' names.
_SOFTMAX: Final = ("NllLoss", "LogSoftmax", "Softmax", "SafeSoftmax", "Logsumexp", "MultiMarginLoss")
_SIGMOID: Final = ("BinaryCrossEntropy", "Sigmoid", "LogSigmoid", "SoftMarginLoss", "MultilabelMarginLoss")
_SHARED: Final = (
    "Add", "Sum", "Mean", "Neg", "View", "ViewAs", "Reshape", "UnsafeView", "ToCopy", "Squeeze", "Unsqueeze",
    "Clone", "Alias", "Expand", "Stack", "Cat",
)  # fmt: skip
"""Operations that do the same to all terms of a loss."""
_PARTS: Final = ("Slice", "Select", "Split", "Index", "Unbind", "Narrow", "Masked", "Gather", "Take")
"""Operations that leave some of a tensor's rows."""
_REGRESSION: Final = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
_MAKES_LOGITS: Final = (
    "Mm", "Addmm", "Bmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Dot", "Linear", "Convolution", "Cdist",
    "Embedding",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor that a hooked module gave: in its call number `call` of the step, at `path`."""

    name: str
    call: int
    path: Path
    tensor: Tensor


@dataclass(frozen=True)
class Origin:
    """A module output that a loss was computed from.

    Attributes:
        output: which.
        kind: "softmax", "sigmoid", "regression", or "other": no loss that is known.
        target: what the loss compared it with, None where the graph does not hold it.
        axis: of the classes in what entered the loss, for the softmax kind.
        entered: shape of what entered the loss.
        picked: (axis, index) of the columns that alone entered it: `z[:, 1]`.
        between: operations that compute, between the output and the loss, such as a matrix product.
        of_logits: False: the loss takes probabilities, and the output is one.
    """

    output: Output
    kind: str
    target: Tensor | None = None
    axis: int | None = None
    entered: tuple[int, ...] = ()
    picked: tuple[tuple[int, int], ...] = ()
    between: tuple[str, ...] = ()
    of_logits: bool = True


@dataclass(frozen=True)
class Mixture:
    """Several targets that a loss compares one output with: of samples that were mixed, say.

    Attributes:
        targets: int64 (n,), each.
        shares: float32 (n, K), each sample's share of each class; NaN where not `weighted`.
        weighted: what the targets are weighted with was seen.
    """

    targets: tuple[Tensor, ...]
    shares: Tensor
    weighted: bool = True


@dataclass
class _Step:
    """A node of the walk, the step before it, and which of the node's results was used."""

    node: Any
    before: _Step | None
    result: int = 0
    name: str = field(init=False)
    key: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.key = type(self.node).__name__, (id(self.node), self.result)

    def is_a(self, names: tuple[str, ...]) -> bool:
        return self.name.startswith(names)


class Graph:
    """What the hooks saw in one step, by the nodes that made it.

    Nodes are kept as they were when the module returned: an in-place operation behind it gives the tensor
    another.
    """

    def __init__(self) -> None:
        self.outputs: dict[tuple[int, int], Output] = {}
        self._nodes: list[Any] = []  # the key's object stays alive, or its id could return
        self._calls: dict[str, int] = {}

    def saw(self, name: str, output: Any) -> None:
        """A module returned. What several returned, one inside the other, is the outermost one's."""
        call = self._calls[name] = self._calls.get(name, -1) + 1
        for path, tensor in tensors_at(output):
            node = tensor.grad_fn
            if node is not None and tensor.ndim and tensor.is_floating_point():
                self._nodes.append(node)
                self.outputs[id(node), tensor.output_nr] = Output(name, call, path, tensor)

    def knows(self, name: str) -> bool:
        """Whether a call of that module was seen."""
        return name in self._calls

    def clear(self) -> None:
        """Lets go of the graph."""
        self.outputs.clear()
        self._nodes.clear()
        self._calls.clear()

    def origins(self, loss: Any) -> list[Origin]:
        """The module outputs that `loss` was computed from, those nearest to it; before backward frees it.

        Args:
            loss: a tensor, or a mapping or sequence that holds some.
        """
        found: dict[int, Origin] = {}
        for _, tensor in tensors_at(loss):
            if tensor.grad_fn is not None:
                self._walk(tensor, found)
        places = {id(output.tensor): place for place, output in enumerate(self.outputs.values())}
        return sorted(found.values(), key=lambda origin: places[id(origin.output.tensor)])

    def _walk(self, loss: Tensor, found: dict[int, Origin]) -> None:
        seen: dict[tuple[int, int], _Step] = {}
        hits: list[Origin] = []
        queue = deque([_Step(loss.grad_fn, None, loss.output_nr)])
        while queue and len(seen) < _MOST_NODES:
            step = queue.popleft()
            if step.key in seen:
                continue
            seen[step.key] = step
            output = self.outputs.get(step.key)
            if output is not None and (step.before is not None or output.tensor is not loss):
                hits.append(_origin(output, step))
                continue
            queue += [_Step(node, step, nr) for node, nr in step.node.next_functions if node is not None]
        classes = [origin for origin in hits if origin.kind in {"softmax", "sigmoid"}]
        if len(classes) == 1 and classes[0].target is None:
            # Not on the shortest way, as where smoothing is a mean beside the gathered column.
            target = _target(list(seen.values()), classes[0].entered)
            hits = [replace(o, target=target) if o is classes[0] else o for o in hits]
        for origin in hits:
            known = found.get(id(origin.output.tensor))
            if known is None or (known.kind == "other" and origin.kind != "other"):
                found[id(origin.output.tensor)] = origin


def hangs_on(loss: Any, outputs: Sequence[Any]) -> bool:
    """Whether a loss was computed from some outputs, or in the same compiled call; True where not known."""
    made = [tensor.grad_fn for output in outputs for _, tensor in tensors_at(output)]
    nodes = {id(node) for node in made if node is not None}
    ends = [tensor.grad_fn for _, tensor in tensors_at(loss) if tensor.grad_fn is not None]
    return not nodes or not ends or any(_reaches(end, nodes) for end in ends)


def compiled_beside(loss: Any, known: Sequence[Any]) -> list[Origin]:
    """Of which class logits else, in compiled calls of which no output was seen, a loss was computed.

    Args:
        loss: a tensor, or a mapping or sequence that holds some.
        known: outputs of compiled calls that were seen.
    """
    made = {id(t.grad_fn) for output in known for _, t in tensors_at(output) if t.grad_fn is not None}
    queue = deque(_Step(t.grad_fn, None, t.output_nr) for _, t in tensors_at(loss) if t.grad_fn is not None)
    seen: dict[int, _Step] = {}
    while queue and len(seen) < _MOST_NODES:
        step = queue.popleft()
        if id(step.node) not in made and id(step.node) not in seen:
            seen[id(step.node)] = step
            queue += [_Step(node, step, nr) for node, nr in step.node.next_functions if node is not None]
    origins = [
        _origin(Output("", -1, (), torch.empty(_result_shape(step), device="meta")), step)
        for step in seen.values()
        if step.is_a(("CompiledFunction",)) and not _reaches(step.node, made)  # what does is a criterion
    ]
    return [origin for origin in origins if origin.kind in {"softmax", "sigmoid"}]


def _reaches(end: Any, nodes: set[int]) -> bool:
    """Whether a walk back from a node comes to one of some; True where it grew too long to say."""
    queue, seen, known = deque([end]), [end], {id(end)}  # seen: alive, or their ids could return
    while queue and len(seen) < _MOST_NODES:
        node = queue.popleft()
        if id(node) in nodes:
            return True
        more = [n for n, _ in node.next_functions if n is not None and id(n) not in known]
        known.update(map(id, more))
        seen += more
        queue += more
    return bool(queue)


def end_of(loss: Any) -> str:
    """The names of a loss's last operations, to where several come together; "" of what is no tensor.

    A trainer divides the loss it was given, so that the last alone says little. Asked at every step.
    """
    node, names = loss.grad_fn if isinstance(loss, Tensor) else None, ""
    for _ in range(_END):
        if node is None:
            break
        names += type(node).__name__ + " "
        inner = node.next_functions
        node = inner[0][0] if len(inner) == 1 or (len(inner) > 1 and inner[1][0] is None) else None
    return names


def target_of(loss: Any) -> Tensor | None:
    """The target of the loss that stands nearest to the end of the graph, None where none is held."""
    node, seen = loss.grad_fn if isinstance(loss, Tensor) else None, 0
    queue = deque([_Step(node, None)] if node is not None else [])
    while queue and seen < 64:
        step = queue.popleft()
        seen += 1
        if step.is_a((*_SOFTMAX, *_SIGMOID)):
            chain = [step]
            while chain[-1].before is not None:
                chain.append(chain[-1].before)
            target = _target(chain[::-1], _result_shape(step))
            if target is not None:
                return target
        queue += [_Step(node, step, nr) for node, nr in step.node.next_functions if node is not None]
    return None


def mixture_of(loss: Any) -> Mixture | None:
    """The targets that cross entropies of one output compare it with in a loss; None of fewer than two.

    >>> logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])
    >>> ce = torch.nn.functional.cross_entropy
    >>> mixture_of(0.75 * ce(logits, labels) + 0.25 * ce(logits, labels.flip(0))).shares.tolist()
    [[0.75, 0.0, 0.25], [0.25, 0.0, 0.75]]
    """
    terms = _cross_entropies(loss)
    first = {step.key for _, trail in terms[:1] for step in trail}
    found = [(last, trail) for last, trail in terms if any(step.key in first for step in trail)]
    if len(found) < 2:
        return None
    made = [(_saved(step.node, "_saved_target"), _saved(step.node, "_saved_self")) for step, _ in found]
    targets = [target.detach() for target, scores in made if target is not None and scores is not None]
    if len(targets) < len(found) or len({t.shape for t in targets}) > 1:
        return None
    shape = made[0][1].shape
    weights = [_weight(step, shape[0]) for step, _ in found]
    if any(w is not None and w.is_cpu and bool((w < 0).any()) for w in weights):
        return None  # one is taken from the loss
    shares = torch.zeros(shape, dtype=torch.float32, device=targets[0].device)
    for target, weight in zip(targets, weights, strict=True):
        known = torch.full((1, 1), math.nan) if weight is None else weight
        rows = known.to(shares.device, torch.float32).expand(shape[0], 1)
        inside = (target >= 0) & (target < shape[1])  # not one that is ignored
        shares.scatter_add_(1, target.clamp(0, shape[1] - 1)[:, None], rows * inside[:, None])
    return Mixture(tuple(targets), shares / shares.sum(1, keepdim=True), all(w is not None for w in weights))


def compares(loss: Any, output: Any) -> bool:
    """Whether a cross entropy in a loss is taken of what a module gave."""
    nodes = {id(tensor.grad_fn) for _, tensor in tensors_at(output) if tensor.grad_fn is not None}
    return any(id(step.node) in nodes for _, trail in _cross_entropies(loss) for step in trail)


def _cross_entropies(loss: Any) -> list[tuple[_Step, list[_Step]]]:
    """The cross entropies with hard labels in a loss, and what each was computed from, but for the model."""
    found: list[tuple[_Step, list[_Step]]] = []
    seen: dict[int, _Step] = {}
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    queue = deque([_Step(node, None)] if node is not None else [])
    while queue and len(seen) < _MOST_NODES:
        step = queue.popleft()
        if id(step.node) in seen:
            continue
        seen[id(step.node)] = step
        if step.is_a(("NllLossBackward",)):
            found.append((step, _trail(step)))
        elif not step.is_a(("LogSoftmax", *_MAKES_LOGITS)):
            queue += [_Step(node, step, nr) for node, nr in step.node.next_functions if node is not None]
    return found


def unweighted(target: Tensor | None, n_class: int | None) -> Mixture | None:
    """A target that is one of several, of which nothing tells the weights; None of what holds no classes."""
    if target is None or target.ndim != 1 or target.is_floating_point() or not n_class:
        return None
    shares = torch.full((len(target), n_class), math.nan, device=target.device)
    return Mixture((target,), shares, weighted=False)


def _trail(step: _Step, most: int = 6) -> list[_Step]:
    """What a loss was computed from, back to where that was of several tensors, or had more rows."""
    trail: list[_Step] = []
    while len(trail) < most and not step.is_a(_PARTS):
        inner = [_Step(node, step, nr) for node, nr in step.node.next_functions if node is not None]
        if len(inner) != 1:
            break
        step = inner[0]
        trail.append(step)
    return trail


def _weight(step: _Step, n: int) -> Tensor | None:
    """What a term of a loss is multiplied with, (1, 1) or (n, 1), up to a common factor; None: not known."""
    weight, inner, outer = torch.ones(1, 1), step, step.before
    while outer is not None:
        if outer.is_a(("Mul", "Div")):
            factor = _saved(outer.node, "_saved_other" if _is_left(outer, inner) else "_saved_self")
            if isinstance(factor, Tensor) and factor.numel() in {1, n}:
                factor = factor.detach().reshape(-1, 1)
                weight = weight.to(factor.device) if factor.numel() > 1 else weight
            elif not isinstance(factor, (int, float)):
                return None
            weight = weight / factor if outer.is_a(("Div",)) else weight * factor
        elif not outer.is_a((*_SHARED, "Sub")) or getattr(outer.node, "_saved_alpha", 1) != 1:
            return None
        elif outer.is_a(("Sub",)) and not _is_left(outer, inner):
            weight = -weight
        inner, outer = outer, outer.before
    return weight


def _is_left(outer: _Step, inner: _Step) -> bool:
    """Whether a factor's inner step is the first operand of a product or a quotient."""
    return outer.node.next_functions[0][0] is inner.node


def _origin(output: Output, last: _Step) -> Origin:
    steps = [last]
    while steps[-1].before is not None:
        steps.append(steps[-1].before)
    chain = steps[::-1]  # from the loss to the output
    kind, place = _kind(chain[:-1])
    inner = chain[place + 1 : -1]
    entered = tuple(output.tensor.shape)
    if place >= 0:
        entered = _result_shape(chain[place + 1]) if inner else entered
    axis = None
    for step in chain[place:-1] if place >= 0 else ():
        if step.is_a(("LogSoftmax", "Softmax")):
            axis = int(getattr(step.node, "_saved_dim", 1))
            axis, inner = axis - (1 << 64) if axis >> 63 else axis, chain[chain.index(step) + 1 : -1]
            entered = _result_shape(step)
            break
    return Origin(
        output,
        kind,
        _target(chain[:-1], entered),
        axis,
        entered,
        _picked(inner),
        tuple(step.name for step in inner if step.is_a(_MAKES_LOGITS)),
        of_logits=not _takes_probabilities([step.name for step in chain[:-1]]),
    )


def _takes_probabilities(names: list[str]) -> bool:
    """Whether binary cross entropy is taken of what was no logit any more when it left the module."""
    plain = any(n.startswith("BinaryCrossEntropy") and "WithLogits" not in n for n in names)
    return plain and not any(n.startswith("Sigmoid") for n in names)


def _kind(chain: list[_Step]) -> tuple[str, int]:
    """The kind of loss, and the place of the node that says so."""
    for kind, names in (("softmax", _SOFTMAX), ("sigmoid", _SIGMOID), ("regression", _REGRESSION)):
        place = next((i for i, step in enumerate(chain) if step.is_a(names)), None)
        if place is not None:
            return kind, place
    return "other", -1


def _result_shape(step: _Step) -> tuple[int, ...]:
    """The shape of what a node made: of the gradient it will be given. Nothing saved is touched."""
    known = getattr(step.node, "_input_metadata", ())
    return tuple(int(size) for size in known[step.result].shape) if step.result < len(known) else ()


def _picked(inner: list[_Step]) -> tuple[tuple[int, int], ...]:
    """(axis, index) of each selection on the way from the output to the loss, in the order it was made."""
    found = []
    for step in reversed(inner):
        if step.is_a(("Select",)):
            index = int(step.node._saved_index)  # noqa: SLF001 - autograd's names begin so
            found.append((int(step.node._saved_dim), index - (1 << 64) if index >> 63 else index))  # noqa: SLF001
    return tuple(found)


def _target(chain: list[_Step], entered: tuple[int, ...] | None) -> Tensor | None:
    """What the loss compared with: saved with the loss, as the index of a gather, or as a factor (mixup)."""
    for step in chain:
        for name in ("_saved_target", "_saved_index", "_saved_other", "_saved_self"):
            if name != "_saved_target" and not step.is_a(("Gather",) if name == "_saved_index" else ("Mul",)):
                continue
            value = _saved(step.node, name)
            if isinstance(value, Tensor) and not value.requires_grad and value.ndim:
                if name == "_saved_index":
                    return value.detach().squeeze(-1)
                if name == "_saved_target" or entered is None or tuple(value.shape) == entered:
                    factor = name != "_saved_target" and not _is_negative(chain)
                    return -value.detach() if factor else value.detach()
    return None


def _is_negative(chain: list[_Step]) -> bool:
    """Whether what stands at a chain's end is taken from the loss, as a share of log-probabilities is."""
    negative = False
    for step, inner in zip(chain, [*chain[1:], None], strict=True):
        negative ^= step.is_a(("Neg",))
        if inner is not None and step.is_a(("Sub", "Rsub")):
            taken = 1 if step.is_a(("Sub",)) else 0  # a - b; torch's rsub(a, b) is b - a
            nodes = [node for node, _ in step.node.next_functions]
            negative ^= taken < len(nodes) and nodes[taken] is inner.node
        if step.is_a(("Mul", "Div")) and inner is not None:
            # A number, too; one on a device is not waited for.
            share = _saved(step.node, "_saved_other" if _is_left(step, inner) else "_saved_self")
            known = share is not None and (not isinstance(share, Tensor) or (share.is_cpu and not share.ndim))
            negative ^= known and bool(share < 0)
    return negative


def _saved(node: Any, name: str) -> Any:
    try:
        return getattr(node, name, None)
    except RuntimeError:  # freed already, or packed by hooks that refuse
        return None
