"""The site as a witness of the coordinator's ledger: it countersigns only a history that continues what it saw.

The site pins the coordinator's key when it joins. A key that replaces it is believed if the key known before has
signed so, and is kept; whoever holds only the new key can show the site nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from client.home import SiteHome
from privacy.checkpoint import Checkpoint, open_checkpoint, witness
from privacy.cli.folders import write_durably
from privacy.ledger import KeyRotated
from privacy.merkle import LedgerVerificationError
from privacy.signing import VerifyKey


class Witness:
    """Remembers the newest checkpoint it has seen, on the site's disk.

    Args:
        site: its folder, its own key, and the coordinator's as pinned when it joined.
    """

    def __init__(self, site: SiteHome) -> None:
        self._file = site.state / "newest.checkpoint"
        self._key = site.receipt_key()
        self._pinned = site.coordinator_key
        self._rotations = site.state / "coordinator-keys.json"

    def seen(self) -> Checkpoint | None:
        """The newest checkpoint this site has countersigned; None before the first.

        Raises:
            LedgerVerificationError: the file is not what this site kept.
        """
        if not self._file.is_file():
            return None
        note = self._file.read_bytes()
        for key in reversed(self._keys(self._kept())):
            with suppress(LedgerVerificationError):
                return open_checkpoint(note, key)
        return open_checkpoint(note, self._pinned)

    @property
    def coordinator(self) -> VerifyKey:
        """The coordinator's key in force, as far as this site has been shown."""
        return self._keys(self._kept())[-1]

    def _kept(self) -> list[Any]:
        return list(json.loads(self._rotations.read_bytes())) if self._rotations.is_file() else []

    def _keys(self, envelopes: Sequence[Any]) -> list[VerifyKey]:
        """The pinned key and those that have replaced it, oldest first; what replaces another key is left out."""
        keys = [self._pinned]
        for envelope in envelopes:
            try:
                role, old, new = KeyRotated(envelope=envelope).open()
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise LedgerVerificationError(f"a replacement of the coordinator's key: {error}") from error
            if role == "coordinator" and old == keys[-1]:
                keys.append(new)
        return keys

    def _follow(self, shown: Mapping[str, Any]) -> VerifyKey:
        """The coordinator's key in force, by what is shown; a replacement is kept before it is relied on."""
        envelopes = shown.get("rotations", [])
        if not isinstance(envelopes, list):
            raise LedgerVerificationError("the replacements of the coordinator's key are no list")
        known, told = self._keys(self._kept()), self._keys(envelopes)
        if told[: len(known)] != known:
            raise LedgerVerificationError(
                "the replacements of the coordinator's key shown are not those seen before"
            )
        if len(told) > len(known):
            write_durably(self._rotations, json.dumps(envelopes).encode())
        return told[-1]

    def look(self, shown: Mapping[str, Any] | None) -> dict[str, Any]:
        """Check a checkpoint, remember it durably, and only then countersign it.

        The one seen last is countersigned again, whatever the proof begins at: the coordinator may ask a second time
        because it never got the answer, and cannot know then what this site has seen.

        Args:
            shown: as `models.exchange.RoundRequest.checkpoint`.

        Returns:
            `size`: of the newest checkpoint seen; `signature`: the countersignature's line, or None where the
            proof begins at another checkpoint than the one seen last (the coordinator may then try again).

        Raises:
            LedgerVerificationError: a wrong signature, another history, or no
                checkpoint at all. The note is kept as evidence.
        """
        if not isinstance(shown, Mapping | None):
            raise LedgerVerificationError(f"the checkpoint shown is a {type(shown).__name__}, not an object")
        seen = self.seen()
        size = 0 if seen is None else seen.size
        if shown is None:
            return {"size": size, "signature": None}
        note = str(shown.get("note", "")).encode(errors="replace")
        try:
            coordinator = self._follow(shown)
            again = seen is not None and open_checkpoint(note, coordinator) == seen
            if seen is not None and not again and shown.get("since") != size:
                return {"size": size, "signature": None}
            line = witness(
                note,
                self._key,
                coordinator=coordinator,
                seen=seen,
                proof=[] if again else _read_proof(shown),
                timestamp=int(time.time()),
            )
        except LedgerVerificationError:
            write_durably(self._file.with_name(f"refused-{int(time.time())}.checkpoint"), note)
            raise
        write_durably(self._file, note)
        return {"size": open_checkpoint(note, coordinator).size, "signature": line}


def _read_proof(shown: Mapping[str, Any]) -> list[bytes]:
    try:
        return [bytes.fromhex(part) for part in shown["proof"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerVerificationError(
            f"the consistency proof cannot be read ({type(error).__name__})"
        ) from error
