"""Real tables for the benchmarks, with public schemas; read by path, never copied."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tabular_eicu import PATIENT, REGION, read_eicu

from models.schema import StudySchema

ADULT_NAMES = [
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
    "income",
]


@dataclass(frozen=True)
class BenchmarkData:
    """A table split into training and held-out patients.

    Attributes:
        name: of the data set.
        schema: public bounds and categories.
        train: rows that sites hold.
        test: rows of patients that nobody trains on, one row each.
        site: (len(train),) the site that each training row belongs to by nature, or None: split at random.
        test_site: (len(test),) the same for the test rows.
    """

    name: str
    schema: StudySchema
    train: pd.DataFrame
    test: pd.DataFrame
    site: np.ndarray | None = None
    test_site: np.ndarray | None = None

    def split(self, num_sites: int, *, seed: int = 0) -> list[pd.DataFrame]:
        """The sites' own tables; patients are dealt at random where there are no natural sites."""
        if self.site is not None:
            return [self.train[self.site == name].reset_index(drop=True) for name in np.unique(self.site)]
        patients = np.arange(len(self.train))
        if self.schema.patient_id is not None:
            patients, _ = pd.factorize(self.train[self.schema.patient_id])
        which = np.random.default_rng(seed).permutation(patients.max() + 1)[patients] % num_sites
        return [self.train[which == site].reset_index(drop=True) for site in range(num_sites)]

    def one_row_each(self, *, seed: int = 0) -> pd.DataFrame:
        """One training row of each patient: what the synthetic patients are to resemble."""
        return one_row_each(self.train, self.schema.patient_id, seed=seed)


def one_row_each(frame: pd.DataFrame, patient_id: str | None, *, seed: int) -> pd.DataFrame:
    """A random row of each patient."""
    if patient_id is None:
        return frame
    shuffled = frame.sample(frac=1.0, random_state=seed)
    return shuffled.drop_duplicates(patient_id).reset_index(drop=True)


def data_folder(given: Path | None) -> Path:
    """`--data`, or the environment's FEDTWIN_DATA.

    Raises:
        FileNotFoundError: neither names a folder.
    """
    folder = given or Path(os.environ.get("FEDTWIN_DATA", ""))
    if str(folder) in ("", ".") or not folder.is_dir():
        raise FileNotFoundError("give the folder with the data sets: --data DIR, or FEDTWIN_DATA=DIR")
    return folder


def load(name: str, folder: Path) -> BenchmarkData:
    """A data set by name.

    Raises:
        KeyError: there is none of that name.
        FileNotFoundError: its files are not in the folder.
    """
    return LOADERS[name](folder)


def load_adult(folder: Path) -> BenchmarkData:
    """UCI Adult: 32,561 + 16,281 rows, the 13 columns and bins of prototypes/tabular_common.py.

    The categories are those of the data's public code book (adult.names); '?' is one of them.
    """
    parts = [
        pd.read_csv(
            folder / "uci_adult" / f"adult-{part}.csv",
            header=None,
            names=ADULT_NAMES,
            skipinitialspace=True,
            keep_default_na=False,
        )
        for part in ("train", "test")
    ]
    for part in parts:
        part["income"] = part["income"].str.rstrip(".")
    both = pd.concat(parts)
    grids = {
        "age": {"minimum": 17.0, "maximum": 90.0, "bins": 24},
        "capital-gain": {
            "minimum": 0.0,
            "maximum": 100_000.0,
            "bins": 15,
            "scale": "log",
            "log_floor": 100.0,
        },
        "capital-loss": {"minimum": 0.0, "maximum": 5_000.0, "bins": 15, "scale": "log", "log_floor": 100.0},
        "hours-per-week": {"minimum": 1.0, "maximum": 99.0, "bins": 24},
    }
    columns: list[dict[str, object]] = []
    for column in ADULT_NAMES:
        if column in ("fnlwgt", "education-num"):
            continue
        if column in grids:
            columns.append({"kind": "continuous", "name": column, "decimals": 0, **grids[column]})
        else:
            names = sorted(both[column].unique())
            columns.append({"kind": "categorical", "name": column, "categories": names})
    schema = StudySchema.model_validate_json(json.dumps({"columns": columns, "label": "income"}))
    train, test = (part[list(schema.names)].reset_index(drop=True) for part in parts)
    return BenchmarkData("adult", schema, train, test)


