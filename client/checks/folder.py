"""Checks of the site's own folder: its keys, its policy, its record."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client.checks.result import CheckResult, failed, passed
from client.guard import Guard
from client.home import SiteHome
from client.leaving import waiting_key_file
from client.policy import PolicyError, load_policy
from client.record import RecordError
from privacy.signing import SignatureError

RESTORE = "restore the folder's keys from your backup, or join again with new keys under another name"


def check_keys(site: SiteHome) -> CheckResult:
    """The private keys are there, are keys, and are readable by the site's own user alone."""
    files = [site.receipt_key_file, site.node_key, site.worker_secret, site.fingerprint_secret]
    for file in files:
        fault = _not_private(file, site.path)
        if fault is not None:
            return fault
    try:
        site.receipt_key()
        node = load_ssh_private_key(site.node_key.read_bytes(), None)
        if node.public_key() != load_ssh_public_key(site.node_public_key.encode()):
            return failed("keys", "keys/node.pub does not belong to keys/node", RESTORE)
    except (OSError, SignatureError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        return failed("keys", f"a key cannot be used ({type(error).__name__})", RESTORE)
    if waiting_key_file(site).exists():
        return failed(
            "keys", "a rotation of the receipt key was interrupted", "run fedtwin site rotate-keys again"
        )
    return passed("keys", "there, and private to this user")


def _not_private(file: Path, home: Path) -> CheckResult | None:
    shown = file.relative_to(home)
    try:
        status = file.stat()
    except FileNotFoundError:
        return failed("keys", f"{shown} is missing", RESTORE)
    except OSError as error:
        return failed("keys", f"{shown} cannot be read ({error.strerror})", "run this as the site's own user")
    if status.st_uid != os.geteuid():
        return failed(
            "keys", f"{shown} belongs to another user", "run this, and the site, as the keys' owner"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        return failed(
            "keys",
            f"{shown} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 600 {shown}; if others use this machine, join again with new keys",
        )
    return None


def check_policy(site: SiteHome) -> CheckResult:
    """The policy can be used; what it allows, in short."""
    try:
        policy = load_policy(site.policy_file)
    except PolicyError as error:
        return failed(
            "policy", str(error), f"correct {site.policy_file.name}; until then everything is refused"
        )
    return passed(
        "policy",
        f"epsilon {policy.epsilon_per_study:g} per study, {policy.epsilon_total:g} in total; "
        f"approval {policy.approval}",
    )


def check_record(site: SiteHome) -> CheckResult:
    """The record of what was spent is whole: chain, form, and every spend recomputed."""
    if not site.record_file.exists():
        return passed("record", "none yet; the first question of a study begins it")
    try:
        Guard(site.record_file, load_policy(site.policy_file)).verify()
    except PolicyError:
        return failed("record", "not checked", "first put the policy right")
    except RecordError as error:
        return failed(
            "record",
            str(error),
            f"stop the site, keep {site.record_file.name} as it is, and find out who changed it",
        )
    return passed("record", "its hash chain holds")
