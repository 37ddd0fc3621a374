"""The receipt: what is recorded of a run, and from where, in one line."""

from __future__ import annotations

from collections.abc import Mapping

from mld_core.tracing.capture.capture import canonical
from mld_core.tracing.capture.heads import Captured
from mld_core.tracing.capture.reading import OUTPUTS, LogitsSource
from mld_core.tracing.capture.rules import FeatureRule
from mld_core.tracing.paths import spelled

_IDS = {
    "content_hash": "content hash (no history over epochs under augmentation)",
    "loader_index": "loader index",
    "dataset_index": "data set index",
}


def receipt(
    captured: Captured,
    *,
    labels: str,
    ids: str,
    rules: Mapping[str, FeatureRule],
    sizes: Mapping[str, int] | None = None,
) -> str:
    """The receipt of a classifier.

    Args:
        captured: a batch.
        labels: where they are read.
        ids: their source.
        rules: of the features.
        sizes: split -> samples.
    """
    features = [
        f"{canonical(rule.layer) or 'the model'}'s {rule.side} ({rule.raw_width})" for rule in rules.values()
    ]
    parts = [
        f"logits: {logits_told(captured)}",
        f"labels: {labels}",
        f"ids: {_IDS.get(ids, ids)}",
        f"features: {', '.join(features) or 'none'}",
    ]
    if sizes:
        parts.append(", ".join(f"{size:,} {split}" for split, size in sizes.items()))
    return " · ".join(parts)


def logits_told(captured: Captured) -> str:
    """Where the logits come from, their shape and kind: "head.fc (B, 10), softmax"."""
    source = captured.source
    kind = source.kind or ("sigmoid" if source.is_binary else "softmax") + ", as no loss was asked"
    if source.is_binary:
        return f"{place_told(source)} (B, 1), {kind}: two classes (0, z)"
    told = f"{place_told(source)} (B, {captured.n_class}), {kind}"
    return f"{told}, given as probabilities" if source.activation == "probabilities" else told


def place_told(source: LogitsSource) -> str:
    """The module, and the place in what it gives."""
    names = {"": "the model's output", OUTPUTS: "what the step or the model returned"}
    told = names.get(source.name) or canonical(source.name)
    picked = "".join(f".select({axis}, {index})" for axis, index in source.picked)
    call = f" of call {source.call + 1}" if source.call else ""
    return told + spelled(source.path or ()) + picked + call
