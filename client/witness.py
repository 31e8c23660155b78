"""The site as a witness of the coordinator's ledger: it countersigns only a history that continues what it saw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.checkpoint import Checkpoint, open_checkpoint, witness
from privacy.cli.folders import write_durably
from privacy.merkle import LedgerVerificationError
from privacy.signing import SigningKey, VerifyKey


class Witness:
    """Remembers the newest checkpoint it has seen, on the site's disk.

    Args:
        file: where that checkpoint's note is kept.
        key: the site's own key.
        coordinator: the coordinator's key as pinned when the site joined.
    """

    def __init__(self, file: Path, key: SigningKey, coordinator: VerifyKey) -> None:
        self._file = file
        self._key = key
        self._coordinator = coordinator

    def seen(self) -> Checkpoint | None:
        """The newest checkpoint this site has countersigned; None before the first."""
        if not self._file.is_file():
            return None
        return open_checkpoint(self._file.read_bytes(), self._coordinator)

    def look(self, shown: Mapping[str, Any] | None) -> dict[str, Any]:
        """Check a checkpoint, remember it durably, and only then countersign it.

        The one seen last is countersigned again, whatever the proof begins at: the coordinator may ask a second time
        because it never got the answer, and cannot know then what this site has seen.

        Args:
            shown: `note`, `since`, `proof` as in `models.exchange.RoundRequest.checkpoint`.

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
            again = seen is not None and open_checkpoint(note, self._coordinator) == seen
            if seen is not None and not again and shown.get("since") != size:
                return {"size": size, "signature": None}
            line = witness(
                note,
                self._key,
                coordinator=self._coordinator,
                seen=seen,
                proof=[] if again else _read_proof(shown),
                timestamp=int(time.time()),
            )
        except LedgerVerificationError:
            write_durably(self._file.with_name(f"refused-{int(time.time())}.checkpoint"), note)
            raise
        write_durably(self._file, note)
        return {"size": open_checkpoint(note, self._coordinator).size, "signature": line}


def _read_proof(shown: Mapping[str, Any]) -> list[bytes]:
    try:
        return [bytes.fromhex(part) for part in shown["proof"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerVerificationError(
            f"the consistency proof cannot be read ({type(error).__name__})"
        ) from error
