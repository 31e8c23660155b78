"""The report stands alone, names what it is, and its numbers are those of the tables it was given."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.study import Study
from server.demo import report
from server.demo.comparison import compare
from server.demo.digits import DIGITS_STUDY
from server.demo.plots import marginal_plot
from server.level_names import level_names

STUDY = """
name = "tiny"
title = "A tiny <study>"
privacy = { epsilon = 2.0, delta = 1e-5 }
[refine]
rounds = 0
[table]
patient_id = "who"
[[table.columns]]
name = "sex"
kind = "categorical"
categories = ["f", "m"]
[[table.columns]]
name = "colour"
kind = "categorical"
categories = ["red", "green", "blue"]
missing = true
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
bins = 10
unit = "a"
[[table.columns]]
name = "seen"
kind = "date"
minimum = "2020-01-01"
maximum = "2020-12-31"
bins = 4
"""


@pytest.fixture(scope="module")
def study() -> Study:
    # TOML reads a quoted date as text; the schema wants a date.
    return Study.from_toml(re.sub(r'"(\d{4}-\d\d-\d\d)"', r"\1", STUDY)).calibrated(measure=2.5, refine=None)


def table(rows: int, *, seed: int, tied: bool) -> pd.DataFrame:
    chance = np.random.default_rng(seed)
    sex = chance.integers(0, 2, rows)
    age = np.where(tied, 50 * sex, 0) + chance.integers(0, 50, rows)
    return pd.DataFrame(
        {
            "who": [f"p{row}" for row in range(rows)],
            "sex": np.array(["f", "m"])[sex],
            "colour": chance.choice(["red", "green", "blue", ""], rows),
            "age": age,
            "seen": chance.choice(["2020-02-01", "2020-11-05"], rows),
        }
    )


SHEET = "data:image/png;base64,AAAA"


@pytest.fixture(scope="module")
def page(study) -> str:
    facts = report.ReportFacts(
        study=study,
        release="sha256:" + "0" * 64,
        sites=[report.SitePrivacy(name="north & co", spent=1.9, cap=4.0, delta=1e-5)],
        phases=[report.PhaseTime(title="Measure", detail="one exchange", seconds=1.5)],
        verdict="verified: <3 entries>",
        audit_command="fedtwin audit verify ledger",
        cohort=table(50, seed=2, tied=True),
        cohort_files=["cohort.csv"],
        pictures=report.PictureStudy(
            study=Study.from_toml(DIGITS_STUDY.read_text()).calibrated(measure=1.5, refine=None),
            release="sha256:" + "1" * 64,
            sites=[report.SitePrivacy(name="north & co", spent=2.9, cap=4.0, delta=1e-5)],
            facts=report.PictureFacts(
                synthetic_sheet=SHEET,
                real_sheet=SHEET,
                nearest_sheet=SHEET,
                num_synthetic=2000,
                num_held_out=450,
                accuracy=0.876,
                real_accuracy=0.951,
            ),
        ),
    )
    return report.render_report(
        facts, real=table(400, seed=0, tied=True), compared=table(300, seed=1, tied=True)
    )


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.references: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.references += [named[name] for name in ("src", "href", "srcset") if named.get(name)]
        self.scripts += tag == "script"
        if tag == "svg":
            self.pictures.append(named)


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_the_page_refers_to_nothing_outside_itself(page, outline):
    assert outline.references == [SHEET, SHEET, SHEET]  # data: URLs
    assert outline.scripts == 0
    assert "url(" not in page
    assert "@import" not in page


def test_every_picture_has_a_text_and_every_column_a_picture(study, outline):
    assert len(outline.pictures) == len(study.table.columns) + 3
    for picture in outline.pictures:
        assert picture["role"] == "img"
        assert picture["aria-label"]


def test_headings_start_with_one_and_skip_no_level(outline):
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(
        after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False)
    )


def test_the_page_says_that_it_is_no_release(page):
    assert "For the demo only." in page
    assert "not a release" in page


def test_text_from_outside_is_escaped(page):
    assert "A tiny &lt;study&gt;" in page
    assert "north &amp; co" in page
    assert "verified: &lt;3 entries&gt;" in page


def test_light_and_dark_define_the_same_colours():
    css = Path(report.__file__).parent.joinpath("templates", "report.html").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.S)
    assert set(re.findall(r"(--[a-z-]+):", light)) == set(re.findall(r"(--[a-z-]+):", dark))


def test_a_table_against_itself_is_at_distance_zero(study):
    real = table(400, seed=0, tied=True)
    same = compare(real, real, study.table)
    assert same.two_way == 0
    assert all(marginal.distance == 0 for marginal in same.marginals)
    assert np.array_equal(same.real_correlation, same.synthetic_correlation)


def test_breaking_a_connection_shows_in_pairs_and_not_in_single_columns(study):
    real = table(4000, seed=0, tied=True)
    broken = real.assign(age=real["age"].sample(frac=1, random_state=0).to_numpy())
    found = compare(real, broken, study.table)
    assert all(marginal.distance == 0 for marginal in found.marginals)
    assert found.two_way > found.two_way_resampled
    assert found.two_way == pytest.approx(found.two_way_independent, abs=0.03)


def test_shares_count_missing_values_as_a_level(study):
    real = table(400, seed=0, tied=False)
    colour = compare(real, real, study.table).marginals[1]
    assert colour.levels[-1] == "missing"
    assert colour.real[-1] == pytest.approx((real["colour"] == "").mean())
    assert sum(colour.real) == pytest.approx(1)


def test_level_names_are_as_many_as_levels(study):
    for column in study.table.columns:
        names = level_names(column, lambda _, low, high: f"{low} to {high}")
        assert len(set(names)) == column.cardinality


def test_no_bar_leaves_its_drawing(study):
    for marginal in compare(table(9, seed=0, tied=True), table(7, seed=1, tied=True), study.table).marginals:
        numbers = re.findall(r'<rect class="\w+" x="([-\d.]+)" y="([-\d.]+)"', marginal_plot(marginal))
        assert numbers
        assert all(0 <= float(x) <= 340 and 0 <= float(y) <= 170 for x, y in numbers)


def test_an_empty_table_is_refused(study):
    real = table(10, seed=0, tied=True)
    with pytest.raises(ValueError, match="no rows"):
        compare(real, real.head(0), study.table)
