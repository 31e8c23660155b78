"""What a site allows: one TOML file that its own people write, read whole and checked before anything is believed.

A policy that is absent, unreadable, unknown in any key or ambiguous raises, and then the site refuses everything.
Nothing has a silent default that allows: what the file does not allow is not allowed.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from privacy.accounting import MIN_DELTA
from privacy.canonical import digest

VERSION = 1
Approval = Literal["manual", "automatic"]

_STUDY = re.compile(r"[a-z0-9][a-z0-9-]{1,62}|sha256:[0-9a-f]{64}")
_APP = re.compile(r"[0-9a-f]{64}|sha256:[0-9a-f]{64}")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_SECTIONS = {
    "budget": {
        "epsilon_per_run",
        "epsilon_per_study",
        "epsilon_total",
        "max_delta",
        "window_days",
        "epsilon_per_window",
    },
    "patients": {"minimum"},
    "studies": {"allowed", "columns", "app_digests", "approval"},
    "quiet_hours": {"from", "until"},
}
_OPTIONAL = {"window_days", "epsilon_per_window"}


class PolicyError(ValueError):
    """The policy cannot be used, so everything is refused. The message names the field or line and the way out."""


@dataclass(frozen=True, kw_only=True)
class QuietHours:
    """Hours of the day, by the site's own clock, in which nothing runs.

    Attributes:
        start: first minute of quiet.
        end: first minute after it; before `start` if the quiet goes over midnight.
    """

    start: time
    end: time

    def include(self, moment: time) -> bool:
        """Whether `moment` is quiet."""
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """What a site allows. Get one from `load_policy`.

    Privacy: every epsilon is per patient of this site with all records, adding or removing one.

    Attributes:
        epsilon_per_run: cap on one run, at its study's delta.
        epsilon_per_study: cap on all runs of one study together, at the study's delta.
        epsilon_total: cap on everything this site ever takes part in, composed at `max_delta`.
        max_delta: the largest delta of a study, and the delta of the two caps over several studies.
        window_days, epsilon_per_window: cap on what any period of so many days may cost, composed at `max_delta`;
            None for no such cap.
        min_patients: with fewer patients nothing runs.
        studies: names or digests of studies that may run; None for any.
        columns: columns that a study may use; None for any.
        app_digests: the pushed app bundles that the worker answers, in lower-case hexadecimal.
        approval: `manual`: a person approves each study first; `automatic`: whatever fits this policy runs.
        quiet_hours: when nothing runs, or None.
    """

    epsilon_per_run: float
    epsilon_per_study: float
    epsilon_total: float
    max_delta: float
    window_days: int | None
    epsilon_per_window: float | None
    min_patients: int
    studies: frozenset[str] | None
    columns: frozenset[str] | None
    app_digests: frozenset[str]
    approval: Approval
    quiet_hours: QuietHours | None

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON data without floats: real numbers are decimal strings, lists are sorted."""
        quiet = self.quiet_hours
        return {
            "version": VERSION,
            "epsilon_per_run": repr(self.epsilon_per_run),
            "epsilon_per_study": repr(self.epsilon_per_study),
            "epsilon_total": repr(self.epsilon_total),
            "max_delta": repr(self.max_delta),
            "window_days": self.window_days,
            "epsilon_per_window": None if self.epsilon_per_window is None else repr(self.epsilon_per_window),
            "min_patients": self.min_patients,
            "studies": None if self.studies is None else sorted(self.studies),
            "columns": None if self.columns is None else sorted(self.columns),
            "app_digests": sorted(self.app_digests),
            "approval": self.approval,
            "quiet_hours": None if quiet is None else [f"{quiet.start:%H:%M}", f"{quiet.end:%H:%M}"],
        }

    @cached_property
    def digest(self) -> str:
        """`sha256:` over the canonical JSON of `to_dict`: what receipts and the ledger name."""
        return digest(self.to_dict())

    def allows_study(self, name: str, study_digest: str) -> bool:
        """Whether a study may run here, by its name or its digest."""
        return self.studies is None or name in self.studies or study_digest in self.studies

    def is_quiet(self, moment: datetime) -> bool:
        """Whether nothing may run at `moment`, an aware time; read on the site's own clock."""
        return self.quiet_hours is not None and self.quiet_hours.include(moment.astimezone().time())


