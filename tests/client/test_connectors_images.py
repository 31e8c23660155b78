"""Images as a source: whose each is, what it shows, and the same picture whatever the file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from client.connectors import DataSourceError, open_source
from client.connectors.image_records import ImageRecords, ImageShape, fitted, read_images
from client.connectors.settings import DicomSource, ImageFolderSource, NpzSource, TableFile

SHAPE = ImageShape(size=16)
RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))


def folder_with(tmp_path: Path) -> Path:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for label, names in {"ill": ["a.png", "b.png"], "well": ["a.png"]}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for name in names:
            image_module.fromarray(RAMP).save(tmp_path / "images" / label / name)
    return tmp_path / "images"


def test_a_picture_is_fitted_into_the_square_and_keeps_its_proportions():
    wide = fitted(np.full((10, 40), 200), SHAPE)
    assert wide.shape == (1, 16, 16)
    assert (wide[0, 6:10] == 200).all()
    assert wide[0, :6].max() == wide[0, 10:].max() == 0
    assert (fitted(np.full((16, 16, 3), 100), SHAPE) == 100).all()
    assert fitted(RAMP, ImageShape(size=16, channels=3)).shape == (3, 16, 16)
    exact = np.random.default_rng(0).integers(0, 256, (16, 16))
    assert (fitted(exact, SHAPE)[0] == exact).all()


def test_shrinking_averages_instead_of_picking():
    chequered = np.indices((64, 64)).sum(0) % 2 * 255
    small = fitted(chequered, SHAPE)[0, 2:-2, 2:-2]
    assert abs(small.astype(int) - 127).max() <= 2


def test_subfolders_are_labels_and_every_file_another_patient(tmp_path):
    found = read_images(ImageFolderSource(kind="image-folder", path=folder_with(tmp_path)), SHAPE)
    assert found.images.shape == (3, 1, 16, 16)
    assert found.labels == ("ill", "ill", "well")
    assert len(set(found.patient_ids)) == 3


def test_a_manifest_says_whose_an_image_is_and_more(tmp_path):
    folder = folder_with(tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("file,patient_id,label,sex\nill/a.png,p1,1,f\nwell/a.png,p2,0,m\nill/b.png,p1 ,1,f\n")
    data = ImageFolderSource(kind="image-folder", path=folder, manifest=manifest)
    found = read_images(data, SHAPE)
    assert found.patient_ids == ("p1", "p2", "p1")
    assert found.attributes == {"sex": ("f", "m", "f")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nill/a.png,1\n", "lacks the columns"),
        ("file,patient_id,label\nill/a.png,,1\n", "line 2: patient_id is empty"),
        ("file,patient_id,label\nill/a.png,p,1\nill/a.png,q,1\n", "line 3: this file stands twice"),
        ("file,patient_id,label\n../secret.png,p,1\n", "outside the folder"),
        ("file,patient_id,label\nill/z.png,p,1\n", "not there"),
        ("file,patient_id,label\n", "no image"),
    ],
)
def test_a_manifest_at_fault_says_where(tmp_path, text, said):
    folder = folder_with(tmp_path)
    (tmp_path / "secret.png").write_bytes((folder / "ill" / "a.png").read_bytes())
    (tmp_path / "manifest.csv").write_text(text)
    data = ImageFolderSource(kind="image-folder", path=folder, manifest=tmp_path / "manifest.csv")
    with pytest.raises(DataSourceError, match=said):
        read_images(data, SHAPE)


def test_every_file_that_is_no_image_is_listed(tmp_path):
    folder = folder_with(tmp_path)
    (folder / "ill" / "c.png").write_bytes(b"not an image")
    (folder / "well" / "d.jpg").write_bytes(b"")
    with pytest.raises(DataSourceError, match=r"2 files at fault:\n  ill/c\.png.*\n  well/d\.jpg"):
        read_images(ImageFolderSource(kind="image-folder", path=folder), SHAPE)


def test_an_npz_in_medmnists_layout_is_read(tmp_path):
    images = np.stack([RAMP] * 3)
    np.savez(
        tmp_path / "x.npz", train_images=images, train_labels=np.array([[0], [1], [1]]), who=["a", "b", "a"]
    )
    data = NpzSource(kind="npz", path=tmp_path / "x.npz", patients="who")
    found = read_images(data, SHAPE)
    assert found.labels == ("0", "1", "1")
    assert found.patient_ids == ("a", "b", "a")
    with pytest.raises(DataSourceError, match="lacks the arrays"):
        read_images(data.model_copy(update={"part": "test"}), SHAPE)


def test_an_npz_that_would_run_code_or_is_of_another_type_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=np.array([{}], dtype=object), train_labels=np.array([0]))
    with pytest.raises(DataSourceError, match="plain arrays"):
        read_images(NpzSource(kind="npz", path=tmp_path / "x.npz"), SHAPE)
    np.savez(tmp_path / "y.npz", train_images=np.zeros((2, 8, 8)), train_labels=np.array([0, 1]))
    with pytest.raises(DataSourceError, match="uint8"):
        read_images(NpzSource(kind="npz", path=tmp_path / "y.npz"), SHAPE)
    (tmp_path / "z.npz").write_bytes(b"PK\x03\x04 not")
    with pytest.raises(DataSourceError, match="plain arrays"):
        read_images(NpzSource(kind="npz", path=tmp_path / "z.npz"), SHAPE)


def test_real_chest_images_keep_their_counts_and_pixels():
    path = Path(os.environ.get("FEDTWIN_DATA", "absent"), "medmnist", "pneumoniamnist.npz")
    if not path.is_file():
        pytest.skip("FEDTWIN_DATA/medmnist is absent")
    found = read_images(NpzSource(kind="npz", path=path, part="val"), ImageShape(size=28))
    assert found.images.shape == (524, 1, 28, 28)
    with np.load(path) as arrays:
        assert (found.images[:, 0] == arrays["val_images"]).all()
    assert set(found.labels) == {"0", "1"}


def test_a_source_of_tables_holds_no_images_and_the_other_way_round(tmp_path):
    with pytest.raises(DataSourceError, match="this study asks for images"):
        read_images(TableFile(kind="csv", path=tmp_path / "x.csv"), SHAPE)
    with pytest.raises(DataSourceError, match="this study asks for a table"):
        open_source(NpzSource(kind="npz", path=tmp_path / "x.npz"))


@pytest.mark.parametrize("package", ["PIL", "pydicom"])
def test_an_absent_package_is_named_with_how_to_get_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    kind, source = ("image-folder", ImageFolderSource) if package == "PIL" else ("dicom", DicomSource)
    with pytest.raises(DataSourceError, match=r"pip install 'fedtwin\[images\]'"):
        read_images(source(kind=kind, path=tmp_path), SHAPE)


def test_records_that_do_not_say_whose_they_are_cannot_be_made():
    with pytest.raises(ValueError, match="whose"):
        ImageRecords(patient_ids=(" ",), images=np.zeros((1, 1, 8, 8), np.uint8), labels=("",))


def dicom(path: Path, pixels: np.ndarray, patient: str = "p1", **fields) -> Path:
    """Write a DICOM file of 12 stored bits."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = (
        f"1.2.3.{abs(hash(path.name)) % 10**9}"
    )
    header.PatientID, header.PatientSex, header.Modality = patient, "F", "DX"
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


