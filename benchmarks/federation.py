"""The seam between the benchmarks and the product: sites' tables in, a trained generator out.

Everything in between is the product: each site's home, policy, guard and noise, messages as bytes, the
coordinator's round loop, its store and its ledger (`in_process.InProcessLab`). The noise has no seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from in_process import InProcessLab

from models.generator import MixtureGenerator
from models.study import Study


def train_federation(
    study: Study, tables: Sequence[pd.DataFrame], *, quorum: int | None = None
) -> MixtureGenerator:
    """Measure, warm-start and refine over sites that each add their own noise; the release's generator.

    Args:
        study: to train.
        tables: each site's.
        quorum: how many sites must count; all by default, since a round with fewer is another experiment.

    Raises:
        RoundFailedError: fewer counted; a site of few patients cannot be told from an empty one.
    """
    federation = study.federation.model_copy(update={"quorum": quorum or len(tables)})
    study = study.model_copy(update={"federation": federation})
    with tempfile.TemporaryDirectory() as folder:
        lab = InProcessLab(
            Path(folder),
            {f"site-{number}": table for number, table in enumerate(tables, start=1)},
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            patient_id=study.table.patient_id,
        )
        return lab.train(study)