def load_policy(path: Path) -> SitePolicy:
    """Read a site's policy.

    Raises:
        PolicyError: absent, unreadable, not TOML, a key that is unknown or missing, a value out of its range, or
            caps that contradict each other.
    """
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise PolicyError(
                f"{path.name} can be changed by every user of this machine, so it is nobody's word; "
                f"run: chmod o-w {path.name}"
            )
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise PolicyError(
            f"{path.name} does not exist, so everything is refused; write one that says what this site allows"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path.name} cannot be read, so everything is refused: {error}") from error
    try:
        return parse_policy(text)
    except PolicyError as error:
        raise PolicyError(f"{path.name}: {error}") from error


def parse_policy(text: str) -> SitePolicy:
    """Read a policy from its TOML text.

    Raises:
        PolicyError: as `load_policy`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"not TOML: {error}; correct that line") from error
    except RecursionError as error:
        raise PolicyError("nested too deeply to be a policy") from error
    _check_keys(data)
    budget, studies = data["budget"], data["studies"]
    quiet = data.get("quiet_hours")
    policy = SitePolicy(
        epsilon_per_run=_epsilon(budget, "epsilon_per_run"),
        epsilon_per_study=_epsilon(budget, "epsilon_per_study"),
        epsilon_total=_epsilon(budget, "epsilon_total"),
        max_delta=_delta(budget["max_delta"]),
        window_days=_whole(budget["window_days"], "budget.window_days") if "window_days" in budget else None,
        epsilon_per_window=_epsilon(budget, "epsilon_per_window") if "epsilon_per_window" in budget else None,
        min_patients=_whole(data["patients"]["minimum"], "patients.minimum"),
        studies=_names(studies["allowed"], "studies.allowed", _STUDY),
        columns=_names(studies["columns"], "studies.columns", None),
        app_digests=frozenset(
            app.removeprefix("sha256:")
            for app in _names(studies["app_digests"], "studies.app_digests", _APP, any_allowed=False) or ()
        ),
        approval=_approval(studies["approval"]),
        quiet_hours=None if quiet is None else _quiet_hours(quiet),
    )
    _check_order(policy)
    return policy


def policy_text(
    *,
    epsilon_per_run: float,
    epsilon_per_study: float,
    epsilon_total: float,
    max_delta: float,
    min_patients: int,
    app_digests: Sequence[str],
    studies: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    approval: Approval = "manual",
    window_days: int | None = None,
    epsilon_per_window: float | None = None,
    quiet_hours: tuple[str, str] | None = None,
) -> str:
    """A commented policy file with these values, ready for a person to read and change.

    Raises:
        PolicyError: the values make no policy.
    """

    def names(values: Sequence[str] | None) -> str:
        return '"any"' if values is None else "[" + ", ".join(_quoted(value) for value in values) + "]"

    window = quiet = ""
    if window_days is not None and epsilon_per_window is not None:
        window = f"# What any so many days may cost, over all studies.\nwindow_days = {window_days}\n"
        window += f"epsilon_per_window = {epsilon_per_window!r}\n"
    if quiet_hours is not None:
        quiet = "# By this machine's clock; nothing runs in them.\n[quiet_hours]\n"
        quiet += f"from = {_quoted(quiet_hours[0])}\nuntil = {_quoted(quiet_hours[1])}\n\n"
    # A required key stands last, so that a file that was cut off while it was written is refused.
    text = f"""\
# What this site allows. Every epsilon is per patient, with all of that patient's records.
# Absent, unreadable, or with a key that is not known here: everything is refused.
version = {VERSION}

[budget]
# One run of a study; all runs of one study; everything this site ever takes part in.
epsilon_per_run = {float(epsilon_per_run)!r}
epsilon_per_study = {float(epsilon_per_study)!r}
epsilon_total = {float(epsilon_total)!r}
# The largest delta of a study, and the delta at which all studies are composed together.
max_delta = {float(max_delta)!r}
{window}
{quiet}[patients]
# With fewer patients nothing runs.
minimum = {min_patients}

