"""One started run of a classifier on one rank: from hooked layers to `BatchJob`s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn

from mld_core.records.format.schema import HASH_KIND, media_schema, samples_schema, vectors_schema
from mld_core.tracing.batch.batches import Batch, class_count, label_range, own_copy, row_count
from mld_core.tracing.batch.in_hand import InHand
from mld_core.tracing.batch.labels import infer_task
from mld_core.tracing.batch.plan import LabelPlan, answer_among, mixes, reordered
from mld_core.tracing.capture.capture import Capture
from mld_core.tracing.capture.graph import Mixture
from mld_core.tracing.capture.heads import MOST_MISSES, Captured, HeadChooser
from mld_core.tracing.capture.outputs import find_main_tensor
from mld_core.tracing.capture.reading import Known, LogitsSource
from mld_core.tracing.capture.staging import Staged
from mld_core.tracing.run.receipt import place_told, receipt
from mld_core.tracing.run.sealing import OpenPass
from mld_core.tracing.run.session import Session
from mld_core.tracing.run.settled import settle
from mld_core.tracing.tables.rows import UNLABELLED, BatchJob, PassContext

_SETTLES_BY: Final = 8  # batches of a pass, after which none is asked how the next could be read
_UNLABELLED: Final = ("predict", "deploy")  # splits that have no labels by nature


class ClassificationSession(Session):
    """Records logits, features and labels of a classifier."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.capture: Capture | None = None
        self.chooser: HeadChooser | None = None
        self._training = False
        self._checked_task = False
        self._smallest = 2  # one more than the largest label seen
        self.labels = LabelPlan()
        self.sizes: dict[str, int] = {}
        self.receipt = ""
        self._contexts: list[PassContext] = []
        self._user_fields = (*self.options.sample_fields(), *self.options.label_fields())

    def attach(self, model: nn.Module, *, ignore_root: bool) -> None:
        """Sets the hooks on `model`, taking them off another one.

        Raises:
            ConfigurationProblem: a module path in `target_layers` does not exist.
        """
        if self.capture is not None and self.capture.model is model:
            return
        known = self._known_features()
        layers = [] if self.options.target_layers else [entry.get("layer") for entry in known.values()]
        self.adopt(
            Capture(
                model,
                target_layers=self.options.target_layers,
                ignore_root=ignore_root,
                n_class=self.n_class or class_count(model),
                known=tuple(layer for layer in layers if isinstance(layer, str)),
            )
        )

    def adopt(self, capture: Capture) -> None:
        """Takes over hooks that are set already."""
        self.detach()
        n_class = self.n_class or class_count(capture.model)
        self.capture = capture
        self.chooser = HeadChooser(capture, n_class=n_class, known=self._known_features())

    def _known_features(self) -> dict[str, Any]:
        return self.info.get("features") or {}

    def detach(self) -> None:
        """Takes every hook off."""
        if self.capture is not None:
            self.capture.close()
        self.capture = self.chooser = None

    def arm(self, *, learning: bool = False) -> None:
        """A batch begins: clears the stash, lets the hooks keep references."""
        if self.capture is not None and self.chooser is not None and not self.unsupported:
            self._training = learning or self.capture.model.training
            watch = self.chooser.needs_watch(training=self._training)
            self.capture.begin(watch=watch, training=self._training)

    def disarm(self) -> None:
        """The batch is over: lets go of every reference."""
        if self.capture is not None:
            self.capture.end()
        if self.chooser is not None:
            self.chooser.clear()
        while self.afterwards:
            self.afterwards.pop()()

    @property
    def wants_loss(self) -> bool:
        """Whether the next training batch's loss would tell anything."""
        return self.chooser is not None and not self.unsupported and self.chooser.wants_loss

    def see_loss(self, loss: Any) -> None:
        """The loss of the training batch in hand, before backward frees its graph."""
        if self._training and self.chooser is not None and not self.unsupported:
            self.chooser.see_loss(loss)

    def knows_loss(self, loss: Any) -> bool:
        """Whether a loss of the batch in hand need not be looked into: it is made as those before it."""
        chooser = self.chooser
        return chooser is None or bool(self.unsupported) or not self._training or chooser.knows_loss(loss)

    @property
    def heard(self) -> bool:
        """Whether the model made a forward since `arm`."""
        return self.capture is not None and self.capture.heard

    @property
    def listens(self) -> bool:
        """Whether a forward of the model would be heard."""
        hooks = self.capture
        return hooks is not None and (bool(hooks.probes) or hooks.watcher is not None)

    def _find_labels(self, batch: Any) -> Any:
        return self.labels.read(batch)

    def _find_inputs(self, batch: Any) -> Any:
        return self.labels.inputs(batch)

    @property
    def unlabelled(self) -> int:
        """Rows recorded so far without a label, as far as they are built."""
        return sum(context.counts.get(UNLABELLED, 0) for context in self._contexts)

    def commit(self, open_pass: OpenPass, batch: Batch) -> Captured | None:
        """Stages one batch and hands it to the writer; returns what was captured, if anything."""
        if self.chooser is None or self.unsupported or open_pass.muted:
            return None
        if self.chooser.mixture is not None:
            self._mixed(self.chooser, batch, self.chooser.mixture)
        elif self.chooser.target is not None and self.options.label_fn is None:
            batch.labels = self.chooser.target
        captured = self._take(batch, row_count(batch.labels))
        if captured is None:
            return None
        n = int(captured.logits.shape[0])
        if n == 0:
            return captured
        if not self._fits(captured, n):
            return captured
        context = open_pass.context
        if not isinstance(context, PassContext):
            context = self._begin_rows(open_pass, batch, captured)
        if not open_pass.batches:
            self._say_receipt(open_pass, batch, captured)
        self.hand_over(open_pass, self._job(open_pass, context, batch, captured, n))
        if open_pass.settled is None and open_pass.batches < _SETTLES_BY:
            open_pass.settled = settle(self, open_pass, batch, captured)
        return captured

    def hand_over(self, open_pass: OpenPass, job: BatchJob) -> None:
        """Gives a batch to the writer."""
        held = 0 if job.hash_from is None else job.hash_from.held_bytes
        nbytes = job.staged.nbytes + held + 128 * job.n
        if not self.put(open_pass, job, rows=job.n, nbytes=nbytes, hurry=job.hurry):
            job.staged.discard()
        open_pass.units += job.n

    def reads_as(self, source: LogitsSource) -> bool:
        """Whether logits of the model's mode are still read from there."""
        chooser, training = self.chooser, self._training
        if chooser is None or self.unsupported or chooser.mixture:
            return False
        return chooser.sources.get(training) is source and not (training and chooser.reads_target)

    def stage(self, tensors: Sequence[Tensor]) -> Staged:
        """Starts the copy of a batch's tensors to the host."""
        return self._stager.stage(tensors, () if self.capture is None else self.capture.switch.streams)

    def _take(self, batch: Batch, n: int | None) -> Captured | None:
        assert self.chooser is not None
        if self.chooser.gave_up(training=self._training):
            self.guard.count("no logits found in a batch", rows=n or 0)
            return None
        self.chooser.outputs_answer = batch.answer
        choosing = self.chooser.needs_watch(training=self._training)
        known = None
        if choosing:
            largest, binary = label_range(batch.labels)
            self._smallest = max(self._smallest, largest + 1)
            known = Known(smallest=self._smallest, binary=binary, hand=InHand(batch.whole, batch.labels))
        captured = self.chooser.take(n, batch.outputs, training=self._training, known=known)
        refused = self.chooser.refusal
        if refused is not None and refused.task and self.options.task != "classification":
            self._refuse(refused.task, refused.reason[0].upper() + refused.reason[1:])
        elif captured is not None and self.chooser.origin is not None:
            if not self._settle_labels(batch, captured, self.chooser.origin.target):
                captured = None
            self._checked_task = True
        elif choosing or not self._checked_task:
            self._check_task(batch, captured)
        if self.unsupported:
            return None
        for key, message in self.chooser.problems.items():
            self.guard.tell_once(f"capture:{key}", message)
        if captured is None:
            self._tell_none(n)
        return captured

    def _settle_labels(self, batch: Batch, captured: Captured, target: Tensor | None) -> bool:
        """The labels are what the loss was compared with; False: that says nothing about the samples."""
        assert self.chooser is not None
        if target is None or self.options.label_fn is not None:
            return True
        mixture = self.chooser.mixture
        if mixture is not None:
            self.chooser.mixes = mixes(mixture.targets, batch.labels, weighted=mixture.weighted)
            own = mixture.shares if self.chooser.mixes else answer_among(mixture.targets, batch.labels)
            target = target if own is None else own
        found, batch.labels = batch.labels, self.labels.settle(batch.whole, batch.labels, target)
        self.chooser.reads_target = self.labels.of_loss or self.chooser.mixes
        self.reading.forget()
        batch.inputs = self.inputs_of(batch.whole) if self.labels.nested else batch.inputs
        if not self.labels.of_loss:
            return True
        reason = ""
        if captured.source.is_binary and bool((target == target.reshape(-1)[0]).all()):
            reason = (
                "the loss compares one number per sample with one and the same target, which is no part of "
                "the batch (as of a discriminator): give model=<the classifier> or label_fn(batch)."
            )
        elif reordered(target, found):
            reason = (
                "the loss's targets are the batch's labels in another order: the step shuffles its batch, so "
                "nothing tells which sample a row is of. Shuffle in the loader, or record splits=['val']."
            )
        if reason:
            self.labels = LabelPlan()
            self.chooser.unsettle(reason)
        return not reason

    def _mixed(self, chooser: HeadChooser, batch: Batch, mixture: Mixture) -> None:
        """A step's loss has several targets: samples' shares of them, where those are labels of others."""
        if self.options.label_fn or not mixes(mixture.targets, batch.labels, weighted=mixture.weighted):
            chooser.pass_over()
            return
        batch.labels = mixture.shares
        if chooser.mixes:
            return
        chooser.reads_target = chooser.mixes = self.labels.of_loss = True
        self.guard.tell_once(
            "mixed later",
            "The loss of a later training batch compares samples with labels of others: soft from now on.",
        )

    def _tell_none(self, n: int | None) -> None:
        assert self.chooser is not None
        refused = self.chooser.refusal
        self.guard.count("no logits found in a batch", rows=n or 0)
        self.guard.tell_once(
            f"no logits:{'' if refused is None else refused.reason[:40]}",
            f"No class logits of shape ({n or 'batch'}, classes), classes >= {self._smallest} as the labels "
            "have it, were found in what the model or the step returned, so this batch is not recorded. "
            + ("" if refused is None else f"{refused.reason[0].upper()}{refused.reason[1:]} ")
            + "The tracer must exist before the first compiled call; else return the logits from the "
            "step, or give model=<the classifier>.",
        )
        if self.chooser.miss(training=self._training):
            self.guard.tell_once(
                f"gave up:{self._training}",
                f"No class logits were found in {MOST_MISSES} batches in "
                f"{'train' if self._training else 'eval'} mode: no further batch of that mode is looked "
                "into or recorded.",
            )

    def _check_task(self, batch: Batch, captured: Captured | None) -> None:
        """Regression, segmentation and multi-label are said once; nothing is recorded of them."""
        if captured is not None:
            shape: Sequence[int] | None = tuple(captured.logits.shape)
        else:
            main = self._main_output(batch.outputs)
            shape = None if main is None else tuple(main.shape)
        task, reason = infer_task(shape, batch.labels)
        self._checked_task = captured is not None
        if self.options.task == "classification" or task in {"classification", "unknown"}:
            return
        self._refuse(task, reason)

    def _refuse(self, task: str, reason: str) -> None:
        """Says once what the model does, and that nothing of it is recorded."""
        self.unsupported = task
        self.guard.tell_once(
            "task",
            f"This looks like {task}, which is not recorded: {reason} Nothing is recorded for this run; the "
            "training goes on untouched. If it is classification, say task='classification' and give "
            "label_fn(batch).",
        )
        self.disarm()

    def _main_output(self, outputs: Any) -> Tensor | None:
        """What the model returned, whatever it means."""
        calls = [] if self.capture is None else self.capture.outer_calls()
        found = map(find_main_tensor, [outputs, *(call.output for call in calls)])
        return next((main for main in found if main is not None), None)

    def _fits(self, captured: Captured, n: int) -> bool:
        """Whether the logits have the run's number of classes."""
        k = captured.n_class
        stored = self.info.get("n_class")
        expected = stored if stored is not None else k
        if k == expected:
            if self.n_class not in {None, k}:
                self.guard.tell_once(
                    "n_class",
                    f"n_class={self.n_class} was given but the model has {k} outputs; {k} is recorded.",
                )
            self.n_class = k
            return True
        self.guard.count("logits of another width", rows=n)
        self.guard.tell_once(
            "width",
            f"The run {self.run.model_name}/{self.run.version_name} has {expected} classes, this model gives "
            f"{k}; such batches are not recorded. Give another version_name, or force_table_recreate=True.",
        )
        return False

    def _begin_rows(self, open_pass: OpenPass, batch: Batch, captured: Captured) -> PassContext:
        """The first batch of a pass fixes its columns."""
        assert self.chooser is not None
        wanted = self._wanted({alias: rule.width for alias, rule in self.chooser.rules.items()})
        rules = tuple(rule for alias, rule in self.chooser.rules.items() if alias in wanted)
        dtype = self.options.vector_dtype
        context = PassContext(
            rank=self.rank,
            mode=open_pass.mode,
            n_class=captured.n_class,
            samples=samples_schema(
                "classification", self.options.sample_fields(), self.options.label_fields()
            ),
            vectors=vectors_schema(
                "classification", captured.n_class, {r.alias: (r.width, dtype) for r in rules}
            ),
            rules=rules,
            sigmoid=captured.source.kind == "sigmoid" and not captured.source.is_binary,
            vector_dtype=dtype,
            store_hash=self.options.input_hash,
            fields=self._user_fields,
            guard=self.guard,
            media=media_schema() if self.pictures.wanted(open_pass.key) else None,
        )
        meta = {
            "mode": open_pass.mode,
            "activation": captured.source.activation,
            "logits_from": place_told(captured.source),
            "kind": captured.source.kind or "softmax",
            **self._kind_of(batch),
        }
        context.hash_kind = meta.get(HASH_KIND, "")
        # The counters are a dict of their own: the writer thread fills it after `seal` was called.
        context.meta.update(meta, counts=context.counts)
        if open_pass.handle is None:
            self.open(open_pass, dict(meta))
        if self.capture is not None:
            self.capture.then(captured.source.name, self._hasher.go)
        open_pass.context = context
        self._contexts.append(context)
        self._store_info(context)
        return context

    def _store_info(self, context: PassContext) -> None:
        """Rank 0 writes what the first batches settled into run.json, once per change."""
        found = {
            "task": "classification",
            "n_class": context.n_class,
            "features": {rule.alias: rule.as_info() for rule in context.rules},
            "vector_dtype": context.vector_dtype,
        }
        if context.hash_kind:
            found[HASH_KIND] = context.hash_kind
        if found == self._stored_info:
            return
        self._stored_info = found
        self.info = {**self.info, **found}
        self._write_info(found)

    def _say_receipt(self, open_pass: OpenPass, batch: Batch, captured: Captured) -> None:
        """Once, on rank 0: what is recorded, and from where; a first batch without labels is said at once."""
        assert self.chooser is not None
        split = open_pass.key.dataset_type
        if open_pass.size is not None:
            self.sizes[split] = open_pass.size
        if batch.labels is None and not split.startswith(_UNLABELLED):
            self.guard.tell_once(
                f"unlabelled:{split}",
                f"No labels were found in the first batch of {split!r}, so its rows are recorded without: "
                "give label_fn(batch), or keep the labels in the batch under a name such as 'labels'.",
            )
        if self.rank != 0:
            return
        labels = "label_fn" if self.options.label_fn else self.labels.describe(batch.whole, batch.labels)
        labels = "given" if batch.answer and batch.labels is not None else labels
        made = receipt(
            captured, labels=labels, ids=batch.id_source, rules=self.chooser.rules, sizes=self.sizes
        )
        if made != self.receipt:
            self.receipt = made
            self._write_info({"receipt": made})
        self.guard.tell_once("receipt", f"Recorded are {made}.")

    def _job(
        self, open_pass: OpenPass, context: PassContext, batch: Batch, captured: Captured, n: int
    ) -> BatchJob:
        names, tensors = ["logits"], [captured.logits]
        for rule in context.rules:
            feature = captured.features.get(rule.alias)
            if feature is not None:
                names.append("feature:" + rule.alias)
                tensors.append(feature)
        on_host: dict[str, Any] = {}
        for name, value in (("labels", batch.labels), ("ids", batch.ids), ("images", batch.images)):
            fixed = value if name == "images" else own_copy(value)  # images were shrunk into a copy
            if isinstance(fixed, Tensor):
                names.append(name)
                tensors.append(fixed)
            else:
                on_host[name] = fixed
        held, on_device = self.hashing(batch, n, context.mode)
        if on_device is not None:
            names.append("input_hash")
            tensors.append(on_device)
        self.tell_id_source(batch.id_source)
        return BatchJob(
            context=context,
            unit0=open_pass.units,
            n=n,
            staged=self.stage(tensors),
            names=names,
            labels=on_host.get("labels"),
            ids=on_host.get("ids"),
            id_source=batch.id_source,
            hash_from=held,
            user=batch.fields,
            activation=captured.source.activation,
            batch_idx=batch.batch_idx,
            global_step=batch.global_step,
            repeats=batch.repeats,
            places=batch.places,
            images=on_host.get("images"),
        )
