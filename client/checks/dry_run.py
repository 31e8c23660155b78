"""A dry run: one round of each kind, by this very code, on made-up patients in a folder of its own.

The site's data are not opened, its record is not written, and nothing is sent. It proves that torch, the noise, the
accounting and the signatures work on this machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from client.checks.result import CheckResult, failed, passed
from client.home import SiteHome
from client.policy import policy_text
from client.rounds import SiteRounds
from models.comparison import base_of_comparison
from models.decoding import decode_table
from models.exchange import RoundReply, RoundRequest
from models.generator import MixtureGenerator
from models.schema import StudySchema
from models.study import Study
from privacy.checkpoint import sign_head
from privacy.merkle import CompactRange, leaf_hash
from privacy.receipt import ReceiptError, open_receipt
from privacy.signing import SigningKey

NUM_PATIENTS = 64
ADVICE = "look at versions above; if they pass, send this line to fedtwin's authors, no patient is in it"
# Where no study is at hand.
SCHEMA = StudySchema.model_validate(
    {
        "label": "ill",
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "bins": 10},
            {"name": "sex", "kind": "categorical", "categories": ["female", "male"], "missing": True},
            {"name": "ill", "kind": "boolean"},
        ],
    }
)


class _DryRunError(Exception):
    """What did not work, in a form without values."""


def check_dry_run(schema: StudySchema | None = None) -> CheckResult:
    """Run all kinds of rounds on made-up patients that fit a schema."""
    study = _study(schema or SCHEMA)
    with tempfile.TemporaryDirectory(prefix="fedtwin-check-") as folder:
        try:
            _run(study, Path(folder))
        except _DryRunError as error:
            return failed("dry-run", str(error), ADVICE)
        except Exception as error:
            return failed("dry-run", f"it broke with {type(error).__name__}", ADVICE)
    return passed(
        "dry-run",
        "a measurement, a refinement and a comparison on made-up patients, signed; nothing was spent or sent",
    )


def _run(study: Study, folder: Path) -> None:
    rng = np.random.default_rng()
    codes = torch.stack(
        [torch.from_numpy(rng.integers(0, levels, NUM_PATIENTS)) for levels in study.table.cardinalities],
        dim=1,
    )
    frame = decode_table(codes, study.table, rng=rng)
    if study.table.patient_id is not None:
        frame[study.table.patient_id] = [f"made-up-{number}" for number in range(NUM_PATIENTS)]
    data = folder / "made-up.parquet"
    frame.to_parquet(data)
    coordinator = SigningKey.generate(name="dry-run-coordinator")
    site = SiteHome.create(
        folder / "site",
        name="dry-run",
        superlink_address="127.0.0.1:1",
        ca_certificate=b"",
        coordinator_key=coordinator.public.text,
        data_path=data,
        data_kind="parquet",
        patient_id=study.table.patient_id,
        supernode_port=1,
    )
    site.policy_file.write_text(
        policy_text(
            epsilon_per_run=100.0,
            epsilon_per_study=100.0,
            epsilon_total=100.0,
            max_delta=study.privacy.delta,
            min_patients=1,
            app_digests=["0" * 64],
            approval="automatic",
        )
    )
    rounds = SiteRounds(site)
    generator = MixtureGenerator(
        torch.zeros(2, sum(study.table.cardinalities)), torch.zeros(2), study.table.cardinalities
    )
    checkpoint = {"note": _note(coordinator), "since": 0, "proof": []}
    arrays = generator.to_arrays()
    as_well = {name: array.clone() for name, array in arrays.items()}  # a record shares no memory
    for number, base in ((1, {}), (2, arrays), (3, base_of_comparison(arrays, as_well))):
        request = RoundRequest(
            kind=study.phase_of(number),
            run="dry-run",
            round=number,
            nonce=f"dry-run-{number}",
            study=study,
            arrays=base,
            checkpoint=checkpoint,
        )
        _look_at(RoundReply.decode(*rounds.handle(request).encode()), site)
        seen = rounds.handle(
            RoundRequest(kind="witness", run="dry-run", round=1, nonce="w", study=study)
        ).witness
        checkpoint = {**checkpoint, "since": 0 if seen is None else seen["size"]}


def _look_at(reply: RoundReply, site: SiteHome) -> None:
    if reply.refusal is not None:
        why = site.notices.read_text().strip() if site.notices.exists() else ""
        raise _DryRunError(f"the {reply.kind} round was refused: {reply.refusal.reason} {why}".strip())
    if not reply.arrays or not all(bool(torch.isfinite(array).all()) for array in reply.arrays.values()):
        raise _DryRunError(f"the {reply.kind} round gave values that are no numbers")
    try:
        receipt = open_receipt(reply.receipt or {}, site.receipt_key().public)
    except ReceiptError as error:
        raise _DryRunError(f"the {reply.kind} round's receipt does not hold: {error}") from error
    if receipt.update_digest != reply.update_digest:
        raise _DryRunError(f"the {reply.kind} round's receipt is of other values")


def _note(coordinator: SigningKey) -> str:
    leaf = leaf_hash(b"dry run")
    tree = CompactRange()
    tree.append(leaf)
    return sign_head([leaf], coordinator, previous=None, expected_root=tree.root()).decode()


def _study(schema: StudySchema) -> Study:
    settings = {
        **{"rounds": 1, "steps": 1, "sample_rate": 0.25, "noise_multiplier": 2.0, "num_judged": 1_000},
        "hidden_width": 16,
    }
    return Study.from_dict(
        {
            "name": "dry-run",
            "privacy": {"epsilon": 100.0, "delta": 1e-5},
            "measure": {"budget_share": 0.5, "noise_multiplier": 2.0},
            "refine": settings,
            "federation": {"patients_per_site": 64},
            "table": schema.model_dump(mode="json", exclude_none=True),
        }
    )
