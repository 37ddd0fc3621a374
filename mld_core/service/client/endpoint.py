"""Which service, if any, an evaluator talks to."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mld_core.explained import explained


@dataclass(frozen=True, repr=False)
class Endpoint:
    """A service's address and the key for it; the key never shows in a repr or a message."""

    url: str
    api_key: str | None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, api_key={'***' if self.api_key else None})"


def resolve_endpoint(api_endpoint: str | None = None, api_key: str | None = None) -> Endpoint | None:
    """The service to use: arguments beat `MLD_API_ENDPOINT` and `MLD_API_KEY`, each on its own.

    Returns:
        The endpoint, or None for the local store.

    Raises:
        ValueError: There is a key but no endpoint.
    """
    url = api_endpoint or os.environ.get("MLD_API_ENDPOINT") or None
    key = api_key or os.environ.get("MLD_API_KEY") or None
    if url is None and key is not None:
        where = "api_key" if api_key else "MLD_API_KEY"
        raise ValueError(
            explained(
                f"{where} is set but no endpoint is: set MLD_API_ENDPOINT (or pass api_endpoint) to use the "
                "service, or remove the key to use the local store"
            )
        )
    return Endpoint(url.rstrip("/"), key) if url is not None else None
