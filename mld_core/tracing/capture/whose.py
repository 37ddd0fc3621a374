"""Whose batch a forward is of, where a step makes several: by what it was given, and its loss's target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mld_core.tracing.capture.capture import Capture
from mld_core.tracing.capture.graph import Mixture, Origin, unweighted
from mld_core.tracing.capture.reading import Hand, LogitsSource, Weight, same_target
from mld_core.tracing.paths import tensors_at

MOST_LOSSES: Final = 8  # of one watched step; each is held with what it says


@dataclass
class SeenLoss:
    """One of a watched step's losses.

    Attributes:
        nth: which of them, from 0 on.
        origins: the outputs that it was computed from.
        beside: what it was computed from in compiled calls that are not seen.
        mixture: the targets that it compares one output with, where they are several.
    """

    nth: int = 0
    origins: list[Origin] = field(default_factory=list)
    beside: list[Origin] = field(default_factory=list)
    mixture: Mixture | None = None


def apart(losses: Sequence[SeenLoss], origin: Origin) -> Mixture | None:
    """The targets that several losses of a step compare one output with; None of fewer than two."""
    own = [one for seen in losses for one in seen.origins if one.output.tensor is origin.output.tensor]
    made = [unweighted(one.target, one.entered[-1] if one.entered else None) for one in own]
    found = [mixture for mixture in made if mixture is not None]
    targets = tuple(target for mixture in found for target in mixture.targets)
    return Mixture(targets, found[0].shares, weighted=False) if len(found) > 1 else None


class Whose:
    """Compares the calls of a step with the batch in hand.

    Args:
        capture: saw the calls.
        hand: the batch; None where it cannot be compared with, so that nothing speaks for any call.
    """

    def __init__(self, capture: Capture, hand: Hand | None) -> None:
        self._capture, self._hand = capture, hand

    def weigh(self, origin: Origin) -> Weight:
        """What speaks for an output's being of the batch: its loss's target, what its call was given."""
        if self._hand is None:
            return False, 0
        return self._hand.answers(origin.target), self.given(origin.output.name, origin.output.call)

    def mixed(self, origin: Origin) -> bool:
        """Whether a loss's targets hold several classes because samples of one class each were mixed."""
        return self._hand is not None and self._hand.mixed(origin.target)

    def loss(self, seen: Sequence[SeenLoss]) -> SeenLoss:
        """Of a step's losses the one of the batch's own labels, else of its samples, else the first."""
        return seen[0] if len(seen) == 1 else max(seen, key=lambda one: max(map(self.weigh, one.origins)))

    def given(self, name: str, call: int) -> int:
        """How much of the batch a call of a module was given, or of the model that it is a part of."""
        calls, root = self._capture.calls(name), self._capture.probes.get("")
        around = [] if root is None or not name else root.calls()
        if self._hand is None or call >= len(calls):
            return 0
        own = self._hand.given(calls[call][0])
        return max(own, self._hand.given(around[call][0])) if len(around) == len(calls) else own

    def call(self, source: LogitsSource) -> int:
        """Which call of its module was given more of the batch than the others; else the source's own."""
        many = len(self._capture.calls(source.name))
        if many < 2:
            return source.call
        return max(range(many), key=lambda n: (self.given(source.name, n), n == source.call, -n))

    def reordered(self, source: LogitsSource) -> bool:
        """Whether the call was given the batch's samples in another order, and no sample as it stood."""
        calls, root = self._capture.calls(source.name), self._capture.probes.get("")
        if self._hand is None or source.call >= len(calls) or self.given(source.name, source.call):
            return False
        around = [] if root is None or not source.name else root.calls()
        given = [
            calls[source.call],
            *(around[source.call : source.call + 1] if len(around) == len(calls) else []),
        ]
        return any(self._hand.reorders(args) for args, _ in given)

    def unknown(self, source: LogitsSource) -> bool:
        """Whether nothing tells that of a compiled module's several calls the last is the batch's."""
        probe = self._capture.probes.get(source.name)
        return probe is not None and probe.many and not self.given(source.name, source.call)

    def out_of_sight(self, origin: Origin, beside: Sequence[Origin], *, lost_sight: bool = False) -> bool:
        """Whether a compiled module's output may be of other samples, or is not that of the call seen last.

        Args:
            origin: of the loss that is heeded.
            beside: of which logits else, not seen, that loss was computed.
            lost_sight: another loss of the step is of a call that is not seen.
        """
        probe = self._capture.probes.get(origin.output.name)
        if probe is None or not probe.compiled or probe.call is None:
            return False
        if all(tensor is not origin.output.tensor for _, tensor in tensors_at(probe.call[1])):
            return True
        if any(self.weigh(origin)):
            return False
        return lost_sight or any(
            origin.target is None or o.target is None or not same_target(origin.target, o.target)
            for o in beside
        )
