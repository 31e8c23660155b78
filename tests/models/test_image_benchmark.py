"""The image benchmark's measures say what they claim, and its data and sheets are read and written right."""

import argparse
import io

import images
import images_metrics
import numpy as np
import pytest
import torch
from images_data import ImageData, data_folder, load
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
from PIL import Image
from rich.console import Console

from models.image_schema import ImageSchema
from models.schema import CategoricalColumn, StudySchema


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
    ("name", "train", "test"), [("mnist", 60_000, 10_000), ("pneumoniamnist", 4708, 624)]
)
def test_real_images_are_read_whole(name, train, test):
    try:
        data = load(name, data_folder(None))
    except (SystemExit, FileNotFoundError) as absent:
        pytest.skip(f"FEDTWIN_DATA has no {name}: {absent}")
    assert data.train.shape == (train, 1, 28, 28)
    assert len(data.test) == len(data.test_labels) == test
    assert sorted(data.train_labels.unique().tolist()) == list(range(data.num_classes))
    assert sum(len(labels) for _, labels in data.split(4)) == train


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_few_images(monkeypatch, tmp_path):
    column = CategoricalColumn(kind="categorical", name="way", categories=("up", "across"))
    data = ImageData(
        "bars",
        StudySchema(columns=(column,), label="way"),
        ImageSchema(size=8, conditioned_on=("way",)),
        *bars(2000, 0),
        *bars(200, 1),
    )
    monkeypatch.setattr(images, "load", lambda _name, _folder: data)
    monkeypatch.setattr(images, "SYNTHETIC_PER_RUN", 4000)
    monkeypatch.setattr(images_metrics, "FRACTAL_CLASSES", 4)
    arguments = argparse.Namespace(
        dataset="bars", data=tmp_path, epsilon=10.0, delta=1e-5, sites=4, steps=30, quick=True, no_real=False,
        pictures=tmp_path / "sheets", save=tmp_path / "generator.safetensors",
    )  # fmt: skip
    told = io.StringIO()
    found = images.run(arguments, Console(file=told))
    images.show(found, arguments, Console(file=told, width=120))
    assert list(found) == ["real data", "epsilon 10, 4 sites"]
    assert found["real data"]["accuracy"] > 0.9
    assert 0 <= found["epsilon 10, 4 sites"]["recall"] <= 1
    assert found["epsilon 10, 4 sites"]["step_over_plain"] > 0
    assert "real data" in told.getvalue()
    assert len(list((tmp_path / "sheets").iterdir())) == 2
    assert arguments.save.stat().st_size > 1000
