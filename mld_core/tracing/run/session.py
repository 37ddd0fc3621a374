"""One started run on one rank: open passes, and what goes to the writer; each task has its own kind.

Not picklable; the recorder around it is. Everything here runs on the training thread and is kept short:
references are staged, the rest is left to a job on the writer thread.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.records.format.schema import HASH_KIND, INDEX_SOURCES
from mld_core.records.write.writer import Account
from mld_core.tracing.batch.batches import CONTENT_HASH, Batch, count_rows
from mld_core.tracing.batch.fingerprint import LATE, Fingerprint, HashThread, moved
from mld_core.tracing.batch.hashing import hash_kind, input_hash_of, on_host
from mld_core.tracing.batch.hashing_host import INLINE_BYTES, QUICK_BYTES
from mld_core.tracing.batch.hashing_numpy import KIND as DEVICE_KIND
from mld_core.tracing.batch.identity import find_id_column
from mld_core.tracing.batch.labels import find_inputs, find_labels
from mld_core.tracing.batch.places import BatchPlan
from mld_core.tracing.capture.staging import Stager
from mld_core.tracing.run.sealing import OpenPass, RunWriter
from mld_core.tracing.tables.media import Pictures

_SOURCE_MEANING: Final = {
    CONTENT_HASH: (
        "a hash of the inputs. It does not survive augmentation: an augmented sample gets a new id every "
        "epoch. Put an input_id into the batch, wrap the dataset in WithInputId, or give id_fn(batch)"
    ),
}


class Session(RunWriter, ABC):
    """Store, writer and hooks of one run on this rank; arguments as of `RunWriter`.

    Raises:
        ConfigurationProblem: a module path in `target_layers` does not exist.
    """

    def __init__(self, *args: Any, **place: Any) -> None:
        super().__init__(*args, **place)
        self.info = self.store.run_info(self.run)
        self.n_class: int | None = self.options.known_n_class or self.info.get("n_class")
        self.id_source = ""
        self.id_hint = ""
        self._stored_info: dict[str, Any] = {}
        self._stager = Stager()
        self.reading = BatchPlan(self._search)
        self._hasher = HashThread()
        self.before_device: Any = None  # the batch in hand as the loader gave it, where a wrapper saw that
        self.afterwards: list[Callable[[], None]] = []  # done when the batch in hand is over
        self._hashes_on_device = False  # a pass began so: hashes compare within one kind only
        self.pictures = Pictures(self.options.image_fn, self.guard)

    # -- hooks -----------------------------------------------------------------------------------------------

    @abstractmethod
    def attach(self, model: nn.Module, *, ignore_root: bool) -> None:
        """Sets the hooks on `model`, taking them off another one.

        Raises:
            ConfigurationProblem: a module path in `target_layers` does not exist.
        """

    @abstractmethod
    def adopt(self, capture: Any) -> None:
        """Takes over hooks that are set already."""

    @abstractmethod
    def detach(self) -> None:
        """Takes every hook off."""

    @abstractmethod
    def arm(self, *, learning: bool = False) -> None:
        """A batch begins: clears the stash, lets the hooks keep references.

        Args:
            learning: it is a training's, whatever mode the model is in (frozen statistics are `eval()`).
        """

    def preview(self, batch: Any) -> None:
        """The batch that is about to go through the step."""

    @abstractmethod
    def disarm(self) -> None:
        """The batch is over: lets go of every reference."""

    @property
    def wants_loss(self) -> bool:
        """Whether the next training batch's loss would tell anything."""
        return False

    def knows_loss(self, loss: Any) -> bool:  # noqa: ARG002 - of a classifier
        """Whether a loss of the batch in hand need not be looked into: it is made as those before it."""
        return not self.wants_loss

    def see_loss(self, loss: Any) -> None:
        """The loss of the training batch in hand, before backward frees its graph."""

    @property
    @abstractmethod
    def heard(self) -> bool:
        """Whether the model made a forward since `arm`."""

    @property
    @abstractmethod
    def listens(self) -> bool:
        """Whether a forward of the model would be heard."""

    @property
    def heard_input(self) -> Any:
        """The first argument of the model's latest call, where the hooks keep it."""
        return None

    # -- passes ----------------------------------------------------------------------------------------------

    def open_resumed(self, open_pass: OpenPass) -> None:
        """Opens a pass that continues an earlier attempt at once: a later resume may need the link."""
        if not open_pass.muted and not self.unsupported:
            self.open(open_pass, {"mode": open_pass.mode})

    def seal(self, open_pass: OpenPass, meta: Any = None) -> None:  # noqa: ARG002 - a session knows its own
        """Seals a pass in the background; a rank without a batch seals an empty one, or it stays partial."""
        if open_pass.muted or self.unsupported:
            return
        if open_pass.handle is None:
            open_pass.key = open_pass.final_key or open_pass.key
            self.open(open_pass, {"mode": open_pass.mode})
        if open_pass.final_key is not None:
            self.pictures.renamed(open_pass.key, open_pass.final_key)
        super().seal(open_pass, self._meta(open_pass))

    def _meta(self, open_pass: OpenPass) -> dict[str, Any] | Callable[[], dict[str, Any] | None]:
        """What is sealed with a pass."""
        return open_pass.context.meta if open_pass.context is not None else {}

    def close(self, timeout: float | None) -> Account:
        """Takes the hooks off, flushes, stops the writer; what is not uploaded yet goes in the background."""
        self.detach()
        account = super().close(timeout)
        self._hasher.close()
        return account

    @property
    def spills(self) -> int:
        """Batches that found no ring slot large enough or free (CUDA)."""
        return self._stager.spills

    def _write_info(self, found: dict[str, Any]) -> None:
        """Rank 0 writes what the first batches settled into run.json."""
        if self.rank == 0:
            with self.guard.catch("writing run.json", lost="the run's classes and feature rules"):
                self.info = self.store.update_run_info(self.run, **found) or self.info

    def _wanted(self, widths: dict[str, int]) -> set[str]:
        """The aliases whose width is the run's; of the others it is told that they are not recorded."""
        stored = {a: rule.get("width") for a, rule in (self.info.get("features") or {}).items()}
        wrong = {a for a, width in widths.items() if a != "logits" and stored.get(a) not in {None, width}}
        for alias in sorted(wrong):
            self.guard.tell_once(
                f"width:{alias}",
                f"The feature {alias!r} is {stored[alias]} wide in this run and {widths[alias]} in this "
                "model; it is not recorded now. Give another version_name, or force_table_recreate=True.",
            )
        return set(widths) - wrong

    # -- batches ---------------------------------------------------------------------------------------------

    def read(self, batch: Any) -> Batch:
        """What stands in a framework's batch, as it is; the one way in."""
        if self.options.label_fn is not None or self.options.input_fn is not None:
            labels, inputs = self.labels_of(batch), self.inputs_of(batch)
            return Batch(inputs, labels, n=self.count(batch, labels, inputs), whole=batch)
        found = self.reading.read(batch)
        if found.n is None:
            found.n = self.count(batch, found.labels, found.inputs)
        return found

    def _search(self, batch: Any) -> Batch:
        """Looks for everything that may stand in a batch."""
        labels, inputs = self._find_labels(batch), self._find_inputs(batch)
        found = Batch(inputs, labels, n=self.count(batch, labels, inputs), whole=batch)
        if found.n is not None:
            with contextlib.suppress(Exception):  # of the user's batch: looked for again, and told
                found.id_column, found.searched = find_id_column(batch, found.n), True
        return found

    def labels_of(self, batch: Any) -> Any:
        """The labels in a framework's batch; the user's function comes first."""
        return (self.options.label_fn or self._find_labels)(batch)

    def inputs_of(self, batch: Any) -> Any:
        """The model's inputs in a framework's batch; the user's function comes first."""
        return (self.options.input_fn or self._find_inputs)(batch)

    def _find_labels(self, batch: Any) -> Any:
        return find_labels(batch)

    def _find_inputs(self, batch: Any) -> Any:
        return find_inputs(batch)

    def count(self, batch: Any, labels: Any, inputs: Any) -> int | None:
        """Units of a framework's batch, None where it does not tell."""
        return count_rows(batch, labels, inputs)

    @abstractmethod
    def commit(self, open_pass: OpenPass, batch: Batch) -> Any:
        """Stages one batch and hands it to the writer; returns what was captured, if anything."""

    def hashing(self, batch: Batch, n: int | None, mode: str) -> tuple[Fingerprint | None, Tensor | None]:
        """The hash of the inputs, made by whoever has the time, or queued on their device."""
        wanted = self.options.input_hash or batch.id_source == CONTENT_HASH
        inputs = batch.inputs
        if not wanted or inputs is None:
            return None, None
        fingerprint = Fingerprint(inputs, n)
        if not fingerprint.on_host:
            inputs = self._to_hash(batch, n)
            if inputs is not batch.inputs:
                fingerprint = Fingerprint(inputs, n)
        if fingerprint.on_host:
            return self._beside(fingerprint, batch.id_source, mode), None
        if n is None:
            return None, None
        with torch.no_grad():
            return None, input_hash_of(inputs, n)

    def _to_hash(self, batch: Batch, n: int | None) -> Any:
        """The inputs that are hashed: the loader's own where the batch went to a device since."""
        if self._hashes_on_device or on_host(batch.inputs):
            return batch.inputs
        if self.before_device is None:
            own = moved.at_home(batch.inputs)
            return batch.inputs if own is None else own
        read = self.read(self.before_device)
        same = read.inputs is not None and read.n == n and on_host(read.inputs)
        return read.inputs if same else batch.inputs

    def _beside(self, fingerprint: Fingerprint, id_source: str, mode: str) -> Fingerprint:
        """Has the hash made: here where it is quick and ids may need it, else on the thread for that.

        Where that is late there is none, unless rows would have no ids, or an evaluation could count rows
        twice (users' ids that ranks share are told apart by it).
        """
        if fingerprint.n is None:
            return fingerprint
        needed = id_source == CONTENT_HASH or mode != "train"
        at_once = INLINE_BYTES if needed else QUICK_BYTES
        if fingerprint.nbytes <= at_once and id_source not in INDEX_SOURCES:
            fingerprint.make()
        elif not self._hasher.take(fingerprint):
            if id_source == CONTENT_HASH or (mode != "train" and id_source not in INDEX_SOURCES):
                fingerprint.make()
            else:
                fingerprint.skip(LATE)
        return fingerprint

    def _kind_of(self, batch: Batch) -> dict[str, str]:
        """How the inputs of a pass are hashed, by its first batch."""
        kind = hash_kind(self._to_hash(batch, batch.n))
        self._hashes_on_device = self._hashes_on_device or kind == DEVICE_KIND
        return {HASH_KIND: kind} if self.options.input_hash else {}

    def tell_id_source(self, source: str) -> None:
        """Says once where ids come from."""
        if source == self.id_source:
            return
        self.id_source = source
        meaning = _SOURCE_MEANING.get(source)
        text = f"Sample ids come from {source}" + (f": {meaning}{self.id_hint}." if meaning else ".")
        self.guard.tell_once(f"ids:{source}", text)
