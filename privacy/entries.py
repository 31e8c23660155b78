"""The kinds of ledger entries: one frozen value per kind, validated when it is made.

Import them from `privacy.ledger`, which also writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, get_args

from privacy.budget import check_delta, check_epsilon
from privacy.canonical import check_digest, digest, digest_of_bytes
from privacy.envelope import envelope_parts, open_statement, sign_statement
from privacy.receipt import RECEIPT_TYPE, check_fields, check_round, check_text, parse_decimal
from privacy.signing import SignatureError, SigningKey, VerifyKey

ROTATION_TYPE: Final = "application/vnd.fedtwin.key-rotation+json"
ReleaseState = Literal["candidate", "published", "withheld", "withdrawn"]
KeyRole = Literal["coordinator", "site"]


@dataclass(frozen=True, kw_only=True)
class StudyDefined:
    """A study, whole: everything that a site agrees to is in its digest.

    Attributes:
        definition: `Study.to_dict()`; opaque here but for its `privacy.epsilon` and `privacy.delta`.
        epsilon, delta: the budget of each site for everything the study ever does there.
    """

    KIND: ClassVar = "study"
    definition: Mapping[str, Any]
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)
        budget = self.definition.get("privacy")
        if isinstance(budget, Mapping) and (budget.get("epsilon"), budget.get("delta")) != (
            self.epsilon,
            self.delta,
        ):
            raise ValueError(f"epsilon and delta are not those of the definition: {budget!r}")

    @property
    def study_digest(self) -> str:
        """The study's name in every other entry: the digest of its definition."""
        return digest(self.definition)


@dataclass(frozen=True, kw_only=True)
class SiteEnrolled:
    """A site was admitted with these keys.

    Attributes:
        site: its name, also the name of its verify key.
        verify_key: text of the Ed25519 key that signs its receipts and cosignatures (`VerifyKey.text`).
        node_key: its transport key, as text (an OpenSSH public key or its fingerprint), 1 to 1024 characters.
    """

    KIND: ClassVar = "site-enrolled"
    site: str
    verify_key: str
    node_key: str

    def __post_init__(self) -> None:
        check_text(self.site, name="site")
        if not isinstance(self.node_key, str) or not 1 <= len(self.node_key) <= 1024:
            raise ValueError("node_key must be a text of 1 to 1024 characters")
        if _key(self.verify_key).name != self.site:
            raise ValueError(f"verify_key is named {_key(self.verify_key).name!r}; the site is {self.site!r}")


@dataclass(frozen=True, kw_only=True)
class SiteLeft:
    """A site left, or the operator revoked it: nothing of it counts after this entry.

    Attributes:
        site: its name.
        reason: `left` or `revoked`.
    """

    KIND: ClassVar = "site-left"
    site: str
    reason: Literal["left", "revoked"]

    def __post_init__(self) -> None:
        check_text(self.site, name="site")
        if self.reason not in ("left", "revoked"):
            raise ValueError(f"reason is {self.reason!r}; it must be left or revoked")


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """The caps that a site's guard enforces, whole; its receipts sign the digest of `policy`.

    Attributes:
        site: its name.
        policy: the policy as the site's guard digests it: JSON data without floats. Caps that the verifier
            reads, each a decimal string or null for none: `epsilon_per_run` and `epsilon_per_study` (at the
            study's delta), `epsilon_total` (over all studies together, at `max_delta`), `max_delta`.
    """

    KIND: ClassVar = "site-policy"
    site: str
    policy: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_text(self.site, name="site")
        for name in CAPS:
            self.cap(name)

    @property
    def policy_digest(self) -> str:
        """What the site's receipts name: the digest of `policy`."""
        return digest(self.policy)

    def cap(self, name: str) -> float | None:
        """A cap by name; None where the policy sets none."""
        value = self.policy.get(name)
        return None if value is None else parse_decimal(value, name=name)


CAPS: Final = ("epsilon_per_run", "epsilon_per_study", "epsilon_total", "max_delta")


