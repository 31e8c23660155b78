"""What the pages say and do: the same as the functions behind the API, in words and pictures."""

from __future__ import annotations

import re
import shlex
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.generator import MixtureGenerator
from models.image_generator import ImageGenerator
from models.sampling import CohortSampler
from models.study import Study
from models.study_generator import StudyGenerator
from models.weights import decode_arrays, encode_arrays
from server import cohorts, jobs, releases, round_records, studies
from server.api.pages import distributions, rendering

pytestmark = pytest.mark.usefixtures("quick_previews")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The store's own tests hold for PostgreSQL."""
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


def words(page: str) -> str:
    """A page's text, as one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_empty_places_say_what_to_do(researcher, operator, auditor) -> None:
    assert "The operator of this coordinator publishes them" in words(researcher.see("/"))
    assert "Choose a release" in words(researcher.see("/cohorts"))
    assert "fedtwin study create study.toml" in words(operator.see("/runs"))
    assert "Invite one" in words(operator.see("/sites"))
    assert "nothing has been spent" in words(auditor.see("/spends"))
    assert "The ledger is empty" in words(auditor.see("/ledger"))
    assert "No study has been run yet" in words(auditor.see("/runs"))


def test_the_catalogue_finds_releases_by_their_words(researcher, scenario) -> None:
    release = scenario.release()
    for q in ("", "heart", "HEART hospitals", "north", "sex", release.digest[7:20]):
        page = words(researcher.see(f"/?q={q}"))
        assert "Heart disease at three hospitals published" in page, q
        assert "north ε 1.88 of 4, δ 1e-05" in page
    assert "Nothing matches" in words(researcher.see("/?q=kidney"))
    assert "Nothing matches" in words(researcher.see("/?q=heart+kidney"))


def test_a_researcher_sees_no_candidate(researcher, operator, scenario) -> None:
    scenario.register()
    scenario.enrol()
    run = scenario.start()
    for round in range(1, scenario.study.num_rounds + 1):
        scenario.record(run, round)
    candidate = round_records.complete_run(scenario.store, run, release_round=2)
    for path in (f"/releases/{candidate.digest}", f"/cohorts/new?release={candidate.digest}"):
        assert "there is no release" in words(researcher.see(path, 404)).lower()
    assert candidate.digest not in researcher.see("/?state=candidate")
    assert candidate.digest in operator.see("/?state=candidate")
    operator.send(f"/releases/{candidate.digest}/withhold", reason="not yet")
    assert "Withheld: not yet" in words(operator.see(f"/releases/{candidate.digest}"))
    operator.send(f"/releases/{candidate.digest}/publish")
    assert "Ask for a cohort" in researcher.see(f"/releases/{candidate.digest}")
    operator.send(f"/releases/{candidate.digest}/withdraw", reason="a site asked for it")
    page = words(researcher.see(f"/releases/{candidate.digest}"))
    assert "Withdrawn: a site asked for it" in page
    assert "Ask for a cohort" not in page
    assert operator.send(f"/releases/{candidate.digest}/publish", 409)


def test_a_releases_page_says_its_limits_budget_and_origin(researcher, scenario) -> None:
    release = scenario.release()
    page = words(researcher.see(f"/releases/{release.digest}"))
    for text in (
        "No release gate was passed", *releases.LIMITS_OF_USE, "ε 4 at δ 1e-05", release.digest,
        release.study_digest, f"entry {release.entry}", "two way 0.031", "Missing: ",
    ):  # fmt: skip
        assert text in page, text


def test_the_bars_are_the_generators_own_marginals(scenario) -> None:
    release = scenario.release()
    arrays = decode_arrays(scenario.store.load(release.weights_digest))
    schema = scenario.study.table
    one_way = MixtureGenerator.from_arrays(arrays, schema.cardinalities).one_way().split(schema.cardinalities)
    shown = distributions.distributions(scenario.store, release, scenario.study)
    for part, one in zip(one_way, shown, strict=True):
        torch.testing.assert_close(torch.tensor([share for _, share in one.rows]), part.detach())
    sex, age, ill = shown
    assert [name for name, _ in sex.rows] == ["female", "male"]
    assert [name for name, _ in age.rows][:2] == ["0 to 9", "10 to 19"]
    assert age.ticks == ["0", "50", "100"]
    assert [name for name, _ in ill.rows] == ["no", "yes", "missing"]
    assert ill.missing == pytest.approx(one_way[2][-1].item())
    assert len(ill.drawn) == 2


def test_every_chart_has_a_title_a_sentence_and_a_table(researcher, scenario) -> None:
    page = researcher.see(f"/releases/{scenario.release().digest}")
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 3 + 3  # meters and distributions
    names = []
    for chart in charts:
        title, description = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', chart).groups()
        names += [title, description]
        assert re.search(rf'<title id="{title}">[^<]+</title><desc id="{description}">[^<]+</desc>', chart)
    assert len(set(names)) == len(names)
    assert page.count("As a table") == 3


def estimate(person: Any, digest: str, **fields: Any) -> str:
    return words(
        person.send(
            "/cohorts/estimate", 200, {"HX-Request": "true"}, release=digest, num_patients="10", **fields
        ).text
    )


def test_the_live_count_is_the_samplers(researcher, scenario) -> None:
    release = scenario.release()
    generator = distributions.load_generator(scenario.store, release, scenario.study).table
    page = estimate(researcher, release.digest, **{"c0.in": "female", "c1.from": "30", "c1.to": "59.5"})
    sampler = CohortSampler(generator, scenario.study.table, ["sex == 'female' and 30 <= age <= 59.5"])
    assert rendering.share(sampler.report.probability) in page
    assert "computed exactly" in page
    assert page.count(" female ") == 20
    assert "Few of the generator's components" in page  # it has three
    whole = estimate(researcher, release.digest)
    assert "100 % no condition" in whole
    assert "Few of the generator's components" not in whole


def test_the_live_count_says_what_cannot_be(researcher, scenario) -> None:
    digest = scenario.release().digest
    assert "Too rare to be drawn" in estimate(researcher, digest, where="age > 99")
    assert "widen the conditions" in estimate(researcher, digest, **{"c1.from": "120"})
    assert "'x' is no number" in estimate(researcher, digest, **{"c1.from": "x"})
    assert "no number" in estimate(researcher, digest, **{"c1.from": "nan"})
    assert "no number" in estimate(researcher, digest, **{"c1.from": "inf"})
    assert "did you mean 'female'" in estimate(researcher, digest, **{"c0.in": "femal"})
    assert "cannot be read" in estimate(researcher, digest, where="age >")


def test_without_a_script_the_count_is_a_page_that_keeps_what_was_entered(researcher, scenario) -> None:
    digest = scenario.release().digest
    fields = {"c0.in": "female", "c1.from": "31", "c2.is": "yes", "c2.missing": "present", "seed": "77"}
    page = researcher.send("/cohorts/estimate", 200, release=digest, num_patients="123", **fields).text
    assert 'value="female" checked' in page
    for value in ("31", "77", "123"):
        assert f'value="{value}"' in page
    assert 'name="c2.is" value="yes" checked' in page
    assert 'value="present" selected' in page
    assert "The first 20" in page


def test_a_cohort_from_the_form_is_the_apis(researcher, api, scenario) -> None:
    release = scenario.release()
    columns = ["sex", "age"]
    fields = {
        "c0.in": ["female", "male"],
        "c1.from": "60",
        "seed": "7",
        "formats": ["csv"],
        "columns": columns,
    }
    to = researcher.send("/cohorts", release=release.digest, num_patients="1,200", **fields).headers[
        "location"
    ]
    cohort = cohorts.get_cohort(scenario.store, to.rpartition("/")[2])
    assert cohort.owner == "researcher"
    assert cohort.request.num_patients == 1200
    assert cohort.request.columns == ("sex", "age")
    assert cohort.request.formats == ("csv",)
    assert list(cohort.request.conditions) == [
        {"column": "sex", "op": "in", "value": ["female", "male"]},
        {"column": "age", "op": ">=", "value": 60},
    ]
    waiting = researcher.client.get(f"{to}/progress")
    assert "0 of 1,200 patients" in words(waiting.text)
    assert "hx-refresh" not in waiting.headers
    assert f'hx-get="{to}/progress"' in researcher.see(to)
    assert jobs.make_next(scenario.store)
    assert researcher.client.get(f"{to}/progress").headers["hx-refresh"] == "true"
    page = researcher.see(to)
    assert "age at least 60" in words(page)
    assert f'Coordinator().cohort("{cohort.id}").download(' in unescape(page)  # a table needs Parquet
    assert "hx-get" not in page
    files = cohorts.get_cohort(scenario.store, cohort.id).files
    for file in files:
        assert file.sha256 in page
        got = researcher.client.get(f"{to}/files/{file.name}")
        assert got.content == api.get("researcher", f"/v1/cohorts/{cohort.id}/files/{file.name}").content
    assert "certificate.json" in page


def test_the_command_on_a_cohorts_page_asks_for_the_same(researcher, api, scenario) -> None:
    digest = scenario.release().digest
    fields = {"c0.in": ["female"], "c1.to": "70", "where": "not ill or age > 3", "columns": ["age", "ill"]}
    fields |= {"release": digest, "num_patients": "12", "seed": "5", "formats": ["csv", "parquet"]}
    page = unescape(researcher.see(researcher.send("/cohorts", **fields).headers["location"]))
    told = re.search(r"(fedtwin cohort request .*?)</pre>", page, flags=re.DOTALL)
    assert told is not None
    words = shlex.split(told[1])[3:]
    options: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options.setdefault(name, []).append(value)
    wanted = {
        "release": options["--release"][0],
        "num_patients": int(options["-n"][0]),
        "seed": int(options["--seed"][0]),
        "conditions": options["--where"],
        "columns": options["--columns"][0].split(","),
        "formats": options["--format"],
    }
    assert api.post("researcher", "/v1/cohorts", wanted).status_code == 202
    while jobs.make_next(scenario.store):
        pass
    second, first = cohorts.list_cohorts(scenario.store, owner="researcher")
    digests = [{file.name: file.sha256 for file in one.files} for one in (first, second)]
    for name in ("cohort.csv", "cohort.parquet"):
        assert digests[0][name] == digests[1][name]
    assert f'Coordinator().cohort("{second.id}").table()' in unescape(researcher.see(f"/cohorts/{second.id}"))


def test_a_form_that_is_sent_twice_makes_one_cohort(researcher, scenario) -> None:
    digest = scenario.release().digest
    page = researcher.see(f"/cohorts/new?release={digest}")
    once = re.search(r'name="once" value="([^"]+)"', page)
    assert once is not None
    fields = {"release": digest, "num_patients": "5", "formats": "csv", "once": once[1]}
    first = researcher.send("/cohorts", **fields).headers["location"]
    assert researcher.send("/cohorts", **fields).headers["location"] == first
    # What was changed on the same page is another request, and so is the same from a new page.
    assert researcher.send("/cohorts", **{**fields, "num_patients": "6"}).headers["location"] != first
    assert once[1] not in researcher.see(f"/cohorts/new?release={digest}")
    assert researcher.send("/cohorts", **{**fields, "once": "another"}).headers["location"] != first


def test_a_form_that_asks_for_the_impossible_comes_back_with_the_reason(researcher, scenario) -> None:
    digest = scenario.release().digest
    for fields, reason in (
        ({"num_patients": "0"}, "between 1 and 10,000,000"),
        ({"num_patients": "x"}, "no whole number"),
        ({"num_patients": "9" * 400}, "no whole number"),
        ({"num_patients": "5", "seed": "-1"}, "no whole number"),
        ({"num_patients": "5", "where": "agee > 3"}, "did you mean 'age'"),
        ({"num_patients": "5", "formats": []}, "name at least one"),
        ({"num_patients": "5", "c1.from": "soon"}, "no number"),
    ):
        page = words(researcher.send("/cohorts", 422, release=digest, **{"formats": "csv", **fields}).text)
        assert reason in page, fields
    assert cohorts.list_cohorts(scenario.store, owner=None) == []


def test_another_researchers_cohort_does_not_exist(person, researcher, operator, scenario) -> None:
    digest = scenario.release().digest
    to = researcher.send("/cohorts", release=digest, num_patients="5", formats="csv").headers["location"]
    stranger = person("stranger")
    for path in (to, f"{to}/progress", f"{to}/files/cohort.csv"):
        stranger.see(path, 404)
    stranger.send(f"{to}/cancel", 404)
    stranger.send(f"{to}/delete", 404)
    assert to not in stranger.see("/cohorts")
    assert to in operator.see("/cohorts")
    researcher.send(f"{to}/cancel")
    assert "Cancelled on request" in words(researcher.see(to))
    researcher.send(f"{to}/cancel")


def test_a_researcher_deletes_finished_files_on_their_page(researcher, operator, scenario) -> None:
    digest = scenario.release().digest
    fields = {"release": digest, "num_patients": "5", "seed": "9", "formats": "csv"}
    to = researcher.send("/cohorts", **fields).headers["location"]
    assert "Delete the files" not in researcher.see(to)
    jobs.make_next(scenario.store)
    page = words(researcher.see(to))
    assert "Delete the files… The files are removed from the coordinator now." in page
    assert "seed 9 give the same files again" in page
    assert "Delete the files" not in operator.see(to)
    operator.send(f"{to}/delete", 409)
    assert researcher.send(f"{to}/delete").headers["location"] == to
    page = researcher.see(to)
    assert "The files were deleted on" in words(page)
    assert re.findall(r"files/([a-z.]+)\"", page) == ["certificate.json"]
    researcher.see(f"{to}/files/cohort.csv", 410)
    researcher.see(f"{to}/files/certificate.json")
    assert "deleted" in words(researcher.see("/cohorts"))


def test_an_operator_does_not_get_a_researchers_files(researcher, operator, scenario) -> None:
    digest = scenario.release().digest
    to = researcher.send("/cohorts", release=digest, num_patients="5", formats="csv").headers["location"]
    assert jobs.make_next(scenario.store)
    assert "for the one who asked" in words(operator.see(to))
    operator.see(f"{to}/files/cohort.csv", 403)


def test_long_lists_come_in_pages(researcher, scenario) -> None:
    digest = scenario.release().digest
    for seed in range(23):
        researcher.send("/cohorts", release=digest, num_patients="5", seed=str(seed), formats="csv")
    first = researcher.see("/cohorts")
    older = re.search(r'href="(/cohorts\?cursor=[^"]+)"', first)
    assert older is not None
    second = researcher.see(unescape(older[1]))
    names = [re.findall(r"cohort-[0-9a-f]{12}(?=</code>)", page) for page in (first, second)]
    assert [len(one) for one in names] == [20, 3]
    assert len(set(names[0] + names[1])) == 23


def test_a_release_with_pictures_shows_some(researcher, api, scenario, monkeypatch) -> None:
    text = (Path(__file__).resolve().parents[2] / "server/demo/digits.toml").read_text()
    study = studies.register_study(scenario.store, Study.from_toml(text), created_by="olga").study
    assert study.image is not None
    scenario.study = study
    torch.manual_seed(0)
    rows = MixtureGenerator(torch.randn(3, 10), torch.randn(3), study.table.cardinalities)
    image = ImageGenerator(study.image, (10,), latent=4, width=4)
    made = StudyGenerator(study=study, table=rows, image=image)
    monkeypatch.setattr(scenario, "generator", lambda seed=0: encode_arrays(made.to_arrays()))
    release = scenario.release()
    assert f'src="/releases/{release.digest}/pictures.png"' in researcher.see(f"/releases/{release.digest}")
    answer = researcher.client.get(f"/releases/{release.digest}/pictures.png")
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(BytesIO(answer.content))
    assert (picture.size, picture.mode) == ((8 * 10, 3 * 10), "L")
    assert len(set(picture.tobytes())) > 1
    asked = {"release": release.digest, "num_patients": "10", "c0.in": ["3"]}
    some = researcher.send("/cohorts/estimate", 200, {"HX-Request": "true"}, **asked)
    address = re.search(r'<img src="([^"]+)"', some.text)
    assert address is not None
    threes = researcher.client.get(unescape(address[1]))
    assert threes.headers["content-type"] == "image/png"
    assert threes.content != answer.content
    asked = {"where": "digit in ['3']", "seed": 0}
    by_api = api.get("researcher", f"/v1/releases/{release.digest}/pictures", params=asked)
    assert by_api.content == threes.content
