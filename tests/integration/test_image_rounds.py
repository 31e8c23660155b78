"""Rows and pictures through the product's own code: three hospitals' digits to a cohort with PNG and DICOM files."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from in_process import InProcessLab
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from client.guard import Guard
from client.home import SiteHome
from client.policy import load_policy
from client.rounds import SiteRounds
from models.sampling import sample_cohort
from models.study import Study
from privacy.receipt import open_receipt
from privacy.verification import verify_export
from server import cohorts, jobs, ledger_store, releases, round_records, runs, spends, studies
from server.cohorts import CohortRequest
from server.rounds import run_rounds

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
    made = hospitals(tmp_path_factory.mktemp("lab"), digits)
    yield made
    made.store.close()


def hospitals(folder: Path, digits: tuple[np.ndarray, np.ndarray]) -> InProcessLab:
    """Three hospitals; what a digit shows and how much ink it has are columns of their tables."""
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
    return made


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


@pytest.fixture(scope="module")
def again(tmp_path_factory, study, digits):
    """Such hospitals measured twice; the coordinator dies once it has the second answers, and goes on."""
    lab = hospitals(tmp_path_factory.mktemp("again"), digits)
    measure = study.measure.model_copy(update={"exchanges": 2, "noise_multiplier": 1.0})
    fit = study.warm_start.model_copy(
        update={"image": study.warm_start.image.model_copy(update={"steps": 160})}
    )
    twice = study.model_copy(update={"measure": measure, "warm_start": fit})
    studies.register_study(lab.store, twice, created_by="test")
    run = runs.create_run(lab.store, twice.name, started_by="test")
    asked, refusals = {}, []

    class Dying:
        def exchange(self, requests, **waiting):
            request = next(iter(requests.values()))
            if request.kind == "measure" and request.round == 2 and not refusals:
                spoilt = {**request.arrays, "lens.scale": torch.zeros_like(request.arrays["lens.scale"])}
                refusals.append(lab.federation.sites["ash"].handle(replace(request, arrays=spoilt)).refusal)
            replies = lab.federation.exchange(requests, **waiting)
            if request.kind == "measure":
                asked.setdefault(request.round, []).append((request, replies))
                if request.round == 2 and len(asked[2]) == 1:
                    raise KeyboardInterrupt
            return replies

    with pytest.raises(KeyboardInterrupt):
        run_rounds(Dying(), lab.store, run.id)
    assert run_rounds(Dying(), lab.store, run.id).round == 2
    yield lab, twice, run.id, asked, refusals
    lab.store.close()


def test_a_second_exchange_looks_through_a_lens_and_pays_for_itself(again):
    lab, study, run, asked, _ = again
    (first, _), *_ = asked[1]
    assert not first.arrays
    (second, replies), (retried, answers) = asked[2]
    assert {name.partition(".")[0] for name in second.arrays} == {"emphasis", "lens"}
    assert retried.digest == second.digest
    assert {s: r.update_digest for s, r in answers.items()} == {
        s: r.update_digest for s, r in replies.items()
    }
    verify_export(dict(ledger_store.export_files(lab.store)).get, key=lab.store.key.public)
    for number in (1, 2):
        for spend in round_records.get_round(lab.store, run, number).spends:
            receipt = open_receipt(spend.receipt, lab.sites[spend.site].receipt_key().public)
            assert [event.max_grad_norm for event in receipt.events] == [pytest.approx(study.sensitivity)]
    for spend in spends.run_spends(lab.store, run):
        assert 0 < float(spend.spent_epsilon) <= study.privacy.epsilon


def test_pictures_of_a_second_exchange_show_what_their_rows_say(again, digits):
    lab, study, run, *_ = again
    generator = lab.generator(study, run, 2)
    rows = pd.concat(sample_cohort(generator.table, study.table, 600, seed=3))
    pictures = np.concatenate([found for _, found in generator.with_pictures(rows, seed=3)])
    classifier = LogisticRegression(max_iter=300).fit(pictures.reshape(600, -1) / 255, rows["digit"])
    images, labels = digits
    assert (
        classifier.score(images[1500:].reshape(-1, 64) / 255, labels[1500:].astype(str)) > 0.4
    )  # a tenth by chance


def test_a_lens_that_cannot_be_used_is_refused_before_anything_is_spent(again):
    """Asked with it first, each site still has its one debit for the round and answered the request that is none."""
    lab, _, run, _, (refusal,) = again
    assert refusal is not None
    assert "lens.scale holds a value that is not above 0" in refusal.reason
    for home in lab.sites.values():
        record = Guard(home.record_file, load_policy(home.policy_file)).history()
        debits = [(one.body["run"], one.body["round"]) for one in record if one.kind == "debit"]
        assert debits == [(run, 1), (run, 2)]


def _pixels(png: bytes) -> np.ndarray:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return np.asarray(image_module.open(io.BytesIO(png)))
