"""The hook of one module, which keeps references to its calls in a step and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.tracing.capture.compiling import is_compiling

_KEPT_CALLS: Final = 7  # of one module in one step, behind its first


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
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self.streams.add(torch.cuda.current_stream())


class Probe:
    """The hook of one module and the references of its calls in a step: (positional arguments, output).

    Of several forwards in a step the first is `call`; of a compiled module only the latest is seen. In a
    training's step those count that are made with gradients (the loss is of one of them), where any is.
    """

    def __init__(self, module: nn.Module, name: str, switch: Switch, *, check_version: bool = False) -> None:
        self.module: nn.Module | None = module
        self.name = name
        self.switch = switch
        self._call: tuple[Any, Any] | None = None
        self._plain: tuple[Any, Any] | None = None  # of a compiled module, without gradients
        self._graded = False
        self.later: list[tuple[Any, Any]] = []
        self.check_version = check_version
        self.version: int | None = None
        self.then: Callable[[], None] | None = None

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook; traced by dynamo, hence nothing but attributes."""
        if module is not self.module:
            return
        graded = torch.is_grad_enabled()
        if is_compiling():
            if graded:
                self._call = (args, output)
            else:
                self._plain = (args, output)
            return
        if not self.switch.armed:
            return
        if self._call is not None:
            if not self.switch.training or graded == self._graded:
                if len(self.later) < _KEPT_CALLS:
                    self.later.append((args, output))
                return
            if self._graded:
                return
            self.later = []  # of a teacher's look at the batch, or of others': the training's own come now
        self._call, self._graded = (args, output), graded
        self.switch.saw_call()
        if self.check_version:
            self.version = _version(output)
        if self.then is not None:
            self.then()

    @property
    def call(self) -> tuple[Any, Any] | None:
        """The batch's call, None before it was made."""
        return self._plain if self._call is None else self._call

    @call.setter
    def call(self, call: tuple[Any, Any] | None) -> None:
        self._call = call

    def calls(self) -> list[tuple[Any, Any]]:
        """Every call of the step that counts, in order."""
        return [] if self.call is None else [self.call, *self.later]

    def changed_in_place(self) -> bool:
        """Whether the output was written to after the hook saw it (an in-place ReLU behind the layer)."""
        return self.version is not None and self.call is not None and _version(self.call[1]) != self.version

    def clear(self) -> None:
        """Lets go of the tensors."""
        self._call = self._plain = None
        self.later = []
        self.version = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Probe:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "module": None,
            "name": self.name,
            "_call": None,
            "_plain": None,
            "_graded": False,
            "later": [],
            "version": None,
            "check_version": False,
            "then": None,
        }


def _version(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version  # noqa: SLF001 - torch has no public name for the in-place counter
