"""Mechanism events: what really ran, in the numbers that an accountant needs and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

EventKind = Literal["gaussian", "subsampled_gaussian"]
Phase = Literal["measure", "refine", "compare"]


@dataclass(frozen=True, kw_only=True)
class MechanismEvent:
    """One DP mechanism as it ran at one site.

    Privacy: unit is one patient with all records; neighbours differ by adding or removing one patient.

    Attributes:
        phase: which phase of the study it belongs to.
        kind: `gaussian` (every patient takes part) or `subsampled_gaussian` (Poisson sampling).
        noise_multiplier: standard deviation of the noise over `max_grad_norm`, above 0.
        sample_rate: Poisson probability of each patient per step, in (0, 1]; 1 for `gaussian`.
        steps: how many times it ran, at least 1.
        max_grad_norm: L2 bound on what one patient adds to the sum, above 0 (the sensitivity).
    """

    phase: Phase
    kind: EventKind
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise ValueError(f"phase is {self.phase!r}; it must be one of {get_args(Phase)}")
        if self.kind not in get_args(EventKind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {get_args(EventKind)}")
        for name in ("noise_multiplier", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate is {self.sample_rate!r}; it must lie in (0, 1]")
        if self.kind == "gaussian" and self.sample_rate != 1:
            raise ValueError(f"sample_rate is {self.sample_rate!r}; a gaussian event uses every patient: 1")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; it must be a whole number, 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON data; real numbers as decimal strings, which every reader keeps exactly."""
        return {
            "phase": self.phase,
            "kind": self.kind,
            "noise_multiplier": repr(float(self.noise_multiplier)),
            "sample_rate": repr(float(self.sample_rate)),
            "steps": self.steps,
            "max_grad_norm": repr(float(self.max_grad_norm)),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MechanismEvent:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown, or out of its range.
        """
        fields = {"phase", "kind", "noise_multiplier", "sample_rate", "steps", "max_grad_norm"}
        if set(data) != fields:
            raise ValueError(f"a mechanism event has the fields {sorted(fields)}, this one {sorted(data)}")
        return cls(
            phase=data["phase"],
            kind=data["kind"],
            noise_multiplier=float(data["noise_multiplier"]),
            sample_rate=float(data["sample_rate"]),
            steps=data["steps"],
            max_grad_norm=float(data["max_grad_norm"]),
        )
