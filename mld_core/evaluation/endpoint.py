"""Which service, if any, an evaluator talks to, and whether it answers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import requests

from mld_core.evaluation.errors import AuthenticationError

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, repr=False)
class Endpoint:
    """A service's address and the key for it; the key never shows in a repr or a message."""

    url: str
    api_key: str | None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, api_key={'***' if self.api_key else None})"

    def check(self) -> None:
        """Ask the service for anything at all.

        Raises:
            ConnectionError: It cannot be reached, or is no service this version can talk to.
            AuthenticationError: It does not accept the key.
        """
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        hint = "unset MLD_API_ENDPOINT (or pass no api_endpoint) to evaluate the local store"
        try:
            status = requests.get(self.url, headers=headers, timeout=TIMEOUT_SECONDS).status_code
        except requests.RequestException as error:
            # The cause is named by its class: its text can hold the whole request.
            raise ConnectionError(
                f"cannot reach the service at {self.url} ({type(error).__name__}); {hint}"
            ) from error
        if status in {401, 403}:
            given = "did not accept the API key" if self.api_key else "wants an API key: set MLD_API_KEY"
            raise AuthenticationError(f"the service at {self.url} {given} (HTTP {status})")
        raise ConnectionError(
            f"the service at {self.url} answers (HTTP {status}), but this version evaluates local stores "
            f"only; {hint}"
        )


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
            f"{where} is set but no endpoint is: set MLD_API_ENDPOINT (or pass api_endpoint) to use the "
            "service, "
            "or remove the key to use the local store"
        )
    return Endpoint(url.rstrip("/"), key) if url is not None else None
