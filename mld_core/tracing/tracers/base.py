"""Bases of the tracers that are called by hand: no framework, no events, the user's own loop.

Rules of passes (a pass is one walk over one split in one epoch): the first call for a (dataset_type, n_epoch)
opens a pass; several may be open at once; `wait_for_save` seals those of its epoch; the same key traced after
that is the next pass.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.export import export_run
from mld_core.tracing.batch.batches import CONTENT_HASH, Batch, class_count, row_count, takes_keywords
from mld_core.tracing.capture.capture import Capture
from mld_core.tracing.capture.heads import Captured
from mld_core.tracing.guard import ConfigurationProblem, Guard
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.naming import rank_and_world
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.recorder import Recorder
from mld_core.tracing.run.sealing import OpenPass, check_traced
from mld_core.tracing.run.session import Session
from mld_core.tracing.tracers.arguments import TracerArguments, epoch_number
from mld_core.tracing.tracers.loader_order import LoaderOrder

GIVEN: Final = "input_id"  # the id source of ids that were handed over


class TorchTracer:
    """A PyTorch model under observation: options, hooks, and where the records go.

    Raises:
        ConfigurationProblem: a module path that does not exist, a key without an endpoint, a malformed field.
    """

    task: ClassVar[str] = "classification"

    @arguments_of(TracerArguments)
    def __init__(self, given: TracerArguments) -> None:
        self._begin(given)

    def _begin(self, given: TracerArguments) -> None:
        """What `__init__` does, whose arguments are those of the task."""
        model = given.model
        if not isinstance(model, nn.Module):
            raise ConfigurationProblem(f"model={type(model).__name__}: expected a torch.nn.Module.")
        for name in ("model_name", "version_name"):
            value = getattr(given, name)
            if not isinstance(value, str) or not value:
                raise ConfigurationProblem(f"{name}={value!r}: expected a non-empty string.")
        self.model = model
        self.recorder = Recorder(task=self.task, **given.for_recorder())
        self._features: dict[str, torch.Tensor] = {}
        self._capture: Any = None
        self._set_up()
        if not self.recorder.disabled:
            self._register_model_hooks(model)

    def _set_up(self) -> None:
        """What else an instance begins with."""

    @property
    def options(self) -> RecorderOptions:
        """The options as given."""
        return self.recorder.options

    @property
    def guard(self) -> Guard:
        """Tells and counts problems."""
        return self.recorder.guard

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_capture": None, "_features": {}}

    # -- for subclasses --------------------------------------------------------------------------------------

    def _get_n_class(self, model: nn.Module) -> int | None:
        """The number of classes, None if only the first batch can tell."""
        return class_count(model)

    def _register_model_hooks(self, model: nn.Module) -> None:
        """Sets the hooks at once: a compiled model takes none after its first run."""
        self._capture = Capture(
            model,
            target_layers=self.options.target_layers,
            ignore_root=True,  # the output comes with the call
            n_class=self._get_n_class(model),
        )

    def _parse_model_output(self, model_output: Any) -> Any:
        """What holds the logits in the model's output: a (B, K) tensor, or anything logits are found in."""
        return model_output

    def get_hooked_features(self, layer_name: str) -> torch.Tensor:
        """The feature of the latest traced batch, (B, D), pooled, on the model's device.

        Raises:
            KeyError: nothing was captured under that alias.
        """
        if layer_name not in self._features:
            raise KeyError(
                f"no feature {layer_name!r} was captured; captured: "
                f"{sorted(self._features) or 'nothing yet'}. Aliases are the keys of target_layers, or "
                "'features' without them."
            )
        return self._features[layer_name]

    def _keep_features(self, captured: Any) -> None:
        if isinstance(captured, Captured):
            self._features = {alias: tensor.detach() for alias, tensor in captured.features.items()}


