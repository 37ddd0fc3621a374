"""Verdicts made of a result's suspected labels: "accept the first K"."""

from __future__ import annotations

from mld_core.evaluation.results.result import Result
from mld_core.records.store.verdict import UNSEEN, Verdict

SUSPECTED = "C01"


def suggest(result: Result, dataset_type: str, limit: int, *, author: str = "") -> list[Verdict]:
    """The worst suspected labels of a split as "relabel" verdicts with the suggested label, worst first.

    Nothing is written: hand them to `Verdicts.append` when a person has accepted them.

    Args:
        result: A classification result.
        dataset_type: The split.
        limit: At most so many.
        author: Who accepts them; empty = MLD_AUTHOR, else the name of the account.

    Raises:
        ValueError: `limit` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: expected a whole number of at least 1")
    suspects = result.get_issues(dataset_type, code=SUSPECTED, order_by="label_quality", limit=limit)
    rows = suspects.astype(object).where(suspects.notna(), None).to_dict("records")
    return [
        Verdict(
            "relabel",
            dataset_type,
            str(row["input_id"]),
            label=int(row["suggested_label"]),
            given=int(row["gt"]),
            input_hash=row["input_hash"],
            note=UNSEEN,
            result_name=result.result_name,
            author=author,
        )
        for row in rows
        if row["suggested_label"] is not None
    ]
