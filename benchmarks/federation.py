"""The seam between the benchmarks and the product: sites' patients in, a trained generator out.

Everything in between is the product: each site's home, policy, guard and noise, messages as bytes, the
coordinator's round loop, its store and its ledger (`in_process.InProcessLab`). The noise has no seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from in_process import InProcessLab

from client.connectors.settings import ImageSource
from models.generator import MixtureGenerator
from models.study import Study
from models.study_generator import StudyGenerator


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
    return _train(study, tables, quorum or len(tables)).table


def train_with_pictures(study: Study, sources: Sequence[ImageSource]) -> StudyGenerator:
    """The same for a study with pictures, over sites whose pictures lie where the sources say.

    Raises:
        RoundFailedError: a site's reply did not count.
    """
    return _train(study, sources, len(sources))


def _train(study: Study, patients: Sequence[pd.DataFrame | ImageSource], quorum: int) -> StudyGenerator:
    federation = study.federation.model_copy(update={"quorum": quorum})
    study = study.model_copy(update={"federation": federation})
    with tempfile.TemporaryDirectory() as folder:
        lab = InProcessLab(
            Path(folder),
            {f"site-{number}": held for number, held in enumerate(patients, start=1)},
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            patient_id=study.table.patient_id,
        )
        return lab.train(study)
