"""Which samples of a loader the calls of a tracer bring, where the loader is told to it."""

from __future__ import annotations

from typing import Any

from mld_core.tracing.batch.batches import CONTENT_HASH, Batch
from mld_core.tracing.batch.identity import LOADER_INDEX
from mld_core.tracing.batch.padding import repeats_of
from mld_core.tracing.batch.taps import install_tap
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.naming import rank_and_world


class LoaderOrder:
    """Follows a loader as long as every call is proven to be its next batch; of the rest nothing is said.

    Args:
        loader: as it will be walked; the walk has not begun.
        guard: tells where the order can not be followed.
    """

    def __init__(self, loader: Any, guard: Guard) -> None:
        self._tap: Any = None
        self._repeats: Any = None
        with guard.catch("reading the loader's order", lost="nothing; ids are those of the calls"):
            self._tap = install_tap(loader)
            self._repeats = None if self._tap is None else repeats_of(loader)
        if self._tap is None:
            guard.tell_once(
                "loader order",
                f"epoch(loader={type(loader).__name__}): its order can not be followed, so what its sampler "
                "repeats is not known. Expected is a torch.utils.data.DataLoader over a map-style data set, "
                "in order.",
            )

    def place(self, batch: Batch, n: int | None, *, evaluates: bool) -> None:
        """Notes in a call's batch what the loader tells of it: a repeat, places, ids where none were given.

        Args:
            batch: of the call.
            n: its samples; None: not known.
            evaluates: whether repeats count once.
        """
        drawn = None if self._tap is None else self._tap.pop(-1 if n is None else n)
        if drawn is None:  # the calls are no longer the loader's batches, one by one
            self._tap = self._repeats = None
            return
        if batch.id_source == CONTENT_HASH:
            batch.ids, batch.id_source = drawn, LOADER_INDEX
        if evaluates:
            batch.repeats = 0 if self._repeats is None else self._repeats.pop(n)
            batch.places = drawn if rank_and_world()[1] > 1 else None
