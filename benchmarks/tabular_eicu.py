"""The eICU demo as one row per stay in intensive care, with bounds and categories that anybody can know beforehand.

Where each comes from; nothing here was read off the patients:

- sex, ethnicity, `> 89`, Alive or Expired: the lists of the code book's page on the table `patient`
  (eicu-crd.mit.edu/eicutables/patient; the others beside it), which are complete there.
- kind of unit: table 1 of the data descriptor names these eight for all 200,859 stays of the whole database. The code
  book's page has examples only, of which some ("Virtual ICU", "Test ICU") are no unit that patients lie in.
- where from: the code book says that it is a list and gives examples. The groups here take any name: what is not
  among `ADMITTED_FROM` is `other`.
- regions, and that a hospital may state none: the data descriptor, table 5.
- the scale of comatose patients runs from 3 to 15 by its definition: eyes 1 to 4, speech 1 to 5, movement 1 to 6.
- yes and no: the code book's pages on `apacheApsVar` (ventilator, dialysis: 0 also where nothing was recorded) and
  `apachePredVar` (diabetes, elective surgery: 0 or 1). Where elective surgery alone is missing it counts as no, which
  is this file's reading.
- no score of coma where medicines kept a patient from being scored: its parts are then 0 by the page on `apacheApsVar`,
  and nothing above 0 in the files.
- a value that was not taken is NULL by that page and -1 in the files, as the page on `apachePredVar` has it for sex and
  medicines. Both are read as missing.
- bounds of vital signs and laboratory values are those a clinician would write down; values beyond are clipped.

References:
    Pollard and others: The eICU Collaborative Research Database, Scientific Data 5:180178, 2018.
    Teasdale, Jennett: Assessment of coma and impaired consciousness, The Lancet, 1974.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from models.schema import StudySchema

ADMITTED_FROM = {
    "Emergency Department": "emergency", "Emergency Room": "emergency",
    "Chest Pain Center": "emergency", "Observation": "emergency",
    "Floor": "ward", "Acute Care/Floor": "ward", "Direct Admit": "direct",
    "Operating Room": "surgery", "Recovery Room": "surgery", "PACU": "surgery",
    "ICU": "other unit", "Other ICU": "other unit", "ICU to SDU": "other unit",
    "Step-Down Unit (SDU)": "other unit", "Other Hospital": "other hospital",
}  # fmt: skip
CATEGORIES = {
    "gender": ["Female", "Male", "Other", "Unknown"],
    "ethnicity": [
        *("African American", "Asian", "Caucasian", "Hispanic", "Native American", "Other/Unknown"),
    ],
    "unittype": [
        *("CCU-CTICU", "CSICU", "CTICU", "Cardiac ICU", "MICU", "Med-Surg ICU", "Neuro ICU", "SICU"),
    ],
    "admitted_from": ["emergency", "ward", "direct", "surgery", "other unit", "other hospital", "other"],
    "vent": ["0", "1"],
    "dialysis": ["0", "1"],
    "diabetes": ["0", "1"],
    "elective_surgery": ["0", "1"],
}
LINEAR = {  # minimum, maximum, bins
    "age": (18, 90, 9),
    "gcs": (3, 15, 13),
    "heartrate": (20, 220, 10),
    "meanbp": (30, 200, 10),
    "temperature": (30, 42, 12),
    "respiratoryrate": (4, 60, 8),
    "sodium": (110, 170, 10),
    "hematocrit": (10, 60, 10),
}
LOGARITHMIC = {  # maximum, bins, floor
    "creatinine": (20, 8, 0.3),
    "bun": (200, 8, 4),
    "glucose": (1000, 8, 40),
    "wbc": (100, 8, 1),
}
PATIENT, REGION, NO_REGION = "uniquepid", "region", "not stated"


def read_eicu(folder: Path) -> tuple[StudySchema, pd.DataFrame]:
    """The schema and all stays with an outcome, one row each, with the columns of the patient and the region.

    Seven of the 1,841 patients were in two regions; all their stays count for the region of the first.
    """
    files = {
        name: pd.read_csv(folder / "eicu_demo" / f"{name}.csv.gz")
        for name in ("patient", "hospital", "apacheApsVar", "apachePredVar")
    }
    stays = files["patient"].merge(files["hospital"], on="hospitalid", how="left")
    physiology = files["apacheApsVar"].drop(columns="apacheapsvarid")
    history = files["apachePredVar"][["patientunitstayid", "diabetes", "electivesurgery"]]
    stays = stays.merge(physiology, on="patientunitstayid", how="left")
    stays = stays.merge(history, on="patientunitstayid", how="left")
    stays = stays[stays["hospitaldischargestatus"].notna()].reset_index(drop=True)
    table = pd.DataFrame({PATIENT: stays[PATIENT]})
    table[REGION] = stays[REGION].fillna(NO_REGION)
    table[REGION] = table.groupby(PATIENT)[REGION].transform("first")
    table["age"] = pd.to_numeric(stays["age"].replace("> 89", "90"))
    for name in ("gender", "ethnicity", "unittype"):
        table[name] = stays[name]
    source = stays["unitadmitsource"]
    table["admitted_from"] = source.map(ADMITTED_FROM).fillna("other").where(source.notna())
    coma = stays[["eyes", "motor", "verbal"]]
    table["gcs"] = coma.sum(axis=1).where((coma > 0).all(axis=1))
    for name in (*LINEAR, *LOGARITHMIC):
        if name not in table:
            table[name] = stays[name].where(stays[name] != -1)  # in the files, where the code book says NULL
    for name in ("vent", "dialysis", "diabetes"):
        table[name] = stays[name].map({0: "0", 1: "1"})
    recorded = stays["diabetes"].notna()
    table["elective_surgery"] = (stays["electivesurgery"] == 1).map({False: "0", True: "1"}).where(recorded)
    table["died"] = (stays["hospitaldischargestatus"] == "Expired").map({False: "no", True: "yes"})
    return schema(), table


def schema() -> StudySchema:
    """Public bounds and categories; every column but the outcome may be missing."""
    columns: list[dict[str, object]] = [
        {"kind": "categorical", "name": name, "categories": categories, "missing": True}
        for name, categories in CATEGORIES.items()
    ]
    grid = {"kind": "continuous", "outside": "clip", "missing": True, "decimals": 1}
    columns += [
        {**grid, "name": name, "minimum": float(low), "maximum": float(high), "bins": bins}
        for name, (low, high, bins) in LINEAR.items()
    ]
    columns += [
        {
            **grid,
            "name": name,
            "minimum": 0.0,
            "maximum": float(high),
            "bins": bins,
            "scale": "log",
            "log_floor": floor,
        }
        for name, (high, bins, floor) in LOGARITHMIC.items()
    ]
    columns.append({"kind": "categorical", "name": "died", "categories": ["no", "yes"]})
    definition = {
        "columns": columns,
        "label": "died",
        "patient_id": PATIENT,
        "max_records_per_patient": 3,
        "records_beyond": "sample",
    }
    return StudySchema.model_validate_json(json.dumps(definition))
