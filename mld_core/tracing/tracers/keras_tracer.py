"""Records a Keras or TensorFlow detector without PyTorch: names, passes, batches, the account at the end.

The network is run in inference mode and read at once, on the calling thread; tables are built and written by
the writer thread. Nothing raises into the training.
"""

from __future__ import annotations

import hashlib
import secrets
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final

import numpy as np

from mld_core.adapters.base import FALL_BACK_2D, Adapter, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.keras.boxes import frames_of, to_numpy
from mld_core.adapters.outputs import DetectionOutput
from mld_core.adapters.registry import find_adapter
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.write.writer import Account, Writer, WriterOptions
from mld_core.tracing.guard import ConfigurationProblem, Guard
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.uploads import RunUploads, uploads_for, where_to
from mld_core.tracing.tables.keras_rows import KerasBatch

ParseFn = Callable[[Any, Sequence[tuple[int, int]]], "DetectionOutput | Parsed"]
_RULE: Final = "what the class layer sees at each detection's anchor"
_ROW_BYTES: Final = 4096
_CLOSE_S: Final = 300.0
_UNUSED: Final = (
    "target_layers", "additional_label_fields", "image_fn", "ground_truth_provider", "replay_train",
    "pc_range",
)  # fmt: skip


@dataclass
class _Pass:
    key: PassKey
    mode: str
    handle: int | None = None
    units: int = 0
    batches: int = 0


