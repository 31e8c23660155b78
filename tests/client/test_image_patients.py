"""Rows and pictures at a site: each picture stays with its row and its patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.connectors import DataSourceError
from client.connectors.image_source import open_images
from client.connectors.settings import ImageFolderSource, NpzSource, TableFile
from client.home import SiteHome
from client.patients import PatientTables, load_patients
from models.faults import TableFaultsError
from models.image_schema import ImageSchema
from models.schema import StudySchema
from models.study import PrivacySettings, Study, StudyError
from privacy.noise import SystemNoise
from privacy.signing import SigningKey

IMAGE = ImageSchema(size=8, conditioned_on=("finding",))
SECRET = b"s" * 32


def schema(**settings) -> StudySchema:
    return StudySchema.model_validate(
        {
            "columns": [{"name": "finding", "kind": "categorical", "categories": ["0", "1", "2"]}],
            "label": "finding",
            "patient_id": "patient",
            **settings,
        }
    )


def study(**settings) -> Study:
    budget = PrivacySettings(epsilon=1.0, delta=1e-5)
    return Study(name="pictures", privacy=budget, table=schema(**settings), image=IMAGE)


def site_with(tmp_path, data) -> SiteHome:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "none.csv").write_text("a\n1\n")
    site = SiteHome.create(
        tmp_path / "site",
        name="north",
        superlink_address="localhost:9000",
        ca_certificate=b"",
        coordinator_key=SigningKey.generate(name="lab").public.text,
        data_path=tmp_path / "none.csv",
    )
    object.__setattr__(site, "data", data)
    return site


@pytest.fixture
def arrays(tmp_path) -> NpzSource:
    """Six pictures of four patients; picture i is grey i, its finding i % 3."""
    shades = np.arange(6, dtype=np.uint8)
    path = tmp_path / "scans.npz"
    np.savez(
        path,
        train_images=np.broadcast_to(shades[:, None, None], (6, 8, 8)).copy(),
        train_labels=(shades % 3)[:, None],
        who=np.array(["a", "b", "a", "c", "d", "b"]),
    )
    return NpzSource(kind="npz", path=path, patients="who")


def test_each_picture_stays_with_its_row_and_its_patient(tmp_path, arrays):
    found = load_patients(site_with(tmp_path, arrays), study(max_records_per_patient=2))
    shades = found.images[:, 0, 0, 0]
    assert found.patient_offsets.tolist() == [0, 2, 4, 5, 6]
    assert shades.tolist() == [0, 2, 1, 5, 3, 4]
    assert found.codes[:, 0].tolist() == (shades % 3).tolist()
    picked = found.select(torch.tensor([1, 3]))
    assert picked.images[:, 0, 0, 0].tolist() == [1, 5, 4]


def test_further_arrays_are_columns_of_the_table(tmp_path, arrays):
    ages = np.arange(20, 26)
    np.savez(arrays.path, **dict(np.load(arrays.path)), train_age=ages)
    columns = [
        *schema().model_dump(mode="json")["columns"],
        {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99},
    ]
    found = load_patients(site_with(tmp_path, arrays), study(columns=columns, max_records_per_patient=2))
    order = found.images[:, 0, 0, 0].long()
    bins = Study.from_dict(study(columns=columns).to_dict()).table.columns[1]
    assert (found.codes[:, 1].numpy() == np.searchsorted(bins.edges, ages[order], side="right") - 1).all()
    np.savez(arrays.path, **{**dict(np.load(arrays.path)), "train_age": ages[:3]})
    with pytest.raises(DataSourceError, match="train_age must be one"):
        load_patients(site_with(tmp_path / "b", arrays), study(columns=columns))


def test_a_patient_with_too_many_pictures_is_refused_or_keeps_some(tmp_path, arrays):
    site = site_with(tmp_path, arrays)
    with pytest.raises(TableFaultsError, match=r"patient 'a'.*2 records; the study allows 1"):
        load_patients(site, study())
    kept = load_patients(site, study(records_beyond="sample"))
    assert kept.num_patients == kept.num_records == 4
    assert (kept.codes[:, 0] == kept.images[:, 0, 0, 0] % 3).all()


def test_a_label_that_the_study_does_not_know_is_a_fault_of_the_patient(tmp_path, arrays):
    wrong = study(
        columns=[{"name": "finding", "kind": "categorical", "categories": ["0", "1"]}],
        max_records_per_patient=2,
    )
    with pytest.raises(TableFaultsError, match=r"patient 'a'.*'2' is unknown"):
        load_patients(site_with(tmp_path, arrays), wrong)


def test_a_table_is_no_source_of_pictures(tmp_path):
    with pytest.raises(DataSourceError, match=r"holds a table.*image folder with a manifest"):
        open_images(TableFile(kind="csv", path=tmp_path / "a.csv"))


def test_pictures_are_read_again_only_when_a_file_changed(tmp_path, arrays):
    site = site_with(tmp_path, arrays)
    tables = PatientTables(site, SystemNoise())
    asked = study(max_records_per_patient=2)
    first = tables.load(asked, run="run-1")
    assert tables.load(asked, run="run-2") is first
    changed = dict(np.load(arrays.path))
    changed["train_images"][0] = 99
    np.savez(arrays.path, **changed)
    second = tables.load(asked, run="run-3")
    assert second.table.images[0, 0, 0, 0] == 99
    assert second.fingerprint != first.fingerprint


def test_the_manifest_is_part_of_the_fingerprint(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (tmp_path / "scans").mkdir()
    image_module.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "scans" / "1.png")
    manifest = tmp_path / "manifest.csv"
    files = open_images(ImageFolderSource(kind="image-folder", path=tmp_path / "scans", manifest=manifest))
    prints = set()
    for label in ("0", "1"):
        manifest.write_text(f"file,patient_id,label\n1.png,p,{label}\n")
        prints.add(files.fingerprint(SECRET))
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patient_id": None}, "table.patient_id is missing"),
        (
            {"columns": [{"name": "other", "kind": "boolean"}], "label": None},
            r"conditioned_on names \['finding'\], which the table lacks",
        ),
    ],
)
def test_a_study_with_pictures_says_what_it_lacks(settings, said):
    data = study().to_dict()
    data["table"] = {key: value for key, value in {**data["table"], **settings}.items() if value is not None}
    with pytest.raises(StudyError, match=said):
        Study.from_dict(data)


def test_what_a_study_opens_names_its_pictures():
    assert study().inputs == ("finding", "[images]")
    assert study().modality == "table and image"
