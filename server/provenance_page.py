"""A certificate's statement for people: one HTML page that needs no script, no network and no server."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from server.condition_text import where_text

PAGE_FILE = "certificate.html"
MEDIA_TYPE = "text/html; charset=utf-8"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1.6rem 0 .3rem}
.flag{border-left:.4rem solid #b45309;background:#fef3c7;padding:.6rem 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #d0d7de}
th{font-weight:600;width:14rem}thead th{width:auto}
td{overflow-wrap:anywhere}code{font-size:.85em}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td{border-color:#30363d}}
"""


def certificate_page(statement: Mapping[str, Any]) -> bytes:
    """The statement as HTML, UTF-8; the same statement gives the same bytes."""
    conditions, release = statement["conditions"], statement["release"]
    achieved, study, algorithm = conditions["achieved"], statement["study"], statement["algorithm"]
    parts = [
        f"<p class=flag><strong>Synthetic.</strong> {_(statement['title'])}. {_(release['gate_says'])}</p>",
        _facts(
            "The cohort",
            {
                "Cohort": statement["cohort"],
                "Patients": f"{statement['num_patients']:,}",
                "Seed": statement["seed"],
                "Draw": statement["draw"],
                "Columns": ", ".join(statement["columns"]),
                "Made": statement["made_at"],
            },
        ),
        _facts(
            "Conditions",
            {
                "Asked": where_text(conditions["asked"]) or "none",
                "Held by": achieved["held_by"],
                "Share of the release": f"{float(achieved['share_of_release']):.4%}"
                + (" (computed)" if achieved["share_is_exact"] else " (estimated from a draw)"),
                "Effective sample size": f"{achieved['effective_sample_size']:,} independent draws",
                "Effective components": f"{achieved['effective_components']} of the generator's shapes support it",
            },
        ),
        _facts(
            "Where it comes from",
            {
                "Release": release["digest"],
                "Weights": release["weights_digest"],
                "Run and round": f"{release['run']}, round {release['round']}",
                "Release gate": release["gate"],
                "Release in the ledger": f"index {release['ledger_index']}",
                "Study": study["title"] or study["name"],
                "Study digest": study["digest"],
                "Algorithm": f"{algorithm['name']}: {algorithm['says']}",
                "Noise multipliers": _noise(algorithm),
            },
        ),
        _sites(statement["privacy"]),
        _facts("Known limits", {str(at): text for at, text in enumerate(statement["known_limits"], start=1)}),
        _formats(statement["formats"]),
        _facts("Files", statement["files"]),
        _facts("Software", dict(statement["software"])),
        "<h2>Proof</h2><p>The ledger's entry, its index, inclusion proof and signed checkpoint stand in "
        "<code>certificate.json</code>; <code>fedtwin cohort verify FOLDER</code> checks them and every file here "
        "with the coordinator's public key, without a server. This page is one of those files.</p>",
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Certificate of {_(statement['cohort'])}</title>"
    size = '<meta name=viewport content="width=device-width">'
    body = "\n".join(parts)
    return (
        f"{head}{size}<style>{_STYLE}</style>\n<h1>Certificate of a synthetic cohort</h1>\n{body}\n".encode()
    )


def _(text: object) -> str:
    return escape(str(text))


def _facts(title: str, facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_(name)}</th><td>{_(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<h2>{_(title)}</h2><table>{rows}</table>"


def _noise(algorithm: Mapping[str, Any]) -> str:
    measured = f"{algorithm['measure_noise_multiplier']} in the measurement"
    if algorithm["measurements"] > 1:
        measured = (
            f"{algorithm['measure_noise_multiplier']} in each of {algorithm['measurements']} measurements"
        )
    if not algorithm["refine_rounds"]:
        return f"{measured}; no refinement"
    return f"{measured}; {algorithm['refine_noise_multiplier']} in {algorithm['refine_rounds']} rounds of refinement"


def _sites(privacy: Mapping[str, Any]) -> str:
    heads = "".join(f"<th scope=col>{name}</th>" for name in ("Site", "Part", "Epsilon", "Delta", "Cap"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{_(cell)}</td>' for cell in _cells_of(one))}</tr>" for one in privacy["sites"]
    )
    return (
        f"<h2>Privacy</h2><p>Unit: {_(privacy['unit'])}. Trust: {_(privacy['trust'])}. "
        f"Cost of this cohort: {_(privacy['cost_of_this_cohort'])}.</p>"
        f"<table><thead><tr>{heads}</tr></thead>{rows}</table>"
    )


def _cells_of(site: Mapping[str, Any]) -> tuple[object, ...]:
    rounds, measurements = site["refine_rounds"], site["measurements"]
    part = (
        "not measured"
        if not measurements
        else "measured"
        if measurements == 1
        else f"measured {measurements} times"
    )
    if rounds or not measurements:
        part += f", {rounds} refine round{'' if rounds == 1 else 's'}"
    return site["site"], part, site["epsilon"], site["delta"], site["cap"]


def _formats(formats: list[Mapping[str, Any]]) -> str:
    told = {}
    for one in formats:
        left_out = "; ".join(f"Without {name}: {why}" for name, why in one["columns_left_out"].items())
        if text := ". ".join(part for part in (one["note"], left_out) if part):
            told[one["format"]] = text
    return _facts("About the formats", told) if told else ""