@dataclass(frozen=True, kw_only=True)
class Receipted:
    """A site's receipt arrived and its signature held; logged even if the round then failed.

    Attributes:
        envelope: what `privacy.receipt.sign_receipt` made.
    """

    KIND: ClassVar = "receipt"
    envelope: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            signers = self.parts[0]
        except SignatureError as error:
            raise ValueError(f"envelope is no receipt: {error}") from error
        if len(signers) != 1:
            raise ValueError(f"the receipt has {len(signers)} signatures; it must have one, the site's")

    @cached_property
    def parts(self) -> tuple[list[tuple[str, bytes]], bytes]:
        """([(key text, signature)], payload) of the envelope, not verified."""
        return envelope_parts(self.envelope, RECEIPT_TYPE)

    @property
    def receipt_digest(self) -> str:
        """How an aggregate names it."""
        return digest_of_bytes(self.parts[1])


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A site took no part in a round.

    Attributes:
        code: the site's refusal code (`budget`, `policy`, ...), or `failed` where no answer came.
    """

    KIND: ClassVar = "refusal"
    site: str
    study_digest: str
    run: str
    round: int
    code: str

    def __post_init__(self) -> None:
        check_digest(self.study_digest, name="study_digest")
        check_round(self.round)
        for name in ("site", "run", "code"):
            check_text(getattr(self, name), name=name)


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """A round's result.

    Attributes:
        base_digest: of the arrays that the sites were sent (`RoundRequest.base_digest`).
        receipts: digests of the receipts whose updates were used, each once (`Receipted.receipt_digest`).
        result_digest: of the generator's weights after this round, as a release would name them.
        next_base_digest: of the arrays that the next round sends (generator and anchor): its `base_digest`.
    """

    KIND: ClassVar = "aggregate"
    study_digest: str
    run: str
    round: int
    base_digest: str
    receipts: tuple[str, ...]
    result_digest: str
    next_base_digest: str

    def __post_init__(self) -> None:
        for name in ("study_digest", "base_digest", "result_digest", "next_base_digest"):
            check_digest(getattr(self, name), name=name)
        check_text(self.run, name="run")
        check_round(self.round)
        object.__setattr__(self, "receipts", tuple(self.receipts))
        for receipt in self.receipts:
            check_digest(receipt, name="receipts")
        if not self.receipts or len(set(self.receipts)) != len(self.receipts):
            raise ValueError(
                "receipts is empty or names a receipt twice; a result comes from at least one site"
            )


def release_digest(study_digest: str, weights_digest: str) -> str:
    """A release's name: the digest of its study and its weights."""
    return digest({"study_digest": study_digest, "weights_digest": weights_digest})


@dataclass(frozen=True, kw_only=True)
class Released:
    """A generator's state as a release; one entry per change of state.

    Attributes:
        run, round: the `Aggregated` whose `result_digest` is `weights_digest`.
        state: `candidate`, `published`, `withheld` or `withdrawn`.
    """

    KIND: ClassVar = "release"
    study_digest: str
    run: str
    round: int
    weights_digest: str
    state: ReleaseState

    def __post_init__(self) -> None:
        for name in ("study_digest", "weights_digest"):
            check_digest(getattr(self, name), name=name)
        check_text(self.run, name="run")
        check_round(self.round)
        if self.state not in get_args(ReleaseState):
            raise ValueError(f"state is {self.state!r}; it must be one of {get_args(ReleaseState)}")

    @property
    def release_digest(self) -> str:
        """The release's name in cohorts, gates and withdrawals."""
        return release_digest(self.study_digest, self.weights_digest)


