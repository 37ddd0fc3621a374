"""People and keys of a service, for those who manage them."""

from __future__ import annotations

from typing import Any

from mld_core.evaluation.errors import NotFoundError
from mld_core.service.client.api import Client


class People:
    """People and keys at the service, for admins."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def all(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every person, or the one of that name."""
        return list(self._client.pages("/v1/people", {} if name is None else {"name": name}))

    def keys(self) -> list[dict[str, Any]]:
        """Every key."""
        return list(self._client.pages("/v1/keys"))

    def _person(self, name: str) -> dict[str, Any]:
        found = self.all(name)
        if not found:
            raise NotFoundError(f"there is no person {name!r}; `mld keys people --remote` lists them")
        return found[0]

    def add(
        self, name: str, role: str | None, models: list[str] | None, days: float | None
    ) -> dict[str, Any]:
        """A key for a person, who is added if they are not there."""
        found = self.all(name)
        if not found:
            body: dict[str, Any] = {
                "name": name,
                "role": role or "",
                **({"models": models} if models else {}),
            }
            person = self._client.json("POST", "/v1/people", body=body, once=True)
        else:
            person = self.change(name, role, models)
        body = {"name": name, "person_id": person["person_id"], "expires_in_days": days}
        return self._client.json("POST", "/v1/keys", body=body, once=True)

    def change(self, name: str, role: str | None, models: list[str] | None) -> dict[str, Any]:
        """Set what is given."""
        body = {name: value for name, value in (("role", role), ("models", models)) if value is not None}
        return self._client.json("PATCH", f"/v1/people/{self._person(name)['person_id']}", body=body)

    def revoke(self, named: str) -> dict[str, Any]:
        """A key by its id, or a person with all keys of theirs by name."""
        if named.startswith("key_"):
            return self._client.json("DELETE", f"/v1/keys/{named}")
        return self._client.json("DELETE", f"/v1/people/{self._person(named)['person_id']}")
