"""A site's signed word that it leaves a federation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from privacy.envelope import open_statement, sign_statement
from privacy.signing import SignatureError, SigningKey, VerifyKey

LEAVING_TYPE: Final = "application/vnd.fedtwin.leaving+json"


def sign_leaving(key: SigningKey, *, ledger: VerifyKey) -> dict[str, Any]:
    """The envelope that says: this site leaves the federation with this ledger. For good, so no nonce is needed."""
    return sign_statement(LEAVING_TYPE, {"site": key.name, "ledger_key": ledger.text}, [key])


def open_leaving(envelope: Mapping[str, Any], key: VerifyKey, *, ledger: VerifyKey) -> None:
    """Check such an envelope.

    Args:
        key: the site's, as it is enrolled.
        ledger: the federation's, so that the word to one is no word to another.

    Raises:
        SignatureError: another signer, site or federation, or a signature that does not hold.
    """
    statement = open_statement(envelope, LEAVING_TYPE, [key])
    if statement != {"site": key.name, "ledger_key": ledger.text}:
        raise SignatureError(f"the signed word is not that site {key.name!r} leaves this federation")
