"""Keys and organizations."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from mld_core.records.format.manifest import utc_now
from mld_core.service import protocol
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import BoundedRoute, PrincipalDep, ServiceDep, page, shown
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal, create_key
from mld_core.service.server.storage.models import ApiKey, Organization, new_id

router = APIRouter(prefix="/v1", tags=["admin"], route_class=BoundedRoute)


def key_out(key: ApiKey, organization_id: str) -> protocol.Key:
    """What is shown of a key: never its secret."""
    scopes = key.scopes.split(",")
    return shown(key, protocol.Key, key_id=key.id, organization_id=organization_id, scopes=scopes)


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
    with service.database.write() as session:
        row, key = create_key(session, organization, form.name, form.scopes, form.expires_in_days)
    return {**key_out(row, organization.id), "key": key}


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
    return {"items": [key_out(row, principal.organization_id) for row in rows], "next": after}


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
    service.keys.forget()
    return key_out(key, principal.organization_id)


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
