"""What the page says: short texts that tell the owner of a model what a figure means and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CategoryText:
    """One issue category in words.

    Attributes:
        name: As in the tables.
        title: As on the page.
        means: What a sample in it is.
        do: What its owner does.
    """

    name: str
    title: str
    means: str
    do: str


CATEGORY_TEXTS: tuple[CategoryText, ...] = (
    CategoryText(
        "stable_coverage",
        "Stable coverage",
        "Right, confident, and so are the samples around it.",
        "Nothing. More data of this kind will not help.",
    ),
    CategoryText(
        "operational_coverage",
        "Operational coverage",
        "Right, with a little risk around it; good enough to operate on.",
        "Nothing now. Watch its share when the data changes.",
    ),
    CategoryText(
        "recessive_hotspot",
        "Recessive hotspot",
        "The signs disagree: an isolated error, or risk that only the neighbours or only the score show.",
        "Look at the isolated errors first: many are wrong labels.",
    ),
    CategoryText(
        "hotspot",
        "Hotspot",
        "Errors are dense here, and the model half knows it.",
        "Collect and label samples like these.",
    ),
    CategoryText(
        "critical_hotspot",
        "Critical hotspot",
        "Errors are dense here and the model is confident: a confidence monitor would let them pass.",
        "Collect these first; do not release before they are understood.",
    ),
    CategoryText(
        "aleatoric_hotspot",
        "Aleatoric hotspot",
        "Two labels tie among the neighbours; people may disagree here too.",
        "Ask a second annotator, use soft labels, or merge the classes. More capacity will not help.",
    ),
)
"""In the order of the page: from nothing to do to most to do, ambiguity last."""


@dataclass(frozen=True)
class MetricText:
    """One metric in words; `better` is "up", "down" or "" where neither is."""

    name: str
    title: str
    unit: str
    better: str
    means: str


METRIC_TEXTS: tuple[MetricText, ...] = (
    MetricText("accuracy", "Accuracy", "share", "up", "Share of the labelled samples the model gets right."),
    MetricText("error_rate", "Error rate", "share", "down", "Share of the labelled samples it gets wrong."),
    MetricText("auroc", "AUROC", "0 to 1", "up", "One class against the rest, mean over the classes."),
    MetricText(
        "auprc", "AUPRC", "0 to 1", "up", "Average precision, one class against the rest, mean over classes."
    ),
    MetricText(
        "net_entropy_loss_mean", "Loss per sample", "nats", "down", "Cross-entropy of the given labels, mean."
    ),
    MetricText(
        "net_entropy_mean",
        "Entropy per sample",
        "nats",
        "",
        "How undecided the model is, mean over samples.",
    ),
    MetricText(
        "error_proba_auroc",
        "Error probability: AUROC",
        "0 to 1",
        "up",
        "How well the error probability ranks wrong samples above right ones; 0.5 is chance.",
    ),
    MetricText(
        "error_proba_auprc",
        "Error probability: AUPRC",
        "0 to 1",
        "up",
        "Average precision of finding wrong samples by their error probability; chance is the error rate.",
    ),
    MetricText(
        "error_proba_brier",
        "Error probability: Brier",
        "0 to 1",
        "down",
        "Mean squared error of the probability.",
    ),
    MetricText(
        "error_proba_ece",
        "Error probability: ECE",
        "share",
        "down",
        "Gap between stated and observed error rate.",
    ),
    MetricText(
        "augrc",
        "AUGRC",
        "0 to 1",
        "down",
        "Risk left when the most suspect samples are set aside; lower is better.",
    ),
    MetricText("aurc", "AURC", "0 to 1", "down", "Error rate among accepted samples, mean over coverage."),
    MetricText("count_nonfinite", "NaN or infinite logits", "samples", "down", "They count as errors."),
)

PAIR_ACTION = (
    "Look at the samples together: check the labels of this pair, then add data that tells the two apart."
)
"""What to do about a confused pair where no diagnosis says more."""
