"""Which tensor is the logits: decided once per mode from one watched batch, read by that plan ever after.

A training batch's own loss says which output it was computed from (`reading.by_loss`); another mode is read
as that one was settled; without either `reading.by_rules` hold for what the model says: the output of its own
call where that is (B, K) logits (DeiT's mean of two heads, GoogLeNet's main output). Where that is only the
softmax or log-softmax of the head layer's output, the head layer's output is taken. Of several modules the
last one called speaks, a trained one before a frozen one of the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor, nn

from mld_core.tracing.capture import graph
from mld_core.tracing.capture.capture import Capture, LeafCall, canonical
from mld_core.tracing.capture.graph import Mixture, Origin
from mld_core.tracing.capture.outputs import (
    as_rows,
    find_logits,
    leaves,
    local_part,
    looks_like_probabilities,
)
from mld_core.tracing.capture.reading import (
    CLS_LOGITS,
    OUTPUTS,
    Decision,
    Known,
    LogitsSource,
    Refusal,
    by_loss,
    by_rules,
    place_of,
)
from mld_core.tracing.capture.rules import FeatureRules, class_columns, is_activation_of, otherwise
from mld_core.tracing.capture.whose import MOST_LOSSES, SeenLoss, Whose, apart
from mld_core.tracing.paths import at

_MOST_SHOWN: Final = 64  # losses of one watched step that are looked into
_MOST_ODD: Final = 8  # batches whose loss is put together otherwise than that of the batch watched
MOST_MISSES: Final = 100  # watching costs a hook on every module, and the first labels are waited for


@dataclass
class Captured:
    """One batch: logits (B, K) as the model has them ((B, 1) of one logit), features per alias (B, D).

    References, not copies.
    """

    logits: Tensor
    source: LogitsSource
    features: dict[str, Tensor]

    @property
    def n_class(self) -> int:
        """Classes: two of one logit."""
        return 2 if self.source.is_binary else int(self.logits.shape[1])


_OUT_OF_SIGHT: Final = (
    "The loss is not of the compiled model's last call in the step, and of a compiled model no other is "
    "seen. Have the call that the loss is of be the last one, or train without torch.compile."
)

_SEVERAL: Final = (
    "In what is compiled the model is called several times in a step, of which the last call is seen, and "
    "nothing tells whether it is the batch's. Return {'loss': ..., 'logits': ...} from the step, or call the "
    "model once in it."
)
_REORDERED: Final = (
    "The model was given the batch's samples in another order, so nothing tells which sample a row is of: "
    "shuffle in the loader, or record splits=['val']."
)


class HeadChooser(FeatureRules):
    """Chooses logits and features of one model, and reads them off the capture's stash afterwards.

    Attributes:
        sources: mode (training or not) -> how its logits are read.
        origin: what the loss of the batch just taken said, if that settled its mode.
        outputs_answer: the event brings what the model itself returned.
        refusal: why the batch just taken has no logits, if that can be said.
        reads_target: the loss's targets are no part of the batch (mixup): they are read of every batch.
        target: of the batch in hand, then.
        mixes: they may be several of one output, shares of which are a sample's target.
        mixture: those of the batch in hand, where it was watched or its loss was put together otherwise.
    """

    def __init__(
        self, capture: Capture, *, n_class: int | None, known: Mapping[str, Mapping[str, Any]]
    ) -> None:
        super().__init__(capture, known)
        self.n_class = n_class
        self.sources: dict[bool, LogitsSource] = {}
        self.origin: Origin | None = None
        self.refusal: Refusal | None = None
        self.outputs_answer = False
        self.reads_target = False
        self.target: Tensor | None = None
        self.mixes = False
        self.mixture: Mixture | None = None
        self._ends: list[str] = []  # of a step's losses: the last node of each
        self._settled_ends: list[str] | None = None  # as they were where the loss settled it
        self._odd = 0  # batches whose losses were put together otherwise
        self._losses: list[SeenLoss] = []  # of the watched batch, those that say something
        self._loss = SeenLoss()  # the one that is heeded
        self._nth, self._shown = 0, 0  # which of a step's losses has the targets; how many it showed
        self._lost_sight = False  # one of them is of an earlier call of what runs compiled
        self._whose = Whose(capture, None)
        self._unclear: Refusal | None = None
        self._number = 0  # of the call that the logits are of
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

    def unsettle(self, reason: str) -> None:
        """What the training batch just taken said was no answer after all; the next one is watched."""
        self.sources.pop(True, None)
        self.reads_target = self.mixes = False
        self._settled_ends = None
        self.refusal = Refusal("", reason)

    def clear(self) -> None:
        """Lets go of what the loss of the batch before said."""
        self._losses, self._loss, self._shown, self._lost_sight = [], SeenLoss(), 0, False
        self.origin, self.target, self._whose = None, None, Whose(self.capture, None)
        self.mixture, self._ends = None, []

    @property
    def wants_loss(self) -> bool:
        """Whether the loss of the next training batch would tell anything."""
        return self.reads_target or self.needs_watch(training=True)

    def knows_loss(self, loss: Any) -> bool:
        """Whether the loss is made as in the batch that settled how to read; at every step, so one look."""
        settled, shown = self._settled_ends, self._shown
        if settled is None or self.reads_target or self._odd >= _MOST_ODD or self.mixture is not None:
            return not self.wants_loss
        if shown < len(settled) and graph.end_of(loss) == settled[shown]:
            self._shown += 1
            return True
        return False

    def see_loss(self, loss: Any) -> None:
        """The loss of the training batch in hand, before backward."""
        if self.needs_watch(training=True):
            self._ends.append(graph.end_of(loss))
            if len(self._losses) < MOST_LOSSES and self._shown < _MOST_SHOWN:
                origins = self.capture.origins(loss)
                self._lost_sight = self._lost_sight or self.capture.lost_sight
                if origins:
                    mixture = graph.mixture_of(loss)
                    self._losses.append(SeenLoss(self._shown, origins, self.capture.beside, mixture))
        elif self.reads_target and isinstance(loss, Tensor):
            self._read_target(loss)
        elif self._is_own(loss):
            self.mixture = graph.mixture_of(loss) or graph.unweighted(graph.target_of(loss), self.n_class)
        else:
            self.pass_over()
        self._shown += 1

    def _is_own(self, loss: Any) -> bool:
        """Whether a loss is of the logits that are recorded, and not of another forward in the step."""
        source = self.sources.get(True)
        calls = [] if source is None else self.capture.calls(source.name)[source.call :]
        if source is None or not calls:
            return True
        return graph.compares(loss, at(calls[0][1], source.path) if source.path else calls[0][1])

    def _read_target(self, loss: Tensor) -> None:
        if self._shown == self._nth:
            self.target, self.mixture = graph.target_of(loss), graph.mixture_of(loss) if self.mixes else None
        elif self.mixes and self.mixture is None and self._is_own(loss):
            self.mixture = graph.unweighted(graph.target_of(loss), self.n_class)

    def pass_over(self) -> None:
        """That a batch's loss was put together otherwise says nothing about its labels."""
        self._odd += 1

    def take(
        self, n_rows: int | None, outputs: Any, *, training: bool, known: Known | None = None
    ) -> Captured | None:
        """The batch's logits and features, or None where nothing parses.

        Args:
            n_rows: rows of the batch, None where the labels do not say.
            outputs: what the event brought (a model output, a step's return value), or None.
            training: the model's mode; logits are chosen for each mode by itself.
            known: of the classes.
        """
        self.refusal, self._number = None, 0
        self._whose = Whose(self.capture, None if known is None else known.hand)
        source = self.sources.get(training)
        logits = None if source is None else self._read(source, outputs, n_rows)
        if logits is None:
            known = known or Known()
            decided = self._decide(outputs, n_rows, replace(known, count=self.n_class), training=training)
            if isinstance(decided, Refusal) or decided is None:
                self.refusal = decided
                self._settled_ends = None if training else self._settled_ends
                if self.sources.pop(training, None) is not None:  # the next batch is watched
                    self.problems["plan"] = (
                        "A batch no longer fitted how the batches before it were read (another output, or "
                        "another number of classes); how to read them is settled again from the next one on."
                    )
                return None
            source, logits = decided
            self._settle(source, logits, training=training)
            self._read(source, outputs, n_rows)  # says of which call it is
        assert source is not None
        probe = self.capture.probes.get(source.name)
        last = probe is None or not self._number or self._number == probe.numbers[0][-1]
        features = self.features(int(logits.shape[0]), source.call, self._number, last=last)
        captured = Captured(local_part(logits), source, features)
        self.n_class = captured.n_class
        return captured

    def _read(self, source: LogitsSource, outputs: Any, n_rows: int | None) -> Tensor | None:
        n_class = None if source.is_binary else self.n_class
        if source.name == OUTPUTS:
            root = self.capture.probes.get("")
            self._number = 0 if root is None else root.number(outputs)
            return None if outputs is None else source.read(outputs, n_rows, n_class)
        calls, probe = self.capture.calls(source.name), self.capture.probes.get(source.name)
        # Where none with gradients is of the whole batch (its hardest samples), one without is.
        aside = [] if probe is None else probe.aside
        for _, value in calls[source.call : source.call + 1] if source.call else [*calls, *aside]:
            if source.is_head and n_class is not None and isinstance(value, Tensor):
                rows = int(value.shape[0]) if n_rows is None else n_rows
                found = class_columns(value, rows, n_class)
            else:
                found = source.read(value, n_rows, n_class)
            if found is not None:
                self._number = 0 if probe is None else probe.number(value)
                return found
        return None

    def _decide(self, outputs: Any, n_rows: int | None, known: Known, *, training: bool) -> Decision:
        """The user's word, else the loss's, else that of the other mode, else the rules'."""
        named = self.capture.targets.get(CLS_LOGITS)
        if named is not None:
            source = LogitsSource(named)
            logits = self._read(source, None, n_rows)
            return None if logits is None else self._own((source, logits), n_rows)
        if training:
            self._heed()
        said = by_loss(self._loss.origins, n_rows, self._whose.weigh, self._whose.mixed) if training else None
        if said is None and training and self._lost_sight:
            said = Refusal("", _OUT_OF_SIGHT)
        if said is None and True not in self.sources:
            said = self._unclear  # of the training batches; an evaluation has no loss to ask
        self._unclear = said if isinstance(said, Refusal) and not said.of_rows else None
        if isinstance(said, Refusal) and said.task:
            return said
        if isinstance(said, tuple):
            return self._as_said(*said, outputs, n_rows)
        answers = self.outputs_answer
        stated = None if outputs is None else by_rules(_event(outputs), n_rows, known, answers=answers)
        if said is not None and not (isinstance(stated, tuple) and (answers or _states_logits(outputs))):
            return said
        if said is None:
            settled = self._as_settled(n_rows, training=training)
            if isinstance(stated, tuple) and isinstance(settled, tuple) and otherwise(outputs, settled[1]):
                self.problems["more"] = (
                    "In evaluation the model's scores are made of more than the training's logits "
                    f"(`{canonical(settled[0].name)}`): the scores of its data samples are recorded."
                )
            elif settled is not None:
                return self._own(settled, n_rows)
        return self._own(self._by_rules(stated, n_rows, known), n_rows)

    def _own(self, decided: Decision, n_rows: int | None) -> Decision:
        """Of several calls of the module the one that was given the batch; none of the batch reordered."""
        if not isinstance(decided, tuple) or decided[0].name == OUTPUTS:
            return decided
        call = self._whose.call(decided[0])
        if call != decided[0].call:
            source = replace(decided[0], call=call)
            logits = self._read(source, None, n_rows)
            decided = decided if logits is None else (source, logits)
        if self._whose.unknown(decided[0]):
            return Refusal("", _SEVERAL)
        return Refusal("", _REORDERED) if self._whose.reordered(decided[0]) else decided

    def _heed(self) -> None:
        """Of several losses that of the batch's own samples; else the one that the model itself returned."""
        if self._losses:
            self._loss = self._whose.loss(self._losses)
            self._nth = self._loss.nth
        elif self.capture.watcher is not None:
            self._loss = SeenLoss(origins=self.capture.watcher.said)

    def _as_said(self, source: LogitsSource, origin: Origin, outputs: Any, n_rows: int | None) -> Decision:
        """The output that the loss was computed from, unless the step returned other 'logits'."""
        if self._whose.out_of_sight(origin, self._loss.beside, lost_sight=self._lost_sight):
            return Refusal("", _OUT_OF_SIGHT)
        self.origin, self.mixture = origin, self._loss.mixture or apart(self._losses, origin)
        logits = replace(source, path=()).read(origin.output.tensor, n_rows, None)
        stated = as_rows(outputs["logits"]) if _states_logits(outputs) else None
        own = stated is not None and (logits is None or stated.data_ptr() != logits.data_ptr())
        if stated is not None and own and n_rows in {None, stated.shape[0]} and not source.is_binary:
            return LogitsSource(OUTPUTS, path=("logits",), kind=source.kind), stated
        if logits is None:
            return None
        others = {
            o.output.name for o in self._loss.origins if o.output.tensor.shape == origin.output.tensor.shape
        }
        self._tell_rivals([source.name, *sorted(others - {source.name})], logits)
        return (source, logits) if source.is_binary else self._trace_back(source, logits)

    def _as_settled(self, n_rows: int | None, *, training: bool) -> Decision:
        """As the other mode reads the same module."""
        other = self.sources.get(not training)
        if other is None or other.name == OUTPUTS:
            return None
        other = replace(other, call=0)
        logits = self._read(other, None, n_rows)
        if logits is not None:
            return (other, logits) if other.is_binary else self._trace_back(other, logits)
        for _, value in self.capture.calls(other.name):
            if other.is_binary:
                found = [t for t in leaves(value) if t.is_floating_point() and t.numel() == n_rows and t.ndim]
                one = found[0].detach().reshape(-1, 1) if len(found) == 1 else None
                if one is not None:
                    return replace(other, path=place_of(value, one), picked=()), one
                continue
            logits = find_logits(value, n_rows, self.n_class)
            if logits is not None:
                path = place_of(value, logits)
                return self._trace_back(replace(other, path=path, is_head=False, picked=()), logits)
        return None

    def _by_rules(self, stated: Decision, n_rows: int | None, known: Known) -> Decision:
        if isinstance(stated, tuple):
            return stated if stated[0].is_binary else self._trace_back(*stated)
        if stated is not None:
            return stated
        outer = self.capture.outer_calls()
        # A compiled step that returns losses only shows nothing else of what happened inside.
        heads = self.capture.compiled_heads
        calls = [*outer, *(c for c in reversed(self.capture.leaf_calls()) if c.name in heads)]
        if known.count is not None and not (outer and not outer[0].name):
            # Of several parts that a step calls, the one with the stated number of classes.
            calls.sort(key=lambda c: find_logits(c.output, n_rows, known.count) is None)
        for call in calls:
            decided = by_rules(call, n_rows, known)
            if isinstance(decided, tuple) and not decided[0].is_binary:
                source, logits = decided
                name, logits = self._among_rivals(source.name, logits, outer)
                return self._trace_back(source if name == source.name else LogitsSource(name), logits)
            if decided is not None:
                return decided
        return None

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
        self._tell_rivals([name, *(call.name for call in rivals if _trainable(call.module))], logits)
        return name, logits

    def _tell_rivals(self, names: list[str], logits: Tensor) -> None:
        """Several modules that are trained may be meant; the first of the names is recorded."""
        if len(names) > 1:
            self.problems["rivals"] = (
                f"Several modules gave an output of shape {tuple(logits.shape)}: "
                f"{', '.join(f'`{canonical(n)}`' for n in names)}. `{canonical(names[0])}`, which ran last, "
                "is recorded against the batch's labels. If another one answers them, return {'loss': ..., "
                "'logits': ...} from the step, or give model=<that module> and label_fn(batch)."
            )

    def _trace_back(self, source: LogitsSource, logits: Tensor) -> tuple[LogitsSource, Tensor]:
        """The head layer's output where `logits` is only its softmax or log-softmax, else `logits` itself."""
        if source.kind == "sigmoid" or source.is_head:
            return source, logits
        calls = self.capture.leaf_calls()
        for call in reversed(calls):
            if source.name == OUTPUTS and sum(other.name == call.name for other in calls) > 1:
                continue  # the answer may be a mean of several forwards
            columns = class_columns(call.output, int(logits.shape[0]), int(logits.shape[1]))
            if columns is not None and call.name != source.name and is_activation_of(logits, columns):
                return LogitsSource(call.name, is_head=True, kind=source.kind), columns
        activation = "probabilities" if looks_like_probabilities(logits.detach().cpu()) else "logits"
        return replace(source, activation=activation), logits

    def _settle(self, source: LogitsSource, logits: Tensor, *, training: bool) -> None:
        """Keeps the decision and the hooks it needs; the features are settled with the first mode decided."""
        self.sources[training] = source
        if training:
            self._settled_ends = list(self._ends) if self.origin is not None and self._ends else None
        other = self.sources.get(not training)
        if training and source.kind and other is not None and not other.kind:
            del self.sources[
                False
            ]  # settled by the rules before any loss was seen: as the loss says from now on
        if source.name != OUTPUTS and self.capture.probes.get(source.name) is None:
            # The probe missed this call; the watcher's references serve for it.
            calls, probe = self.capture.calls(source.name), self.capture.probe(source.name)
            probe.call, probe.later = calls[0] if calls else None, calls[1:]
        self.settle_features(logits)
        self.capture.stop_watching()


def _event(outputs: Any) -> LeafCall:
    """What an event brought along, as if a module had given it."""
    return LeafCall(OUTPUTS, nn.Module(), (), outputs)


def _states_logits(outputs: Any) -> bool:
    """Whether a step returned its logits by that name."""
    return isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor)


def _trainable(module: nn.Module) -> bool:
    """Whether training changes the module: a distillation's teacher, frozen, is not what is debugged."""
    return any(parameter.requires_grad for parameter in module.parameters())
