"""The demo's scans: each at one hospital or at none, and read back from a cohort as they were drawn."""

from __future__ import annotations

import base64
import io
import stat
import zipfile

import numpy as np
import pytest

from models.study import Study
from server.demo import digits
from server.exports.images import png_bytes

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def scans():
    return digits.load_scans()


def test_scans_are_dealt_out_whole_and_the_held_out_ones_to_nobody(scans, tmp_path):
    dealt, held_out = scans
    folders = {name: tmp_path / name for name in digits.SHARES}
    for folder in folders.values():
        folder.mkdir()
    digits.deal_scans(dealt, folders)
    files = [np.load(folder / "scans.npz") for folder in folders.values()]
    assert (np.concatenate([file["train_images"] for file in files])[:, None] == dealt.images).all()
    writers = np.concatenate([file["writers"] for file in files])
    assert len(set(writers)) == len(dealt.labels)
    assert len(dealt.labels) + len(held_out.labels) == 1797
    assert all(stat.S_IMODE((folder / "scans.npz").stat().st_mode) == 0o600 for folder in folders.values())


def test_the_study_reads_a_source_of_its_own(tmp_path):
    study = Study.from_toml(digits.DIGITS_STUDY.read_text())
    (tmp_path / "site.toml").write_text("")
    digits.name_scans(tmp_path)
    assert f"[studies.{study.name}.data]" in (tmp_path / "site.toml").read_text()


def test_pictures_are_read_back_with_their_labels(scans, tmp_path):
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    dealt, _ = scans
    with zipfile.ZipFile(tmp_path / "images-png.zip", "w") as archive:
        rows = [f"{n}.png,{dealt.labels[n]}\n" for n in range(20)]
        archive.writestr("manifest.csv", "file,digit\n" + "".join(rows))
        for n in range(20):
            archive.writestr(f"{n}.png", png_bytes(dealt.images[n]))
    found = digits.read_pictures(tmp_path / "images-png.zip")
    assert (found.images == dealt.images[:20]).all()
    assert (found.labels == dealt.labels[:20]).all()


def test_the_report_tells_real_pictures_from_noise(scans):
    dealt, held_out = scans
    noise = digits.Scans(
        images=np.random.default_rng(0).integers(0, 256, (500, 1, 8, 8)).astype(np.uint8),
        labels=np.arange(500) % 10,
    )
    facts = digits.picture_facts(dealt, noise, held_out)
    assert facts.real_accuracy > 0.9
    assert facts.accuracy < 0.3
    assert facts.synthetic_sheet.startswith("data:image/png;base64,")
    sheet = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    opened = sheet.open(io.BytesIO(base64.b64decode(facts.real_sheet.partition(",")[2])))
    assert opened.size == (100, 50)


def test_the_nearest_real_scan_of_a_slightly_changed_one_is_itself(scans):
    dealt, held_out = scans
    changed = digits.Scans(images=dealt.images[:300] // 2 * 2, labels=dealt.labels[:300])
    facts = digits.picture_facts(dealt, changed, held_out)
    assert facts.nearest_sheet == facts.real_sheet
    assert facts.nearest_sheet != facts.synthetic_sheet
