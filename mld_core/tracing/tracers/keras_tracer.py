"""Records a Keras or TensorFlow detector without PyTorch: names, passes, batches, the account at the end.

The network is run in inference mode and read at once, on the calling thread; tables are built and written by
the writer thread. Nothing raises into the training.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mld_core.adapters.base import FALL_BACK_2D, Adapter, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.keras.boxes import frames_of, to_numpy
from mld_core.adapters.outputs import DetectionOutput
from mld_core.adapters.registry import find_adapter
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.write.writer import Account
from mld_core.tracing.batch.hashing_host import INLINE_BYTES, content_hashes
from mld_core.tracing.capture.activations import ready
from mld_core.tracing.guard import ConfigurationProblem, Guard, disabled
from mld_core.tracing.run.account import account_text, describe_run, tell_start
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.sealing import OpenPass, RunWriter, attempt_name, check_traced, new_launch_id
from mld_core.tracing.tables.box_tables import BoxPass, Frames, check_truth, joined
from mld_core.tracing.tables.columns import Origin, user_columns

ParseFn = Callable[[Any, Sequence[tuple[int, int]]], DetectionOutput | Parsed]
_RULE: Final = "what the class layer sees at each detection's anchor"
_ROW_BYTES: Final = 4096
_CLOSE_S: Final = 300.0
_UNUSED: Final = (
    "target_layers", "additional_label_fields", "image_fn", "ground_truth_provider", "replay_train",
    "pc_range",
)  # fmt: skip


@dataclass(kw_only=True)
class KerasJob:
    """One batch of frames on its way to the record tables; called once, on the writer thread.

    Attributes:
        truths: one per frame, None: unlabelled; or None: none is labelled.
        ids: one per frame, or None: the content's hash.
        images: (B, H, W, C) to be hashed, their hashes where that is done, or None.
        widths: alias -> width of what this run stores of a detection.
    """

    context: BoxPass
    unit: int
    parsed: Parsed
    truths: Sequence[Truth | None] | None
    ids: list[str] | None
    id_source: str
    images: npt.NDArray[Any] | list[str] | None
    widths: Mapping[str, int]
    batch_idx: int
    global_step: int | None
    user: Mapping[str, Any]

    def __call__(self) -> Frames:
        """Reads the batch.

        Raises:
            ValueError: no id and no image to make one of.
        """
        output, n = self.parsed.output, len(self.parsed.output)
        hashes = content_hashes(self.images) if isinstance(self.images, np.ndarray) else self.images
        self.images = None
        ids = self.ids if self.ids is not None else hashes
        if ids is None or len(ids) != n:
            raise ValueError(f"{0 if ids is None else len(ids)} ids for {n} frames; give one id per frame")
        n_class, geometry = self.context.n_class, self.parsed.geometry or []
        given = {"logits": output.logits, "features": output.features}
        origin = Origin(
            n=n,
            id_source=self.id_source,
            batch_idx=self.batch_idx,
            global_step=self.global_step,
            hashes=hashes,
            user=user_columns(self.context, self.user, n),
        )
        return Frames(
            context=self.context,
            units=np.arange(self.unit, self.unit + n),
            parsed=self.parsed,
            truths=[None if t is None else check_truth(t, n_class, None) for t in self.truths or [None] * n],
            ids=ids,
            origins=[origin],
            sizes=[(g.height, g.width) for g in geometry] if len(geometry) == n else [(None, None)] * n,
            vectors={
                alias: joined([part.reshape(len(part), width) for part in parts], (0, width))
                for alias, width in self.widths.items()
                if (parts := given[alias]) is not None
            },
            widths=self.widths,
        )


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
        self.n_class: int | None = self.options.known_n_class
        self.last_features: list[Any] | None = None
        self._records: RunWriter | None = None
        self._place: tuple[Store, RunKey] | None = None
        self._passes: dict[str, OpenPass] = {}
        self._numbers: dict[tuple[str, int | None], int] = {}
        self._facts: dict[str, Any] = {}
        self._widths: dict[str, int] = {}
        self._traced: set[int | None] = set()

    @property
    def enabled(self) -> bool:
        """Whether records are being made."""
        return self._records is not None

    def start(self, model: Any) -> None:
        """Finds the family, settles the names, opens the store; a problem is told once and disables."""
        self.model = self.options.model or model
        if disabled():
            return
        with self.guard.catch("starting to record", lost="all records of this run"):
            options = self.options
            # A second training with the same callback is another run.
            self._passes, self._numbers, self._facts, self._widths = {}, {}, {}, {}
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
            family = self.adapter.family if self.adapter is not None else type(self.model).__name__
            info: dict[str, Any] = {"family": family, "task": "detection", "framework": "keras"}
            info["vector_dtype"] = options.vector_dtype
            if self.n_class is not None:
                info["n_class"] = self.n_class
            stored = describe_run(store, run, architecture_hash(self.model), options, self.guard, **info)
            if stored.get("n_class") not in {None, self.n_class}:
                raise ConfigurationProblem(
                    f"The run {name}/{run.version_name} has {stored['n_class']} classes, this model has "
                    f"{self.n_class}. Give another version_name, or force_table_recreate=True."
                )
            attempt = attempt_name(new_launch_id(), 0)
            self._records = RunWriter(options, self.guard, store, run, attempt=attempt)
            self._place = store, run
            tell_start(self.guard, run, store, options)

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
        self._passes[split] = OpenPass(PassKey(split, n_epoch, number), mode)

    def end_pass(self, split: str) -> None:
        """Seals the pass of a split in the background."""
        current = self._passes.pop(split, None)
        if current is None or self._records is None or current.handle is None:
            return
        with self.guard.catch("closing a pass", lost="the seal of that pass"):
            self._records.seal(current, {**self._facts, "mode": current.mode, "task": "detection"})

    def abort_pass(self, split: str, reason: str) -> None:
        """The pass of a split ends early: what is there is flushed and stays marked as partial."""
        current = self._passes.pop(split, None)
        if current is None or self._records is None or current.handle is None:
            return
        with self.guard.catch("closing a pass", lost="the rows of the last seconds"):
            self._records.abandon(current)
            self.guard.count(f"partial pass: {reason}")

    def open_epoch(self, split: str) -> int | None:
        """The epoch of the open pass of a split; raises KeyError where none is open."""
        return self._passes[split].key.n_epoch

    def store_and_run(self) -> tuple[Store, RunKey]:
        """Where the records go.

        Raises:
            RuntimeError: not started.
        """
        if self._place is None:
            raise RuntimeError("nothing is recorded: the recorder did not start; see its message")
        return self._place

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
        if self._records is None:
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
            if not self._facts:
                self._settle(self._records, parsed)
            self._put(self._records, split, call, parsed, truth, ids, id_source, user or {}, global_step)

    def _put(
        self,
        records: RunWriter,
        split: str,
        call: ModelCall,
        parsed: Parsed,
        truth: Any,
        ids: Any,
        id_source: str,
        user: Mapping[str, Any],
        global_step: int | None,
    ) -> None:
        current, n = self._passes[split], len(parsed.output)
        names = None if ids is None else as_texts(ids)
        hashed = self.options.input_hash or names is None
        if not isinstance(current.context, BoxPass):
            current.context = BoxPass(
                rank=0,
                mode=current.mode,
                store_hash=hashed,
                vector_dtype=self.options.vector_dtype,
                fields=self.options.sample_fields(),
                guard=self.guard,
                task="detection",
                n_class=self.n_class,
            )
            records.open(current, {"mode": current.mode, "task": "detection"})
        job = KerasJob(
            context=current.context,
            unit=current.units,
            parsed=parsed,
            truths=None if truth is None else self._truths(call, truth, n),
            ids=names,
            id_source="content_hash" if names is None else id_source,
            images=_hashes_soon(to_numpy(call.args[0])) if hashed else None,
            widths=self._widths,
            batch_idx=current.batches,
            global_step=global_step,
            user=user,
        )
        nbytes = _ROW_BYTES * n + (job.images.nbytes if isinstance(job.images, np.ndarray) else 0)
        records.put(current, job, rows=n, nbytes=nbytes)
        current.units += n

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
        limits = limits.over(Thresholds(0.0, None, FALL_BACK_2D.max_detections))
        return replace(ready(found, limits, self.n_class), geometry=frames)

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

    def _settle(self, records: RunWriter, parsed: Parsed) -> None:
        """The first batch shows activation and widths; run.json holds them."""
        given = {"logits": parsed.output.logits, "features": parsed.output.features}
        self._widths = {alias: int(parts[0].shape[1]) for alias, parts in given.items() if parts}
        self._facts = {"activation": parsed.activation, "background": parsed.background}
        width = self._widths.get("features")
        stored = {} if width is None else {"features": {"width": width, "rule": _RULE}}
        records.store.update_run_info(records.run, **self._facts, features=stored)

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
        check_traced(n_epoch, self._traced)
        for split in [s for s, p in self._passes.items() if n_epoch is None or p.key.n_epoch == n_epoch]:
            self.end_pass(split)
        if self._records is not None:
            self._records.wait_for_save(n_epoch, timeout)

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
        records, self._records = self._records, None
        if records is None:
            return account
        with self.guard.catch("closing the records", lost="the rows of the last seconds"):
            account = records.close(_CLOSE_S)
            self.guard.tell_once(f"account:{records.run}", account_text(records, account, None))
        return account


def _hashes_soon(images: npt.NDArray[Any]) -> npt.NDArray[Any] | list[str]:
    """The hashes of a small batch, of a large one a copy that the writer thread hashes."""
    return content_hashes(images) if images.nbytes <= INLINE_BYTES else np.array(images)


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
