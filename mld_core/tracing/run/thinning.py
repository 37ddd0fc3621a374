"""A recorder that takes too much of a training leaves out some of its rows, says so and counts them.

Only rows of the training split: an evaluation is recorded whole, or its figures would be those of other data.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from mld_core.records.format.schema import LEFT_OUT
from mld_core.tracing.run.sealing import OpenPass

WINDOW: Final = 200
"""Training steps that are looked at together."""
MOST_SHARE: Final = 0.1
"""Of the time of these steps, in our calls on the training thread."""
LEAST_S: Final = 10.0
"""A training that recording has cost less than this in all is left alone: it is over in minutes."""
_MOST: Final = 64


class Thinning:
    """Which training batches are recorded: all, until recording takes more than its share.

    Attributes:
        every: each n-th training batch of a pass is recorded.
        rows: left out so far.
    """

    def __init__(self) -> None:
        self.every = 1
        self.rows = 0
        self._allowed = os.environ.get("MLD_THIN", "") != "0"
        self._pass: OpenPass | None = None
        self._batch = 0
        self._last = (0.0, 0.0)  # seconds spent by us, the clock: at the end of the batch before
        self._steps, self._ours, self._whole = 0, 0.0, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None}

    def leaves_out(self, open_pass: OpenPass) -> bool:
        """Whether the batch in hand is not recorded."""
        return self.every > 1 and open_pass is self._pass and self._batch % self.every != 0

    def note(self, open_pass: OpenPass, spent: float, now: float | None = None) -> str:
        """A batch is through.

        Args:
            open_pass: its pass.
            spent: seconds spent in our calls since the run began.
            now: the clock, seconds.

        Returns:
            What to tell, where more is left out from here on; else "".
        """
        if open_pass.mode != "train" or open_pass.muted or not self._allowed:
            return ""
        now = time.perf_counter() if now is None else now
        if open_pass is not self._pass:  # what lies between two passes is no step
            self._pass, self._batch = open_pass, 0
        else:
            self._steps += 1
            self._ours += spent - self._last[0]
            self._whole += now - self._last[1]
        self._batch += 1
        self._last = (spent, now)
        if self._steps < WINDOW:
            return ""
        share = self._ours / max(self._whole, 1e-9)
        self._steps, self._ours, self._whole = 0, 0.0, 0.0
        if share <= MOST_SHARE or spent < LEAST_S or self.every >= _MOST:
            return ""
        self.every *= 2
        return (
            f"Recording took {100 * share:.0f} % of the last {WINDOW} training steps, so from now on one of "
            f"{self.every} training batches is recorded; evaluations are recorded whole. The account counts "
            "what is left out. MLD_THIN=0 forbids this; splits=['val'] or every_n_epochs=... record less by "
            "plan."
        )

    def leave_out(self, session: Any, open_pass: OpenPass, batch: Any) -> None:
        """Passes over the batch in hand: its place in the loader's order is taken, its rows are counted."""
        n = session.read(batch).n
        open_pass.draw(n)
        self.rows += n or 0
        if open_pass.context is not None:
            open_pass.context.count(LEFT_OUT, n or 0)
