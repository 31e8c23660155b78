"""The seam between the benchmarks and the product: sites' patients in, a trained generator out.

Everything in between is the product: each site's home, policy, guard and noise, messages as bytes, the
coordinator's round loop, its store and its ledger (`in_process.InProcessLab`). The noise has no seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
from in_process import InProcessLab

from client.connectors.settings import ImageSource
from models.generator import MixtureGenerator
from models.study import Study
from models.study_generator import StudyGenerator

Held = TypeVar("Held", pd.DataFrame, ImageSource)


def train_federation(
    study: Study,
    tables: Sequence[pd.DataFrame] | Mapping[str, pd.DataFrame],
    *,
    quorum: int | None = None,
) -> MixtureGenerator:
    """Measure, warm-start and refine over sites that each add their own noise; the release's generator.

    Args:
        study: to train.
        tables: each site's, by its name if that matters.
        quorum: how many sites must count; all by default, since a round with fewer is another experiment.

    Raises:
        RoundFailedError: fewer counted; a site of few patients cannot be told from an empty one.
    """
    named = tables if isinstance(tables, Mapping) else _numbered(tables)
    return _train(study, named, quorum or len(tables)).table


def train_with_pictures(study: Study, sources: Sequence[ImageSource]) -> StudyGenerator:
    """The same for a study with pictures, over sites whose pictures lie where the sources say.

    Raises:
        RoundFailedError: a site's reply did not count.
    """
    return _train(study, _numbered(sources), len(sources))


def _numbered(patients: Sequence[Held]) -> dict[str, Held]:
    return {f"site-{number}": held for number, held in enumerate(patients, start=1)}


def _train(
    study: Study, patients: Mapping[str, pd.DataFrame] | Mapping[str, ImageSource], quorum: int
) -> StudyGenerator:
    federation = study.federation.model_copy(update={"quorum": quorum})
    study = study.model_copy(update={"federation": federation})
    with tempfile.TemporaryDirectory() as folder:
        lab = InProcessLab(
            Path(folder),
            dict(patients),
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            patient_id=study.table.patient_id,
        )
        return lab.train(study)
