"""The image benchmark's measures say what they claim, and its data and sheets are read and written right."""

import io
import json

import images
import images_metrics
import numpy as np
import pandas as pd
import pytest
import torch
from images_data import INKS, ImageData, coloured, data_folder, ink_of, load
from images_dicom import DIAGNOSES, MANIFEST, invented_patients, read_dicom, write_dicom
from images_metrics import (
    Classifier,
    _fractal,
    downstream,
    fidelity,
    frechet_distance,
    jittered,
    nearest,
    save_sheet,
    train_classifier,
)
from images_profile import profile
from PIL import Image
from rich.console import Console
from torch.nn import functional

from client.connectors.image_records import ImageShape, read_images
from client.connectors.image_source import table_of
from models.image_schema import ImageFitSettings, ImageSchema
from models.schema import CategoricalColumn, StudySchema
from models.weights import decode_arrays


def sample(count, *, shift=0.0, scale=1.0, seed=0):
    return shift + scale * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_of_shifted_and_stretched_gaussians_is_the_closed_form():
    first, second = sample(60_000), sample(60_000, shift=0.5, scale=2.0, seed=1)
    assert frechet_distance(first.double(), second.double()) == pytest.approx(6 * (0.25 + 1.0), rel=0.02)


def test_two_samples_of_one_distribution_are_precise_and_covering():
    found = fidelity(sample(800), sample(800, seed=1))
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8
    assert found["coverage"] > 0.9
    assert found["density"] == pytest.approx(1, abs=0.1)


def test_a_collapsed_sample_is_precise_and_covers_little():
    found = fidelity(sample(800), sample(800, scale=0.02, seed=1))
    assert found["precision"] > 0.9
    assert found["recall"] < 0.1
    assert found["coverage"] < 0.2


def test_a_sample_far_away_is_neither():
    found = fidelity(sample(400), sample(400, shift=20.0, seed=1))
    assert found["precision"] == found["recall"] == found["coverage"] == found["density"] == 0


def bars(count, seed):
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=source)
    images[labels == 0, :, :, 3:5] += 180
    images[labels == 1, :, 3:5] += 180
    return images.to(torch.uint8), labels


def test_a_classifier_learns_what_the_images_show():
    model = train_classifier(*bars(200, 0), 2, seed=0, steps=40)
    found = downstream(model, *bars(100, 1))
    assert found["accuracy"] > 0.95
    assert found["auc"] > 0.98
    assert model.outputs(bars(10, 1)[0], features=True).shape == (10, 128)
    assert isinstance(model, Classifier)


def test_jitter_keeps_form_and_brightness():
    images = torch.rand(20, 1, 28, 28)
    moved = jittered(images)
    assert moved.shape == images.shape
    assert float(moved.mean()) == pytest.approx(float(images.mean()), abs=0.02)


def test_fractals_are_pictures():
    rng = np.random.default_rng(0)
    picture = _fractal(rng.uniform(-1, 1, (3, 2, 3)), 28, rng)
    assert picture.dtype == np.uint8
    assert 10 < (picture > 0).sum() < 784


def test_a_sheet_holds_the_images_in_rows(tmp_path):
    images = (
        torch.arange(6, dtype=torch.uint8)[:, None, None, None]
        * torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        * 40
    )
    save_sheet(images, tmp_path / "sheet.png", columns=3, scale=1)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (8, 12)
    assert pixels[0, ::4].tolist() == [0, 40, 80]
    assert pixels[4, ::4].tolist() == [120, 160, 200]


def test_the_nearest_training_image_is_found():
    real, _ = bars(20, 3)
    assert torch.equal(nearest(real, real[4:6]), real[4:6])


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("mnist", (60_000, 1, 28, 28), 10_000),
        ("pneumoniamnist", (4708, 1, 28, 28), 624),
        ("london_faces", (152, 3, 64, 64), 52),
    ],
)
def test_real_images_are_read_whole_and_patients_dealt_out_whole(name, train, test, tmp_path):
    data = real(name)
    assert data.train.shape == train
    assert len(data.test) == len(data.test_rows) == test
    assert sorted(data.codes(data.train_rows, data.label).unique().tolist()) == list(
        range(data.levels(data.label))
    )
    assert not set(data.train_rows["patient"]) & set(data.test_rows["patient"]) or name != "london_faces"
    held = [np.load(source.path) for source in data.place(data.sites, tmp_path)]
    assert sum(len(file["train_images"]) for file in held) == len(data.train)
    patients = [set(file["patients"].tolist()) for file in held]
    assert len(set.union(*patients)) == sum(map(len, patients)) == data.train_rows["patient"].nunique()


