"""What the pages ask of evaluations, as a protocol: `mld ui` and `mld serve` each hand in their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
JobKind = Literal["evaluation", "umap"]


@dataclass(frozen=True)
class OfPass:
    """A pass that a map is made of.

    Attributes:
        result: Its result.
        place: Which of the result's passes.
        split: Its split.
        epoch: Its epoch, as an address names it.
    """

    result: str
    place: int
    split: str
    epoch: str


@dataclass(frozen=True)
class Wish:
    """An evaluation that somebody wants, with the arguments of `Evaluator.request_evaluation`; or a map.

    Attributes:
        run: Of which run.
        n_epoch: "latest", an epoch, or None for all.
        method_name: The method.
        options: Its options.
        umap: The coordinates of a UMAP instead: of which pass.
    """

    run: RunKey
    n_epoch: int | str | None = "latest"
    method_name: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    umap: OfPass | None = None

    def request(self) -> dict[str, Any]:
        """As it is handed on, in builtin types."""
        options = dict(self.options) or None
        return {"n_epoch": self.n_epoch, "method_name": self.method_name, "options": options}


@dataclass(frozen=True)
class Job:
    """An evaluation on its way, or at its end.

    Attributes:
        job_id: Its id.
        run: Of which run.
        state: Where it stands.
        stage: What is being done.
        progress: How much of it is begun, from 0 to 1.
        seconds: Since it began, to its end; None = it waits.
        result: The result's name, once it is done.
        reason: Why it failed, in words.
        rows: Sample rows of the passes that it looks at; None = not known.
        umap: The pass whose coordinates are made; None = an evaluation.
    """

    job_id: str
    run: RunKey
    state: JobState
    stage: str = ""
    progress: float = 0.0
    seconds: float | None = None
    result: str | None = None
    reason: str | None = None
    rows: int | None = None
    umap: OfPass | None = None

    @property
    def kind(self) -> JobKind:
        """What is made."""
        return "evaluation" if self.umap is None else "umap"


def rows_asked(store: Store, run: RunKey, request: Mapping[str, Any]) -> int | None:
    """Sample rows of the passes that a request names; what is wrong with it, the evaluation says.

    Args:
        store: Where the run lies.
        run: The run.
        request: As `Wish.request` has it.
    """
    splits = (request.get("options") or {}).get("dataset_types")
    try:
        found = select(store, run, dataset_type=splits, n_epoch=request.get("n_epoch", "latest"))
        return sum(one.n_rows for one in found)
    except (OSError, ValueError, TypeError):
        return None


class Jobs(Protocol):
    """The evaluations that one reader may see; whether they may begin or end one, the session has said.

    Attributes:
        maps: Whether maps are made, too.
    """

    maps: bool

    def start(self, wish: Wish) -> Job:
        """Begin an evaluation, or queue it; the same one on its way is answered with itself.

        Raises:
            ProblemError: The run is not there, or too many are on their way.
        """
        ...

    def listed(self) -> list[Job]:
        """The last of them, newest first."""
        ...

    def find(self, job_id: str) -> Job | None:
        """One of them; None = there is none of that id."""
        ...

    def cancel(self, job_id: str) -> Job | None:
        """End one that waits at once, one that runs soon; None = there is none of that id."""
        ...
