"""The demo's pictures: digits that people wrote by hand, dealt to the hospitals; what came of them, for the report.

Source: Optical Recognition of Handwritten Digits (UCI Machine Learning Repository, Alpaydin and Kaynak, 1998),
1,797 scans of 8 x 8 pixels, as they ship inside scikit-learn. Who wrote which is not recorded, so that each scan
counts as another person's.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from server.demo.report import PictureFacts
from server.exports.images import png_bytes

DIGITS_STUDY = Path(__file__).with_name("digits.toml")
HELD_OUT = 4  # every fourth scan is given to no hospital
SHARES = {"lakeside": 0.4, "hillcrest": 0.25, "northgate": 0.35}
SHEET_ROWS = 5
_SOURCE = """
[studies.demo-digits.data]
kind = "npz"
path = "../scans.npz"
patients = "writers"
"""


@dataclass(frozen=True, kw_only=True)
class Scans:
    """Scans and what they show.

    Attributes:
        images: (N, 1, 8, 8) uint8.
        labels: (N,) 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray

    def at(self, places: np.ndarray) -> Scans:
        """Some of them."""
        return Scans(images=self.images[places], labels=self.labels[places])


def load_scans() -> tuple[Scans, Scans]:
    """The hospitals' scans, and those that no hospital has."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scans = Scans(
        images=(images / 16 * 255).round().astype(np.uint8).reshape(-1, 1, 8, 8),
        labels=labels.astype(np.int64),
    )
    held_out = np.arange(len(labels)) % HELD_OUT == 0
    return scans.at(np.flatnonzero(~held_out)), scans.at(np.flatnonzero(held_out))


def deal_scans(scans: Scans, folders: Mapping[str, Path]) -> None:
    """Write each hospital's `scans.npz` into its own folder, readable by its owner only."""
    ends = np.cumsum([round(SHARES[name] * len(scans.labels)) for name in folders])[:-1]
    for name, places in zip(folders, np.split(np.arange(len(scans.labels)), ends), strict=True):
        own = scans.at(places)
        file = folders[name] / "scans.npz"
        writers = np.array([f"W{place:05d}" for place in places])
        np.savez(file, train_images=own.images[:, 0], train_labels=own.labels, writers=writers)
        file.chmod(0o600)


def name_scans(site: Path) -> None:
    """What a hospital's data manager writes into site.toml: where this study's patients are."""
    with (site / "site.toml").open("a", encoding="utf-8") as settings:
        settings.write(_SOURCE)


def read_pictures(archive: Path) -> Scans:
    """A cohort's pictures and labels from `images-png.zip`."""
    from PIL import Image

    with zipfile.ZipFile(archive) as opened:
        manifest = pd.read_csv(io.BytesIO(opened.read("manifest.csv")))
        pixels = [np.asarray(Image.open(io.BytesIO(opened.read(name)))) for name in manifest["file"]]
    return Scans(images=np.stack(pixels)[:, None], labels=manifest["digit"].to_numpy())


def picture_facts(real: Scans, synthetic: Scans, held_out: Scans) -> PictureFacts:
    """What the report says of the pictures.

    Args:
        real: all hospitals' scans. Sensitive: only a demo has them in one place.
        synthetic: a cohort's.
        held_out: scans that no hospital had.
    """
    shown = _shown(synthetic)
    return PictureFacts(
        synthetic_sheet=_sheet(shown),
        real_sheet=_sheet(_shown(real)),
        nearest_sheet=_sheet(_nearest(shown, real)),
        num_synthetic=len(synthetic.labels),
        num_held_out=len(held_out.labels),
        accuracy=_accuracy(synthetic, held_out),
        real_accuracy=_accuracy(real, held_out),
    )


def _accuracy(train: Scans, test: Scans) -> float:
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(max_iter=500).fit(train.images.reshape(-1, 64) / 255, train.labels)
    return float(classifier.score(test.images.reshape(-1, 64) / 255, test.labels))


def _shown(scans: Scans) -> Scans:
    """The first few of each digit, digit by digit."""
    return scans.at(
        np.concatenate([np.flatnonzero(scans.labels == digit)[:SHEET_ROWS] for digit in range(10)])
    )


def _nearest(scans: Scans, real: Scans) -> Scans:
    """The real scan with the smallest distance to each, in pixels, under the label of that one."""
    flat = [one.images.reshape(-1, 64).astype(np.float64) for one in (scans, real)]
    distances = (flat[1] ** 2).sum(1) - 2 * flat[0] @ flat[1].T  # squared, less what all of a row share
    return Scans(images=real.images[distances.argmin(1)], labels=scans.labels)


def _sheet(scans: Scans) -> str:
    """One column per digit, as a `data:` URL of a PNG."""
    columns = []
    for digit in range(10):
        own = scans.images[scans.labels == digit][:, 0]
        shown = np.zeros((SHEET_ROWS, 10, 10), dtype=np.uint8)
        shown[: len(own), 1:9, 1:9] = own
        columns.append(shown.reshape(-1, 10))
    return (
        "data:image/png;base64," + base64.b64encode(png_bytes(np.concatenate(columns, axis=1)[None])).decode()
    )
