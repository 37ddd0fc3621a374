"""The neutral event protocol: what every framework wrapper calls, and nothing a framework knows.

Order of events: `resolve_names` on rank 0, the wrapper broadcasts its result, `start` on every rank; then
passes (`begin_pass` .. `end_pass`, nested as a stack) of batches (`begin_batch`, the forward, `record`);
`finish` at the end. Every public method is guarded: an error of ours is told once and counted, the training
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from mld_core.records.format.layout import PassKey
from mld_core.tracing.batch.batches import CONTENT_HASH, Batch, row_count
from mld_core.tracing.batch.identity import LOADER_INDEX, locate_ids, settled_ids
from mld_core.tracing.batch.labels import find_labels
from mld_core.tracing.batch.padding import repeats_of
from mld_core.tracing.batch.stream_keys import stream_keys
from mld_core.tracing.batch.taps import install_tap, sequential_order
from mld_core.tracing.capture.compiling import CriterionHook
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.lifecycle import RunLife
from mld_core.tracing.run.replay import plan
from mld_core.tracing.run.sealing import OpenPass


class Recorder(RunLife):
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
        source: Any = None,
        limit_range: Sequence[float] | None = None,
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
            source: the loader where its order is not followed, as batches name their samples: its data set
                and what its sampler repeats are looked at.
            limit_range: 3D: limits (x, y, z, then x, y, z) that the framework's metric drops boxes beyond.
        """
        if self.session is None:
            return
        with self.guard.catch("beginning a pass", lost="the records of that pass"):
            if resume_step is not None:
                # The pass that was cut goes on under its own number, in a new attempt.
                begun = self._pass_numbers.get((split, n_epoch), 0)
                self._pass_numbers[split, n_epoch] = max(begun - 1, 0)
            if mode == "train" and self.options.replay_train:
                # The split is recorded in the walk after the epoch, which gets this number.
                number = self._pass_numbers.get((split, n_epoch), 0)
                open_pass = OpenPass(PassKey(split, n_epoch, number), mode, muted=True)
            elif provisional:
                open_pass = self._unnamed_pass(split, n_epoch, mode=mode)
            else:
                open_pass = self.new_pass(split, n_epoch, mode=mode)
            open_pass.max_ahead, open_pass.limit_range = max_ahead, limit_range
            if resume_step is not None:
                open_pass.resume_step = resume_step
                open_pass.continues = continues or self._restored.get("attempt")
                self.session.open_resumed(open_pass)
            open_pass.size, open_pass.dataset = _data_set(loader if source is None else source)
            if loader is not None:
                with self.guard.catch("tapping the loader", lost="sample ids fall back to the content hash"):
                    open_pass.tap = install_tap(loader)
            self._see_repeats(open_pass, loader if source is None else source)
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
            self._see_repeats(self._stack[-1], loader, begun=True)

    def _see_repeats(self, open_pass: OpenPass, loader: Any, *, begun: bool = False) -> None:
        """What an evaluation's sampler repeats counts once; a training counts as it is drawn."""
        open_pass.shared = open_pass.mode == "eval" and self._world[1] > 1
        if open_pass.shared and loader is not None:
            with self.guard.catch(
                "reading the sampler", lost="the marks on what it repeats to make ranks even"
            ):
                open_pass.repeats = repeats_of(loader, begun=begun)

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

    # -- batches ---------------------------------------------------------------------------------------------

    def begin_batch(self, batch: Any = None) -> None:
        """A batch begins: clears what hooks kept before, lets them keep references.

        Args:
            batch: the batch, where the event brings it: a detector's targets are read before the step can
                write to them.
        """
        if self.session is None or not self._stack or self._stack[-1].muted:
            return
        begun = time.perf_counter()
        with self._arming:
            self.session.arm(learning=self._stack[-1].mode == "train" and torch.is_grad_enabled())
            if batch is not None:
                self.session.preview(batch)
        self._spent += time.perf_counter() - begun

    def see_on_host(self, batch: Any) -> None:
        """The next batch as its loader gave it, about to go to a device: that is what is hashed."""
        if self.session is not None:
            self.session.before_device = batch

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
        with self._recording as caught:
            settled = open_pass.settled
            if self.thinning.leaves_out(open_pass):
                self.thinning.leave_out(self.session, open_pass, batch)
            elif open_pass.muted or (settled is not None and settled.record(batch, batch_idx, global_step)):
                pass
            else:
                self.session.commit(open_pass, self._read(batch, outputs, open_pass, batch_idx, global_step))
        if caught.failed:
            self._count_lost(batch)
        self.session.disarm()
        self.session.before_device = None
        self._spent += time.perf_counter() - begun
        more = self.thinning.note(open_pass, self._spent)
        if more:
            self.guard.tell_once("thinned", more)

    def see_loss(self, loss: Any) -> None:
        """The loss of the training batch in hand is about to be sent backward: its graph names the logits."""
        if self.session is None or not self._stack or self._stack[-1].muted or self.session.knows_loss(loss):
            return
        begun = time.perf_counter()
        with self.guard.catch("reading the loss's graph", lost="nothing; the logits are looked for by rules"):
            self.session.see_loss(loss)
        self._spent += time.perf_counter() - begun

    def watch_loss(self, owner: Any, method: str = "backward") -> None:
        """Sees the losses that are given to a method of this object while the batch in hand is recorded.

        Where they would tell anything. The object has its own method back when the batch is over; one that
        the user set on it, before or meanwhile, is left alone.

        Args:
            owner: what sends a loss backward (an accelerator, an optimizer wrapper), or None.
            method: the name of the method; the loss is its first argument.
        """
        if self.session is None or not self.wants_loss or not self._stack or self._stack[-1].mode != "train":
            return
        members = getattr(owner, "__dict__", None)
        if members is None or method in members or not hasattr(owner, method):
            return
        own = getattr(owner, method)

        def seeing(loss: Any, *args: Any, **kwargs: Any) -> Any:
            self.see_loss(loss)
            return own(loss, *args, **kwargs)

        def give_back() -> None:
            if members.get(method) is seeing:
                del members[method]

        with self.guard.catch("watching for the loss", lost="nothing; the logits are looked for by rules"):
            setattr(owner, method, seeing)
            self.session.afterwards.append(give_back)

    def watch_criterion(self, criterion: nn.Module) -> None:
        """Sees the losses that a module makes, where nothing else shows them (a plain loop).

        Raises:
            ConfigurationProblem: it is no module, so nothing tells when it is called.
        """
        if not isinstance(criterion, nn.Module):
            raise ConfigurationProblem(
                f"criterion={criterion!r}: expected a torch.nn.Module such as nn.CrossEntropyLoss()."
            )
        criterion.register_forward_hook(CriterionHook(criterion, self.see_loss))

    @property
    def wants_loss(self) -> bool:
        """Whether `see_loss` of the next training batch would tell anything."""
        return self.session is not None and self.session.wants_loss

    def replay(
        self,
        loader: Any,
        n_epoch: int | None,
        *,
        forward: Callable[[Any], Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        global_step: int | None = None,
    ) -> None:
        """With `replay_train`: walks the training data once more, in evaluation mode, and records that.

        Args:
            loader: the training loader; only its data set, collate function and batch size are used.
            n_epoch: the epoch just trained.
            forward: runs the model on a batch as the loader gives it; None: by the batch's own form.
            context: makes what the forward runs in (autocast).
            global_step: optimizer steps done.
        """
        if self.session is None or not self.options.replay_train or not self.enabled:
            return
        begun = time.perf_counter()
        depth = len(self._stack)
        with self.guard.catch("walking the training data once more", lost="the train split of that epoch"):
            walk = plan(self.session, loader, float(self.options.replay_train), self._world)
            self.begin_pass("train", n_epoch, mode="eval")
            open_pass = self._stack[-1]
            open_pass.tap, open_pass.dataset = walk.order(), walk.loader.dataset
            if not open_pass.muted:
                with walk.untouched(), context():
                    for index, batch in enumerate(walk.batches()):
                        self.begin_batch(batch)
                        outputs = walk.forward(batch) if forward is None else forward(batch)
                        self.record(batch, outputs, batch_idx=index, global_step=global_step)
            self.end_pass()
        while len(self._stack) > depth:
            self.abort_pass("the walk after the epoch failed")
        self.spend(time.perf_counter() - begun)

    @property
    def heard(self) -> bool:
        """Whether the model made a forward since `begin_batch`."""
        return self.session is not None and self.session.heard

    @property
    def listens(self) -> bool:
        """Whether a forward of the model would be heard, and recorded."""
        session = self.session
        return session is not None and not session.unsupported and session.listens

    @property
    def muted(self) -> bool:
        """Whether the innermost pass is followed without being recorded."""
        return bool(self._stack) and self._stack[-1].muted

    @property
    def heard_input(self) -> Any:
        """What a detector was called with in its latest forward since `begin_batch`: its first argument."""
        with self.guard.catch("reading the model's call", lost="the rows of that batch"):
            return None if self.session is None else self.session.heard_input
        return None

    def skip_batch(self, batch: Any) -> None:
        """No forward was made with this batch: its place in the loader's order is passed over."""
        if self.session is None or not self._stack:
            return
        open_pass = self._stack[-1]
        with self.guard.catch("passing over a batch", lost="the loader's order as sample ids"):
            if open_pass.tap is not None or open_pass.repeats is not None:
                open_pass.draw(self.session.read(batch).n)
        self.session.disarm()

    def _count_lost(self, batch: Any) -> None:
        with self.guard.catch("counting the rows of a lost batch"):
            self.guard.count("rows of failed batches", rows=row_count(find_labels(batch)) or 0)

    def _read(
        self, batch: Any, outputs: Any, open_pass: OpenPass, batch_idx: int, global_step: int | None
    ) -> Batch:
        """Inputs, labels, ids and fields of a framework's batch; the user's functions come first."""
        assert self.session is not None
        found = self.session.read(batch)
        found.ids, found.id_source = self.identify(found, open_pass)
        if self.options.fields_fn is not None:
            found.fields = self.options.fields_fn(batch)
        found.images = self.session.pictures.of(batch, open_pass.key)
        found.outputs, found.batch_idx, found.global_step = outputs, batch_idx, global_step
        return found

    def identify(self, batch: Batch, open_pass: OpenPass) -> tuple[Any, str]:
        """The batch's ids and their source, best source first; the content hash is the last resort."""
        n = batch.n
        drawn = open_pass.place(batch, n)
        if n is None:
            return None, CONTENT_HASH
        if batch.id_column is not None or not batch.searched or self.options.id_fn is not None:
            found = self._ids_in(batch, n)
            if found is not None:
                return found
        if drawn is not None:
            return drawn, LOADER_INDEX
        return stream_keys(batch.whole, n) or (None, CONTENT_HASH)

    def _ids_in(self, batch: Batch, n: int) -> tuple[Any, str] | None:
        """The ids that the user's function or the batch itself brings."""
        what, lost = "reading the sample ids", "nothing; the next source of ids is used"
        if self.options.id_fn is not None:
            with self.guard.catch(what, lost=lost):
                return locate_ids(batch.whole, n, self.options.id_fn)
        if batch.id_column is not None:
            ids = settled_ids(batch.id_column[0], n)
            if ids is not None:
                return ids, batch.id_column[1]
        with self.guard.catch(what, lost=lost):
            return locate_ids(batch.whole, n)
        return None


def _data_set(loader: Any) -> tuple[int | None, Any]:
    """Samples of a loader's data set, where it tells, and the data set."""
    found = None
    try:
        found = loader.dataset
        return len(found), found
    except Exception:  # noqa: BLE001 - a loader of the user's; the number is only told
        return None, found
