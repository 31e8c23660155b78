"""Rows and pictures through the product's own code: three hospitals' digits to a cohort with PNG and DICOM files."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from client.guard import Guard
from client.home import SiteHome
from client.policy import load_policy
from client.rounds import SiteRounds
from models.study import Study
from privacy.receipt import open_receipt
from server import cohorts, jobs, releases, round_records, runs
from server.cohorts import CohortRequest

SITES = ("ash", "birch", "cedar")


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 scanned digits (8 x 8) that ship with scikit-learn (UCI, Kaynak 1995)."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16 * 255).round().astype(np.uint8).reshape(-1, 1, 8, 8), labels


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.from_dict(
        {
            "name": "digits",
            "privacy": {"epsilon": 8.0, "delta": 1e-5},
            "table": {
                "columns": [
                    {"name": "digit", "kind": "categorical", "categories": [str(d) for d in range(10)]},
                    {"name": "ink", "kind": "continuous", "minimum": 0, "maximum": 1, "bins": 5},
                ],
                "label": "digit",
                "patient_id": "writer",
            },
            "image": {"size": 8, "conditioned_on": ["digit"]},
            "measure": {"noise_multiplier": 0.7},
            "warm_start": {"image": {"steps": 150, "batch_size": 100, "latent": 16, "width": 8}},
            "federation": {"quorum": 3},
        }
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory, digits):
    """Three hospitals; what a digit shows and how much ink it has are columns of their tables."""
    folder = tmp_path_factory.mktemp("lab")
    images, labels = digits
    made = InProcessLab(folder, {name: pd.DataFrame({"nothing": [1]}) for name in SITES})
    for name, part in zip(SITES, np.array_split(np.arange(1500), 3), strict=True):
        np.savez(
            folder / f"{name}.npz",
            train_images=images[part, 0],
            train_labels=labels[part],
            train_ink=images[part].mean((1, 2, 3)) / 255,
            writers=np.array([f"w{n}" for n in part]),
        )
        settings = made.sites[name].path / "site.toml"
        section = f'kind = "npz"\npath = "{folder / name}.npz"\npatients = "writers"\n'
        settings.write_text(f"{settings.read_text()}\n[studies.digits.data]\n{section}")
        made.sites[name] = SiteHome.open(made.sites[name].path)
        made.federation.sites[name] = SiteRounds(made.sites[name])
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def release(lab, study):
    lab.train(study)
    run = runs.list_runs(lab.store)[0]
    assert run.state == "completed", run.reason
    found = releases.release_of_run(lab.store, run.id)
    return releases.publish_release(lab.store, found.digest)


@pytest.fixture(scope="module")
def files(lab, release) -> dict[str, bytes]:
    request = CohortRequest(
        release=release.digest, num_patients=600, seed=3, formats=("csv", "png", "dicom", "parquet")
    )
    made = cohorts.create_cohort(lab.store, request, owner="key-1")
    assert jobs.make_next(lab.store)
    done = cohorts.get_cohort(lab.store, made.id)
    assert done.state == "completed", done.reason
    folder = lab.store.cohorts / done.id
    return {file.name: (folder / file.name).read_bytes() for file in done.files}


def test_each_hospital_spent_once_and_its_receipt_covers_the_pictures(lab, study, release):
    recorded = round_records.get_round(lab.store, release.run, 1)
    for spend in recorded.spends:
        home = lab.sites[spend.site]
        receipt = open_receipt(spend.receipt, home.receipt_key().public)
        assert [event.max_grad_norm for event in receipt.events] == [pytest.approx(study.sensitivity)]
        guard = Guard(home.record_file, load_policy(home.policy_file))
        assert [tuple(asked.columns) for asked in guard.requests()] == [("[images]", "digit", "ink")]


def test_pictures_show_what_their_rows_say(files, digits):
    with zipfile.ZipFile(io.BytesIO(files["images-png.zip"])) as archive:
        manifest = pd.read_csv(archive.open("manifest.csv"))
        pictures = np.stack([_pixels(archive.read(name)) for name in manifest["file"]])
    assert manifest["digit"].tolist() == pd.read_csv(io.BytesIO(files["cohort.csv"]))["digit"].tolist()
    classifier = LogisticRegression(max_iter=300).fit(pictures.reshape(600, -1) / 255, manifest["digit"])
    images, labels = digits
    held_out = classifier.score(images[1500:].reshape(-1, 64) / 255, labels[1500:])
    assert held_out > 0.5  # a tenth by chance


def test_dicom_files_are_flagged_as_synthetic(files):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    with zipfile.ZipFile(io.BytesIO(files["images-dicom.zip"])) as archive:
        header = pydicom.dcmread(io.BytesIO(archive.read(archive.namelist()[0])))
    assert header.SyntheticData == "YES"
    assert header.pixel_array.shape == (8, 8)


def test_the_certificate_names_every_file(files):
    certificate = json.loads(files["certificate.json"])
    assert {"cohort.csv", "images-png.zip", "images-dicom.zip"} <= set(json.dumps(certificate).split('"'))


def _pixels(png: bytes) -> np.ndarray:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return np.asarray(image_module.open(io.BytesIO(png)))
