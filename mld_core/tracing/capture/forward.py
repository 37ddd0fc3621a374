"""The latest forward of a model whose framework shows neither batch nor output: references, no more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import torch

from mld_core.tracing.capture.compiling import is_compiling

Refuses = Callable[[Mapping[str, Any], Any, int, bool], bool]
"""Of the prepared batch, what the model was given last, in how many forwards, and whether it evaluates."""

_OF_PREPARED: Final = 2  # the rank of a forward of the batch that the trainer prepared


class LatestForward:
    """The hooks on the model and the references of its latest forward.

    Its own deep copy, so that a deep-copied model (EMA) records nothing; a pickled one comes back dead.
    Dynamo traces the hooks' bodies: they set attributes, and call back only where nothing is compiled.

    Args:
        begins: called with the model before each of its forwards.
        refuses: says of a batch of whose tensors the model was given none that nothing tells whose its rows
            are; such a batch is not given out.
    """

    def __init__(self, begins: Callable[[torch.nn.Module], None], refuses: Refuses | None = None) -> None:
        self.begins: Callable[[torch.nn.Module], None] | None = begins
        self.refuses = refuses
        self.model: torch.nn.Module | None = None
        self.batch: Any = None
        self.given: dict[str, Any] = {}  # the batch as the trainer prepared it
        self.outputs: Any = None
        self._raw: Any = None  # of an evaluation's batch that was not seen prepared
        self._of = self.given  # the prepared batch that `_rank` is of
        self._rank, self._takes = -1, True
        self._count = 0  # forwards that took the place of `batch`
        self._handles: list[Any] = []

    def attach(self, model: torch.nn.Module) -> None:
        """Set the hooks on a model, in place of those on the one before."""
        if model is not self.model:
            self.detach()
            self.model = model
            before = model.register_forward_pre_hook(_Before(self), with_kwargs=True)
            self._handles = [before, model.register_forward_hook(self)]

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self.model, self._handles = None, []

    def before(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The pre-hook; takes out what no `forward` takes."""
        if module is self.model:
            if is_compiling():
                self.batch = kwargs or args
            else:
                self._before(module, kwargs or args)
        if "input_id" in kwargs:  # kept by the collator for us; no forward() takes it
            return args, {key: value for key, value in kwargs.items() if key != "input_id"}
        return None

    def _before(self, module: torch.nn.Module, batch: Any) -> None:
        given = self.given
        if self.begins is not None:
            self.begins(module)  # may take the batch before this one, or meet this one
        self.given = self.given or given  # this batch's, which the trainer prepared before
        if not module.training and self._of is not self.given:
            self._of, self._rank, self._count = self.given, -1, 0  # an evaluation's next batch, or anew
        # Of several forwards in a step that of the prepared batch is meant, before others one with gradients
        # (a teacher's look has none), before others the first; in an evaluation without one of it the latest.
        rank = _OF_PREPARED * self._is_given(batch) + torch.is_grad_enabled()
        self._takes = rank > self._rank or (not module.training and self._rank < _OF_PREPARED)
        if self._takes:
            self.batch, self._rank, self._count = batch, rank, self._count + 1

    def _is_given(self, batch: Any) -> bool:
        """Whether a forward was given a tensor of the batch that the trainer prepared."""
        prepared = {id(value) for value in self.given.values() if isinstance(value, torch.Tensor)}
        return any(
            id(value) in prepared for value in (batch.values() if isinstance(batch, Mapping) else batch)
        )

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - a hook's
        """The hook: keeps the output of the step's own forward."""
        if module is self.model and (is_compiling() or self._takes):
            self.outputs = output

    @property
    def pending(self) -> bool:
        """Whether a forward of the prepared batch was kept and not taken."""
        return self._rank >= _OF_PREPARED and self._of is self.given

    def prepared(self, inputs: Any) -> None:
        """The batch that the trainer has prepared, and is about to ask the model for."""
        self.given, self._raw = dict(inputs) if isinstance(inputs, Mapping) else {}, None

    @property
    def is_prepared(self) -> bool:
        """Whether the trainer showed the batch in hand, rather than the loop around it."""
        return bool(self.given) and self._raw is None

    def meet(self, inputs: Any) -> None:
        """The batch that an evaluation's loop has in hand, which was prepared before it was known of."""
        if inputs is not self._raw:
            self._raw, self.given = inputs, dict(inputs) if isinstance(inputs, Mapping) else {}

    def take(self, *, evaluating: bool = False) -> tuple[Any, Any]:
        """Batch and outputs of the latest forward, once.

        Args:
            evaluating: no loss says what it was compared with, so the prepared batch has to (its labels),
                also where the model was given none of its tensors: sentence-transformers' losses tokenise.

        Returns:
            Both; of a batch that is refused None and the outputs.
        """
        batch, outputs, self.batch, self.outputs = self.batch, self.outputs, None, None
        given, self.given, self._rank, self._raw = self.given, {}, -1, None
        count, self._count = self._count, 0
        if isinstance(batch, tuple) and len(batch) == 1 and isinstance(batch[0], Mapping):
            batch = batch[0]
        parts = batch.values() if isinstance(batch, Mapping) else batch or ()
        seen = {id(value) for value in parts if value is not None}
        rest = {key: value for key, value in given.items() if id(value) not in seen}
        is_given = len(rest) < len(given)  # under whatever names the model takes its parts
        is_copy = bool(given and seen) and not is_given
        if is_copy and self.refuses is not None and self.refuses(given, batch, count, evaluating):
            return None, outputs
        is_given |= evaluating
        if isinstance(batch, Mapping):
            batch = {k: v for k, v in batch.items() if k != "num_items_in_batch"}
            batch = {**rest, **batch} if is_given else batch
        elif batch is not None and given and is_given:
            batch = given
        return batch, outputs

    def __deepcopy__(self, memo: dict[int, Any]) -> LatestForward:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "begins": None,
            "refuses": None,
            "model": None,
            "batch": None,
            "given": {},
            "outputs": None,
            "_raw": None,
            "_of": None,
            "_rank": -1,
            "_takes": True,
            "_count": 0,
            "_handles": [],
        }


class _Before:
    """The pre-hook of a `LatestForward`: an object, see `compiling`."""

    def __init__(self, forward: LatestForward) -> None:
        self.forward = forward

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return self.forward.before(module, args, kwargs)


def owner_on_stack(kind: type, within: int = 24) -> Any:
    """The object of this class whose method is on the stack; None: not within so many calls."""
    frame: Any = sys._getframe(1)  # noqa: SLF001 - events of some frameworks are given everything but the owner
    for _ in range(within):
        if frame is None:
            return None
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def local_on_stack(name: str, functions: Collection[str]) -> Any:
    """What the innermost of these functions on the stack has under a name; None where there is none."""
    frame: Any = sys._getframe(1)  # noqa: SLF001 - a loop that says nothing before its first forward
    while frame is not None and frame.f_code.co_name not in functions:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)
