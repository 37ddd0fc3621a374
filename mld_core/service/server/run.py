"""Starting a server, and the commands on keys: what `mld serve` and `mld keys` call."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import uvicorn
from sqlalchemy import select
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import utc_now
from mld_core.service.protocol import ROLES, Role
from mld_core.service.server.app import create_app, document
from mld_core.service.server.connection import limited_protocol
from mld_core.service.server.logs import setup_logs
from mld_core.service.server.service import Service, lock_data
from mld_core.service.server.settings import Settings
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import (
    ALL_MODELS,
    bootstrap,
    create_key,
    find_or_create_organization,
)
from mld_core.service.server.storage.models import ApiKey, Organization, Person
from mld_core.service.server.storage.people import add_person, change_person, disable_person, find_person

log = logging.getLogger("mld.server")

_KEEP_ALIVE = 65
_GRACE = 20
FIRST_KEY = "first-key"
"""File in the data folder with the first key, mode 0600: remove it once the key is kept elsewhere."""


def serve(settings: Settings) -> None:
    """Run a server until SIGTERM or SIGINT.

    Raises:
        OSError: the port is taken, or another server has the data folder.
        sqlalchemy.exc.OperationalError: the database can not be reached.
        ValueError: a setting is wrong.
    """
    setup_logs(settings.log_level)
    with lock_data(settings), contextlib.closing(_listen(settings)) as listener:
        service = Service(settings)
        service.database.migrate()
        key = bootstrap(service.database)
        scheme = "https" if settings.tls_cert else "http"
        address = f"{scheme}://{_shown(settings.bind)}:{listener.getsockname()[1]}"
        _greet(address, key, settings)
        config = uvicorn.Config(
            create_app(service),
            http=limited_protocol(settings),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
            proxy_headers=False,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
        )
        log.info("server is up", extra={"address": address, "database": repr(service.database)})
        server = uvicorn.Server(config)
        service.ending = lambda: server.should_exit
        server.run(sockets=[listener])
        log.info("server is down", extra={"address": address})


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.bind, settings.port))
    except OSError as error:
        listener.close()
        where = f"{settings.bind}:{settings.port}"
        raise OSError(
            error.errno, f"cannot listen on {where}: {error.strerror}; give another --port"
        ) from error
    listener.listen(1024)
    return listener


def _shown(bind: str) -> str:
    if bind in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{bind}]" if ":" in bind else bind


def _greet(address: str, key: str | None, settings: Settings) -> None:
    """Say on stdout where the server is. Its first key goes to a file, and to a terminal, which is no log."""
    lines = [f"ml_debugger server at {address} (data in {settings.data})"]
    if key is not None:
        exports = [f"export MLD_API_ENDPOINT={address}", f"export MLD_API_KEY={key}"]
        path = settings.data / FIRST_KEY
        path.touch(0o600)
        path.chmod(0o600)  # also where one was there
        path.write_text("\n".join(exports) + "\n", encoding="ascii")
        lines += ["", f"The first key, with all scopes, is in {path}; only its hash is kept elsewhere."]
        lines += [f"  {line}" for line in exports] if sys.stdout.isatty() else [f"  . {path}"]
        lines += ["Give people keys of their own: mld keys create --name alice --scope read --scope write"]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _database(settings: Settings) -> Database:
    database = Database(settings.database_url)
    database.migrate()
    return database


def _owner(session: Session, organization: str | None) -> Organization:
    root = session.scalars(select(Organization).where(Organization.is_root)).one()
    return root if organization is None else find_or_create_organization(session, organization)


def keys_create(
    settings: Settings, name: str, scopes: Sequence[str], organization: str | None, days: float | None
) -> dict[str, Any]:
    """Create a key in the database itself; the organization is made if it is not there.

    Returns:
        The key's row, with the key under "key".

    Raises:
        ValueError: an unknown scope.
    """
    database = _database(settings)
    with contextlib.closing(database):
        bootstrap(database)
        with database.write() as session:
            owner = _owner(session, organization)
            row, key = create_key(session, owner, name, scopes, days)
        return {**_row(row, owner.name), "key": key}


def people_add(
    settings: Settings,
    name: str,
    role: str | None,
    models: Sequence[str] | None,
    organization: str | None,
    days: float | None,
) -> dict[str, Any]:
    """Make a key for a person, who is added if they are not there.

    Returns:
        The key's row, with the key under "key".

    Raises:
        ValueError: no role for a new person, or one that is none; patterns that are none.
    """
    database = _database(settings)
    with contextlib.closing(database):
        bootstrap(database)
        with database.write() as session:
            owner = _owner(session, organization)
            person = find_person(session, owner.pk, name)
            if person is None:
                person = add_person(session, owner, name, role or "", models or [ALL_MODELS])
            elif person.disabled_at is not None:
                raise ValueError(f"{name!r} was revoked on {person.disabled_at}: add them by another name")
            else:
                change_person(person, role, models)
            row, key = create_key(session, owner, name, (), days, person)
        return {**_row(row, owner.name, person), "key": key}


def people_list(settings: Settings) -> list[dict[str, Any]]:
    """All people of all organizations."""
    database = _database(settings)
    query = select(Person, Organization.name).join(Organization, Organization.pk == Person.organization_pk)
    with contextlib.closing(database), database.read() as session:
        found = session.execute(query.order_by(Person.pk))
        return [_person_row(person, organization) for person, organization in found]


def people_change(
    settings: Settings,
    name: str,
    organization: str | None,
    *,
    role: str | None = None,
    models: Sequence[str] | None = None,
    disable: bool = False,
) -> dict[str, Any]:
    """Set a person's role and models, or refuse them and all keys of theirs.

    Raises:
        LookupError: there is none of that name. ValueError: a role or patterns that are none.
    """
    database = _database(settings)
    with contextlib.closing(database), database.write() as session:
        query = select(Person, Organization).join(Organization, Organization.pk == Person.organization_pk)
        where = Organization.is_root if organization is None else Organization.name == organization
        found = session.execute(query.where(Person.name == name, where)).one_or_none()
        if found is None:
            raise LookupError(f"there is no person {name!r}; `mld keys people` lists them")
        if disable:
            disable_person(session, found[0])
        else:
            change_person(found[0], role, models)
        return _person_row(found[0], found[1].name)


def _person_row(person: Person, organization: str) -> dict[str, Any]:
    names = ("id", "name", "role", "models", "created_at", "disabled_at")
    facts = {name: getattr(person, name) for name in names}
    return {"person_id": facts.pop("id"), "organization": organization, **facts}


def keys_list(settings: Settings) -> list[dict[str, Any]]:
    """All keys of all organizations, without their secrets."""
    database = _database(settings)
    query = select(ApiKey, Organization.name, Person)
    query = query.join(Organization, Organization.pk == ApiKey.organization_pk)
    query = query.outerjoin(Person, Person.pk == ApiKey.person_pk).order_by(ApiKey.pk)
    with contextlib.closing(database), database.read() as session:
        return [_row(*found) for found in session.execute(query)]


def keys_revoke(settings: Settings, key_id: str) -> dict[str, Any]:
    """Revoke a key by its id.

    Raises:
        LookupError: there is none of that id.
    """
    database = _database(settings)
    with contextlib.closing(database), database.write() as session:
        key = session.scalar(select(ApiKey).where(ApiKey.id == key_id))
        if key is None:
            known = ", ".join(session.scalars(select(ApiKey.id).limit(20))) or "none"
            raise LookupError(f"there is no key {key_id!r} (keys: {known}); `mld keys list` shows them")
        key.revoked_at = key.revoked_at or utc_now()
        owner = session.get_one(Organization, key.organization_pk)
        return _row(key, owner.name)


def _row(key: ApiKey, organization: str, person: Person | None = None) -> dict[str, Any]:
    names = ("name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")
    facts = {name: getattr(key, name) for name in names}
    if person is not None:
        facts |= {"scopes": ",".join(ROLES[cast("Role", person.role)])}
    return {"key_id": key.id, "organization": organization, **facts, "person": person.name if person else ""}


def write_document(path: Path) -> None:
    """Write the OpenAPI document."""
    path.write_text(json.dumps(document(create_app(None)), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_document(Path(sys.argv[1]))
