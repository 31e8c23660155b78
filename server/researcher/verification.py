"""A downloaded cohort checked offline: its files, its certificate, and that the ledger has it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.api_client import digest_of_file


class UnreadableCohortError(ValueError):
    """A folder that holds no cohort that can be read."""


@dataclass(frozen=True, kw_only=True)
class CheckedCohort:
    """What was checked and holds, and what was not there to be checked.

    Attributes:
        statement: of the certificate: what was drawn from what, and what it cost whom.
        ledger_index: of the cohort's entry.
        checked: names of the files that are unchanged; those in the archive too.
        packed: how many of them lie in `cohort.zip`.
        missing: names of files that the certificate tells of and that are not here.
        unfinished: downloads that broke off.
    """

    statement: Mapping[str, Any]
    ledger_index: int
    checked: tuple[str, ...]
    packed: int
    missing: tuple[str, ...]
    unfinished: tuple[str, ...]

    def __repr__(self) -> str:
        told = self.statement
        lines = [
            f"Holds: cohort {told['cohort']}, {told['num_patients']} synthetic patients, in the ledger",
            f"at index {self.ledger_index}; study {told['study']['name']}.",
        ]
        for site in told["privacy"]["sites"]:
            lines.append(
                f"  {site['site']}: epsilon {site['epsilon']} at delta {site['delta']}, cap {site['cap']}"
            )
        lines.append(f"Unchanged: {', '.join(self.checked) or 'no file is here'}")
        if self.packed:
            lines.append(f"cohort.zip holds {self.packed} of them.")
        if self.missing:
            lines.append(f"Not here, so not checked: {', '.join(self.missing)}")
        if self.unfinished:
            lines.append(f"Downloads that broke off, not checked; fetch again: {', '.join(self.unfinished)}")
        return "\n".join(lines)


def verify_folder(folder: Path | str, ledger_key: str) -> CheckedCohort:
    """Check a cohort's folder; needs no server.

    Args:
        folder: with `certificate.json`; whatever other files of the cohort are there are checked.
        ledger_key: the coordinator's, `name+hash+base64`, from its operator or `federation.json`; never from the
            cohort itself.

    Raises:
        LedgerVerificationError: says what does not hold.
        SignatureError: `ledger_key` is no key.
        UnreadableCohortError: there is no cohort in the folder.
    """
    from privacy.cohort_certificate import CERTIFICATE_FILE, verify_certificate
    from privacy.signing import VerifyKey

    folder = Path(folder)
    key = VerifyKey.from_text(ledger_key)
    if not (folder / CERTIFICATE_FILE).is_file():
        raise UnreadableCohortError(
            f"{folder} holds no cohort: there is no {CERTIFICATE_FILE} in it; name the folder that a cohort was "
            "downloaded into, such as cohorts/cohort-..."
        )
    try:
        certificate = json.loads((folder / CERTIFICATE_FILE).read_bytes())
        files, unfinished = _files_of(folder)
        packed = _files_in(folder / "cohort.zip")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnreadableCohortError(f"{folder} holds no readable cohort: {error}") from error
    verify_certificate(certificate, key, files)
    verify_certificate(certificate, key, packed)
    checked = {**files, **packed}
    return CheckedCohort(
        statement=certificate["statement"],
        ledger_index=certificate["ledger"]["index"],
        checked=tuple(sorted(checked)),
        packed=len(packed),
        missing=tuple(sorted(set(certificate["statement"]["files"]) - set(checked))),
        unfinished=tuple(unfinished),
    )


def _files_of(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Digests of a cohort's files by their names in the certificate, and downloads that broke off."""
    from privacy.cohort_certificate import CERTIFICATE_FILE

    found: dict[str, str] = {}
    unfinished = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or name == CERTIFICATE_FILE:
            continue
        if path.suffix == ".part":
            unfinished.append(name)
        else:
            found[name] = digest_of_file(path)
    return found, unfinished


def _files_in(archive: Path) -> dict[str, str]:
    """Digests of the files that a cohort's zip holds; none where there is no zip."""
    if not archive.is_file():
        return {}
    found = {}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            with opened.open(name) as file:
                found[name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]
    return found
