"""Replacing the key that signs the ledger: an entry that both keys have signed, and the head by the new one.

The new key is on the disk before the entry, and takes the old one's place after it. A crash between leaves both, and
running it again finishes. Processes that hold the old key can sign nothing more: they fail until they are restarted.
"""

from __future__ import annotations

from privacy.checkpoint import open_checkpoint
from privacy.cli.folders import sync_folder, write_private
from privacy.ledger import rotate_key
from privacy.merkle import LedgerVerificationError
from privacy.signing import SigningKey, VerifyKey
from server import ledger_store
from server.home import CoordinatorHome
from server.store import Store


def rotate_ledger_key(home: CoordinatorHome, store: Store) -> VerifyKey:
    """Replace the coordinator's key; again finishes what was interrupted.

    Args:
        home: whose key files.
        store: opened from it, with the key in use.

    Returns:
        The key that signs from now on. Sites that have pinned an earlier one follow by the entry.

    Raises:
        LedgerVerificationError: the ledger is not under the key in use.
    """
    draft = home.signing_key_file.with_suffix(".next.pem")
    if not draft.exists():
        write_private(draft, SigningKey.generate(name=store.key.name).to_pem())
        sync_folder(draft.parent)
    new = SigningKey.from_pem(draft.read_bytes(), name=store.key.name)
    if not _is_signed_by(store, new.public):
        with store.database.write() as session:
            body = rotate_key("coordinator", store.key, new)
            ledger_store.append(store, session, [body], successor=new)
    draft.replace(home.signing_key_file)
    sync_folder(home.signing_key_file.parent)
    return new.public


def _is_signed_by(store: Store, key: VerifyKey) -> bool:
    newest = ledger_store.latest_checkpoint(store)
    if newest is None:
        return False
    try:
        open_checkpoint(newest.encode(), key)
    except LedgerVerificationError:
        return False
    return True
