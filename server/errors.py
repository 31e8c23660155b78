"""What can go wrong with a request, in the coordinator's own words; the API translates it once into HTTP."""

from __future__ import annotations

from collections.abc import Iterable


class ServerError(Exception):
    """A request that cannot be answered as it was put."""


class NotFoundError(ServerError):
    """There is no such thing; the message lists what there is, where that may be told."""

    def __init__(self, what: str, name: str, existing: Iterable[str] | None = None) -> None:
        message = f"there is no {what} {name!r}"
        if existing is not None:
            known = list(existing)
            message += f"; there is {', '.join(map(repr, known))}" if known else "; there is none yet"
        super().__init__(message)


class ConflictError(ServerError):
    """It does not fit the present state: another run is active, the release is withdrawn, and so on."""


class InvalidError(ServerError):
    """A field with a value that it cannot have.

    Attributes:
        field: its name, as the request spells it.
    """

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class QuotaExceededError(InvalidError):
    """More was asked for than is left of an allowance.

    Attributes:
        retry_after_seconds: then there is a new one.
    """

    def __init__(self, field: str, message: str, *, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(field, message)
