"""Keys: made once, kept as hashes, compared in constant time.

A key is `mldbg_<id>_<secret>`: the id finds the row, the secret is 256 random bits. Because it is random
and long, one SHA-256 is enough; a slow password hash would only slow every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import utc_now
from mld_core.service.protocol import KEY_PREFIX, ROLES, SCOPES, Role
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import ApiKey, Organization, Person, new_id

ROOT_NAME = "default"
ALL_MODELS = "*"
"""The pattern of who sees all models."""
_KEY = re.compile(rf"{KEY_PREFIX}([0-9a-f]{{24}})_([0-9a-f]{{64}})")
# What a wrong id is compared with, so that it takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()
_REMEMBERED = 10_000
_TOUCH_AFTER = timedelta(minutes=1)


@dataclass(frozen=True)
class Principal:
    """Whose key came with a request."""

    key_id: str
    key_name: str
    organization_pk: int
    organization_id: str
    organization: str
    is_root: bool
    scopes: frozenset[str]
    expires_at: str | None
    person: str = ""
    role: str | None = None
    models: tuple[str, ...] = (ALL_MODELS,)

    @property
    def sees_all(self) -> bool:
        """Whether every model of the organization is to be seen."""
        return ALL_MODELS in self.models

    @property
    def who(self) -> str:
        """The person, or the key where it is nobody's."""
        return f"{self.organization_id} {self.person}" if self.person else self.key_id


def hash_secret(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    session: Session,
    organization: Organization,
    name: str,
    scopes: Sequence[str],
    expires_in_days: float | None = None,
    person: Person | None = None,
) -> tuple[ApiKey, str]:
    """Add a key and return its row and the key itself, which is not kept. A person's has their role's scopes.

    Raises:
        ValueError: an unknown scope, or none.
    """
    if person is not None:
        scopes = ROLES[cast("Role", person.role)]
    wanted = [scope for scope in SCOPES if scope in scopes]
    if not wanted or set(scopes) - set(SCOPES):
        raise ValueError(f"scopes={list(scopes)}: expected one or more of {', '.join(SCOPES)}")
    secret = secrets.token_hex(32)
    until = None
    if expires_in_days is not None:
        until = datetime.now(timezone.utc) + timedelta(days=expires_in_days)
    row = ApiKey(
        id=new_id("key"),
        organization_pk=organization.pk,
        name=name,
        secret_hash=hash_secret(secret),
        scopes=",".join(wanted),
        created_at=utc_now(),
        expires_at=until.isoformat(timespec="microseconds") if until else None,
        person_pk=person.pk if person is not None else None,
    )
    session.add(row)
    session.flush()
    return row, f"{KEY_PREFIX}{row.id.removeprefix('key_')}_{secret}"


def find_or_create_organization(session: Session, name: str, *, root: bool = False) -> Organization:
    """The organization of that name."""
    found = session.scalar(select(Organization).where(Organization.name == name))
    if found is None:
        found = Organization(id=new_id("org"), name=name, is_root=root, blob_bytes=0, created_at=utc_now())
        session.add(found)
        session.flush()
    return found


def bootstrap(database: Database) -> str | None:
    """In an empty database, make the root organization and its first key; return the key, else None."""
    with database.write() as session:
        if session.scalar(select(Organization.pk).limit(1)) is not None:
            return None
        root = find_or_create_organization(session, ROOT_NAME, root=True)
        return create_key(session, root, "first key", SCOPES)[1]


def key_id_of(header: str | None) -> str:
    """The id of the key in an `Authorization` header, whether there is such a key or not; "" without one.

    >>> key_id_of("Bearer mldbg_" + "0" * 24 + "_" + "f" * 64)
    'key_000000000000000000000000'
    """
    match = _match(header)
    return f"key_{match[1]}" if match is not None else ""


def _match(header: str | None) -> re.Match[str] | None:
    scheme, _, text = (header or "").partition(" ")
    return _KEY.fullmatch(text.strip()) if scheme.lower() == "bearer" else None


def authenticate(database: Database, header: str | None) -> Principal | None:
    """Whose key an `Authorization` header holds; None if it is none, or wrong, expired or revoked."""
    match = _match(header)
    if match is None:
        return None
    found = _row(database, f"key_{match[1]}")
    expected = found[0].secret_hash if found is not None else _NOBODY
    right = hmac.compare_digest(expected, hash_secret(match[2]))
    return _active(database, found) if right else None


