"""/v1/sites: enrol a site by its card, look at who takes part."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from server import sites
from server.api.auth import Operator, OperatorOrAuditor, StoreDep
from server.api.problems import responses
from server.api.starter import RunStarter
from server.tables import SiteState

router = APIRouter(prefix="/v1/sites", tags=["sites"])
TEXT = r"^[^\x00-\x1f\x7f]*$"


class SiteCard(BaseModel):
    """What `fedtwin site init` writes into card.json; nothing in it is secret."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "saint-mary",
                "receipt_key": "saint-mary+1a2b3c4d+AZx...",
                "node_public_key": "ecdsa-sha2-nistp384 AAAAE2VjZHNh...",
                "policy": {"epsilon_per_study": "3.0", "epsilon_total": None, "max_delta": "1e-05"},
            }
        },
    )
    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    title: str = Field(default="", max_length=200, pattern=TEXT)
    receipt_key: str = Field(max_length=300, pattern=TEXT)
    node_public_key: str = Field(min_length=1, max_length=1024, pattern=TEXT)
    policy: dict[str, Any]


class SiteOut(BaseModel):
    """An enrolled site."""

    name: str
    title: str
    state: str = Field(examples=["enrolled"])
    receipt_key: str
    node_id: str | None = Field(description="The Flower node's number, once it is registered.")
    policy: dict[str, Any] = Field(description="The caps that the site's own guard enforces.")
    policy_digest: str
    enrolled_at: dt.datetime


class SiteStateIn(BaseModel):
    """What the site is from now on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"state": "suspended"}})
    state: SiteState


class SiteList(BaseModel):
    """All sites."""

    items: list[SiteOut]


@router.post("", status_code=201, summary="Enrol a site", responses=responses(409))
def enrol_site(card: SiteCard, _key: Operator, store: StoreDep, request: Request) -> SiteOut:
    """Admit a site: its keys and policy become ledger entries, and its node may connect.

    The same card again changes nothing; the same keys with another policy record the new policy.
    """
    site = sites.enrol_site(
        store,
        name=card.name,
        title=card.title,
        receipt_key=card.receipt_key,
        node_public_key=card.node_public_key,
        policy=card.policy,
    )
    starter: RunStarter = request.app.state.starter
    starter.admit_sites()
    return site_out(sites.get_site(store, site.name))


@router.put("/{name}/state", summary="Suspend, take back or remove a site", responses=responses(404, 409))
def set_state(name: str, wanted: SiteStateIn, _key: Operator, store: StoreDep, request: Request) -> SiteOut:
    """A suspended site is not asked in new runs; one that left is out for good, with a ledger entry."""
    sites.set_state(store, name, wanted.state)
    starter: RunStarter = request.app.state.starter
    starter.admit_sites()
    return site_out(sites.get_site(store, name))


@router.get("", summary="List sites", responses=responses())
def list_sites(_key: OperatorOrAuditor, store: StoreDep) -> SiteList:
    """All sites by name."""
    return SiteList(items=[site_out(site) for site in sites.list_sites(store)])


@router.get("/{name}", summary="Show a site", responses=responses(404))
def get_site(name: str, _key: OperatorOrAuditor, store: StoreDep) -> SiteOut:
    """One site."""
    return site_out(sites.get_site(store, name))


def site_out(site: sites.Site) -> SiteOut:
    """The site as the API shows it."""
    return SiteOut(
        name=site.name,
        title=site.title,
        state=site.state,
        receipt_key=site.receipt_key,
        node_id=site.node_id,
        policy=dict(site.policy),
        policy_digest=site.policy_digest,
        enrolled_at=site.enrolled_at,
    )
