"""One entry of the catalogue of diagnoses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """One entry.

    Attributes:
        code: C01 to C91, D01 to D23, T01 to T22.
        title: Short name.
        severity: 1 information to 5 blocking.
        action: What to do.
        predicate: When it applies, in words.
        needs: What must be recorded for it: "hashes", "train", "train_errors", "epochs", "metadata",
            "labels", "train_split", "other_split", "comparison".
    """

    code: str
    title: str
    severity: int
    action: str
    predicate: str
    needs: tuple[str, ...] = ()
