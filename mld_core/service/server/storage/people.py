"""People of an organization: their roles, and the models they may see.

A person sees the runs whose model's name one of their patterns fits; `*` in a pattern stands for any text.
What hangs on a run (passes, seals, jobs, results) is seen with it. A file is seen with a run that holds it,
or while no run holds it, or by who sent its bytes: to know a digest is not enough.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, false, literal, or_, select, true, update
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import utc_now
from mld_core.service.protocol import ROLES
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import ALL_MODELS, Principal
from mld_core.service.server.storage.models import (
    ApiKey,
    Blob,
    Organization,
    Pass,
    Person,
    Result,
    ResultFile,
    Run,
    Seal,
    SealFile,
    new_id,
)

MAX_PATTERNS = 100
MAX_PATTERN = 300
MAX_STARS = 3
_PROVED = 100_000
_CHUNK = 400


def sees(patterns: Sequence[str], model_name: str) -> bool:
    """Whether one of the patterns fits a model's name; letters count as they are written.

    >>> sees(["resnet*", "a.b"], "resnet18"), sees(["resnet*"], "Resnet18"), sees(["a.b"], "axb")
    (True, False, False)
    """
    return any(_fits(pattern.split("*"), model_name) for pattern in patterns)


def _fits(pieces: list[str], name: str) -> bool:
    """Whether a name is these pieces with any text between them; in linear time."""
    first, *between = pieces
    if not between:
        return name == first
    last = between.pop()
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for piece in between:
        at = name.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def seen_runs(session: Session, principal: Principal) -> ColumnElement[bool]:
    """What is true of the runs a principal may see, by both databases' own means."""
    mine = Run.organization_pk == principal.organization_pk
    if principal.sees_all:
        return mine
    if session.get_bind().dialect.name == "sqlite":
        fits = [Run.model_name.op("GLOB", is_comparison=True)(_glob(one)) for one in principal.models]
    else:
        fits = [Run.model_name.like(_like(one), escape="\\") for one in principal.models]
    return mine & or_(false(), *fits)


def _glob(pattern: str) -> str:
    """A pattern as SQLite's GLOB has it: what is special there and not here stands in brackets."""
    return re.sub(r"[\[?]", lambda match: f"[{match[0]}]", pattern)


def _like(pattern: str) -> str:
    """A pattern as LIKE has it."""
    return re.sub(r"[\\%_]", lambda match: f"\\{match[0]}", pattern).replace("*", "%")


def checked(role: str, models: Sequence[str]) -> list[str]:
    """The patterns, each once.

    Raises:
        ValueError: an unknown role, no patterns or ones that are none, or an admin who does not see all: who
            makes keys could make one that does.
    """
    if role not in ROLES:
        raise ValueError(f"role={role!r}: expected one of {', '.join(ROLES)}")
    found = list(dict.fromkeys(models))
    right = [one for one in found if 0 < len(one) <= MAX_PATTERN and one.count("*") <= MAX_STARS]
    if right != found or not 0 < len(found) <= MAX_PATTERNS:
        expected = f"1 to {MAX_PATTERNS} names or patterns such as 'resnet*', with at most {MAX_STARS} *"
        raise ValueError(f"models={found!r}: expected {expected}")
    if role == "admin" and ALL_MODELS not in found:
        raise ValueError("models: an admin sees all models ('*'), since keys that do can be made by one")
    return found


def add_person(
    session: Session, organization: Organization, name: str, role: str, models: Sequence[str]
) -> Person:
    """Add a person.

    Raises:
        ValueError: as `checked`. IntegrityError: there is one of that name.
    """
    found = Person(
        id=new_id("person"),
        organization_pk=organization.pk,
        name=name,
        role=role,
        models=checked(role, models),
        created_at=utc_now(),
    )
    session.add(found)
    session.flush()
    return found


def find_person(session: Session, organization_pk: int, name: str) -> Person | None:
    """The person of that name."""
    mine = (Person.organization_pk == organization_pk, Person.name == name)
    return session.scalar(select(Person).where(*mine))


def change_person(person: Person, role: str | None, models: Sequence[str] | None) -> None:
    """Set what is given. Raises ValueError as `checked`."""
    wanted = role or person.role
    person.models = checked(wanted, person.models if models is None else models)
    person.role = wanted


def disable_person(session: Session, person: Person) -> None:
    """Refuse a person, and all keys of theirs, from now on."""
    now = utc_now()
    person.disabled_at = person.disabled_at or now
    theirs = (ApiKey.person_pk == person.pk, ApiKey.revoked_at.is_(None))
    session.execute(update(ApiKey).where(*theirs).values(revoked_at=now))


class Sight:
    """Which files a principal may see. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._proved: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def proved(self, principal: Principal, sha256: str) -> None:
        """All bytes of a file came from a principal who does not see all."""
        if not principal.sees_all:
            with self._lock:
                self._proved[principal.who, sha256] = None
                while len(self._proved) > _PROVED:
                    self._proved.popitem(last=False)

    def hidden(self, principal: Principal, digests: Iterable[str]) -> set[str]:
        """The files among these that are there and not to be seen."""
        if principal.sees_all:
            return set()
        wanted = [sha256 for sha256 in digests if (principal.who, sha256) not in self._proved]
        found: set[str] = set()
        with self._database.read() as session:
            holds, shows = _holders(true()), _holders(seen_runs(session, principal))
            for start in range(0, len(wanted), _CHUNK):
                query = select(Blob.sha256).where(
                    Blob.organization_pk == principal.organization_pk,
                    Blob.sha256.in_(wanted[start : start + _CHUNK]),
                    holds,
                    ~shows,
                )
                found |= set(session.scalars(query))
        return found


def _holders(which: Any) -> ColumnElement[bool]:
    """Whether one of some runs holds a blob: as a file or manifest of a seal, or as a file of a result."""
    passes = select(literal(1)).select_from(Seal).join(Pass, Pass.pk == Seal.pass_pk)
    passes = passes.join(Run, Run.pk == Pass.run_pk).where(which)
    files = passes.join(SealFile, SealFile.seal_pk == Seal.pk).where(SealFile.blob_pk == Blob.pk)
    manifests = passes.where(Seal.manifest_blob_pk == Blob.pk)
    results = select(literal(1)).select_from(ResultFile).join(Result, Result.pk == ResultFile.result_pk)
    results = results.join(Run, Run.pk == Result.run_pk).where(which, ResultFile.blob_pk == Blob.pk)
    return or_(*(exists(one.correlate(Blob)) for one in (files, manifests, results)))
