"""`algorithm = "auto"`: settled at registration by a public rule, written down, and never against what is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.algorithm import decide
from models.study import Study, StudyError
from server import studies
from server.cli.study import app
from server.errors import ConflictError

AUTO = """
name = "heart"
algorithm = "auto"
[privacy]
epsilon = 3.0
delta = 1e-5
[table]
constraints = ["high >= low"]
columns = [
    {name = "low", kind = "integer", minimum = 0, maximum = 9},
    {name = "high", kind = "integer", minimum = 0, maximum = 9},
]
"""
REFINED = AUTO + "[measure]\nbudget_share = 0.7\n[refine]\nrounds = 2\npower = 0.4\n"


MORE = AUTO.replace(
    "columns = [", 'columns = [\n    {name = "sex", kind = "categorical", categories = ["f", "m"]},'
)

BY_SITE = AUTO.replace(
    "\n]", '\n    {name = "where", kind = "categorical", categories = ["a", "b"]},\n]\nsite = "where"'
)


def test_auto_refines_a_table_with_a_tenth_of_epsilon_and_says_why() -> None:
    given = Study.from_toml(MORE + "[refine]\npower = 0.4\n[measure]\nexchanges = 2\n")
    decision = decide(given)
    settled = decision.study
    assert settled.algorithm == "measure-and-refine"
    assert (settled.measure.budget_share, settled.refine.rounds, settled.num_rounds) == (0.9, 2, 5)
    assert (settled.measure.exchanges, settled.refine.power) == (2, 0.4)
    assert "90% of epsilon measured" in decision.because
    assert "epsilon 3 x 10,000 patients of a site (federation.patients_per_site) = 30,000" in decision.because
    assert "refine.rounds = 0" in decision.because
    assert decide(settled).study is settled


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (AUTO, "pairs say all of fewer than 3 columns"),
        (MORE.replace("epsilon = 3.0", "epsilon = 1.9"), "epsilon 1.9 x 10,000 patients"),
        (MORE + "[federation]\npatients_per_site = 6000\n", "epsilon 3 x 6,000 patients of a site"),
        (MORE + "[refine]\nrounds = 0\n", "the definition gives refine.rounds"),
        (MORE + "[measure]\nbudget_share = 1.0\n", "the definition gives refine.rounds"),
        (MORE + "[measure]\nnoise_multiplier = 2.0\n", "the definition gives refine.rounds"),
        (BY_SITE, "with table.site"),
    ],
    ids=["columns", "epsilon", "size", "rounds", "share", "noise", "site"],
)  # fmt: skip
def test_auto_measures_with_the_whole_budget_where_it_says_so(text: str, reason: str) -> None:
    decision = decide(Study.from_toml(text))
    assert decision.study.algorithm == "measure"
    assert (decision.study.measure.budget_share, decision.study.refine.rounds) == (1, 0)
    assert reason in decision.because


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 10.0])
def test_auto_refines_from_the_size_on_that_epsilon_allows(epsilon: float) -> None:
    enough = round(20_000 / epsilon)
    for patients, refined in ((enough, True), (enough - 1, False)):
        text = MORE.replace("epsilon = 3.0", f"epsilon = {epsilon}")
        decision = decide(Study.from_toml(text + f"[federation]\npatients_per_site = {patients}\n"))
        assert (decision.study.refine.rounds > 0) is refined


def test_what_is_given_is_never_changed() -> None:
    given = Study.from_toml(REFINED)
    decision = decide(given)
    assert decision.study.algorithm == "measure-and-refine"
    assert decision.study.model_copy(update={"algorithm": "auto"}) == given
    assert "refine.rounds = 2" in decision.because
    explicit = Study.from_toml(AUTO.replace('"auto"', '"measure"'))
    assert decide(explicit).study is explicit


@pytest.mark.parametrize(
    ("epsilon", "measure", "exchanges"),
    [("10.0", "", 2), ("1.0", "", 2), ("0.9", "", 1), ("10.0", "[measure]\nexchanges = 1\n", 1),
     ("0.5", "[measure]\nexchanges = 2\n", 2), ("10.0", "[measure]\nnoise_multiplier = 0.7\n", 1)],
)  # fmt: skip
def test_pictures_are_looked_at_twice_where_that_was_shown_to_pay(epsilon, measure, exchanges) -> None:
    pictures = AUTO.replace("epsilon = 3.0", f"epsilon = {epsilon}").replace(
        "[table]", '[image]\nsize = 8\nconditioned_on = ["low"]\n[table]\npatient_id = "patient"'
    )
    decision = decide(Study.from_toml(pictures + measure))
    assert decision.study.algorithm == "measure"
    assert decision.study.measure.exchanges == exchanges
    assert "measure.exchanges = " in decision.because
    assert decide(decision.study).study is decision.study


def test_a_study_that_does_not_name_an_algorithm_keeps_its_digest() -> None:
    silent = Study.from_toml(AUTO.replace('algorithm = "auto"\n', ""))
    assert "algorithm" not in silent.to_dict()
    assert decide(silent).study is silent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REFINED.replace('"auto"', '"measure"'), "algorithm is 'measure', but refine.rounds is 2"),
        (AUTO.replace('"auto"', '"measure-and-refine"'), "say how many rounds"),
        (AUTO.replace('"auto"', '"best"'), "algorithm"),
    ],
)
def test_an_algorithm_that_the_settings_contradict_is_refused(text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Study.from_toml(text)


def test_registration_keeps_what_was_chosen_and_knows_the_wish_again(store) -> None:
    first = studies.register_study(store, Study.from_toml(AUTO), created_by="me")
    assert first.study.algorithm == "measure"
    assert first.study.is_calibrated
    assert studies.register_study(store, Study.from_toml(AUTO), created_by="me") == first
    assert studies.register_study(store, first.study, created_by="me") == first
    with pytest.raises(ConflictError):
        studies.register_study(store, Study.from_toml(REFINED), created_by="me")


def test_check_says_what_was_chosen_and_why_or_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(AUTO)
    told = CliRunner().invoke(app, ["check", str(file)])
    assert told.exit_code == 0, told.output
    assert "Algorithm: measure, the whole of epsilon" in told.output
    file.write_text(MORE)
    told = CliRunner().invoke(app, ["check", str(file)])
    assert "Algorithm: measure-and-refine, 90% of epsilon" in told.output
    assert "rounds: 4" in told.output
    assert "Every patient served satisfies: high >= low" in told.output
    file.write_text(AUTO.replace("high >= low", "high == low + hihg"))
    told = CliRunner().invoke(app, ["check", str(file)])
    assert told.exit_code == 1
    assert "did you mean 'high'" in told.output
    told = CliRunner().invoke(app, ["check", str(tmp_path / "none.toml")])
    assert told.exit_code == 1
    assert "cannot be read" in told.output