DEEP = np.tile(np.linspace(0, 4095, 16).round(), (16, 1))
FULL = np.round(DEEP / 4095 * 255)


def read_dicom(folder: Path, **settings) -> ImageRecords:
    return read_images(DicomSource(kind="dicom", path=folder, **settings), SHAPE)


def test_dicom_patient_label_and_attributes_come_from_the_header(tmp_path):
    dicom(tmp_path / "1" / "a", DEEP)
    dicom(tmp_path / "2" / "b.dcm", DEEP, patient=" p2 ")
    (tmp_path / "README").write_text("not DICOM, left alone")
    found = read_dicom(tmp_path, label="Modality")
    assert found.patient_ids == ("p1", "p2")
    assert found.labels == ("DX", "DX")
    assert found.attributes["PatientSex"] == ("F", "F")
    assert abs(found.images[0, 0] - FULL).max() <= 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, FULL),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - FULL),
        ({"WindowCenter": 2048, "WindowWidth": 2}, np.where(DEEP >= 2048, 255, 0)),
        ({"WindowCenter": [1024, 9], "WindowWidth": [2048, 9]}, np.clip(DEEP / 2047, 0, 1) * 255),
        (
            {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 4000,
             "VOILUTFunction": "LINEAR_EXACT"},
            np.clip((DEEP * 2 - 2000) / 4000 + 0.5, 0, 1) * 255,
        ),
        (
            {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (DEEP - 2000) / 1000)),
        ),
    ],
    ids=["whole-range", "inverted", "narrow", "two-windows", "rescaled", "sigmoid"],
)  # fmt: skip
def test_dicom_pixels_become_shades_as_the_standard_says(tmp_path, fields, expected):
    dicom(tmp_path / "a", DEEP, **fields)
    assert abs(read_dicom(tmp_path).images[0, 0].astype(float) - expected).max() <= 1


def test_a_window_of_the_site_goes_before_the_files_own(tmp_path):
    dicom(tmp_path / "a", DEEP, WindowCenter=1, WindowWidth=2)
    found = read_dicom(tmp_path, window_center=2048, window_width=4096)
    assert abs(found.images[0, 0] - FULL).max() <= 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patient": " "}, "no PatientID"),
        ({"BurnedInAnnotation": "YES"}, "carry text"),
        ({"NumberOfFrames": 2}, "frames"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
    ],
)
def test_a_dicom_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, fields, said):
    dicom(tmp_path / "a", DEEP)
    dicom(tmp_path / "sub" / "b", DEEP, **fields)
    with pytest.raises(DataSourceError, match=rf"1 files at fault:\n  sub/b: .*{said}"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(500), b"\x89PNG"], ids=["empty", "zeros", "png"])
def test_a_file_that_is_named_like_dicom_and_is_none_is_not_left_out_without_a_word(tmp_path, content):
    dicom(tmp_path / "a", DEEP)
    (tmp_path / "broken.DCM").write_bytes(content)
    with pytest.raises(
        DataSourceError, match=r"1 files at fault:\n  broken\.DCM: is named like a DICOM file"
    ):
        read_dicom(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(DataSourceError, match="1 files at fault"):
        read_dicom(tmp_path)


def test_a_manifest_labels_dicom_files_by_their_uid(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    uid = pydicom.dcmread(dicom(tmp_path / "d" / "a", DEEP)).SOPInstanceUID
    manifest = tmp_path / "labels.csv"
    manifest.write_text(f"sop_instance_uid,label\n{uid},pneumonia\n")
    assert read_dicom(tmp_path / "d", manifest=manifest).labels == ("pneumonia",)
    dicom(tmp_path / "d" / "b", DEEP)
    with pytest.raises(DataSourceError, match="not in the manifest"):
        read_dicom(tmp_path / "d", manifest=manifest)