def real(name):
    try:
        return load(name, data_folder(None))
    except (SystemExit, FileNotFoundError) as absent:
        pytest.skip(f"FEDTWIN_DATA has no {name}: {absent}")


def test_a_site_reads_the_pictures_and_rows_that_the_benchmark_judges_by(tmp_path):
    data = bar_data(sites=1)
    (source,) = data.place(1, tmp_path)
    records = read_images(source, ImageShape(size=8, channels=1))
    assert np.array_equal(records.images, data.train.numpy())
    table = table_of(records, data.table)
    for name in data.table.names:
        assert torch.equal(data.codes(table, name), data.codes(data.train_rows, name))
    fewer = data.first(90)
    assert fewer.train_rows["patient"].tolist() == data.train_rows["patient"].tolist()[:90]
    assert torch.equal(fewer.train, data.train[:90])
    with pytest.raises(SystemExit, match="too few"):
        data.place(len(data.train) + 1, tmp_path)


def test_colour_follows_from_the_digit_and_the_number_alone():
    digits = np.arange(1000) % 10
    inks = ink_of(digits, 0)
    assert (inks == np.concatenate([ink_of(digits[:300], 0), ink_of(digits[300:], 300)])).all()
    assert all(len(set(inks[digits == digit])) == 2 for digit in range(10))
    assert {len(set(digits[inks == ink])) for ink in INKS} == {4}
    grey = torch.zeros(1000, 1, 28, 28, dtype=torch.uint8)
    grey[:, :, 10:18, 10:18] = 255
    for size in (32, 64):
        pictures = coloured(grey, inks, 0, size)
        assert pictures.shape == (1000, 3, size, size)
        middle = pictures[:, :, size // 2 - 2, size // 2 - 2].float()
        named = torch.tensor(list(INKS.values())).float()
        nearest_ink = (functional.normalize(middle) @ functional.normalize(named).T).argmax(1)
        assert [list(INKS)[k] for k in nearest_ink] == inks.tolist()


def bar_data(sites=4):
    """Bars that stand or lie, dark or bright: a label and a second column that shows."""
    columns = [("way", ("up", "across")), ("shade", ("dark", "bright"))]
    parts = {}
    for part, count in (("train", 800), ("test", 200)):
        pictures, labels = bars(count, len(parts))
        bright = torch.arange(count) // 2 % 2
        pictures = (pictures.float() * (0.4 + 0.6 * bright[:, None, None, None])).to(torch.uint8)
        rows = pd.DataFrame({"patient": np.arange(count).astype(str)})
        rows["way"] = [columns[0][1][label] for label in labels]
        rows["shade"] = [columns[1][1][label] for label in bright]
        parts[part] = pictures, rows
    schema = [CategoricalColumn(kind="categorical", name=name, categories=held) for name, held in columns]
    return ImageData(
        name="bars",
        table=StudySchema(columns=tuple(schema), label="way", patient_id="patient"),
        image=ImageSchema(size=8, conditioned_on=("way", "shade")),
        train=parts["train"][0],
        train_rows=parts["train"][1],
        test=parts["test"][0],
        test_rows=parts["test"][1],
        sites=sites,
    )


def test_the_whole_benchmark_runs_through_a_federation(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "MAX_SYNTHETIC", 6000)
    monkeypatch.setattr(images_metrics, "FRACTAL_CLASSES", 4)
    monkeypatch.setattr(images, "CLASSIFIER_STEPS", 600)
    words = ["--epsilon", "10", "--quick", "--set", "warm_start.image.steps=300", "--sites", "3"]
    words += ["--set", "warm_start.image.width=8", "--set", "warm_start.image.learning_rate=0.005"]
    arguments = images.read_arguments(words)
    arguments.dataset, arguments.pictures = "bars", tmp_path / "sheets"
    arguments.save, arguments.json = tmp_path / "generator.safetensors", tmp_path / "figures.json"
    told = io.StringIO()
    found = images.run(arguments, bar_data(), Console(file=told))
    images.show(found, arguments, Console(file=told, width=120))
    images.write_json(found, arguments)
    assert list(found) == ["real data", "epsilon 10, 3 sites"]
    (real_row,), (row,) = found.values()
    assert real_row["accuracy"] > 0.9
    assert min(real_row["follows way"], real_row["follows shade"]) > 0.9
    assert min(row["follows way"], row["follows shade"]) > 0.7
    assert 0 <= row["recall"] <= 1
    assert "follows shade" in told.getvalue()
    assert len(list((tmp_path / "sheets").iterdir())) == 2
    arrays = decode_arrays(arguments.save.read_bytes())
    assert {"logits", "image.last.weight"} <= set(arrays)
    assert json.loads(arguments.json.read_text())["rows"]["epsilon 10, 3 sites"][0] == row


def test_the_profile_times_each_part_and_compares_with_the_plain_step():
    found = profile(bar_data(), ImageFitSettings(batch_size=16, width=4), most_images=600)
    assert len(found) == 4
    assert all(row["seconds"] > 0 for row in found.values())
    ratios = [row["over_plain"] for row in found.values() if "over_plain" in row]
    assert ratios[0] == 1.0
    assert min(ratios) == 1.0


def test_a_dicom_folder_is_read_with_its_patients_and_dealt_out_by_them(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    lines = []
    for part, seed, count in (("train", 0, 40), ("test", 1, 12)):
        pictures, labels = bars(count, seed)
        large = np.kron(pictures[:, 0].numpy(), np.ones((1, 4, 4), np.uint8))[:, :28, :28]
        lines += write_dicom(large, [DIAGNOSES[label] for label in labels], tmp_path / "scans", part=part)
    rows = [",".join(line) for line in lines]
    (tmp_path / "scans" / MANIFEST).write_text("\n".join(["sop_instance_uid,label,part", *rows]))
    data = load("dicom", tmp_path / "scans")
    assert data.train.shape == (40, 1, 28, 28)
    assert len(data.test) == 12
    assert (data.train_rows.groupby("patient")["diagnosis"].nunique() == 1).all()
    assert data.train_rows["patient"].nunique() < 40
    (tmp_path / "sites").mkdir()
    seen = []
    for source in data.place(3, tmp_path / "sites"):
        records = read_images(source, ImageShape(size=28))
        seen.append(set(records.patient_ids))
        for image, patient, label in zip(records.images, records.patient_ids, records.labels, strict=True):
            own = (data.train_rows["patient"] == patient).to_numpy()
            assert set(data.train_rows["diagnosis"][own]) == {label}
            assert (data.train.numpy()[own] == image).all((1, 2, 3)).any()
    assert sum(map(len, seen)) == len(set.union(*seen)) == data.train_rows["patient"].nunique()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [*rows[:-1], "2.25.1,normal,train"], "names 1 files that"),
        (lambda rows: [rows[0].replace("train", "test"), *rows[1:]], "1 patients are in both parts"),
        (lambda _rows: None, "has no manifest.csv"),
    ],
)
def test_a_dicom_folder_that_cannot_be_used_is_refused_in_words(tmp_path, change, says):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    findings = ["normal"] * 8
    lines = write_dicom(np.zeros((8, 28, 28), np.uint8), findings, tmp_path, part="train")
    sizes = pd.Series([patient for patient, _ in invented_patients(findings, "train")]).value_counts()
    shared = [n for n, (p, _) in enumerate(invented_patients(findings, "train")) if sizes[p] > 1]
    rows = [",".join(line) for line in [lines[shared[0]], *lines[: shared[0]], *lines[shared[0] + 1 :]]]
    changed = change(rows)
    if changed is not None:
        (tmp_path / MANIFEST).write_text("\n".join(["sop_instance_uid,label,part", *changed]))
    with pytest.raises(SystemExit, match=says):
        read_dicom(tmp_path)


def test_a_dicom_folder_has_to_be_named():
    with pytest.raises(SystemExit):
        images.read_arguments(["--dataset", "dicom"])
