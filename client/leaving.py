"""What a site tells the coordinator by its own signature: that it leaves, or that its receipt key is another."""

from __future__ import annotations

import os
from pathlib import Path

from client.home import SiteHome
from client.joining import JoinError, call
from client.witness import Witness
from privacy.cli.folders import write_private
from privacy.leaving import sign_leaving
from privacy.ledger import rotate_key
from privacy.signing import SigningKey, VerifyKey


def leave(site: SiteHome) -> None:
    """Leave the federation, for good; the folder and its record stay.

    Raises:
        JoinError: nobody answers, or the coordinator refuses.
    """
    envelope = sign_leaving(site.receipt_key(), ledger=Witness(site).coordinator)
    _say(site, "leave", envelope)


def rotate_receipt_key(site: SiteHome) -> VerifyKey:
    """Make another receipt key, have the coordinator take it, and only then put it in the old one's place.

    Interrupted anywhere it can be run again: the new key waits beside the old one until the coordinator has it.

    Returns:
        The public half of the new key.

    Raises:
        JoinError: nobody answers, or the coordinator refuses; the old key is still the site's.
    """
    waiting = waiting_key_file(site)
    if not waiting.exists():
        draft = waiting.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        write_private(draft, SigningKey.generate(name=site.name).to_pem())
        draft.replace(waiting)
    new = SigningKey.from_pem(waiting.read_bytes(), name=site.name)
    _say(site, "key", dict(rotate_key("site", site.receipt_key(), new).envelope))
    waiting.replace(site.receipt_key_file)
    site.invitation_file.unlink(missing_ok=True)  # it was answered with the old key
    folder = os.open(waiting.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return new.public


def waiting_key_file(site: SiteHome) -> Path:
    """Where a new receipt key waits for the coordinator; absent unless a rotation was interrupted."""
    return site.receipt_key_file.with_suffix(".new")


def _say(site: SiteHome, what: str, envelope: dict[str, object]) -> None:
    if not site.coordinator_url:
        raise JoinError(
            "coordinator.url is empty in site.toml; write the address of the coordinator's API there"
        )
    call(
        site.coordinator_url,
        site.ca_certificate.read_text(),
        "POST",
        f"/v1/sites/{site.name}/{what}",
        {"envelope": envelope},
    )