[studies]
# "any", or a list of names and digests.
allowed = {names(studies)}
# "any", or a list of the columns that a study may use.
columns = {names(columns)}
# The app bundles that the worker answers; it runs only code that is installed here.
app_digests = {names(app_digests)}
# "manual": a person approves each study first. "automatic": whatever fits this policy runs.
approval = {_quoted(approval)}
"""
    parse_policy(text)
    return text


def _check_keys(data: Mapping[str, Any]) -> None:
    version = data.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise PolicyError(f"version is {version!r}; this fedtwin reads version = {VERSION}")
    for name in data:
        if name != "version" and name not in _SECTIONS:
            raise PolicyError(
                f"{name!r} is not a section of a policy; known are {sorted(_SECTIONS)}: remove it"
            )
    for section, keys in _SECTIONS.items():
        if section not in data:
            if section == "quiet_hours":
                continue
            raise PolicyError(f"[{section}] is missing; it needs {sorted(keys - _OPTIONAL)}")
        if not isinstance(data[section], dict):
            raise PolicyError(f"{section} is {data[section]!r}; it must be a section, written [{section}]")
        for key in data[section]:
            if key not in keys:
                raise PolicyError(
                    f"{section}.{key} is not known; known are {sorted(keys)}: correct or remove it"
                )
        missing = sorted(keys - _OPTIONAL - set(data[section]))
        if missing:
            raise PolicyError(f"{section}.{missing[0]} is missing; nothing is assumed for it: add it")
    budget = data["budget"]
    if ("window_days" in budget) != ("epsilon_per_window" in budget):
        raise PolicyError(
            "budget.window_days and budget.epsilon_per_window need each other: give both or none"
        )


def _check_order(policy: SitePolicy) -> None:
    bounds = (
        ("epsilon_per_run", "epsilon_per_study"),
        ("epsilon_per_study", "epsilon_total"),
        ("epsilon_per_window", "epsilon_total"),
    )
    for lower, upper in bounds:
        small, large = getattr(policy, lower), getattr(policy, upper)
        if small is not None and small > large:
            raise PolicyError(
                f"budget.{lower} is {small:g}, above budget.{upper}, {large:g}; which of the two is meant? "
                f"Lower {lower} or raise {upper}"
            )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PolicyError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def _epsilon(budget: Mapping[str, Any], key: str) -> float:
    value = _number(budget[key], f"budget.{key}")
    if not value > 0:
        raise PolicyError(
            f"budget.{key} is {value:g}; it must be above 0 (to allow nothing, set studies.allowed = [])"
        )
    return value


def _delta(value: object) -> float:
    delta = _number(value, "budget.max_delta")
    if not MIN_DELTA <= delta < 1:
        raise PolicyError(
            f"budget.max_delta is {delta:g}; it must lie in [{MIN_DELTA:g}, 1), usually below 1/patients"
        )
    return delta


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PolicyError(f"{name} is {value!r}; it must be a whole number, 1 or more")
    return value


def _names(
    value: object, name: str, pattern: re.Pattern[str] | None, *, any_allowed: bool = True
) -> frozenset[str] | None:
    if value == "any" and any_allowed:
        return None
    choice = '"any" or a list of texts' if any_allowed else "a list of texts"
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise PolicyError(f"{name} is {value!r}; it must be {choice}")
    for item in value:
        if pattern is not None and pattern.fullmatch(item) is None:
            raise PolicyError(
                f"{name} has {item!r}, which is no name and no digest (64 lower-case hexadecimal digits)"
            )
    if len(set(value)) != len(value):
        raise PolicyError(f"{name} names something twice; keep one")
    return frozenset(value)


def _approval(value: object) -> Approval:
    for mode in get_args(Approval):
        if value == mode:
            return mode  # type: ignore[no-any-return]
    raise PolicyError(f"studies.approval is {value!r}; it must be one of {list(get_args(Approval))}")


def _quiet_hours(section: Mapping[str, Any]) -> QuietHours:
    for key in ("from", "until"):
        if not isinstance(section[key], str) or _CLOCK.fullmatch(section[key]) is None:
            raise PolicyError(
                f'quiet_hours.{key} is {section[key]!r}; it must be a time of day such as "22:30"'
            )
    start, end = (time.fromisoformat(section[key]) for key in ("from", "until"))
    if start == end:
        raise PolicyError(
            f'quiet_hours.from and quiet_hours.until are both "{start:%H:%M}": all day or never? '
            "To allow nothing, set studies.allowed = []; to have no quiet hours, remove the section"
        )
    return QuietHours(start=start, end=end)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
