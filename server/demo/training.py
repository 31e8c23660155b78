"""Follow a run over the API, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from models.study import Study
from server.api_client import ApiClient
from server.demo.display import Display
from server.demo.report import SitePrivacy
from server.demo.surface import SurfaceError, poll

RUN_SECONDS = 600.0
_ORDER = ("measure", "warm-start", "refine", "compare", "done")
_TITLES = {"measure": "Measure", "warm-start": "Warm start", "refine": "Refine", "compare": "Compare"}


def follow_run(
    operator: ApiClient,
    run: str,
    study: Study,
    *,
    display: Display,
    alive: Callable[[], None],
    prefix: str = "",
) -> tuple[str, tuple[SitePrivacy, ...]]:
    """Show a run's phases until it is completed.

    Returns:
        The candidate release's digest, and what each site spent.

    Raises:
        SurfaceError: the run failed or was stopped; names the reason that the coordinator gave.
    """

    def ask() -> Mapping[str, Any]:
        state: Mapping[str, Any] = operator.get(f"/runs/{run}")
        if state["state"] in {"failed", "stopped"}:
            raise SurfaceError(f"run {run} {state['state']}: {state['reason']}")
        return state

    for phase, title in _TITLES.items():
        if phase in {"refine", "compare"} and not study.refine.rounds:
            continue
        with display.phase(prefix + title) as line:

            def is_over(state: Mapping[str, Any], phase: str = phase, line: Any = line) -> bool:
                line.say(_progress(state), percent=float(state["percent"]))
                return _place(state) > _ORDER.index(phase)

            poll(ask, until=is_over, alive=alive, what=title, timeout_seconds=RUN_SECONDS)
            line.say(_summary(study, phase))
    state = ask()
    return str(state["release"]), tuple(
        SitePrivacy(
            name=spend["site"],
            spent=float(spend["spent_epsilon"]),
            cap=float(spend["cap_epsilon"]),
            delta=float(spend["spent_delta"]),
        )
        for spend in state["spends"]
    )


def _place(state: Mapping[str, Any]) -> int:
    """Which phase the run is in; what comes before the measurement counts to it."""
    if state["state"] == "completed":
        return _ORDER.index("done")
    return _ORDER.index(state["phase"]) if state["phase"] in _ORDER[:-1] else 0


def _progress(state: Mapping[str, Any]) -> str:
    left = state.get("eta_seconds")
    return f"round {state['round']} of {state['rounds']}" + (f", about {left:.0f} s left" if left else "")


def _summary(study: Study, phase: str) -> str:
    if phase == "measure":
        count = study.measure.exchanges
        exchanges = "one exchange" if count == 1 else f"{count} exchanges"
        return f"{exchanges}, noise multiplier {study.measure.noise_multiplier:.3f} at each hospital"
    if phase == "warm-start":
        fitted = "a mixture" if study.image is None else "a mixture and a convolutional generator"
        return f"{fitted} fitted to the summed noisy moments; no patient is asked"
    if phase == "compare":
        return "each hospital's patients say, in one noisy number, whether refining made it better"
    noise = study.refine.noise_multiplier or 0
    return f"{study.refine.rounds} rounds of DP-SGD, noise multiplier {noise:.3f} at each hospital"
