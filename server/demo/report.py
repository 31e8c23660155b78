"""The demo's report: one HTML page without any reference outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.study import Study
from server.demo.comparison import Comparison, Marginal, compare
from server.demo.plots import correlation_plot, marginal_plot

SHOWN_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class SitePrivacy:
    """What one hospital spent.

    Attributes:
        spent: epsilon at `delta`, by the receipts the site signed.
        cap: epsilon that the site's own policy allows.
    """

    name: str
    spent: float
    cap: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """One step of the demo and how long it took."""

    title: str
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What the page says of the study with pictures.

    Attributes:
        synthetic_sheet, real_sheet: `data:` URLs of PNGs, one column per digit.
        nearest_sheet: the same of the real scan nearest to each picture of `synthetic_sheet`, in the same place.
        num_synthetic: pictures of the cohort.
        num_held_out: real scans that no hospital had.
        accuracy: on these, of a classifier trained on the synthetic pictures.
        real_accuracy: the same, trained on all hospitals' scans.
    """

    synthetic_sheet: str
    real_sheet: str
    nearest_sheet: str
    num_synthetic: int
    num_held_out: int
    accuracy: float
    real_accuracy: float


@dataclass(frozen=True, kw_only=True)
class PictureStudy:
    """The study with pictures, and what came of it."""

    study: Study
    release: str
    sites: Sequence[SitePrivacy]
    facts: PictureFacts


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything the page says.

    Attributes:
        study: calibrated, as the coordinator registered it.
        release: digest of the release.
        sites: one entry per hospital.
        phases: in the order they ran.
        verdict: what `fedtwin audit verify` printed, verbatim.
        audit_command: the command that printed it.
        cohort: the cohort that the researcher requested.
        cohort_files: names of its files.
        pictures: the second study.
    """

    study: Study
    release: str
    sites: Sequence[SitePrivacy]
    phases: Sequence[PhaseTime]
    verdict: str
    audit_command: str
    cohort: pd.DataFrame
    cohort_files: Sequence[str]
    pictures: PictureStudy


def render_report(facts: ReportFacts, *, real: pd.DataFrame, compared: pd.DataFrame) -> str:
    """Write the page.

    Args:
        facts: what happened and what was guaranteed.
        real: all hospitals' patients. Sensitive: only a demo has them in one place.
        compared: synthetic patients to compare with; about as many as real ones, so that chance does not
            blur the comparison. Drawing them costs no budget.

    Returns:
        A whole HTML document, self-contained.
    """
    comparison = compare(real, compared, facts.study.table)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    head = facts.cohort.head(SHOWN_ROWS)
    return environment.get_template("report.html").render(
        facts=facts,
        study=facts.study,
        comparison=comparison,
        marginals=[(marginal, _unit(marginal), marginal_plot(marginal)) for marginal in comparison.marginals],
        heat_maps=_heat_maps(comparison),
        header=list(head.columns),
        rows=[[_shown(value) for value in row] for row in head.itertuples(index=False)],
        total_seconds=sum(phase.seconds for phase in facts.phases),
    )


def _heat_maps(comparison: Comparison) -> list[tuple[str, str, str]]:
    real, synthetic = comparison.real_correlation, comparison.synthetic_correlation
    difference = synthetic - real
    worst = float(abs(difference).max())
    pictures = [
        ("Real", "Full colour from 0.6 on.", real, 0.6),
        ("Synthetic", "Full colour from 0.6 on.", synthetic, 0.6),
        ("Synthetic minus real", f"Same scale; the largest difference is {worst:.2f}.", difference, 0.6),
    ]
    return [
        (
            title,
            note,
            correlation_plot(
                comparison.correlated, matrix, f"Rank correlations, {title.lower()}. {note}", full=full
            ),
        )
        for title, note, matrix, full in pictures
    ]


def _unit(marginal: Marginal) -> str:
    unit = {"a": "years"}.get(getattr(marginal.column, "unit", ""), getattr(marginal.column, "unit", ""))
    return f"{unit}, log scale" if getattr(marginal.column, "scale", "") == "log" else unit


def _shown(value: object) -> str:
    if isinstance(value, bool) or str(value) in {"True", "False"}:
        return "yes" if str(value) == "True" else "no"
    if isinstance(value, float):
        return "" if value != value else f"{value:g}"
    return str(value)