class KerasRecorder:
    """The life of one run.

    Args:
        parse_fn: for models of one's own: (what `model(images)` returned, [(height, width), ...]) -> final
            detections, as `DetectionOutput` (xyxy pixels of the images, labels from 0, logits before the
            sigmoid or softmax) or `Parsed`.
        options: as of every wrapper (public API, section 7).

    Raises:
        ConfigurationProblem: a wrong option.
    """

    def __init__(self, *, parse_fn: ParseFn | None = None, **options: Any) -> None:
        self.options = RecorderOptions(**options)
        self.guard = Guard(scope=uuid.uuid4().hex)
        self.parse_fn = parse_fn
        self.adapter: Adapter | None = None
        self.model: Any = None
        self.run: RunKey | None = None
        self.n_class: int | None = self.options.known_n_class
        self.last_features: list[Any] | None = None
        self._writer: Writer | None = None
        self._store: Store | None = None
        self._uploads: RunUploads | None = None
        self._passes: dict[str, _Pass] = {}
        self._numbers: dict[tuple[str, int | None], int] = {}
        self._tickets: dict[int | None, list[Future[Any]]] = {}
        self._facts: dict[str, Any] | None = None
        self._traced: set[int | None] = set()

    @property
    def enabled(self) -> bool:
        """Whether records are being made."""
        return self._writer is not None

    def start(self, model: Any) -> None:
        """Finds the family, settles the names, opens the store; a problem is told once and disables."""
        with self.guard.catch("starting to record", lost="all records of this run"):
            options = self.options
            self.model = options.model or model
            # A second training with the same callback is another run.
            self._passes, self._numbers, self._tickets, self._facts = {}, {}, {}, None
            self._traced = set()
            self._tell_unused()
            if self.parse_fn is None:
                self.adapter = find_adapter(self.model, "detection")
                if self.n_class is None:
                    self.n_class = self.adapter.n_class()
            store = Store(options.store)
            name = options.model_name or type(self.model).__name__
            run = RunKey(name, options.version_name or store.claim_version(name))
            if options.force_table_recreate:
                store.recreate(run)
            info: dict[str, Any] = {"task": "detection", "framework": "keras", "n_class": self.n_class}
            info["architecture_hash"] = architecture_hash(self.model)
            info["family"] = self.adapter.family if self.adapter is not None else type(self.model).__name__
            info["vector_dtype"] = options.vector_dtype
            if options.class_names is not None:
                info["class_names"] = list(options.class_names)
            stored = store.ensure_run(run, {k: v for k, v in info.items() if v is not None})
            if stored.get("n_class") not in {None, self.n_class}:
                raise ConfigurationProblem(
                    f"The run {name}/{run.version_name} has {stored['n_class']} classes, this model has "
                    f"{self.n_class}. Give another version_name, or force_table_recreate=True."
                )
            attempt = f"{_launch_id()}-000"
            self._writer = Writer(
                store,
                run,
                attempt=attempt,
                rank=0,
                world_size=1,
                options=WriterOptions(
                    queue_mb=options.queue_mb,
                    on_full="drop" if options.on_full == "drop" else "block",
                    roll_mb=options.roll_mb,
                    roll_seconds=options.roll_seconds,
                    keep_vectors=options.keep_vectors,
                ),
                on_problem=self._tell,
            )
            self._store, self.run = store, run
            self._uploads = uploads_for(
                options, self.guard, store, run, attempt=attempt, rank=0, world_size=1
            )
            self.guard.tell_once(
                f"start:{run}:{store.root}", f"Recording {name}/{run.version_name} to {store.root}"
            )
            if where_to(options):
                self.guard.tell_once("endpoint", where_to(options))

    def _tell(self, key: str, message: str) -> None:
        self.guard.tell_once(key, message)

    def _tell_unused(self) -> None:
        given = [name for name in _UNUSED if getattr(self.options, name)]
        if given:
            self._tell(
                "unused", f"With Keras models {', '.join(given)} have no effect; the rest is recorded."
            )

    # -- passes ----------------------------------------------------------------------------------------------

    def begin_pass(self, split: str, n_epoch: int | None, *, mode: str = "eval") -> None:
        """A pass over a split begins; one that is open is sealed."""
        self.end_pass(split)
        number = self._numbers.get((split, n_epoch), 0)
        self._numbers[split, n_epoch] = number + 1
        self._traced.add(n_epoch)
        self._passes[split] = _Pass(PassKey(split, n_epoch, number), mode)

    def end_pass(self, split: str) -> None:
        """Seals the pass of a split in the background."""
        current = self._passes.pop(split, None)
        if current is None or self._writer is None or current.handle is None:
            return
        with self.guard.catch("closing a pass", lost="the seal of that pass"):
            meta = {**(self._facts or {}), "mode": current.mode, "task": "detection"}
            ticket = self._writer.seal(current.handle, meta=meta)
            if self._uploads is not None:
                ticket.add_done_callback(self._uploads.sealed)
            self._tickets.setdefault(current.key.n_epoch, []).append(ticket)

    def abort_pass(self, split: str, reason: str) -> None:
        """The pass of a split ends early: what is there is flushed and stays marked as partial."""
        current = self._passes.pop(split, None)
        if current is None or self._writer is None or current.handle is None:
            return
        with self.guard.catch("closing a pass", lost="the rows of the last seconds"):
            self._writer.abandon(current.handle)
            self.guard.count(f"partial pass: {reason}")

    def open_epoch(self, split: str) -> int | None:
        """The epoch of the open pass of a split; raises KeyError where none is open."""
        return self._passes[split].key.n_epoch

    def store_and_run(self) -> tuple[Store, RunKey]:
        """Where the records go.

        Raises:
            RuntimeError: not started.
        """
        if self._store is None or self.run is None:
            raise RuntimeError("nothing is recorded: the recorder did not start; see its message")
        return self._store, self.run

    def is_open(self, split: str) -> bool:
        """Whether a pass of the split is open."""
        return split in self._passes

    # -- batches ---------------------------------------------------------------------------------------------

    def record(
        self,
        split: str,
        images: Any,
        output: Any,
        *,
        truth: Any = None,
        ids: Any = None,
        id_source: str = "call",
        user: Mapping[str, Any] | None = None,
        global_step: int | None = None,
    ) -> None:
        """One batch: what went in (B, H, W, C), what `model(images)` returned, true boxes, ids."""
        if self._writer is None:
            return
        shape = getattr(images, "shape", None)
        n = int(shape[0]) if shape else 0
        with self.guard.catch("recording a batch", lost="the rows of that batch", rows=n):
            if not n:
                raise ConfigurationProblem(
                    f"images of type {type(images).__name__}: expected one array or tensor (B, H, W, C)"
                )
            call = ModelCall((images,), {}, output)
            parsed = self._parse(call)
            if parsed is None:
                self.guard.tell_once("none", "The output holds no detections; such batches are not recorded.")
                return
            features = parsed.output.features
            self.last_features = None if features is None else list(features)
            self._settle(parsed)
            self._put(split, call, parsed, truth, ids, id_source, user or {}, global_step)

    def _put(
        self,
        split: str,
        call: ModelCall,
        parsed: Parsed,
        truth: Any,
        ids: Any,
        id_source: str,
        user: Mapping[str, Any],
        global_step: int | None,
    ) -> None:
        assert self._writer is not None
        current, facts = self._passes[split], self._facts or {}
        n = len(parsed.output)
        names = None if ids is None else as_texts(ids)
        if current.handle is None:
            current.handle = self._writer.open(current.key, meta={"mode": current.mode, "task": "detection"})
        hashed = self.options.input_hash or names is None
        batch = KerasBatch(
            unit=current.units,
            parsed=parsed,
            truths=None if truth is None else self._truths(call, truth, n),
            ids=names,
            id_source="content_hash" if names is None else id_source,
            images=np.array(to_numpy(call.args[0])) if hashed else None,
            mode=current.mode,
            batch_idx=current.batches,
            global_step=global_step,
            n_logits=facts.get("n_logits"),
            features=facts.get("features"),
            n_class=self.n_class,
            vector_dtype=self.options.vector_dtype,
            fields=self.options.sample_fields(),
            user=user,
        )
        nbytes = _ROW_BYTES * n + (0 if batch.images is None else batch.images.nbytes)
        self._writer.put(current.handle, batch, rows=n, nbytes=nbytes)
        current.units += n
        current.batches += 1

    def _parse(self, call: ModelCall) -> Parsed | None:
        options = self.options
        limits = Thresholds(options.score_thresh, options.iou_thresh, options.max_detections)
        if self.parse_fn is None:
            assert self.adapter is not None
            return self.adapter.parse(call, limits)
        frames = frames_of(call.args[0])
        found = self.parse_fn(call.output, [(frame.height, frame.width) for frame in frames])
        if isinstance(found, Parsed):
            return found
        return _ready(found, limits, self.n_class, frames)

    def _truths(self, call: ModelCall, truth: Any, n: int) -> list[Truth | None] | None:
        """As the family reads them, else the public form: per image boxes (N, 4) xyxy pixels and labels."""
        found = None if self.adapter is None else self.adapter.truths(call, truth)
        if found is None:
            if isinstance(truth, Mapping):
                truth = [{key: value[i] for key, value in truth.items()} for i in range(n)]
            names = [None if t is None else t.get("labels", t.get("classes")) for t in truth]
            found = [
                None
                if t is None or name is None
                else Truth(
                    to_numpy(t["boxes"]).reshape(-1, 4).astype(np.float32),
                    to_numpy(name).reshape(-1).astype(np.int64),
                )
                for t, name in zip(truth, names, strict=True)
            ]
        if len(found) != n or any(t is not None and len(t.boxes) != len(t.labels) for t in found):
            raise ValueError(f"true boxes of {len(found)} images for {n}; give one entry per image")
        beyond = np.inf if self.n_class is None else self.n_class
        if any(t is not None and ((t.labels < 0) | (t.labels >= beyond)).any() for t in found):
            self._tell(
                "label range",
                f"True boxes have labels of no class (the model has {self.n_class}, counted from 0); they "
                "are stored with `ignore`.",
            )
        return list(found)

    def _settle(self, parsed: Parsed) -> None:
        """The first batch shows activation and widths; run.json holds them."""
        logits, features = parsed.output.logits, parsed.output.features
        if self._facts is not None:
            return
        self._facts = {
            "activation": parsed.activation,
            "background": parsed.background,
            "n_logits": None if not logits else int(logits[0].shape[1]),
            "features": None if not features else int(features[0].shape[1]),
        }
        assert self._store is not None
        assert self.run is not None
        width = self._facts["features"]
        stored = {} if width is None else {"features": {"width": width, "rule": _RULE}}
        facts = {key: self._facts[key] for key in ("activation", "background")}
        self._store.update_run_info(self.run, **facts, features=stored)

    # -- end -------------------------------------------------------------------------------------------------

    def wait_for_save(self, n_epoch: int | None, timeout: float | None = None) -> None:
        """Seals the passes of an epoch and waits until they are on disk and, with an endpoint, uploaded.

        Args:
            n_epoch: the epoch; None: every pass.
            timeout: seconds to wait; None: for the disk as long as it takes.

        Raises:
            ValueError: the epoch was never traced; the message lists those that were.
            TimeoutError: not durable, or not uploaded, in time; both go on in the background.
            RuntimeError: a pass could not be sealed; the message holds the reason.
        """
        if n_epoch is not None and n_epoch not in self._traced:
            traced = sorted(e for e in self._traced if e is not None)
            raise ValueError(f"epoch {n_epoch} was never traced; traced epochs: {traced or 'none'}.")
        for split in [s for s, p in self._passes.items() if n_epoch is None or p.key.n_epoch == n_epoch]:
            self.end_pass(split)
        every = [ticket for tickets in self._tickets.values() for ticket in tickets]
        tickets = every if n_epoch is None else self._tickets.get(n_epoch, [])
        begun = time.monotonic()
        waiting = wait_for(tickets, timeout)
        failed = next((error for t in waiting.done if (error := t.exception()) is not None), None)
        if failed is not None:
            raise RuntimeError(f"epoch {n_epoch} is not sealed: {failed}") from failed
        if waiting.not_done:
            raise TimeoutError(
                f"epoch {n_epoch} was not durable after {timeout} s; writing goes on in the background. Give "
                "a longer timeout, or look at the disk."
            )
        if self._uploads is not None:
            rest = None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))
            self._uploads.wait(tickets, rest)

    def finish(self) -> Account:
        """Flushes, closes, tells the account and the command that evaluates; open passes stay partial."""
        account = Account()
        if self._passes:
            self._tell(
                "open",
                f"The recording ends with unsealed passes ({', '.join(sorted(self._passes))}); they are kept "
                "and marked as partial. Call wait_for_save(n_epoch) at the end of each epoch.",
            )
        for split in list(self._passes):
            self.abort_pass(split, "still open at the end")
        writer, self._writer = self._writer, None
        if writer is None or self.run is None or self._store is None:
            return account
        with self.guard.catch("closing the records", lost="the rows of the last seconds"):
            account = writer.close(_CLOSE_S)
            if self._uploads is not None:
                self._uploads.finish()
            command = ["mld", "evaluate", self.run.model_name, self.run.version_name]
            if self._store.root != Store().root:
                command += ["--store", str(self._store.root)]
            lost = account.rows_lost + self.guard.rows_lost
            text = f"{account.rows_written} rows recorded to {self._store.run_dir(self.run)}, {lost} lost."
            if self.guard.problems or account.reasons:
                reasons = "; ".join(f"{what}: {n} rows" for what, n in account.reasons.items())
                text += f"\nProblems: {self.guard.summary()} {reasons}."
            if self._uploads is not None:
                text += f"\n{self._uploads.summary()}"
            self.guard.tell_once(f"account:{self.run}", f"{text}\nEvaluate with: {shlex.join(command)}")
        return account


