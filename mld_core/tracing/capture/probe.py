"""The hook of one module, which keeps references to its calls in a step and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.tracing.capture.compiling import COUNTS_TRACED, cuda_is_initialized, is_compiling, next_traced

_KEPT_CALLS: Final = 7  # of one module in one step, behind its first
# Of the backward pass that runs on this thread, -1: none. torch has no public name for it.
_backward: Final[Callable[[], int]] = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # noqa: SLF001


class Switch:
    """Shared by all hooks of one capture: off between events, so that stray forwards keep nothing alive.

    `training`: a batch of the training is in hand. `streams`: CUDA streams on which hooked layers ran since
    it went on.
    """

    def __init__(self) -> None:
        self.armed = False
        self.training = False
        self.streams: set[Any] = set()

    def saw_call(self) -> None:
        """A hooked layer ran: on which stream tells what the copy of its output has to wait for."""
        if cuda_is_initialized():
            self.streams.add(torch.cuda.current_stream())


class Probe:
    """The hook of one module and the references of its calls in a step: (positional arguments, output).

    Of several forwards in a step the first is `call`; of a compiled module only the latest is seen. In a
    training's step those count that are made with gradients (the loss is of one of them), where any is, but
    for what a backward pass computes again.

    Attributes:
        counted: the first call that counts.
        plain: of a compiled module, its last call without gradients.
        later: calls that count, behind the first.
        aside: calls before it that do not.
        numbers: of the calls that count, and of those aside, which of all calls in the step they were, from
            1 on: by it calls of several modules belong together. Empty of a compiled module.
        compiled: it ran inside a compiled region.
    """

    def __init__(self, module: nn.Module, name: str, switch: Switch, *, check_version: bool = False) -> None:
        self.module: nn.Module | None = module
        self.name = name
        self.switch = switch
        self.counted: tuple[Any, Any] | None = None
        self.plain: tuple[Any, Any] | None = None
        self._graded = False
        self._made = 0
        self.compiled = False
        self.later: list[tuple[Any, Any]] = []
        self.aside: list[tuple[Any, Any]] = []
        self.numbers: tuple[list[int], list[int]] = ([], [])
        self.check_version = check_version
        self.version: int | None = None
        self.then: Callable[[], None] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook; traced by dynamo, hence nothing but attributes."""
        if module is not self.module:
            return
        graded = torch.is_grad_enabled()
        if is_compiling():
            self.compiled = True
            if graded:
                self.counted = (args, output)
            else:
                self.plain = (args, output)
            if COUNTS_TRACED:
                setattr(self, ("graded_%d" if graded else "plain_%d") % next_traced(), True)
            return
        if not self.switch.armed:
            return
        self._made += 1
        if self.counted is not None:
            if not self.switch.training or graded == self._graded:
                if len(self.later) < _KEPT_CALLS:
                    self.later.append((args, output))
                    self.numbers[0].append(self._made)
                return
            if self._graded or _backward() != -1:
                return
            # Of a teacher's look at the batch, or of others': the training's own come now.
            self.aside, self.later = [self.counted, *self.later], []
            self.numbers = ([], self.numbers[0])
        self.counted, self._graded = (args, output), graded
        self.numbers[0].append(self._made)
        self.switch.saw_call()
        if self.check_version:
            self.version = _version(output)
        if self.then is not None:
            self.then()

    @property
    def call(self) -> tuple[Any, Any] | None:
        """The batch's call, None before it was made."""
        return self.plain if self.counted is None else self.counted

    @call.setter
    def call(self, call: tuple[Any, Any] | None) -> None:
        self.counted = call

    @property
    def many(self) -> bool:
        """Whether of a compiled module there were several such calls, of which `call` is the last.

        Those of one compiled region are told apart: each has left a mark of its own.
        """
        kind = "plain_" if self.counted is None else "graded_"
        return self.compiled and sum(name.startswith(kind) for name in vars(self)) > 1

    def calls(self) -> list[tuple[Any, Any]]:
        """Every call of the step that counts, in order."""
        return [] if self.call is None else [self.call, *self.later]

    @property
    def first(self) -> int:
        """Which of all calls in the step `call` was; 0: not known."""
        return self.numbers[0][0] if self.numbers[0] else 0

    def number(self, value: Any) -> int:
        """Which of all calls in the step gave `value`; 0: not known."""
        calls = zip([*self.calls(), *self.aside], [*self.numbers[0], *self.numbers[1]], strict=False)
        return next((number for (_, output), number in calls if output is value), 0)

    def belongs(self, number: int, place: int) -> tuple[Any, Any]:
        """The call that was number `number` of the step; where it is not known the one at `place`."""
        calls = zip([*self.numbers[0], *self.numbers[1]], [*self.calls(), *self.aside], strict=False)
        found = next((call for own, call in calls if own == number), None)
        return self.calls()[min(place, len(self.later))] if found is None else found

    def changed_in_place(self) -> bool:
        """Whether the output was written to after the hook saw it (an in-place ReLU behind the layer)."""
        return self.version is not None and self.call is not None and _version(self.call[1]) != self.version

    def clear(self) -> None:
        """Lets go of the tensors."""
        self.counted = self.plain = None
        self._made, self.later, self.aside, self.numbers = 0, [], [], ([], [])
        self.version = None
        if self.compiled:
            for name in [name for name in vars(self) if name.startswith(("graded_", "plain_"))]:
                delattr(self, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Probe:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "module": None,
            "name": self.name,
            "counted": None,
            "plain": None,
            "_graded": False,
            "_made": 0,
            "compiled": False,
            "later": [],
            "aside": [],
            "numbers": ([], []),
            "version": None,
            "check_version": False,
            "then": None,
        }


def _version(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version  # noqa: SLF001 - torch has no public name for the in-place counter
