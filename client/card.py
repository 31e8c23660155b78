"""A site's card: its public keys and its policy, which is all that the coordinator is given to enrol it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client.home import SiteHome
from client.policy import load_policy


def card_of(site: SiteHome) -> dict[str, Any]:
    """The card as JSON data; nothing in it is secret.

    Raises:
        PolicyError: the policy cannot be used.
    """
    return {
        "name": site.name,
        "receipt_key": site.receipt_key().public.text,
        "node_public_key": site.node_public_key,
        "policy": load_policy(site.policy_file).to_dict(),
    }


def write_card(site: SiteHome) -> Path:
    """Write the card to `card.json` in the site's folder; returns the file.

    Raises:
        PolicyError: the policy cannot be used.
    """
    file = site.path / "card.json"
    file.write_text(json.dumps(card_of(site), indent=2))
    return file
