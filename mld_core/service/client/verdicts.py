"""Verdicts between a store and a service: each side gets what it lacks, known by `verdict_id`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import as_members, of_members
from mld_core.records.store.verdicts import Verdicts
from mld_core.service.client.api import Client
from mld_core.service.protocol import CORRECTED_BOXES_SINCE, MAX_BODY_BYTES, MAX_PAGE, VERDICTS_SINCE

_ROOM = MAX_BODY_BYTES - (16 << 10)


@dataclass(frozen=True)
class Exchanged:
    """How many verdicts went either way.

    Attributes:
        sent: To the service.
        received: From it.
    """

    sent: int = 0
    received: int = 0


def exchange_verdicts(store: Store, client: Client, run: RunKey) -> Exchanged:
    """Send the verdicts of a run that the service lacks, and write down those that are lacking here.

    May be stopped and called again at any time: nothing is doubled.

    Raises:
        ServiceError, ServiceUnreachableError, AuthenticationError: The service refuses, or is not there.
        OSError: The store cannot be written to.
    """
    book = Verdicts(store, run)
    own = {one.verdict_id: one for one in book.read()[0]}
    names = {"model_name": run.model_name, "version_name": run.version_name}
    known = None if own else _there(client, names)
    if not own and known is None:
        return Exchanged()  # nothing is said here, and the service has no such run
    made = known or client.json("POST", "/v1/runs", body={**names, "info": {}})
    place = f"/v1/runs/{made['run_id']}/verdicts"
    if client.minor < VERDICTS_SINCE:
        return Exchanged()
    if client.minor < CORRECTED_BOXES_SINCE:
        own = {name: one for name, one in own.items() if not one.corrects_box}
    there = {str(one["verdict_id"]): one for one in client.pages(place)}
    for part in _parts([as_members(one) for key, one in own.items() if key not in there]):
        client.json("POST", place, body={"verdicts": part})
    lacking = [of_members(one) for key, one in there.items() if key not in own]
    book.take_in(lacking)
    return Exchanged(len(own.keys() - there.keys()), len(lacking))


def _there(client: Client, names: dict[str, str]) -> dict[str, Any] | None:
    """The run at the service; None where there is none, or the key may not look."""
    try:
        found = client.page("/v1/runs", names)
    except AuthenticationError:
        return None  # a key that only uploads: the passes went up with it a moment ago
    return next((one for one in found if names.items() <= one.items()), None)


def _parts(said: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """As many at once as a body holds."""
    held: list[dict[str, Any]] = []
    size = 0
    for one in said:
        own = len(json.dumps(one)) + 2
        if held and (size + own > _ROOM or len(held) == MAX_PAGE):
            yield held
            held, size = [], 0
        held.append(one)
        size += own
    if held:
        yield held