HEART_SITES = ("cleveland", "hungarian", "switzerland", "va")


def load_heart(folder: Path) -> BenchmarkData:
    """UCI heart disease: 920 patients of four hospitals, 14 columns, '?' missing; 30 % of each held out."""
    names = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal disease"
    parts = []
    for site in HEART_SITES:
        path = folder / "uci_heart_disease_4sites" / f"processed.{site}.data"
        part = pd.read_csv(path, header=None, names=names.split(), na_values="?")
        part["disease"] = (part["disease"] > 0).map({True: "yes", False: "no"})
        parts.append(part.assign(site=site))
    table = pd.concat(parts, ignore_index=True)
    grid = {"kind": "continuous", "outside": "clip", "missing": True}
    levels = {"sex": 2, "fbs": 2, "restecg": 3, "exang": 2}
    columns: list[dict[str, object]] = [
        {**grid, "name": "age", "minimum": 20.0, "maximum": 80.0, "bins": 10, "decimals": 0},
        *({"kind": "categorical", "name": n, "categories": [str(k) for k in range(d)], "missing": True}
          for n, d in levels.items()),
        {"kind": "categorical", "name": "cp", "categories": ["1", "2", "3", "4"], "missing": True},
        {**grid, "name": "trestbps", "minimum": 80.0, "maximum": 200.0, "bins": 8, "decimals": 0},
        {**grid, "name": "chol", "minimum": 0.0, "maximum": 400.0, "bins": 8, "decimals": 0},
        {**grid, "name": "thalach", "minimum": 60.0, "maximum": 210.0, "bins": 8, "decimals": 0},
        {**grid, "name": "oldpeak", "minimum": -1.0, "maximum": 6.0, "bins": 7, "decimals": 1},
        {"kind": "categorical", "name": "slope", "categories": ["1", "2", "3"], "missing": True},
        {"kind": "categorical", "name": "ca", "categories": ["0", "1", "2", "3"], "missing": True},
        {"kind": "categorical", "name": "thal", "categories": ["3", "6", "7"], "missing": True},
        {"kind": "categorical", "name": "disease", "categories": ["no", "yes"]},
    ]  # fmt: skip
    schema = StudySchema.model_validate_json(json.dumps({"columns": columns, "label": "disease"}))
    rng = np.random.default_rng(0)
    held_out = table.groupby("site")["age"].transform(
        lambda ages: rng.permutation(len(ages)) < 0.3 * len(ages)
    )
    held_out = held_out.to_numpy(dtype=bool)
    site, rows = table["site"].to_numpy(), table[list(schema.names)]
    train, test = (rows[part].reset_index(drop=True) for part in (~held_out, held_out))
    return BenchmarkData("heart", schema, train, test, site[~held_out], site[held_out])


ICD9_CHAPTERS = (
    *((139, "infectious"), (239, "neoplasms"), (249, "endocrine"), (250.99, "diabetes"), (279, "metabolic")),
    *((289, "blood"), (319, "mental"), (389, "nervous"), (459, "circulatory"), (519, "respiratory")),
    *(
        (579, "digestive"),
        (629, "genitourinary"),
        (679, "pregnancy"),
        (709, "skin"),
        (739, "musculoskeletal"),
    ),
    *((759, "congenital"), (779, "perinatal"), (799, "symptoms"), (999, "injury")),
)


