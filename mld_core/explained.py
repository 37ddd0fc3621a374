"""Where a message is explained: its place in docs/errors.md, named where the message is printed."""

from __future__ import annotations

from typing import Final

_PLACES: Final[dict[str, tuple[str, ...]]] = {
    "no-ids": ("a hash of the inputs. It does not survive augmentation",),
    "unlabelled-rows": (
        "Recorded without labels: ",
        "are no class indices; give label_fn",
        "samples; give label_fn",
        "labels are real numbers, not class indices",
        "rows have no label: nothing about them can be evaluated",
    ),
    "unknown-model": (
        "is not a detector of a known family",
        "Nothing was recorded: ",
        "was not called in a batch, so that batch is not recorded",
    ),
    "thresholds": ("iou_thresh has no effect on ", "_thresh=", "risk_tolerance="),
    "full-disk": ("records can not be written to ", "records are dropped and counted"),
    "the-service-does-not-answer-or-refuses": (
        "cannot reach the service at ",
        " is set but no endpoint is: ",
        "the API key holds spaces, line ends",
        "Nothing is uploaded yet: ",
    ),
    "a-store-of-another-release": ("this release reads up to ", "it was made before they existed"),
    "nothing-there": (
        "there is no store at ",
        " holds no runs: ",
        " (models: ",
        " (versions: ",
        " (results: ",
        " yet: run `mld evaluate ",
        "the app's pages are not built here: ",
    ),
}
"""Heading of the page -> what its messages hold, of which nothing is filled in."""


def explained(message: str) -> str:
    """The message with the place that explains it, where there is one.

    Example:
        >>> explained("records are dropped and counted: the queue is full; training goes on")
        'records are dropped and counted: the queue is full; training goes on (docs/errors.md#full-disk)'
        >>> explained("3 rows recorded")
        '3 rows recorded'
        >>> explained(explained("there is no store at /data"))  # said once
        'there is no store at /data (docs/errors.md#nothing-there)'
    """
    for place, parts in _PLACES.items():
        if any(part in message for part in parts) and "(docs/errors.md#" not in message:
            return f"{message} (docs/errors.md#{place})"
    return message
