"""Two results in one file: their comparison, every unit that changed, and the pages of the result after."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mld_core.app.file.one_file import DETAILED, OneFile
from mld_core.app.file.packing import Block
from mld_core.evaluation.results.compare import check_tasks
from mld_core.evaluation.results.result import Result
from mld_core.views.comparing.page import comparison, last_pass, shared_splits
from mld_core.views.comparing.pairs import KINDS, pairs
from mld_core.views.selection import HeldUnits, Rows, held

MOST_PAIRS = 5_000
"""Fixed units that the file holds, and as many regressed ones, of a split."""


@dataclass
class CompareFile(OneFile):
    """The page of two results in the making; see `OneFile`, whose `result` is the one after.

    Attributes:
        before: The result before.

    Raises:
        TaskError: The results are of different tasks.
    """

    before: Result = field(kw_only=True)

    def __post_init__(self) -> None:
        before, after = ((one.result_name, one.task) for one in (self.before, self.result))
        check_tasks(before, after)

    @cached_property
    def compared(self) -> dict[str, tuple[HeldUnits, HeldUnits, dict[str, Any], dict[str, Rows]]]:
        """Of each split that both have: the passes before and after, the page, and the rows that changed."""
        made = {}
        for split in shared_splits(self.before, self.result):
            a, b = (held(last_pass(one, split)) for one in (self.before, self.result))
            made[split] = (a, b, *comparison(a, b))
        return made

    def title(self) -> str:
        """See `OneFile`."""
        a, b = self.before, self.result
        return f"{a.model_name} {a.version_name} and {b.model_name} {b.version_name}: what changed"

    def data(self) -> dict[str, Any]:
        """See `OneFile`; with the comparison of each split, whose pairs are in `blocks`."""
        made = super().data()
        one_sided = sorted({*self.before.datasets, *self.result.datasets} - set(self.compared))
        if one_sided:
            self.note(f"Splits that only one of the results has are not compared: {', '.join(one_sided)}.")
        made["compare"] = {split: self._split(split) for split in self.compared}
        made["answers"]["session"]["open"] |= {
            "page": "compare",
            "result": self.result.result_name,
            "a_model": self.before.model_name,
            "a_version": self.before.version_name,
            "a_result": self.before.result_name,
        }
        return made

    def first_rows(self, units: HeldUnits) -> list[int]:
        """See `OneFile`: what changed has its evidence and its pictures first."""
        if units.dataset not in self.compared:
            return []
        rows = self.compared[units.dataset][3]
        return [int(row) for kind in KINDS for row in rows[kind][:DETAILED, 1]]

    def _split(self, split: str) -> dict[str, Any]:
        a, b, page, rows = self.compared[split]
        block = Block()
        there = self.seen.get(split)
        if there is not None:
            there.place(a)
            there.place(b)
        for kind in KINDS:
            if len(rows[kind]) > MOST_PAIRS:
                self.note(f"{split}: {MOST_PAIRS:,} of {len(rows[kind]):,} {kind} units are in the file.")
            found = pairs(a, b, rows[kind][:MOST_PAIRS], limit=MOST_PAIRS)
            for one in found:
                for card in one.values():
                    card["picture"] = there is not None and card["id"] in there.pictures
            block.add_json(kind, [found])
        name = f"mld-compare-{b.index}"
        self.blocks[name] = block.text()
        result = self.before
        before = {
            "model": result.model_name, "version": result.version_name, "result": result.result_name,
            "split": split, "epoch": a.n_epoch, "task": result.task,
            "unit": "sample" if result.task == "classification" else "box",
        }  # fmt: skip
        return {"page": page, "before": before, "block": name, "columns": block.columns}
