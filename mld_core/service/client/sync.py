"""Sending what is sealed in a store to a service, by hand: what `mld sync` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.service.client.api import INTERACTIVE, Client, OnBytes
from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.ranks import RankUploader
from mld_core.service.client.sealed import SealedRank, is_noted, read_sealed, sealed_folders


@dataclass(frozen=True)
class SyncRow:
    """What became of one sealed rank.

    Attributes:
        rank: which one.
        state: "uploaded" = sent now, "there" = the service had it, "failed".
        files: files that were sent.
        bytes: bytes that were sent.
        message: why it failed.
    """

    rank: SealedRank
    state: str
    files: int = 0
    bytes: int = 0
    message: str = ""


class Sync:
    """One go over some runs.

    Args:
        store: the store.
        client: the service.
        again: ask the service about every rank, also about those noted as uploaded.
        on_bytes: told how many bytes are through.
        on_problem: told of what does not stop an upload.

    Raises:
        ConnectionError, AuthenticationError: the service can not be asked who we are.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        *,
        again: bool = False,
        on_bytes: OnBytes | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._store = store
        self._again = again
        # The first word decides within seconds whether anybody is there; later ones are waited for longer.
        me = client.whoami(INTERACTIVE)
        self._uploader = RankUploader(store, client, on_bytes, on_problem, me)
        self.service = self._uploader.service
        self.skipped = 0

    def plan(self, runs: Iterable[RunKey]) -> list[SealedRank]:
        """What is to be sent, older passes first; `skipped` counts what is noted as uploaded."""
        found = []
        for run in runs:
            for folder in sealed_folders(self._store, run):
                if not self._again and is_noted(folder, self.service):
                    self.skipped += 1
                    continue
                rank = read_sealed(folder)
                if rank is not None:
                    found.append(rank)
        return found

    def send(self, ranks: Iterable[SealedRank]) -> Iterator[SyncRow]:
        """Upload one rank after the other; one that is refused or damaged does not stop the others.

        Raises:
            ConnectionError, AuthenticationError: the service does not answer any more, or refuses the key;
                what was sent until then counts.
        """
        for rank in ranks:
            yield self._sent(rank.folder, rank)

    def _sent(self, folder: Path, rank: SealedRank) -> SyncRow:
        try:
            outcome = self._uploader.upload(folder, trust_notes=not self._again)
        except (ServiceUnreachableError, AuthenticationError):
            raise
        except (ServiceError, DamagedFileError) as error:
            return SyncRow(rank, "failed", message=str(error))
        except OSError as error:
            return SyncRow(rank, "failed", message=f"{folder}: {error.strerror or error}")
        if outcome.state == "gone":
            return SyncRow(rank, "failed", message=f"{folder} was removed meanwhile")
        return SyncRow(
            rank,
            "there" if outcome.state == "noted" else outcome.state,
            outcome.files_sent,
            outcome.bytes_sent,
        )
