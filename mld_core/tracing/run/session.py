"""One started run on one rank: open passes, and what goes to the writer; each task has its own kind.

Not picklable; the recorder around it is. Everything here runs on the training thread and is kept short:
references are staged, the rest is left to a job on the writer thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.write.writer import Account, Writer, WriterOptions
from mld_core.tracing.batch.batches import CONTENT_HASH, Batch, HeldInputs, count_rows, tensors_in
from mld_core.tracing.batch.hashing import input_hash_of
from mld_core.tracing.batch.labels import find_inputs, find_labels
from mld_core.tracing.capture.staging import Stager
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.uploads import RunUploads
from mld_core.tracing.tables.media import Pictures
from mld_core.tracing.tables.rows import PassState

_SOURCE_MEANING: Final = {
    CONTENT_HASH: (
        "a hash of the inputs. It does not survive augmentation: an augmented sample gets a new id every "
        "epoch. Put an input_id into the batch, wrap the dataset in WithInputId, or give id_fn(batch)"
    ),
}


@dataclass
class OpenPass:
    """A pass that has begun. `muted`: its events are followed, nothing is recorded."""

    key: PassKey
    mode: str
    muted: bool = False
    continues: str | None = None
    resume_step: int | None = None
    tap: Any = None
    max_ahead: int | None = None
    provisional: bool = False
    final_key: PassKey | None = None
    handle: int | None = None
    context: PassState | None = None
    units: int = 0
    batches: int = 0


class Session(ABC):
    """Store, writer and hooks of one run on this rank.

    Args:
        options: the recorder's options.
        guard: tells and counts problems.
        store: where records go.
        run: the run's names.
        attempt: the attempt all passes of this launch belong to.
        rank: this process's rank, of `world_size`.

    Raises:
        ConfigurationProblem: a module path in `target_layers` does not exist.
    """

    def __init__(
        self,
        options: RecorderOptions,
        guard: Guard,
        store: Store,
        run: RunKey,
        *,
        attempt: str,
        rank: int,
        world_size: int,
    ) -> None:
        self.options = options
        self.guard = guard
        self.store = store
        self.run = run
        self.attempt = attempt
        self.rank = rank
        self.info = store.run_info(run)
        self.n_class: int | None = options.known_n_class or self.info.get("n_class")
        self.unsupported = ""
        self.id_source = ""
        self.id_hint = ""
        self.tickets: dict[int | None, list[Future[Any]]] = {}
        self.uploads: RunUploads | None = None
        self._stored_info: dict[str, Any] = {}
        self._stager = Stager()
        self.pictures = Pictures(options.image_fn, guard)
        self._writer = Writer(
            store,
            run,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            options=WriterOptions(
                queue_mb=options.queue_mb,
                on_full="drop" if options.on_full == "drop" else "block",
                roll_mb=options.roll_mb,
                roll_seconds=options.roll_seconds,
                keep_vectors=options.keep_vectors,
            ),
            on_problem=self.tell,
        )

    def tell(self, key: str, message: str) -> None:
        """Tells a message once."""
        self.guard.tell_once(key, message)

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
    def arm(self) -> None:
        """A batch begins: clears the stash, lets the hooks keep references."""

    def preview(self, batch: Any) -> None:  # noqa: B027 - most tasks need nothing of it
        """The batch that is about to go through the step."""

    @abstractmethod
    def disarm(self) -> None:
        """The batch is over: lets go of every reference."""

    @property
    @abstractmethod
    def heard(self) -> bool:
        """Whether the model made a forward since `arm`."""

    @property
    def heard_input(self) -> Any:
        """The first argument of the model's latest call, where the hooks keep it."""
        return None

    # -- passes ----------------------------------------------------------------------------------------------

    def open_resumed(self, open_pass: OpenPass) -> None:
        """Opens a pass that continues an earlier attempt at once: a later resume may need the link."""
        if not open_pass.muted and not self.unsupported:
            open_pass.handle = self._open(open_pass, {"mode": open_pass.mode})

    def seal(self, open_pass: OpenPass) -> None:
        """Seals a pass in the background; a rank without a batch seals an empty one, or it stays partial."""
        if open_pass.muted or self.unsupported:
            return
        if open_pass.handle is None:
            open_pass.key = open_pass.final_key or open_pass.key
            open_pass.handle = self._open(open_pass, {"mode": open_pass.mode})
        if open_pass.final_key is not None:
            self.pictures.renamed(open_pass.key, open_pass.final_key)
        ticket = self._writer.seal(open_pass.handle, meta=self._meta(open_pass), key=_new_key(open_pass))
        self.tickets.setdefault(open_pass.key.n_epoch, []).append(ticket)
        if self.uploads is not None:
            ticket.add_done_callback(self.uploads.sealed)

    def _meta(self, open_pass: OpenPass) -> dict[str, Any] | Callable[[], dict[str, Any] | None]:
        """What is sealed with a pass."""
        return open_pass.context.meta if open_pass.context is not None else {}

    def abandon(self, open_pass: OpenPass) -> None:
        """Flushes a pass and leaves it unsealed."""
        if open_pass.handle is not None:
            self._writer.abandon(open_pass.handle)
            open_pass.handle = None

    def discard(self, open_pass: OpenPass) -> None:
        """Removes a pass that turned out not to be wanted."""
        if open_pass.handle is not None:
            self._writer.discard(open_pass.handle)
            open_pass.handle = None

    def _open(self, open_pass: OpenPass, meta: dict[str, Any]) -> int:
        return self._writer.open(
            open_pass.key, continues=open_pass.continues, resume_step=open_pass.resume_step, meta=meta
        )

    def wait(self, n_epoch: int | None, timeout: float | None, *, every: bool = False) -> bool:
        """Waits until the sealed passes of an epoch (or of all) are durable on this rank."""
        return self._writer.wait(self._tickets(n_epoch, every=every), timeout)

    def _tickets(self, n_epoch: int | None, *, every: bool) -> list[Future[Any]]:
        if every:
            return [t for group in self.tickets.values() for t in group]
        return list(self.tickets.get(n_epoch, []))

    def wait_for_upload(self, n_epoch: int | None, timeout: float | None, *, every: bool = False) -> None:
        """Waits until passes that are durable are uploaded, too; at once where nothing is uploaded.

        Raises:
            TimeoutError, PermissionError, RuntimeError: see `RunUploads.wait`.
        """
        if self.uploads is not None:
            self.uploads.wait(self._tickets(n_epoch, every=every), timeout)

    def failure(self, n_epoch: int | None, *, every: bool = False) -> BaseException | None:
        """Why a pass of that epoch could not be sealed, None if none failed (yet)."""
        done = [ticket for ticket in self._tickets(n_epoch, every=every) if ticket.done()]
        return next((error for ticket in done if (error := ticket.exception()) is not None), None)

    def flush(self, timeout: float | None) -> bool:
        """Writes what is queued, sealed or not."""
        return self._writer.flush(timeout)

    def account(self) -> Account:
        """The writer's account so far."""
        return self._writer.account()

    def close(self, timeout: float | None) -> Account:
        """Takes the hooks off, flushes, stops the writer; what is not uploaded yet goes in the background."""
        self.detach()
        account = self._writer.close(timeout)
        if self.uploads is not None:
            self.uploads.finish()
        return account

    @property
    def spills(self) -> int:
        """Batches that found no ring slot large enough or free (CUDA)."""
        return self._stager.spills

    # -- batches ---------------------------------------------------------------------------------------------

    def labels_of(self, batch: Any) -> Any:
        """The labels in a framework's batch, as they are."""
        return find_labels(batch)

    def inputs_of(self, batch: Any) -> Any:
        """The model's inputs in a framework's batch, as they are."""
        return find_inputs(batch)

    def rows_in(self, batch: Any, labels: Any, inputs: Any) -> int | None:
        """Units of a framework's batch, None where it does not tell."""
        return count_rows(batch, labels, inputs)

    @abstractmethod
    def commit(self, open_pass: OpenPass, batch: Batch) -> Any:
        """Stages one batch and hands it to the writer; returns what was captured, if anything."""

    def _hashing(self, batch: Batch, n: int | None) -> tuple[HeldInputs | None, Tensor | None]:
        """Inputs to hash later (all on the host), or their hash as a device tensor."""
        wanted = self.options.input_hash or batch.id_source == CONTENT_HASH
        if not wanted or batch.inputs is None:
            return None, None
        tensors = tensors_in(batch.inputs)
        if all(t.device.type == "cpu" for t in tensors):
            versions = [(t, t._version) for t in tensors if not t.is_inference()]  # noqa: SLF001
            return HeldInputs(batch.inputs, versions), None
        if n is None:
            return None, None
        with torch.no_grad():
            return None, input_hash_of(batch.inputs, n)

    def _tell_id_source(self, source: str) -> None:
        if source == self.id_source:
            return
        self.id_source = source
        meaning = _SOURCE_MEANING.get(source)
        text = f"Sample ids come from {source}" + (f": {meaning}{self.id_hint}." if meaning else ".")
        self.guard.tell_once(f"ids:{source}", text)


def _new_key(open_pass: OpenPass) -> PassKey | None:
    """The key a provisional pass got at its end, None where it is the one it was opened with."""
    return None if open_pass.final_key == open_pass.key else open_pass.final_key
