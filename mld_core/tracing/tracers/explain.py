"""What would be recorded of a model and a batch, told without a training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mld_core.tracing.batch.batches import CONTENT_HASH, class_count, label_range, row_count, takes_keywords
from mld_core.tracing.batch.identity import locate_ids
from mld_core.tracing.batch.labels import find_inputs, infer_task
from mld_core.tracing.batch.plan import LabelPlan
from mld_core.tracing.capture.capture import Capture
from mld_core.tracing.capture.heads import Captured, HeadChooser
from mld_core.tracing.capture.outputs import find_main_tensor
from mld_core.tracing.capture.reading import Known
from mld_core.tracing.run.receipt import receipt
from mld_core.tracing.run.replay import RandomStates


def explain(
    model: nn.Module,
    batch: Any,
    *,
    criterion: Callable[[Any, Any], Tensor] | None = None,
    label_fn: Callable[[Any], Any] | None = None,
    n_class: int | None = None,
) -> str:
    """Print, and return, what a wrapper would record of a batch, or why it would record nothing.

    The model is called once, in evaluation mode; its modes, weights and buffers and every random generator
    are left as they were. A loss is asked where there is one: the model's own (`output.loss`), or
    `criterion`.

    Args:
        model: a classifier.
        batch: as its loader gives it.
        criterion: (what the model returned, labels) -> loss.
        label_fn: batch -> labels; None: found in the batch.
        n_class: number of classes; None: read from the model.

    Returns:
        The receipt, as a run tells it, or one sentence.

    Examples:
        >>> _ = explain(nn.Linear(4, 3), (torch.zeros(2, 4), torch.tensor([0, 2])))
        logits: the model's output (B, 3), softmax, as no loss was asked · labels: batch[1] ·
        ids: content hash (no history over epochs under augmentation) · features: the model's input (4)
    """
    plan = LabelPlan()
    labels = plan.read(batch) if label_fn is None else label_fn(batch)
    captured, chooser, shape = _taken(model, batch, labels, criterion, n_class or class_count(model))
    refused, origin = chooser.refusal, chooser.origin
    task, reason = infer_task(shape, labels) if origin is None else ("classification", "")
    if refused is not None and (refused.task or task in {"classification", "unknown"}):
        task, reason = refused.task, refused.reason
    if captured is None or task not in {"classification", "unknown"}:
        told = f"{f'This looks like {task}, which' if task else 'This'} is not recorded: {reason}"
    else:
        if origin is not None and origin.target is not None and label_fn is None:
            labels = plan.settle(batch, labels, origin.target)
        ids = locate_ids(batch, int(captured.logits.shape[0]))
        told = receipt(
            captured,
            labels="label_fn" if label_fn is not None else plan.describe(batch, labels),
            ids=CONTENT_HASH if ids is None else ids[1],
            rules=chooser.rules,
        )
    sys.stdout.write(told + "\n")
    return told


def _taken(
    model: nn.Module, batch: Any, labels: Any, criterion: Any, n_class: int | None
) -> tuple[Captured | None, HeadChooser, tuple[int, ...] | None]:
    """One forward with every hook on, as of a watched training batch; and the shape of the answer."""
    largest, binary = label_range(labels)
    modes = [(module, module.training) for module in model.modules()]
    states = RandomStates(())
    capture = Capture(model, n_class=n_class)
    chooser = HeadChooser(capture, n_class=n_class, known={})
    try:
        model.eval()
        capture.begin(watch=True, training=True)
        with torch.enable_grad():
            output = _called(model, batch)
            loss = getattr(output, "loss", None) if criterion is None else criterion(output, labels)
        if isinstance(loss, Tensor) and loss.grad_fn is not None:
            chooser.see_loss(loss)
        known = Known(smallest=max(2, largest + 1), binary=binary)
        main = find_main_tensor(output)
        shape = None if main is None else tuple(main.shape)
        return chooser.take(row_count(labels), None, training=True, known=known), chooser, shape
    finally:
        capture.close()
        for module, mode in modes:
            module.training = mode
        states.restore()


def _called(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping) and takes_keywords(model, batch):
        return model(**batch)
    inputs = find_inputs(batch)
    return model(list(inputs) if isinstance(inputs, tuple) else inputs)
