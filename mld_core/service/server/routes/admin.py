"""Keys and organizations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import utc_now
from mld_core.service import protocol
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import BoundedRoute, PrincipalDep, ServiceDep, page, shown
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal, create_key
from mld_core.service.server.storage.models import ApiKey, Organization, Person, new_id
from mld_core.service.server.storage.people import add_person, change_person, disable_person

router = APIRouter(prefix="/v1", tags=["admin"], route_class=BoundedRoute)


def key_out(key: ApiKey, organization_id: str, person: Person | None) -> protocol.Key:
    """What is shown of a key: never its secret."""
    facts: dict[str, Any] = {"key_id": key.id, "organization_id": organization_id}
    facts |= {"person_id": person.id if person else None, "person": person.name if person else ""}
    scopes = protocol.ROLES[cast("protocol.Role", person.role)] if person else key.scopes.split(",")
    return shown(key, protocol.Key, **facts, scopes=list(scopes))


def person_out(person: Person) -> protocol.Person:
    """What is shown of a person."""
    return shown(person, protocol.Person, person_id=person.id)


def _organization(service: Service, principal: Principal, organization_id: str | None) -> Organization:
    wanted = organization_id or principal.organization_id
    with service.database.read() as session:
        found = session.scalar(select(Organization).where(Organization.id == wanted))
    if found is None or (found.pk != principal.organization_pk and not principal.is_root):
        raise not_found("organization", wanted)
    return found


@router.post("/keys", status_code=201)
def create(form: forms.KeyForm, service: ServiceDep, principal: PrincipalDep) -> protocol.NewKey:
    """Create a key; the answer shows it, and nothing ever will again."""
    organization = _organization(service, principal, form.organization_id)
    with service.database.write() as session, _told("scopes"):
        person = _active(_person(session, organization.pk, form.person_id)) if form.person_id else None
        row, key = create_key(
            session, organization, form.name, form.scopes or (), form.expires_in_days, person
        )
    return {**key_out(row, organization.id, person), "key": key}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a person or key may not be, as the answer that says so."""
    try:
        yield
    except ValueError as error:
        raise ProblemError("invalid", str(error), expectation=what, fix="correct the request") from None


def _person(session: Session, organization_pk: int, person_id: str) -> Person:
    query = select(Person).where(Person.id == person_id, Person.organization_pk == organization_pk)
    found = session.scalar(query)
    if found is None:
        raise not_found("person", person_id)
    return found


def _active(person: Person) -> Person:
    if person.disabled_at is not None:
        raise ProblemError(
            "conflict",
            f"{person.name!r} is refused since {person.disabled_at}",
            value=person.name,
            expectation="a person who is not",
            fix="add them by another name",
        )
    return person


@router.post("/people", status_code=201)
def create_person(form: forms.PersonForm, service: ServiceDep, principal: PrincipalDep) -> protocol.Person:
    """Add a person: they sign in through the team's proxy, or with a key that is made for them."""
    organization = _organization(service, principal, form.organization_id)
    try:
        with service.database.write() as session, _told("a role, and patterns of models"):
            return person_out(add_person(session, organization, form.name, form.role, form.models))
    except IntegrityError:
        raise ProblemError(
            "conflict",
            f"there is a person {form.name!r}",
            value=form.name,
            expectation="a new name",
            fix="change the one that is there: PATCH, or `mld keys roles`",
        ) from None


@router.get("/people")
def list_people(
    service: ServiceDep,
    principal: PrincipalDep,
    name: forms.NameFilter = None,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> dict[str, Any]:
    """The people of the key's organization, those who are refused too."""
    query = select(Person).where(Person.organization_pk == principal.organization_pk)
    if name is not None:
        query = query.where(Person.name == name)
    with service.database.read() as session:
        rows, after = page(session, query, Person, limit, cursor)
    return {"items": [person_out(row) for row in rows], "next": after}


@router.patch("/people/{person_id}")
def patch_person(
    person_id: forms.PersonId, form: forms.PersonPatchForm, service: ServiceDep, principal: PrincipalDep
) -> protocol.Person:
    """Set a person's role and the models they may see; it holds from the next request on."""
    with service.database.write() as session, _told("a role, and patterns of models"):
        person = _person(session, principal.organization_pk, person_id)
        change_person(person, form.role, form.models)
    service.keys.forget()
    return person_out(person)


@router.delete("/people/{person_id}")
def refuse_person(person_id: forms.PersonId, service: ServiceDep, principal: PrincipalDep) -> protocol.Person:
    """Refuse a person, and all keys of theirs, from the next request on. What they made stays."""
    with service.database.write() as session:
        person = _person(session, principal.organization_pk, person_id)
        disable_person(session, person)
    service.keys.forget()
    return person_out(person)


@router.get("/keys")
def list_keys(
    service: ServiceDep,
    principal: PrincipalDep,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> dict[str, Any]:
    """The keys of the key's organization, revoked ones too."""
    query = select(ApiKey).where(ApiKey.organization_pk == principal.organization_pk)
    with service.database.read() as session:
        rows, after = page(session, query, ApiKey, limit, cursor)
        owned = select(Person).where(Person.pk.in_({row.person_pk for row in rows if row.person_pk}))
        people = {person.pk: person for person in session.scalars(owned)}
    items = [key_out(row, principal.organization_id, people.get(row.person_pk or 0)) for row in rows]
    return {"items": items, "next": after}


@router.delete("/keys/{key_id}")
def revoke(key_id: forms.KeyId, service: ServiceDep, principal: PrincipalDep) -> protocol.Key:
    """Revoke a key of the key's organization; from the next request on it is refused."""
    with service.database.write() as session:
        key = session.scalar(
            select(ApiKey).where(ApiKey.id == key_id, ApiKey.organization_pk == principal.organization_pk)
        )
        if key is None:
            raise not_found("key", key_id)
        key.revoked_at = key.revoked_at or utc_now()
        person = session.get(Person, key.person_pk) if key.person_pk else None
    service.keys.forget()
    return key_out(key, principal.organization_id, person)


def organization_out(organization: Organization) -> dict[str, Any]:
    """What is shown of an organization."""
    return {
        "organization_id": organization.id,
        "name": organization.name,
        "root": organization.is_root,
        "blob_bytes": organization.blob_bytes,
        "created_at": organization.created_at,
    }


@router.post("/organizations", status_code=201)
def create_organization(form: forms.OrganizationForm, service: ServiceDep) -> dict[str, Any]:
    """Create an organization; for keys of the root organization."""
    found = Organization(id=new_id("org"), name=form.name, is_root=False, blob_bytes=0, created_at=utc_now())
    try:
        with service.database.write() as session:
            session.add(found)
    except IntegrityError:
        raise ProblemError(
            "conflict",
            f"there is an organization {form.name!r}",
            value=form.name,
            expectation="a new name",
            fix="use the one that is there, or another name",
        ) from None
    return organization_out(found)


@router.get("/organizations")
def list_organizations(
    service: ServiceDep, limit: forms.Limit = forms.PAGE, cursor: forms.Cursor = None
) -> dict[str, Any]:
    """All organizations; for keys of the root organization."""
    with service.database.read() as session:
        rows, after = page(session, select(Organization), Organization, limit, cursor)
    return {"items": [organization_out(row) for row in rows], "next": after}
