"""The certificate beside each cohort: where it came from, what it cost whom, and the proof that this was logged.

`certificate.json` is checked by `privacy.cohort_certificate`; `certificate.html` (`server.provenance_page`) says the
same statement for people, and its digest is in the ledger as that of every file.
"""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from models.sampling import ConditionReport
from models.study import Study
from server import ledger_store
from server.cohorts import Cohort
from server.exports.context import ExportContext
from server.exports.writer import ExportFormat
from server.releases import LIMITS_OF_USE, Release
from server.spends import rounds_by_site, run_spends
from server.store import Store

SOFTWARE = ("fedtwin", "torch", "numpy", "pandas", "pyarrow")


def make_statement(
    store: Store,
    cohort: Cohort,
    *,
    release: Release,
    study: Study,
    report: ConditionReport,
    formats: Sequence[ExportFormat],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """What the certificate states.

    Args:
        report: how the conditions met the generator.
        formats: that the cohort was written in.
        files: `sha256:` digest of each data file by name.
    """
    spends = {spend.site: spend for spend in run_spends(store, release.run)}
    counted = rounds_by_site(store, release.run, "accepted", last_round=release.round)

    def phases(site: str) -> list[str]:
        return [study.phase_of(number) for number in counted.get(site, ())]

    request = cohort.request
    context = ExportContext.of(release, study, request)
    return {
        "version": 1,
        "synthetic": True,
        "title": "Synthetic patients: no record is a person",
        "cohort": cohort.id,
        "num_patients": request.num_patients,
        "seed": request.seed,
        "draw": context.draw,
        "conditions": {
            "asked": list(request.conditions),
            "achieved": {
                "held_by": "every record",
                "share_of_release": repr(float(report.probability)),
                "share_is_exact": report.exact,
                "effective_sample_size": report.effective_sample_size(request.num_patients),
                "effective_components": repr(round(float(report.effective_components), 3)),
            },
        },
        "columns": list(context.columns),
        "release": {
            "digest": release.digest,
            "weights_digest": release.weights_digest,
            "run": release.run,
            "round": release.round,
            "gate": release.gate,
            "gate_says": "No release gate was passed: neither attacks nor utility were tested before it was served.",
            "ledger_index": release.entry,
        },
        "study": {"name": study.name, "title": study.title, "digest": release.study_digest},
        "privacy": {
            "unit": "one patient of one site with all records; neighbours add or remove one patient",
            "trust": "local: noise is added at each site before anything leaves it",
            "sites": [
                {
                    "site": name,
                    "epsilon": spends[name].spent_epsilon if name in spends else None,
                    "delta": spends[name].spent_delta if name in spends else None,
                    "cap": spends[name].cap_epsilon if name in spends else None,
                    "measurements": phases(name).count("measure"),
                    "refine_rounds": phases(name).count("refine"),
                }
                for name in release.sites
            ],
            "cost_of_this_cohort": "none: drawing from a release is post-processing",
        },
        "algorithm": {
            "name": "measure, warm-start, refine" if _refined(release, study) else "measure, warm-start",
            "says": _algorithm(release, study),
            "measurements": study.measure.exchanges,
            "measure_noise_multiplier": _text(study.measure.noise_multiplier),
            "refine_rounds": study.refine.rounds,
            "refine_noise_multiplier": _text(study.refine.noise_multiplier) if study.refine.rounds else None,
        },
        "formats": [
            {"format": one.name, "note": one.note, "columns_left_out": dict(one.left_out(context))}
            for one in formats
        ],
        "files": dict(files),
        "software": {"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}},
        "known_limits": list(LIMITS_OF_USE),
        "made_at": ledger_store.time_text(store.clock()),
    }


def make_certificate(
    statement: Mapping[str, Any], *, index: int, entry: bytes, proof: list[bytes], note: str
) -> dict[str, Any]:
    """The statement with the proof that it was logged."""
    return {
        "statement": dict(statement),
        "ledger": {
            "index": index,
            "entry": base64.b64encode(entry).decode(),
            "inclusion_proof": [base64.b64encode(part).decode() for part in proof],
            "checkpoint": note,
        },
    }


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """The certificate as the file that is handed out."""
    return (json.dumps(certificate, indent=2, ensure_ascii=False) + "\n").encode()


def _refined(release: Release, study: Study) -> int:
    """In how many rounds of refinement the release's generator came to be."""
    return [study.phase_of(number) for number in range(1, release.round + 1)].count("refine")


def _algorithm(release: Release, study: Study) -> str:
    """What the release's generator came from, in words."""
    parts = ["noisy moments from each site", "a mixture fitted to them"]
    if study.image is not None:
        parts.append("a generator of pictures fitted to the same")
    refined = _refined(release, study)
    if refined:
        parts.append(
            f"{refined} round{'' if refined == 1 else 's'} of an anchored GAN, which the sites' patients preferred "
            "in a paid comparison"
        )
    elif study.refine.rounds:
        parts.append(
            "the rounds of an anchored GAN that followed are not in it: in a paid comparison the sites' patients did "
            "not speak for them"
        )
    return "; ".join(parts)


def _text(number: float | None) -> str | None:
    return None if number is None else repr(number)
