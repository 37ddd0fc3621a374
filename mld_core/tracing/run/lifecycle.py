"""The run's life: its names, its start, its end, and what a checkpoint keeps of it.

`mld_core.tracing.run.recorder` adds the passes and batches in between; wrappers use that class.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from mld_core.adapters.registry import UnknownDetectorError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.write.writer import Account
from mld_core.tracing.capture.detectors import find_detector
from mld_core.tracing.guard import ConfigurationProblem, Guard, disabled
from mld_core.tracing.run.account import account_text, describe_run, keep_store_small, tell_apart, tell_start
from mld_core.tracing.run.classifying import ClassificationSession
from mld_core.tracing.run.detection import DetectionSession
from mld_core.tracing.run.naming import (
    architecture_hash,
    class_name,
    names_of,
    passes_of,
    passes_text,
    rank_and_world,
    shared_launch_id,
)
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.run.sealing import OpenPass, attempt_name, new_launch_id
from mld_core.tracing.run.session import Session
from mld_core.tracing.run.thinning import Thinning

_WAIT_S: Final = 300.0
_CHECKPOINT_WAIT_S: Final = 30.0
_WAIT_AFTER_ERROR_S: Final = 30.0  # a job that failed should end, even where the disk hangs
_LOGGING: Final = frozenset({"lightning", "huggingface", "mmengine", "accelerate", "fabric"})
_ROOT_HOOK_TRAPS: Final = frozenset({"lightning"})  # frameworks whose root module's own hook misleads


class RunLife:
    """What a `Recorder` does before its first pass and after its last one."""

    def __init__(self, **options: Any) -> None:
        self.options = RecorderOptions(**options)
        # A scope of its own: a second run in one process (a notebook) is told its messages anew.
        self.guard = Guard(scope=uuid.uuid4().hex)
        # Made once: they are entered for every batch.
        self._arming = self.guard.catch("arming the hooks", lost="the records of that batch")
        self._recording = self.guard.catch("recording a batch", lost="the rows of that batch")
        self.session: Session | None = None
        self._names: dict[str, str] = {}
        self._restored: dict[str, str] = {}
        self._pass_numbers: dict[tuple[str, int | None], int] = {}
        self._stack: list[OpenPass] = []
        self._renamed = 0
        self._world = (0, 1)
        self._framework = ""
        self._started = 0.0
        self._spent = 0.0
        self.thinning = Thinning()
        self.disabled = disabled()
        self.failed_to_start = self.disabled
        self.kind: type[Session] | None = None  # None: by task and model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None, "_stack": []}

    # -- start -----------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether records are being made: started, and neither misconfigured nor finished."""
        return self.session is not None and not self.session.unsupported

    def resolve_names(self, model: nn.Module) -> dict[str, str]:
        """Settles the run's names; on rank 0 only, the wrapper broadcasts the result once.

        Args:
            model: what the framework trains; its class name is the default model name.

        Returns:
            {"model_name", "version_name", "store", "launch_id", "restart"}, plain strings; {} if that failed
            (told).
        """
        if self.disabled:
            return {}
        with self.guard.catch("settling the run's names", lost="all records of this run"):
            if self._names:
                return dict(self._names)
            options, restored = self.options, self._restored
            store = Store(options.store)
            model_name = (
                options.model_name or restored.get("model_name") or class_name(options.model or model)
            )
            version = options.version_name or restored.get("version_name")
            try:
                run = RunKey(model_name, version or store.claim_version(model_name))
                if options.force_table_recreate and not restored:
                    store.recreate(run)
                names = names_of(run, store, new_launch_id())
                described = architecture_hash(options.model or model)
                describe_run(store, run, described, options, self.guard)
            except OSError as error:
                raise ConfigurationProblem(
                    f"records can not be written to {str(store.root)!r} ({error}): expected is a folder that "
                    "is there and writable, or can be made; give store=..., or set MLD_HOME"
                ) from error
            return names
        return {}

    def start_by_hand(self, model: nn.Module, capture: Any) -> None:
        """Starts where no framework says when: at the first batch, without a collective.

        Args:
            model: what is traced.
            capture: its hooks.
        """
        options = self.options
        run, store = RunKey(str(options.model_name), str(options.version_name)), Store(options.store)
        rank, world_size = rank_and_world()

        def first() -> None:
            if options.force_table_recreate:
                store.recreate(run)
            describe_run(store, run, architecture_hash(model), options, self.guard)

        launch_id = shared_launch_id(f"{run.model_name}/{run.version_name}/{store.root}", first)
        names = names_of(run, store, launch_id)
        self.start(model, names, rank=rank, world_size=world_size, framework="", capture=capture)

    def start(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        *,
        rank: int,
        world_size: int,
        framework: str,
        capture: Any = None,
        id_hint: str = "",
    ) -> None:
        """Opens store and writer and sets the hooks. A configuration problem is told once and disables us.

        Args:
            model: what the framework trains (unwrapped where the framework offers that).
            names: what rank 0's `resolve_names` returned.
            rank: this process's global rank.
            world_size: number of processes.
            framework: "lightning", "huggingface", "mmengine", "accelerate" or "".
            capture: hooks set earlier (before a first compiled call), if any.
            id_hint: how ids reach the batch in this framework, for the message that there are none.
        """
        if self.disabled:
            return
        with self.guard.catch("starting to record", lost="all records of this run") as caught:
            if not names:
                raise ConfigurationProblem("the run has no names on this rank; see rank 0's message")
            self._start(model, dict(names), rank, world_size, framework, capture)
            if self.session is not None:
                self.session.id_hint = id_hint and f" ({id_hint})"
        if caught.failed:
            self.failed_to_start = True
            if self.session is not None:
                self.session.detach()
                self.session = None

    def _start(
        self,
        model: nn.Module,
        names: dict[str, str],
        rank: int,
        world_size: int,
        framework: str,
        capture: Any,
    ) -> None:
        kind = self.kind or session_class(self.options.task, self.options.model or model)
        self._names, self._world, self._framework = names, (rank, world_size), framework
        if self.session is None:
            store = Store(names["store"])
            run = RunKey(names["model_name"], names["version_name"])
            attempt = attempt_name(names["launch_id"], names["restart"])
            self.session = kind(
                self.options, self.guard, store, run, attempt=attempt, rank=rank, world_size=world_size
            )
            self._started, self._spent = time.perf_counter(), 0.0
            if rank == 0:
                tell_start(self.guard, run, store, self.options)
                if self.options.log_to_trainer and framework not in _LOGGING:
                    self.guard.tell_once(
                        "no loggers",
                        "log_to_trainer=True does nothing here: there is no "
                        "trainer whose loggers are known. `mld watch` shows the figures.",
                    )
            else:
                tell_apart(self.guard, run, store, self.options)
        if capture is not None and (self.kind is not None or capture.model is model):
            self.session.adopt(capture)
        else:
            self._attach(model)

    def _attach(self, model: nn.Module) -> None:
        assert self.session is not None
        if self.options.model is not None:
            self.session.attach(self.options.model, ignore_root=False)
        else:
            self.session.attach(model, ignore_root=self._framework in _ROOT_HOOK_TRAPS)

    def attach(self, model: nn.Module) -> None:
        """Sets the hooks on `model` if it is not the one they are on."""
        if self.session is None:
            return
        with self.guard.catch("hooking the model", lost="features and logits of what follows"):
            self._attach(model)

    def detach(self) -> None:
        """Takes the hooks off until `attach`: the model is about to be pickled."""
        if self.session is not None:
            with self.guard.catch("taking the hooks off"):
                self.session.detach()

    def hand_over(self, log: Callable[[dict[str, float]], None], *, last: bool = False) -> None:
        """With `log_to_trainer`: what was evaluated beside the training since, for the trainer's loggers.

        Args:
            log: is given one dict for each pass, on rank 0 only.
            last: no other event will come.
        """
        live = None if self.session is None else self.session.live
        if live is not None and self.options.log_to_trainer:
            with self.guard.catch("handing figures to the trainer's loggers", lost="nothing; `mld watch`"):
                for figures in live.news(at_once=last):
                    log(figures)

    def spend(self, seconds: float) -> None:
        """Adds to the time spent on the training thread."""
        self._spent += seconds

    # -- end -------------------------------------------------------------------------------------------------

    def abort_pass(self, reason: str) -> None:
        """The innermost pass ends early: what is there is flushed and stays marked as partial."""
        if self.session is None or not self._stack:
            return
        open_pass = self._stack.pop()
        with self.guard.catch("closing a pass", lost="the rows of the last seconds"):
            self.session.disarm()
            self._abandon(open_pass)
            self.guard.count(f"partial pass: {reason}")

    def _abandon(self, open_pass: OpenPass) -> None:
        assert self.session is not None
        if open_pass.provisional and open_pass.handle is not None:
            key = open_pass.key
            self._pass_numbers[key.dataset_type, key.n_epoch] = key.pass_no + 1
        self.session.abandon(open_pass)

    def wait_for_save(self, n_epoch: int | None, timeout: float | None = _WAIT_S) -> bool:
        """Waits until this rank's sealed passes of an epoch are durable; never for a network or another rank.

        Returns:
            False after `timeout` seconds, which is told once.
        """
        session = self.session
        if session is None:
            return True
        done = False
        with self.guard.catch("waiting for the disk", lost="nothing; writing goes on in the background"):
            done = session.wait(n_epoch, timeout)
            failed = session.failure(n_epoch)
            if failed is not None:
                self.guard.tell_once(f"wait:{failed}", f"Epoch {n_epoch} is not sealed: {failed}")
            elif not done:
                self.guard.tell_once(
                    "wait",
                    f"The records of epoch {n_epoch} were not durable after {timeout} s; the training goes "
                    f"on and writing continues in the background. Look at the disk under "
                    f"{session.store.root}.",
                )
        return done

    def finish(self, status: str = "finished", timeout: float = _WAIT_S) -> Account:
        """Flushes and closes; rank 0 prints the account and the one command that evaluates.

        Args:
            status: "finished" or "exception" (passes still open are left partial).
            timeout: seconds for the flush; at most 30 after an exception.
        """
        account = Account()
        if self.session is None:
            return account
        while self._stack:
            self.abort_pass("still open at the end" if status == "finished" else status)
        session, self.session = self.session, None
        with self.guard.catch("closing the records", lost="the rows of the last seconds"):
            account = session.close(timeout if status == "finished" else min(timeout, _WAIT_AFTER_ERROR_S))
            if self._world[0] == 0:
                keep_store_small(session)
                share = (self._spent, time.perf_counter() - self._started)
                self.guard.tell_once(
                    f"account:{self._started}", account_text(session, account, share, self.thinning.rows)
                )
        return account

    def left(self) -> None:
        """The training was left in the middle and the process lives on: what is there is made durable.

        On any thread; the recorder stays as it is for a training that may follow.
        """
        session = self.session
        if session is None:
            return
        with self.guard.catch("making the records durable", lost="nothing yet"):
            session.flush(_CHECKPOINT_WAIT_S)
            if self._world[0] == 0:
                share = (self._spent, time.perf_counter() - self._started)
                so_far = account_text(session, session.account(), share, self.thinning.rows)
                self.guard.tell_once(
                    f"left:{self._started}",
                    "The training was left before its end (Ctrl-C or an error). Finished passes are sealed; "
                    f"the one under way is kept as it is, marked as partial. {so_far}",
                )

    def renew(self, *, same_run: bool) -> dict[str, str]:
        """The training begins anew in this process: passes are counted from the start, in a new attempt.

        Args:
            same_run: what was recorded so far is superseded (a failed try, a return to a checkpoint); else
                it is left alone and `resolve_names` will settle another run.

        Returns:
            The names to start with; {} where they are to be resolved again.
        """
        with self.guard.catch("closing the records", lost="the rows of the last seconds"):
            while self._stack:
                self.abort_pass("the training began anew")
            if self.session is not None:
                self.session.close(_WAIT_S)
        self.session = None
        if not same_run:
            self.guard.forget()
        self._pass_numbers, self._restored = {}, {}
        self._names = (
            {**self._names, "restart": str(int(self._names["restart"]) + 1)}
            if same_run and self._names
            else {}
        )
        return dict(self._names)

    def rejoin(self, state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
        """A checkpoint is loaded after the names were settled: the run goes on as the one of the checkpoint.

        Args:
            state: from `state`, on every rank.
            names: those settled in this process; a version claimed for it and not used is given back.

        Returns:
            The names to start with, or to go on with where rows of this process were recorded before.
        """
        with self.guard.catch("joining the checkpoint's run", lost="nothing; a new version is recorded"):
            run = {key: str(state[key]) for key in ("model_name", "version_name")}
            if {**names, **run} == dict(names) or any(self._pass_numbers.values()):
                self.restore(state)
                return dict(names)
            if self.session is not None:
                self.session.close(_WAIT_S)
                self.session = None
            if self._world[0] == 0:
                Store(names["store"]).release_version(RunKey(names["model_name"], names["version_name"]))
            self.restore(state)
            self._names = {**names, **run}
            return dict(self._names)
        return dict(names)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def state(self, *, durable: bool = True) -> dict[str, str | int]:
        """What a resumed training needs to find its run: builtin types, alike on every rank.

        Args:
            durable: wait, up to a deadline, until all rows so far are on disk: a resumed training will not
                show them again, so they must outlive whatever the checkpoint outlives.
        """
        if not self._names:
            return {}
        if durable and self.session is not None:
            with self.guard.catch("making the records durable", lost="nothing yet"):
                if not self.session.flush(_CHECKPOINT_WAIT_S):
                    self.guard.tell_once(
                        "checkpoint",
                        f"The records before this checkpoint were not durable after {_CHECKPOINT_WAIT_S:g} "
                        "s; the training goes on. A resume from it after a crash may lack the last rows.",
                    )
        return {
            "format": 1,
            "model_name": self._names["model_name"],
            "version_name": self._names["version_name"],
            "attempt": self._attempt(),
            "passes": passes_text(self._pass_numbers),
        }

    def _attempt(self) -> str:
        return attempt_name(self._names["launch_id"], self._names["restart"])

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint: same run, pass numbers counted on. Before `resolve_names`."""
        with self.guard.catch("reading the checkpoint's state", lost="the run continues under a new version"):
            if not state:
                return
            self._restored = {k: str(state[k]) for k in ("model_name", "version_name", "attempt")}
            if self.session is None and self._names and self._attempt() == self._restored["attempt"]:
                # Resumed in the process that was cut short (a notebook): a new try, or folders would clash.
                self._names = {**self._names, "restart": str(int(self._names["restart"]) + 1)}
                self._pass_numbers = {}
            for key, number in passes_of(str(state.get("passes", "[]"))).items():
                self._pass_numbers[key] = max(number, self._pass_numbers.get(key, 0))


def session_class(task: str | None, model: nn.Module) -> type[Session]:
    """The session that records a task; None is inferred from the model.

    Raises:
        ConfigurationProblem: a detection task, and no detector of a known family in the model; or several
            detectors in it.
    """
    if task == "classification":
        return ClassificationSession
    try:
        find_detector(model, task)
    except UnknownDetectorError as error:
        if task is None:
            return ClassificationSession
        raise ConfigurationProblem(f"task={task!r}: {error}") from error
    return DetectionSession
