"""The neutral event protocol: what every framework wrapper calls, and nothing a framework knows.

Order of events: `resolve_names` on rank 0, the wrapper broadcasts its result, `start` on every rank; then
passes (`begin_pass` .. `end_pass`, nested as a stack) of batches (`begin_batch`, the forward, `record`);
`finish` at the end. Every public method is guarded: an error of ours is told once and counted, the training
goes on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from mld_core.records.layout import PassKey, RunKey, Store
from mld_core.records.writer import Account
from mld_core.tracing.account import account_text, describe_run, keep_store_small, tell_start
from mld_core.tracing.batches import Batch, count_rows, row_count
from mld_core.tracing.capture import Capture
from mld_core.tracing.frames import session_class
from mld_core.tracing.guard import ConfigurationProblem, Guard
from mld_core.tracing.identity import locate_ids
from mld_core.tracing.labels import find_inputs, find_labels
from mld_core.tracing.naming import (
    attempt_name,
    class_name,
    new_launch_id,
    passes_of,
    passes_text,
    restart_count,
)
from mld_core.tracing.options import RecorderOptions
from mld_core.tracing.order import sequential_order
from mld_core.tracing.rows import CONTENT_HASH
from mld_core.tracing.session import OpenPass, Session
from mld_core.tracing.taps import install_tap

LOADER_INDEX: Final = "loader_index"
_WAIT_S: Final = 300.0
_CHECKPOINT_WAIT_S: Final = 30.0
_WAIT_AFTER_ERROR_S: Final = 30.0  # a job that failed should end, even where the disk hangs
_ROOT_HOOK_TRAPS: Final = frozenset({"lightning"})  # frameworks whose root module's own hook misleads


class Recorder:
    """Records what a model says, sample by sample, as a framework's events come in.

    Takes the keyword options of the public API (section 7) and checks them at once. Picklable before and
    after `start`: live parts (hooks, writer) are left behind, `start` makes them anew.

    Raises:
        ConfigurationProblem: an option of the wrong type or range.
        TypeError: an unknown option.

    Examples:
        >>> Recorder(model_name="net", every_n_epochs=2).enabled
        False
    """

    def __init__(self, **options: Any) -> None:
        self.options = RecorderOptions(**options)
        # A scope of its own: a second run in one process (a notebook) is told its messages anew.
        self.guard = Guard(scope=uuid.uuid4().hex)
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
        self.failed_to_start = False

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
        with self.guard.catch("settling the run's names", lost="all records of this run"):
            if self._names:
                return dict(self._names)
            options, restored = self.options, self._restored
            store = Store(options.store)
            model_name = (
                options.model_name or restored.get("model_name") or class_name(options.model or model)
            )
            version = options.version_name or restored.get("version_name") or store.claim_version(model_name)
            run = RunKey(model_name, version)
            if options.force_table_recreate and not restored:
                store.recreate(run)
            names = {
                "model_name": model_name,
                "version_name": version,
                "store": str(store.root),
                "launch_id": new_launch_id(),
                "restart": str(restart_count()),
            }
            describe_run(store, run, options.model or model, options, self.guard)
            return names
        return {}

    def start(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        *,
        rank: int,
        world_size: int,
        framework: str,
        capture: Capture | None = None,
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
        capture: Capture | None,
    ) -> None:
        kind = session_class(self.options.task, model)
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
        if capture is not None and capture.model is model:
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

    def spend(self, seconds: float) -> None:
        """Adds to the time spent on the training thread."""
        self._spent += seconds

    # -- passes ----------------------------------------------------------------------------------------------

    def begin_pass(
        self,
        split: str,
        n_epoch: int | None,
        *,
        mode: str,
        loader: Any = None,
        resume_step: int | None = None,
        continues: str | None = None,
        max_ahead: int | None = None,
        provisional: bool = False,
    ) -> None:
        """A walk over a split begins, possibly inside another one.

        Args:
            split: "train", "val", "test", "predict", "val/1", or the user's own.
            n_epoch: the epoch just trained, -1 before training, None if unknown.
            mode: "train" or "eval".
            loader: the walk's loader, for its own index order as sample ids.
            resume_step: optimizer steps done when a training resumed inside this epoch.
            continues: the attempt this one continues; default: the one of the restored state.
            max_ahead: batches the framework may fetch beyond the one in hand, where that number varies.
            provisional: the split is a guess; `end_pass` will tell.
        """
        if self.session is None:
            return
        with self.guard.catch("beginning a pass", lost="the records of that pass"):
            if resume_step is not None:
                # The pass that was cut goes on under its own number, in a new attempt.
                begun = self._pass_numbers.get((split, n_epoch), 0)
                self._pass_numbers[split, n_epoch] = max(begun - 1, 0)
            if provisional:
                open_pass = self._unnamed_pass(split, n_epoch, mode=mode)
            else:
                open_pass = self.new_pass(split, n_epoch, mode=mode)
            open_pass.max_ahead = max_ahead
            if resume_step is not None:
                open_pass.resume_step = resume_step
                open_pass.continues = continues or self._restored.get("attempt")
                self.session.open_resumed(open_pass)
            if loader is not None:
                with self.guard.catch("tapping the loader", lost="sample ids fall back to the content hash"):
                    open_pass.tap = install_tap(loader)
            self._stack.append(open_pass)
            return
        # Events of the pass must still find it, or they would record into the pass around it.
        self._stack.append(OpenPass(PassKey(split, n_epoch, 0), mode, muted=True))

    def new_pass(self, split: str, n_epoch: int | None, *, mode: str) -> OpenPass:
        """A pass with the next number of its (split, epoch), counted from events; not on the stack."""
        number = self._pass_numbers.get((split, n_epoch), 0)
        self._pass_numbers[split, n_epoch] = number + 1
        muted = not (self.options.records_split(split) and self.options.records_epoch(n_epoch))
        return OpenPass(PassKey(split, n_epoch, number), mode, muted=muted)

    def _unnamed_pass(self, split: str, n_epoch: int | None, *, mode: str) -> OpenPass:
        """A pass that gets its name when it ends; until then it goes by a number no other pass will have."""
        number = self._pass_numbers.get((split, n_epoch), 0) + self._renamed
        wanted = self.options.splits is None or any(s != "train" for s in self.options.splits)
        muted = not (wanted and self.options.records_epoch(n_epoch))
        return OpenPass(PassKey(split, n_epoch, number), mode, muted=muted, provisional=True)

    def use_loader(self, loader: Any) -> None:
        """The loader of the innermost pass, where its walk began before the loader was known."""
        if self.session is not None and self._stack:
            with self.guard.catch(
                "reading the loader's order", lost="sample ids fall back to the content hash"
            ):
                self._stack[-1].tap = sequential_order(loader)

    def end_pass(self, split: str | None = None) -> None:
        """The innermost pass is over: it is sealed in the background.

        Args:
            split: what a provisional pass turned out to be.
        """
        if self.session is None or not self._stack:
            return
        open_pass = self._stack.pop()
        with self.guard.catch("sealing a pass", lost="nothing yet; the pass stays marked as partial"):
            self.session.disarm()
            if open_pass.provisional:
                final = self.new_pass(
                    split or open_pass.key.dataset_type, open_pass.key.n_epoch, mode=open_pass.mode
                )
                self._renamed += final.key != open_pass.key
                open_pass.final_key = final.key
                if final.muted:
                    self.session.discard(open_pass)
                    return
            self.session.seal(open_pass)

    def drop_pass(self) -> None:
        """The innermost, provisional pass was none: no event claimed its batches. Claimed ones stay."""
        if self.session is None or not self._stack:
            return
        open_pass = self._stack.pop()
        with self.guard.catch("dropping a pass", lost="the rows of the last seconds"):
            self.session.disarm()
            self._abandon(open_pass)

    def _abandon(self, open_pass: OpenPass) -> None:
        assert self.session is not None
        if open_pass.provisional and open_pass.handle is not None:
            key = open_pass.key
            self._pass_numbers[key.dataset_type, key.n_epoch] = key.pass_no + 1
        self.session.abandon(open_pass)

    def leave_pass(self) -> OpenPass | None:
        """The innermost pass was left early and takes no more rows; `settle_pass` says what it was."""
        if self.session is None or not self._stack:
            return None
        self.session.disarm()
        return self._stack.pop()

    def settle_pass(self, open_pass: OpenPass | None) -> None:
        """A pass that was left early is sealed as it is; one that is never settled stays partial."""
        if self.session is not None and open_pass is not None:
            with self.guard.catch("sealing a pass", lost="nothing yet; the pass stays marked as partial"):
                self.session.seal(open_pass)

    def close_resumed(self, split: str, n_epoch: int, *, mode: str, resume_step: int) -> None:
        """A training resumed behind this pass: seals what the attempt before recorded, if it did not do so.

        Args: as in `begin_pass`. A pass that the restored state does not know of is left alone.
        """
        if self._pass_numbers.get((split, n_epoch)):
            self.begin_pass(split, n_epoch, mode=mode, resume_step=resume_step)
            self.end_pass()

    def abort_pass(self, reason: str) -> None:
        """The innermost pass ends early: what is there is flushed and stays marked as partial."""
        if self.session is None or not self._stack:
            return
        open_pass = self._stack.pop()
        with self.guard.catch("closing a pass", lost="the rows of the last seconds"):
            self.session.disarm()
            self._abandon(open_pass)
            self.guard.count(f"partial pass: {reason}")

    # -- batches ---------------------------------------------------------------------------------------------

    def begin_batch(self, batch: Any = None) -> None:  # noqa: ARG002 - part of the protocol
        """A batch begins: clears what hooks kept before, lets them keep references."""
        if self.session is None or not self._stack or self._stack[-1].muted:
            return
        begun = time.perf_counter()
        with self.guard.catch("arming the hooks", lost="the records of that batch"):
            self.session.arm()
        self._spent += time.perf_counter() - begun

    def record(
        self, batch: Any, outputs: Any = None, *, batch_idx: int, global_step: int | None = None
    ) -> None:
        """The batch is through: what the hooks kept is recorded with its labels and ids.

        Args:
            batch: the batch as the framework has it.
            outputs: the model's output or the step's return value, where the event brings one.
            batch_idx: number of the batch in this pass.
            global_step: optimizer steps done before this batch's own.
        """
        if self.session is None or not self._stack:
            return
        begun = time.perf_counter()
        open_pass = self._stack[-1]
        with self.guard.catch("recording a batch", lost="the rows of that batch") as caught:
            if not open_pass.muted:
                self.session.commit(open_pass, self._read(batch, outputs, open_pass, batch_idx, global_step))
        if caught.failed:
            self._count_lost(batch)
        self.session.disarm()
        self._spent += time.perf_counter() - begun

    @property
    def heard(self) -> bool:
        """Whether the model made a forward since `begin_batch`."""
        return self.session is not None and self.session.capture is not None and self.session.capture.heard

    def skip_batch(self, batch: Any) -> None:
        """No forward was made with this batch: its place in the loader's order is passed over."""
        if self.session is None or not self._stack:
            return
        open_pass = self._stack[-1]
        with self.guard.catch("passing over a batch", lost="the loader's order as sample ids"):
            if open_pass.tap is not None:
                n = count_rows(batch, find_labels(batch), find_inputs(batch))
                open_pass.tap.pop(-1 if n is None else n, open_pass.max_ahead)
        self.session.disarm()

    def _count_lost(self, batch: Any) -> None:
        with self.guard.catch("counting the rows of a lost batch"):
            self.guard.count("rows of failed batches", rows=row_count(find_labels(batch)) or 0)

    def _read(
        self, batch: Any, outputs: Any, open_pass: OpenPass, batch_idx: int, global_step: int | None
    ) -> Batch:
        """Inputs, labels, ids and fields of a framework's batch; the user's functions come first."""
        options = self.options
        assert self.session is not None
        labels = self.session.labels_of(batch) if options.label_fn is None else options.label_fn(batch)
        inputs = find_inputs(batch) if options.input_fn is None else options.input_fn(batch)
        n = count_rows(batch, labels, inputs)
        ids, source = self.identify(batch, n, open_pass)
        fields: Mapping[str, Any] = {} if options.fields_fn is None else options.fields_fn(batch)
        images = self.session.pictures.of(batch, open_pass.key)
        return Batch(inputs, labels, ids, source, fields, outputs, batch_idx, global_step, images)

    def identify(self, batch: Any, n: int | None, open_pass: OpenPass) -> tuple[Any, str]:
        """The batch's ids and their source, best source first; the content hash is the last resort."""
        drawn = (
            None if open_pass.tap is None else open_pass.tap.pop(-1 if n is None else n, open_pass.max_ahead)
        )
        if n is None:
            return None, CONTENT_HASH
        found = None
        with self.guard.catch("reading the sample ids", lost="nothing; the next source of ids is used"):
            found = locate_ids(batch, n, self.options.id_fn)
        if found is None and self.options.id_fn is not None:
            found = locate_ids(batch, n)
        if found is not None:
            return found
        return (None, CONTENT_HASH) if drawn is None else (drawn, LOADER_INDEX)

    # -- end -------------------------------------------------------------------------------------------------

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
                self.guard.tell_once(f"account:{self._started}", account_text(session, account, share))
        return account

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

    def state(self) -> dict[str, str | int]:
        """What a resumed training needs to find its run: builtin types, alike on every rank.

        Waits, up to a deadline, until all rows so far are on disk: a resumed training will not show them
        again, so they must outlive whatever the checkpoint outlives.
        """
        if not self._names:
            return {}
        if self.session is not None:
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