def active(database: Database, key_id: str) -> Principal | None:
    """Whose key that is, for who showed it before; None if it is revoked or expired by now."""
    return _active(database, _row(database, key_id))


def _row(database: Database, key_id: str) -> tuple[ApiKey, Organization, Person | None] | None:
    query = (
        select(ApiKey, Organization, Person)
        .join(Organization, Organization.pk == ApiKey.organization_pk)
        .outerjoin(Person, Person.pk == ApiKey.person_pk)
        .where(ApiKey.id == key_id)
    )
    with database.read() as session:
        found = session.execute(query).one_or_none()
    return None if found is None else (found[0], found[1], found[2])


def _active(database: Database, found: tuple[ApiKey, Organization, Person | None] | None) -> Principal | None:
    if found is None:
        return None
    now = utc_now()
    key, organization, person = found
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        return None
    if person is not None and person.disabled_at is not None:
        return None
    _touch(database, key, now)
    scopes = key.scopes.split(",")
    return _principal(organization, person, key.id, key.name, scopes=scopes, expires_at=key.expires_at)


def signed_in(database: Database, name: str) -> Principal | None:
    """The person of the root organization whom a trusted proxy signed in; None for a stranger."""
    query = (
        select(Organization, Person)
        .join(Person, Person.organization_pk == Organization.pk)
        .where(Organization.is_root, Person.name == name, Person.disabled_at.is_(None))
    )
    with database.read() as session:
        found = session.execute(query).one_or_none()
    return None if found is None else _principal(found[0], found[1], found[1].id, name)


def _principal(
    organization: Organization,
    person: Person | None,
    key_id: str,
    key_name: str,
    *,
    scopes: Sequence[str] = (),
    expires_at: str | None = None,
) -> Principal:
    if person is not None:
        scopes = ROLES[cast("Role", person.role)]
    return Principal(
        key_id=key_id,
        key_name=key_name,
        organization_pk=organization.pk,
        organization_id=organization.id,
        organization=organization.name,
        is_root=organization.is_root,
        scopes=frozenset(scopes),
        expires_at=expires_at,
        person=person.name if person is not None else "",
        role=person.role if person is not None else None,
        models=tuple(person.models) if person is not None else (ALL_MODELS,),
    )


class Authenticator:
    """`authenticate` with the answers of the last second remembered, by the hash of the header.

    A key that is revoked through the server is refused at once; one that is revoked by `mld keys revoke`,
    which is another process, within a second.
    """

    def __init__(self, database: Database, seconds: float = 1.0) -> None:
        self._database = database
        self._seconds = seconds
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def remembered(self, header: str | None) -> Principal | None:
        """The answer, if it was given a moment ago."""
        found = self._known.get(_header_hash(header))
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def ask(self, header: str | None) -> Principal | None:
        """The answer of the database."""
        until = time.monotonic() + self._seconds
        known = self._known  # `forget` puts another in its place: what was asked before it is not remembered
        principal = authenticate(self._database, header)
        if principal is not None:
            if len(known) > _REMEMBERED:
                known.clear()
            known[_header_hash(header)] = (until, principal)
        return principal

    def by_id(self, key_id: str) -> Principal | None:
        """The principal of a key that was shown before, as the database knows it now."""
        return active(self._database, key_id)

    def person(self, name: str) -> Principal | None:
        """The person a trusted proxy signed in, as the database knows them now."""
        return signed_in(self._database, name)

    def forget(self) -> None:
        """Ask the database again for every key."""
        self._known = {}


def _header_hash(header: str | None) -> bytes:
    return hashlib.sha256((header or "").encode("utf-8", "surrogatepass")).digest()


def _touch(database: Database, key: ApiKey, now: str) -> None:
    """Note the use, at most once a minute: a read must not become a write each time."""
    last = datetime.fromisoformat(key.last_used_at) if key.last_used_at else None
    if last is not None and datetime.now(timezone.utc) - last < _TOUCH_AFTER:
        return
    with database.write() as session:
        session.execute(update(ApiKey).where(ApiKey.pk == key.pk).values(last_used_at=now))
