"""One check's outcome."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: what was looked at, for people and for scripts.
        passed: whether the site may go on with it as it is.
        detail: what was found; nothing of patients is in it.
        advice: what to do; empty where nothing has to be done.
        private: faults of the table, for this screen only. Sensitive: not in `to_dict`, never logged.
    """

    name: str
    passed: bool
    detail: str
    advice: str = ""
    private: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As JSON data, for scripts; without what is private."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail, "advice": self.advice}


def passed(name: str, detail: str) -> CheckResult:
    """A check that found nothing wrong."""
    return CheckResult(name=name, passed=True, detail=detail)


def failed(name: str, detail: str, advice: str, *, private: tuple[str, ...] = ()) -> CheckResult:
    """A check that found something, and what to do about it."""
    return CheckResult(name=name, passed=False, detail=detail, advice=advice, private=private)
