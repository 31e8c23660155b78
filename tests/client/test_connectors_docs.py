"""docs/site-data.md: every block is one that the product takes, and every kind is shown."""

from __future__ import annotations

import re
import tomllib
import traceback
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from client.connectors.settings import DataSettings, ImageSource, TableSource
from client.home import SiteHome
from models.schema import StudySchema
from privacy.cli.folders import HomeError
from privacy.signing import SigningKey

GUIDE = Path(__file__).parents[2] / "docs" / "site-data.md"
BLOCKS = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.get("data", {"kind": "study"})["kind"])
def test_a_block_of_the_guide_is_taken(block, tmp_path):
    if "data" in block:
        data = TypeAdapter(DataSettings).validate_python(block["data"]).within(tmp_path)
        assert getattr(data, "path", tmp_path).is_absolute()
    else:
        StudySchema.model_validate(block)


def test_the_guide_shows_every_kind():
    known = set()
    for source in (*get_args(TableSource), *get_args(ImageSource)):
        known |= set(get_args(source.model_fields["kind"].annotation))
    assert {block["data"]["kind"] for block in BLOCKS if "data" in block} == known


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "xml", "path": "x"},
        {"kind": "csv", "path": ""},
        {"kind": "csv", "path": "x", "sheet": "1"},
        {"kind": "sql", "url": "sqlite:///x.db", "query": ""},
        {"kind": "omop", "url": "sqlite:///x.db", "cdm_schema": "a; drop"},
        {"kind": "dicom", "path": "x", "label": "Modality", "manifest": "y.csv"},
        {"kind": "dicom", "path": "x", "window_center": 1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(data):
    with pytest.raises(ValidationError):
        TypeAdapter(DataSettings).validate_python(data)


def test_a_home_takes_its_data_section_and_names_what_is_wrong_without_the_password(tmp_path):
    home = SiteHome.create(
        tmp_path / "site",
        name="north",
        superlink_address="localhost:9000",
        ca_certificate=b"",
        coordinator_key=SigningKey.generate(name="lab").public.text,
        data_path="patients.csv",
    )
    settings = home.path / "site.toml"
    before, _, after = settings.read_text().partition("[data]")
    rest = after[after.index("[supernode]") :]
    settings.write_text(f'{before}[data]\nkind = "fhir"\npath = "bulk"\n{rest}')
    assert SiteHome.open(home.path).data.path == home.path / "bulk"
    settings.write_text(
        f'{before}[data]\nkind = "sql"\nurl = "postgresql://a:hunter2@b/c"\nquery = "SELECT 1"\n{rest}'
    )
    with pytest.raises(HomeError, match="password in plain") as caught:
        SiteHome.open(home.path)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