class TrainingTracer(TorchTracer):
    """Passes by hand: `tracer(...)` for each batch, `wait_for_save(n_epoch)` after each epoch."""

    def _set_up(self) -> None:
        self._open: dict[tuple[str, int | None], OpenPass] = {}
        self._traced: set[int | None] = set()
        self._default: tuple[str, int | None] | None = None
        self._order: LoaderOrder | None = None
        self._pid = os.getpid()
        atexit.register(_at_exit, weakref.ref(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_open": {}, "_order": None}

    def __del__(self) -> None:
        # It was local to a function that is over: unsealed passes are still told of at the end.
        if self.__dict__.get("_open"):
            atexit.register(self._at_exit)

    # -- calls -----------------------------------------------------------------------------------------------

    def __call__(
        self,
        model_input: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model and records the batch.

        Args:
            model_input: passed to the model as it is; a mapping whose keys are the model's argument names is
                passed as keywords.
            ground_truth: (B,) class indices or (B, K) soft labels; None: recorded unlabelled.
            input_ids: one id per sample: a list of str, or a 1-D integer or str array or tensor.
            dataset_type: "train", "val", "test", "deploying", or the user's own.
            n_epoch: the epoch, None if there is none.
            **kwargs: values of the additional fields, one per sample.

        Returns:
            The model's own output, untouched. Errors of the model are raised; errors of the recording are
            told.
        """
        if self._default is not None and n_epoch is None and dataset_type == "train":
            dataset_type, n_epoch = self._default
        begun = time.perf_counter()
        with self.guard.catch("preparing a batch", lost="the rows of that batch"):
            self._arm()
        self.recorder.spend(time.perf_counter() - begun)
        try:
            model_output = self._run_model(model_input, ground_truth)
        except BaseException:
            self._disarm()  # an out-of-memory error is retried: nothing of the failed try may stay alive
            raise
        begun = time.perf_counter()
        with self.guard.catch(
            "recording a batch", lost="the rows of that batch", rows=row_count(input_ids) or 0
        ):
            self._parse_and_save_io_data(
                model_input,
                model_output,
                ground_truth,
                input_ids=input_ids,
                dataset_type=dataset_type,
                n_epoch=n_epoch,
                **kwargs,
            )
        self._disarm()
        self.recorder.spend(time.perf_counter() - begun)
        return model_output

    def _disarm(self) -> None:
        if self.recorder.session is not None:
            self.recorder.session.disarm()

    def _run_model(self, model_input: Any, ground_truth: Any) -> Any:  # noqa: ARG002 - detectors are trained with it
        if isinstance(model_input, Mapping) and takes_keywords(self.model, model_input):
            return self.model(**model_input)
        return self.model(model_input)

    def _parse_and_save_io_data(
        self, model_input: Any, model_output: Any, ground_truth: Any, **kwargs: Any
    ) -> None:
        """Records one batch; what a fully custom tracer overrides.

        Args:
            model_input: as given to the call.
            model_output: the model's output.
            ground_truth: as given to the call.
            **kwargs: input_ids, dataset_type, n_epoch, and the values of additional fields.
        """
        input_ids, dataset_type, n_epoch = (kwargs.pop(k) for k in ("input_ids", "dataset_type", "n_epoch"))
        outputs = self._parse_model_output(model_output)
        self.save_batch(model_input, outputs, ground_truth, input_ids, dataset_type, n_epoch, kwargs)

    def save_batch(
        self,
        model_input: Any,
        outputs: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str,
        n_epoch: int | None,
        fields: Mapping[str, Any],
    ) -> None:
        """Puts one batch into its pass. `outputs`: (B, K) logits, or anything they are found in."""
        n_epoch = epoch_number(n_epoch)
        self._traced.add(n_epoch)
        if not isinstance(dataset_type, str) or not dataset_type:
            raise ConfigurationProblem(
                f"dataset_type={dataset_type!r}: expected a non-empty string such as 'train' or 'val'."
            )
        session = self._session()
        if session is None:
            return
        known = {spec.name for spec in (*self.options.sample_fields(), *self.options.label_fields())}
        unknown = sorted(set(fields) - known)
        if unknown:
            self.guard.tell_once(
                "kwargs",
                f"The values {unknown} belong to no additional field and are not recorded; declare them in "
                "additional_fields.",
            )
        key = (dataset_type, n_epoch)
        if key not in self._open:
            mode = "train" if self.model.training else "eval"
            self._open[key] = self.recorder.new_pass(dataset_type, n_epoch, mode=mode)
        open_pass = self._open[key]
        ids, source = self._ids(input_ids, ground_truth)
        inputs = self._inputs(model_input)
        batch = Batch(
            inputs,
            ground_truth,
            ids,
            source,
            fields,
            outputs,
            open_pass.batches,
            whole=model_input,
            answer=True,
        )
        if self._order is not None and key == self._default:
            n = session.count(model_input, ground_truth, inputs)
            self._order.place(batch, n, evaluates=open_pass.mode == "eval")
        self._keep_features(session.commit(open_pass, batch))

    def _inputs(self, model_input: Any) -> Any:
        """The content that the input hash is made of."""
        return model_input

    def _ids(self, input_ids: Any, ground_truth: Any) -> tuple[Any, str]:
        if input_ids is None:
            return None, CONTENT_HASH
        given, expected = row_count(input_ids), row_count(ground_truth)
        if given is None or expected in {None, given}:
            return input_ids, GIVEN
        self.guard.tell_once(
            "id count",
            f"{given} input_ids for {expected} labels; such batches go by the hash of their inputs. Give one "
            "id per sample.",
        )
        return None, CONTENT_HASH

    # -- start -----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        session = self._session()
        if session is not None:
            session.arm()

    def _session(self) -> Session | None:
        """The session of this process, started at the first traced batch, when the ranks are known."""
        session = self.recorder.session
        if session is not None and self._pid == os.getpid():
            return session
        if (
            self._pid != os.getpid()
        ):  # forked: hooks are here, the writer thread is not; its writer starts anew
            self._pid = os.getpid()
            self._open = {}
            if session is not None:
                session.tickets.clear()
                return session
        if not self.recorder.failed_to_start:
            lost = "all records of this tracer (MLD_HOME says where the store is)"
            with self.guard.catch("starting to record", lost=lost) as caught:
                if self._capture is None:
                    self._register_model_hooks(self.model)
                self.recorder.start_by_hand(self.model, self._capture)
            self.recorder.failed_to_start |= caught.failed
        return self.recorder.session

    # -- end of an epoch -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def epoch(
        self, n_epoch: int | None, dataset_type: str = "train", *, loader: Any = None
    ) -> Iterator[TrainingTracer]:
        """Calls inside go to this pass without naming it; it is sealed at the end, left partial on an error.

        Sealing goes on in the background; `wait_for_save(n_epoch)` waits for it.

        Args:
            n_epoch: as in a call.
            dataset_type: likewise.
            loader: the DataLoader whose batches the calls bring, one call a batch: its order gives the ids
                where a call gives none, and what its sampler repeats to make ranks even counts once.
        """
        n_epoch = epoch_number(n_epoch)
        before, self._default = (self._default, self._order), (dataset_type, n_epoch)
        follow = loader is not None and not self.recorder.disabled
        self._order = LoaderOrder(loader, self.guard) if follow else None
        try:
            yield self
        except BaseException:
            self._close_pass((dataset_type, n_epoch), seal=False)
            raise
        else:
            self._close_pass((dataset_type, n_epoch), seal=True)
        finally:
            self._default, self._order = before

    def _close_pass(self, key: tuple[str, int | None], *, seal: bool) -> None:
        open_pass, session = self._open.pop(key, None), self.recorder.session
        if open_pass is None or session is None:
            return
        with self.guard.catch("closing a pass", lost="nothing yet; the pass stays marked as partial"):
            if seal:
                session.seal(open_pass)
            else:
                session.abandon(open_pass)

    def wait_for_save(self, n_epoch: int | None = None, *, timeout: float | None = None) -> None:
        """Seals the passes of an epoch and waits until they are durable and, with an endpoint, uploaded.

        Args:
            n_epoch: the epoch; None: every pass that is open.
            timeout: seconds to wait; None: for the disk as long as it takes, for the upload up to a minute,
                after which it is told once and the training goes on (a service that is down costs that
                minute once).

        Raises:
            ValueError: the epoch was never traced, or is no integer; the message lists those that were.
            TimeoutError: not durable, or not uploaded, in time; both go on in the background.
            PermissionError: the service refuses the key (only with a timeout).
            RuntimeError: a pass could not be sealed; the message holds the reason.
        """
        n_epoch = epoch_number(n_epoch)
        check_traced(n_epoch, self._traced)
        session = self.recorder.session
        epochs = sorted({key[1] for key in self._open if key[1] is not None})
        if n_epoch is None and epochs:
            self.guard.tell_once(
                "wait without epoch",
                f"wait_for_save() without n_epoch seals every open pass, here those of epochs {epochs}. To "
                "seal one epoch's, give the same n_epoch as the calls did.",
            )
        for key in [k for k in self._open if n_epoch is None or k[1] == n_epoch]:
            self._close_pass(key, seal=True)
        if session is not None:
            session.wait_for_save(n_epoch, timeout)

    def export(self, output_path: str | Path | None = None, n_epoch: int | None = None) -> Path | None:
        """Writes features and ground truth of this run into a ZIP file.

        What is queued is written first; passes that are not sealed yet are exported as far as they are there.

        Args:
            output_path: a file ending in .zip, or a folder that gets a file of the default name; None: the
                current folder.
            n_epoch: the epoch; None: every epoch.

        Returns:
            The file, or None on ranks other than 0 and where recording is disabled.

        Raises:
            ValueError: nothing was recorded.
        """
        session = self.recorder.session
        rank = rank_and_world()[0] if session is None else session.rank
        if session is not None:
            session.flush(None)
        if rank != 0 or self.recorder.disabled:
            return None
        run = RunKey(str(self.options.model_name), str(self.options.version_name))
        return export_run(Store(self.options.store), run, output_path, n_epoch)

    def _at_exit(self) -> None:
        session = self.recorder.session
        if session is None or self._pid != os.getpid():
            return
        with self.guard.catch("flushing at exit", lost="the rows of the last seconds"):
            if self._open:
                keys = sorted(f"{split} epoch {epoch}" for split, epoch in self._open)
                self.guard.tell_once(
                    f"exit:{id(self)}",
                    f"The program ends with unsealed passes ({', '.join(keys)}); they are kept and marked as "
                    "partial. Call wait_for_save(n_epoch) at the end of each epoch.",
                )
            session.flush(15.0)
        if session.uploads is not None:
            with self.guard.catch("starting the upload", lost="nothing; `mld sync` sends what is left"):
                session.uploads.finish()
        if session.live is not None:
            session.live.finish()


def _at_exit(reference: weakref.ref[TrainingTracer]) -> None:
    tracer = reference()
    if tracer is not None:
        tracer._at_exit()  # noqa: SLF001 - module's own
