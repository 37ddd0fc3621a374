"""A classifier's batches once it is known how they are read: looked up, checked, handed on.

What the first batches of a pass settled (where labels, ids and inputs stand, which hooked output holds the
logits and which the features) is used as it is. Everything that could be otherwise is compared with it: the
batch's look, types, ranks, widths, the model's mode. Where anything differs the batch is read from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mld_core.tracing.batch.batches import Batch
from mld_core.tracing.batch.identity import LOADER_INDEX, settled_ids
from mld_core.tracing.batch.places import Places, look_of
from mld_core.tracing.batch.stream_keys import stream_keys
from mld_core.tracing.capture.features import first_tensor, pool
from mld_core.tracing.capture.heads import Captured
from mld_core.tracing.capture.probe import Probe
from mld_core.tracing.capture.reading import LogitsSource
from mld_core.tracing.capture.rules import FeatureRule
from mld_core.tracing.paths import at
from mld_core.tracing.run.sealing import OpenPass
from mld_core.tracing.tables.rows import BatchJob, PassContext

if TYPE_CHECKING:
    from mld_core.tracing.run.classifying import ClassificationSession


class Settled:
    """How the batches of one pass are read.

    Args:
        session: of the run.
        open_pass: which batches belong to, with its context.
        source: of the logits, a plain part of a hooked module's output.
        look: of a batch.
        places: of its parts.
        features: the rules whose layers gave one plain tensor.
    """

    def __init__(
        self,
        session: ClassificationSession,
        open_pass: OpenPass,
        source: LogitsSource,
        look: list[Any],
        places: Places,
        features: Sequence[FeatureRule],
    ) -> None:
        assert session.capture is not None
        assert isinstance(open_pass.context, PassContext)
        self._session, self._open_pass, self._context = session, open_pass, open_pass.context
        self._source, self._look, self._places = source, look, places
        self._path, self._classes = source.path, self._context.n_class
        probes = session.capture.probes
        self._logits = probes[source.name]
        self._features = [(probes[r.layer], r.side == "input", r.axis, r.raw_width) for r in features]
        self._names = ["logits", *("feature:" + rule.alias for rule in features), "labels"]

    def record(self, whole: Any, batch_idx: int, global_step: int | None) -> bool:
        """Stages a batch and hands it to the writer; False: it does not fit, and nothing was done."""
        session = self._session
        if look_of(whole) != self._look or not session.reads_as(self._source):
            return False
        batch = self._places.read(whole)
        tensors = self._outputs(batch.labels)
        if tensors is None:
            return False
        batch.n, batch.batch_idx, batch.global_step = batch.labels.shape[0], batch_idx, global_step
        self._identify(batch)
        session.hand_over(self._open_pass, self._job(batch, tensors))
        return True

    def _outputs(self, labels: Any) -> list[Tensor] | None:
        """Logits, features and labels; None where one is not as it was."""
        call = self._logits.counted or self._logits.plain
        if call is None or type(labels) is not Tensor:
            return None
        n = labels.shape[0]
        logits = at(call[1], self._path) if self._path else call[1]
        if n == 0 or type(logits) is not Tensor or logits.shape != (n, self._classes):
            return None
        tensors, first = [logits], self._logits.first
        for probe, of_input, axis, width in self._features:
            tensor = plain_part(probe, of_input=of_input)
            if first and (self._logits.later if probe.compiled else probe.first not in {0, first}):
                return None  # of another forward
            if tensor is None or tensor.shape[0] != n or tensor.ndim <= axis or tensor.shape[axis] != width:
                return None
            tensors.append(tensor if tensor.ndim == 2 else pool(tensor, axis))
        tensors.append(labels)
        return tensors

    def _identify(self, batch: Batch) -> None:
        """The batch's ids, from where they came before."""
        session, n = self._session, batch.n
        drawn = self._open_pass.place(batch, n)
        if batch.id_column is not None and n is not None:
            ids = settled_ids(batch.id_column[0], n)
            if ids is not None:
                batch.ids, batch.id_source = ids, batch.id_column[1]
        if batch.ids is None and drawn is not None:
            batch.ids, batch.id_source = drawn, LOADER_INDEX
        elif batch.ids is None and n is not None:
            batch.ids, batch.id_source = stream_keys(batch.whole, n) or (None, batch.id_source)
        if batch.id_source != session.id_source:
            session.tell_id_source(batch.id_source)

    def _job(self, batch: Batch, tensors: list[Tensor]) -> BatchJob:
        session, names, n = self._session, self._names, batch.n
        assert n is not None
        ids = batch.ids
        if isinstance(ids, Tensor):
            names, ids = [*names, "ids"], None
            tensors.append(batch.ids)
        held, on_device = session.hashing(batch, n, self._context.mode)
        if on_device is not None:
            names = [*names, "input_hash"]
            tensors.append(on_device)
        return BatchJob(
            context=self._context,
            unit0=self._open_pass.units,
            n=n,
            staged=session.stage(tensors),
            names=names,
            labels=None,
            ids=ids,
            id_source=batch.id_source,
            hash_from=held,
            user=batch.fields,
            activation=self._source.activation,
            batch_idx=batch.batch_idx,
            global_step=batch.global_step,
            repeats=batch.repeats,
            places=batch.places,
        )


def settle(
    session: ClassificationSession, open_pass: OpenPass, batch: Batch, captured: Captured
) -> Settled | None:
    """How the batch that was just read is read again; None where that takes more than looking it up.

    Args:
        session: of the run.
        open_pass: which it belongs to.
        batch: as it was read.
        captured: what the model said to it.
    """
    options, source, chooser = session.options, captured.source, session.chooser
    own = (options.label_fn, options.input_fn, options.id_fn, options.fields_fn, options.image_fn)
    if any(own) or chooser is None or chooser.reads_target or session.capture is None:
        return None
    made = source.is_head or source.is_binary or source.picked or source.call
    plain = source.path is not None and not made
    probe = session.capture.probes.get(source.name)
    known = session.reading.known(batch.whole)
    if not plain or probe is None or probe.call is None or known is None:
        return None
    look, places = known
    rules = list(chooser.rules.values())
    if places.labels is None or at(batch.whole, places.labels) is not batch.labels:
        return None
    n = int(captured.logits.shape[0])
    for rule in rules:
        layer = session.capture.probes[rule.layer]
        part = plain_part(layer, of_input=rule.side == "input")
        values = layer.call[0 if rule.side == "input" else 1] if layer.call is not None else None
        if part is None or first_tensor(values, n) is not part:
            return None
    return Settled(session, open_pass, source, look, places, rules)


def plain_part(probe: Probe, *, of_input: bool) -> Tensor | None:
    """The tensor that a layer was given first, or that it gave; None where it is none, or was written to."""
    call = probe.counted or probe.plain
    if call is None:
        return None
    value = call[1]
    if of_input:
        value = call[0][0] if call[0] else None
    if type(value) is not Tensor or (probe.version is not None and probe.changed_in_place()):
        return None
    return value if value.dtype.is_floating_point else None  # its method lets other threads go first
