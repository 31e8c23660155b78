"""What the sites of a run are asked, and the ledger's checkpoints that they witness with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from models.exchange import MessageKind, RoundReply, RoundRequest
from models.study import Study
from models.weights import seal
from privacy.merkle import LedgerVerificationError
from server import ledger_store
from server.errors import ServerError
from server.runs import Run
from server.store import Store


class RoundRequests:
    """Writes the requests of one run.

    Args:
        store: for the ledger.
        run, study: what the requests are of.
        say: tells the operator, with a level.
    """

    def __init__(self, store: Store, run: Run, study: Study, say: Callable[[str, str], None]) -> None:
        self._store, self._run, self._study, self._say = store, run, study, say
        self._witnessed: dict[str, int] = {}
        # The ledger's key is replaced while the server is down, so this holds for as long as the run is worked on.
        self._rotations = ledger_store.rotations(store)

    def write(
        self, kind: MessageKind, number: int, names: Collection[str], arrays: Mapping[str, Tensor]
    ) -> dict[str, RoundRequest]:
        """One request for each site; the same again is a retry, and a site takes it for one."""
        arrays = seal(arrays)  # encoded once for all sites
        return {
            name: RoundRequest(
                kind=kind,
                run=self._run.id,
                round=number,
                nonce=hashlib.sha256(f"{self._run.id}/{number}/{kind}/{name}".encode()).hexdigest(),
                study=self._study,
                arrays=arrays,
                checkpoint=self._checkpoint_for(name),
            )
            for name in names
        }

    def note_witness(self, site: str, reply: RoundReply) -> None:
        """Remember what the site has seen, and keep its countersignature; what makes no sense is dropped."""
        try:
            if reply.witness is None:
                return
            size, line = int(reply.witness["size"]), reply.witness.get("signature")
            self._witnessed[site] = size
            if line:
                ledger_store.add_cosignature(self._store, site=site, size=size, line=str(line))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            ServerError,
            LedgerVerificationError,
        ) as error:
            self._say(f"{site}: its countersignature does not hold: {error}", "warning")

    def _checkpoint_for(self, site: str) -> dict[str, object] | None:
        """The newest checkpoint with its consistency proof since the one that the site has seen."""
        newest = ledger_store.latest_checkpoint(self._store)
        if newest is None:
            return None
        since = self._witnessed.get(site)
        size = newest.checkpoint.size
        proof = ledger_store.prove_consistency(self._store, since, size) if since and since <= size else []
        return {
            "note": newest.encode().decode(),
            "since": since,
            "proof": [part.hex() for part in proof],
            "rotations": self._rotations,
        }