@dataclass(frozen=True, kw_only=True)
class CohortDrawn:
    """Synthetic patients were drawn from a release and handed out.

    Attributes:
        cohort: the cohort's identifier.
        release_digest: from what.
        rows: how many records, 1 or more.
        conditions_digest: of the conditions asked for.
        files: digests by file name, at least one.
    """

    KIND: ClassVar = "cohort"
    cohort: str
    release_digest: str
    rows: int
    conditions_digest: str
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        check_text(self.cohort, name="cohort")
        check_digest(self.release_digest, name="release_digest")
        check_digest(self.conditions_digest, name="conditions_digest")
        if type(self.rows) is not int or self.rows < 1:
            raise ValueError(f"rows is {self.rows!r}; it must be a whole number, 1 or more")
        if not isinstance(self.files, Mapping) or not self.files:
            raise ValueError("files is empty; a cohort has at least one file")
        for name, value in self.files.items():
            check_text(name, name="files")
            check_digest(value, name=f"files[{name!r}]")


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A release was withdrawn: no cohort may be drawn from it after this entry.

    Attributes:
        release_digest: which.
        reason: a code, such as `operator`, `gate` or `site-request`.
    """

    KIND: ClassVar = "withdrawal"
    release_digest: str
    reason: str

    def __post_init__(self) -> None:
        check_digest(self.release_digest, name="release_digest")
        check_text(self.reason, name="reason")


@dataclass(frozen=True, kw_only=True)
class GateJudged:
    """What the tests before a release said (room for the release gate).

    Attributes:
        release_digest: of what.
        verdict: `passed` or `failed`.
        card: the signed card, JSON data; opaque here.
    """

    KIND: ClassVar = "gate"
    release_digest: str
    verdict: Literal["passed", "failed"]
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_digest(self.release_digest, name="release_digest")
        if self.verdict not in ("passed", "failed"):
            raise ValueError(f"verdict is {self.verdict!r}; it must be passed or failed")
        if not isinstance(self.card, Mapping):
            raise ValueError("card must be a JSON object")


@dataclass(frozen=True, kw_only=True)
class KeyRotated:
    """A key was replaced; checkpoints of a size beyond this entry are signed by the new one.

    Attributes:
        envelope: made by `rotate_key`; both keys have signed it.
    """

    KIND: ClassVar = "key-rotation"
    envelope: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> tuple[KeyRole, VerifyKey, VerifyKey]:
        """(role, old key, new key), once both signatures hold.

        Raises:
            ValueError: they do not, or the two keys have different names.
        """
        try:
            signers, _ = envelope_parts(self.envelope, ROTATION_TYPE)
            keys = [VerifyKey.from_text(signer) for signer, _ in signers]
            statement = open_statement(self.envelope, ROTATION_TYPE, keys)
        except SignatureError as error:
            raise ValueError(f"envelope is no key rotation: {error}") from error
        check_fields(statement, frozenset({"role", "old_key", "new_key"}), what="a key rotation")
        if [statement["old_key"], statement["new_key"]] != [key.text for key in keys]:
            raise ValueError("a key rotation is signed by the old and by the new key, in this order")
        if statement["role"] not in get_args(KeyRole) or keys[0].name != keys[1].name or keys[0] == keys[1]:
            raise ValueError(
                "a key rotation replaces a coordinator's or a site's key by another of the same name"
            )
        return statement["role"], keys[0], keys[1]


def rotate_key(role: KeyRole, old: SigningKey, new: SigningKey) -> KeyRotated:
    """The entry that replaces `old` by `new`, signed by both."""
    statement = {"role": role, "old_key": old.public.text, "new_key": new.public.text}
    return KeyRotated(envelope=sign_statement(ROTATION_TYPE, statement, [old, new]))


Body = (
    StudyDefined
    | SiteEnrolled
    | SiteLeft
    | SitePolicy
    | Receipted
    | Refused
    | Aggregated
    | Released
    | CohortDrawn
    | Withdrawn
    | GateJudged
    | KeyRotated
)
BODIES: Final[Mapping[str, type[Body]]] = {body.KIND: body for body in get_args(Body)}


def _key(text: str) -> VerifyKey:
    try:
        return VerifyKey.from_text(text)
    except SignatureError as error:
        raise ValueError(f"verify_key: {error}") from error