def load_diabetes(folder: Path) -> BenchmarkData:
    """UCI Diabetes 130-US hospitals: 101,766 encounters of 71,518 patients; the unit is the patient.

    22 columns; diagnoses as ICD-9 chapters; a fifth of the patients held out.
    """
    with zipfile.ZipFile(folder / "uci_diabetes_130" / "dataset_diabetes.zip") as archive:
        inside = next(
            name for name in archive.namelist() if name.endswith("/diabetic_data.csv") and "._" not in name
        )
        with archive.open(inside) as file:
            table = pd.read_csv(file, keep_default_na=False, na_values=["?"], low_memory=False)
    chapters = [name for _, name in ICD9_CHAPTERS]
    for column in ("diag_1", "diag_2"):
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy()
        place = np.searchsorted([float(np.floor(top)) + 0.995 for top, _ in ICD9_CHAPTERS], numbers)
        known = np.where(np.isnan(numbers), "external", np.append(chapters, "injury")[place])
        table[column] = np.where(table[column].isna(), None, known)
    named = {
        "race": True, "gender": False, "age": False, "admission_type_id": False,
        "discharge_disposition_id": False, "admission_source_id": False, "diag_1": True, "diag_2": True,
        "max_glu_serum": False, "A1Cresult": False, "metformin": False, "insulin": False, "change": False,
        "diabetesMed": False,
    }  # fmt: skip
    columns: list[dict[str, object]] = [
        {
            "kind": "categorical",
            "name": name,
            "categories": sorted(table[name].dropna().astype(str).unique()),  # the public code book's
            "missing": missing,
        }
        for name, missing in named.items()
    ]
    grid = {"kind": "integer", "outside": "clip"}
    columns += [
        {**grid, "name": "time_in_hospital", "minimum": 1, "maximum": 14, "bins": 14},
        {**grid, "name": "num_lab_procedures", "minimum": 0, "maximum": 119, "bins": 12},
        {**grid, "name": "num_procedures", "minimum": 0, "maximum": 6, "bins": 7},
        {**grid, "name": "num_medications", "minimum": 0, "maximum": 79, "bins": 16},
        *(
            {**grid, "name": name, "minimum": 0, "maximum": 39, "bins": 7, "scale": "log", "log_floor": 1.0}
            for name in ("number_outpatient", "number_emergency", "number_inpatient")
        ),
        {"kind": "categorical", "name": "readmitted", "categories": ["NO", ">30", "<30"]},
    ]
    schema = StudySchema.model_validate_json(
        json.dumps(
            {
                "columns": columns,
                "label": "readmitted",
                "patient_id": "patient_nbr",
                "max_records_per_patient": 5,
                "records_beyond": "sample",
            }
        )
    )
    table = table[["patient_nbr", *schema.names]]
    patients, _ = pd.factorize(table["patient_nbr"])
    held_out = (np.random.default_rng(0).random(patients.max() + 1) < 0.2)[patients]
    train, test = (table[part].reset_index(drop=True) for part in (~held_out, held_out))
    return BenchmarkData("diabetes", schema, train, one_row_each(test, "patient_nbr", seed=0))


def load_eicu(folder: Path) -> BenchmarkData:
    """eICU demo: 1,841 patients of 186 hospitals; the sites are the regions, and the hospitals that state none.

    21 columns; the label is death in hospital; the unit is the patient; 30 % of the patients held out.
    """
    schema, table = read_eicu(folder)
    patients, _ = pd.factorize(table[PATIENT])
    held_out = (np.random.default_rng(0).random(patients.max() + 1) < 0.3)[patients]
    rows = table[[PATIENT, *schema.names]]
    regions = table[REGION].to_numpy()
    test = table[held_out].sample(frac=1.0, random_state=0).drop_duplicates(PATIENT)
    return BenchmarkData(
        "eicu",
        schema,
        rows[~held_out].reset_index(drop=True),
        test[[PATIENT, *schema.names]].reset_index(drop=True),
        regions[~held_out],
        test[REGION].to_numpy(),
    )


LOADERS = {"adult": load_adult, "heart": load_heart, "diabetes": load_diabetes, "eicu": load_eicu}
