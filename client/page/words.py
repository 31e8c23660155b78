"""Mechanisms, spends and the policy in plain words. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from client.policy import SitePolicy
from models.study import IMAGES
from privacy.events import MechanismEvent


def computed(event: MechanismEvent) -> str:
    """What a mechanism computed from the patients."""
    bound = f"{event.max_grad_norm:.4g}"
    if event.phase == "measure" and event.kind == "gaussian":
        return (
            "Noisy sums over all patients: of a table how often each value and each pair of values occurs, of images "
            f"and courses the sums of fixed features. One patient moves them by at most {bound}."
        )
    if event.phase == "refine" and event.kind == "subsampled_gaussian":
        steps = "one step" if event.steps == 1 else f"{event.steps:,} steps"
        return (
            "What a judge (discriminator) that never leaves this building says of invented records. "
            f"The judge looked at patients in {steps}; in each, a patient took part with probability "
            f"{100 * event.sample_rate:.3g} % and pulled by at most {bound}."
        )
    if event.phase == "compare" and event.kind == "gaussian":
        return (
            "One noisy number: by how much the refined generator fits all patients better than the one before. One "
            f"patient moves it by at most {bound}."
        )
    times = "once" if event.steps == 1 else f"{event.steps:,} times"
    return (
        f"{event.phase}: a {event.kind.replace('_', ' ')} mechanism, {times}, each patient with probability "
        f"{100 * event.sample_rate:.3g} % and bounded by {bound}."
    )


def reads(columns: Sequence[str]) -> str:
    """What a study opens, by the names that it asked with."""
    count = sum(name != IMAGES for name in columns)
    said = ["one column of your table" if count == 1 else f"{count:,} columns of your table"] if count else []
    said += ["the pictures"] if IMAGES in columns else []
    return " and ".join(said)


def noise(event: MechanismEvent) -> str:
    """The noise that it carried."""
    each = "each number" if event.steps == 1 else "each step"
    return (
        f"Gaussian, drawn on this machine: standard deviation {event.noise_multiplier * event.max_grad_norm:.4g} on "
        f"{each}, {event.noise_multiplier:.4g} times what one patient can add."
    )


def epsilon_text(value: float) -> str:
    """An epsilon for people; what cannot be established is said so."""
    return (
        f"{value:.3f}".rstrip("0").rstrip(".")
        if math.isfinite(value)
        else "a cost that cannot be established"
    )


def odds(epsilon: float) -> str:
    """By how much anybody's odds about one patient may change."""
    return f"{math.exp(epsilon):,.2f}" if epsilon < 1 else f"{math.exp(epsilon):,.1f}"


def chance(delta: float) -> str:
    """A delta as one in so many."""
    return f"1 in {round(1 / delta):,}"


def policy_sentences(policy: SitePolicy) -> list[tuple[str, str]]:
    """What the policy says, each part with its heading in policy.toml's words."""
    said = [
        ("One run", f"may cost a patient at most epsilon {policy.epsilon_per_run:g}."),
        ("One study", f"all its runs together: at most epsilon {policy.epsilon_per_study:g}."),
    ]
    if policy.window_days is not None and policy.epsilon_per_window is not None:
        said.append(
            (
                "A period",
                f"all studies within any {policy.window_days} days: at most epsilon {policy.epsilon_per_window:g}.",
            )
        )
    said += [
        ("In total", f"everything this site ever takes part in: at most epsilon {policy.epsilon_total:g}."),
        ("Delta", f"at most {policy.max_delta:g}, a chance of {chance(policy.max_delta)}, for any study."),
        (
            "Patients",
            f"with fewer than {policy.min_patients:,} nothing runs, and nobody outside is told why.",
        ),
        ("Studies", "any may ask." if policy.studies is None else _only(policy.studies)),
        ("Columns", "any may be used." if policy.columns is None else _only(policy.columns)),
        (
            "Approval",
            "each study waits until a person here has approved it."
            if policy.approval == "manual"
            else "whatever fits this policy runs without asking; denying or withdrawing a study stops it.",
        ),
        (
            "Quiet hours",
            "none."
            if policy.quiet_hours is None
            else f"nothing runs from {policy.quiet_hours.start:%H:%M} to {policy.quiet_hours.end:%H:%M}, by this "
            "machine's clock.",
        ),
        ("Code", _apps(policy.app_digests)),
    ]
    return said


def _only(names: frozenset[str]) -> str:
    return f"only {', '.join(sorted(names))}." if names else "none."


def _apps(digests: frozenset[str]) -> str:
    if not digests:
        return "no app is allowed, so no round is answered."
    shown = ", ".join(f"{digest[:16]}…" for digest in sorted(digests))
    return (
        f"rounds are answered under {shown}; what runs is only what is installed here, never what was sent."
    )
