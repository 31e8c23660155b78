"""Parts of a message by digest: nothing is sent that the other side holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from models.digests import digest_of


class PartsError(ValueError):
    """Parts that are not what their digests or lengths say."""


class PartsLackingError(LookupError):
    """A message names parts that did not come with it and are not held here.

    Attributes:
        digests: of the parts.
        head: what is known of the message, to answer it.
    """

    def __init__(self, digests: Collection[str]) -> None:
        super().__init__(f"{len(digests)} part(s) of the message are not held here")
        self.digests = tuple(digests)
        self.head: dict[str, Any] = {}


class PartStore(Protocol):
    """Where parts are kept."""

    def find(self, digest: str) -> bytes | None:
        """The part of that digest, if it is held and whole."""

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a part whose digest was verified."""


def pack(
    contents: Mapping[str, bytes], digests: Mapping[str, str], *, held: Collection[str]
) -> tuple[list[list[str | int]], bytes]:
    """Names and lengths of the parts to send, and their bytes one after the other.

    Args:
        contents: the parts by name.
        digests: of each.
        held: digests of parts that need not be sent.
    """
    sent = {name: data for name, data in contents.items() if digests[name] not in held}
    return [[name, len(data)] for name, data in sent.items()], b"".join(sent.values())


def unpack(digests: object, sent: object, payload: bytes, *, store: PartStore | None) -> dict[str, bytes]:
    """The parts by name; those sent are kept in the store, the others taken from it.

    Raises:
        PartsError: a part is not what its digest says, or the payload is not what `sent` lists.
        PartsLackingError: a part was neither sent nor is it held.
    """
    if not isinstance(digests, dict) or not all(isinstance(one, str) for one in digests.values()):
        raise PartsError("parts must name each part's digest")
    contents = _sent_parts(digests, sent, payload)
    for name, digest in digests.items() if store is not None else ():
        assert store is not None
        if name in contents:
            store.keep(digest, contents[name])
        elif (found := store.find(digest)) is not None:
            contents[name] = found
    if lacking := [digest for name, digest in digests.items() if name not in contents]:
        raise PartsLackingError(lacking)
    return contents


def _sent_parts(digests: Mapping[str, str], sent: object, payload: bytes) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    start = 0
    for entry in sent if isinstance(sent, list) else [None]:
        match entry:
            case [str() as name, int() as length] if name in digests and length >= 0:
                contents[name] = payload[start : start + length]
                start += length
            case _:
                raise PartsError("sent must list parts' names with their lengths")
        if digest_of(contents[name]) != digests[name]:
            raise PartsError(f"part {name!r} is not what its digest says")
    if start != len(payload):
        raise PartsError(f"the payload has {len(payload)} bytes, its parts {start}")
    return contents
