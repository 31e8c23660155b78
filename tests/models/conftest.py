import json

import pytest
import torch

from models.generator import MixtureGenerator
from models.schema import StudySchema

torch.set_num_threads(1)

COLUMNS = [
    {"kind": "categorical", "name": "sex", "categories": ["female", "male"], "missing": True},
    {"kind": "boolean", "name": "smoker", "missing": True},
    {"kind": "integer", "name": "age", "minimum": 17, "maximum": 90, "bins": 24},
    {
        "kind": "continuous",
        "name": "capital-gain",
        "minimum": 0.0,
        "maximum": 100_000.0,
        "bins": 15,
        "scale": "log",
        "log_floor": 100.0,
        "decimals": 2,
        "missing": True,
    },
    {"kind": "date", "name": "admitted", "minimum": "2020-01-01", "maximum": "2020-12-31", "missing": True},
    {"kind": "ordinal", "name": "stage", "categories": ["low", "mid", "high"]},
    {"kind": "integer", "name": "diastolic", "minimum": 30, "maximum": 150},
    {"kind": "integer", "name": "systolic", "minimum": 60, "maximum": 250, "outside": "clip"},
]


def make_schema(columns, **rest):
    return StudySchema.model_validate_json(json.dumps({"columns": columns, **rest}))


@pytest.fixture(scope="session")
def schema():
    """Every kind of column, with and without missing values."""
    return make_schema(COLUMNS)


@pytest.fixture(scope="session")
def generator(schema):
    source = torch.Generator().manual_seed(3)
    logits = 1.5 * torch.randn(40, sum(schema.cardinalities), generator=source)
    return MixtureGenerator(logits, torch.randn(40, generator=source), schema.cardinalities)