def as_texts(ids: Any) -> list[str]:
    """Ids as text: a list, an array or a tensor of integers or strings.

    >>> as_texts(np.array([3, 4])), as_texts([b"a", "b"])
    (['3', '4'], ['a', 'b'])
    """
    values = ids if isinstance(ids, (list, tuple)) else to_numpy(ids).reshape(-1).tolist()
    return [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v) for v in values]


def architecture_hash(model: Any) -> str:
    """32 hex digits over the classes of a model's layers and the shapes of its weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for layer in getattr(model, "layers", None) or ():
        digest.update(type(layer).__name__.encode())
    for weight in getattr(model, "weights", None) or ():
        digest.update(str(tuple(weight.shape)).encode())
    return digest.hexdigest()[:32]


def _launch_id() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ") + secrets.token_hex(3)


def _ready(
    found: DetectionOutput, limits: Thresholds, n_class: int | None, frames: list[FrameGeometry]
) -> Parsed:
    """Detections of `parse_fn` within the limits asked for."""
    score = limits.score if limits.score is not None else 0.0
    most = limits.max_detections if limits.max_detections is not None else int(FALL_BACK_2D["max_detections"])
    # A NaN stays, to be counted.
    kept = [np.flatnonzero(~(s < score))[np.argsort(-s[~(s < score)], kind="stable")] for s in found.scores]
    cut = [len(k) > most for k in kept]

    def rows(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [v[k[:most]] for v, k in zip(values, kept, strict=True)]

    output = DetectionOutput(
        boxes=rows(found.boxes) or [],
        scores=rows(found.scores) or [],
        labels=rows(found.labels) or [],
        logits=rows(found.logits),
        features=rows(found.features),
        source_index=rows(found.source_index),
    )
    width = None if not output.logits else output.logits[0].shape[1]
    softmax = width is not None and n_class is not None and width == n_class + 1
    activation = "none" if width is None else "softmax" if softmax else "sigmoid"
    return Parsed(
        output,
        activation,
        n_class if softmax else None,
        cut,
        replace(limits, score=score, max_detections=most),
        geometry=frames,
    )
