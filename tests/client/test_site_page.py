"""The site's page: who gets in, that it decides and tells as the record and the policy do, and that it escapes."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.guard import Guard
from client.home import SiteHome
from client.page.notices import read_notices
from client.page.views import bar_of, part_of
from client.page.words import policy_sentences
from client.policy import QuietHours, load_policy, policy_text
from client.record import Record
from privacy.events import MechanismEvent
from privacy.signing import SigningKey
from server.demo.surface import fedtwin_command

STUDIES = {"first-study": "sha256:" + "1" * 64, "second-study": "sha256:" + "2" * 64}
REPLY = "sha256:" + "b" * 64
ROUNDS = 23
PAGES = ("/", "/study/" + "1" * 64, "/left", "/left/run-1/1", "/refused", "/policy", "/notices")
MEASURE = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=200.0, max_grad_norm=2.0)


def create(folder: Path) -> SiteHome:
    home = SiteHome.create(
        folder,
        name="saint-mary",
        superlink_address="federation.example.org:443",
        ca_certificate=b"",
        coordinator_key=SigningKey.generate(name="lab").public.text,
        data_path="patients.csv",
    )
    caps = dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), 5.0)
    home.policy_file.write_text(policy_text(**caps, max_delta=1e-5, min_patients=10, app_digests=["a" * 64]))
    return home


def guard_of(home: SiteHome) -> Guard:
    return Guard(home.record_file, load_policy(home.policy_file))


def ask(home: SiteHome, study: str, *, columns: tuple[str, ...] = ("age", "sex")) -> None:
    guard_of(home).quote(
        study_name=study,
        study_digest=STUDIES[study],
        columns=columns,
        planned_events=[MEASURE] * ROUNDS,
        delta=1e-5,
        study_epsilon=3.0,
        num_patients=500,
    )


def run_rounds(home: SiteHome, study: str, rounds: range, *, settle: bool = True) -> None:
    guard = guard_of(home)
    for number in rounds:
        debit = guard.debit(
            run="run-1",
            round=number,
            study_name=study,
            study_digest=STUDIES[study],
            columns=["age", "sex"],
            events=[MEASURE],
            delta=1e-5,
            study_epsilon=3.0,
            num_patients=500,
            request_digest="sha256:" + "a" * 64,
        )
        if settle:
            guard.settle(debit, reply_digest=REPLY)


class Served:
    """`fedtwin site page` as a process, and a client that came with its token."""

    def __init__(self, home: SiteHome) -> None:
        self.process = subprocess.Popen(
            fedtwin_command("site", "page", "--home", home.path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        said = []
        while not (said and said[-1].startswith("Open ")):
            line = self.process.stdout.readline()
            assert line, "".join(said)
            said.append(line)
        self.opening = said[-1].removeprefix("Open ").strip()
        self.port = httpx.URL(self.opening).port
        self.origin = f"http://127.0.0.1:{self.port}"
        self.stranger = httpx.Client(base_url=self.origin, trust_env=False, timeout=60)
        self.staff = httpx.Client(base_url=self.origin, trust_env=False, timeout=60, follow_redirects=True)
        self.staff.get(self.opening)

    def decide(self, study: str, action: str, **fields: str) -> httpx.Response:
        place = f"/study/{STUDIES[study].removeprefix('sha256:')}"
        csrf = re.search(r'name="csrf" value="(\w+)"', self.staff.get(place).text)[1]
        return self.staff.post(
            f"{place}/{action}", data={"csrf": csrf, **fields}, headers={"Origin": self.origin}
        )

    def close(self) -> None:
        self.stranger.close()
        self.staff.close()
        self.process.terminate()
        assert self.process.wait(20) is not None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    made = create(tmp_path_factory.mktemp("page") / "site")
    ask(made, "first-study")
    guard_of(made).decide(STUDIES["first-study"], "approved", study_name="first-study", by="Ada")
    run_rounds(made, "first-study", range(1, ROUNDS))
    run_rounds(made, "first-study", range(ROUNDS, ROUNDS + 1), settle=False)
    ask(made, "second-study", columns=("age", "<b>hiv</b>"))
    return made


@pytest.fixture(scope="module")
def served(home: SiteHome) -> Iterator[Served]:
    made = Served(home)
    yield made
    made.close()


@pytest.mark.parametrize("path", PAGES)
def test_nothing_of_the_site_is_shown_without_the_token(served: Served, path: str) -> None:
    guesses = {"fedtwin-site": "x", f"fedtwin-site-{served.port}": "x"}
    for query, cookies in (("", {}), ("?token=", {}), ("?token=wrong", {}), ("", guesses)):
        header = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        answer = served.stranger.get(path + query, headers=header)
        assert answer.status_code == 403
        assert "saint-mary" not in answer.text
        assert "fedtwin site page" in answer.text
        assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address(served: Served) -> None:
    answer = httpx.get(served.opening, trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert httpx.URL(served.opening).params["token"] not in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:{port}", "127.0.0.1", "127.0.0.1:1", ""]
)
def test_another_host_name_is_refused_even_with_the_cookie(served: Served, host: str) -> None:
    answer = served.staff.get("/", headers={"Host": host.format(port=served.port)})
    assert answer.status_code in (400, 421)
    assert "saint-mary" not in answer.text
    assert served.staff.get("/", headers={"Host": f"localhost:{served.port}"}).status_code == 200


def test_no_other_interface_answers(served: Served) -> None:
    others = {"127.0.0.2"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            others.add(probe.getsockname()[0])
        except OSError:
            pass  # this machine has no other interface
    for other in others - {"127.0.0.1"}:
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection((other, served.port), timeout=2)


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example.org", "http://127.0.0.1:1"])
def test_a_form_from_elsewhere_decides_nothing(served: Served, home: SiteHome, origin: str | None) -> None:
    before = guard_of(home).head()
    place = f"/study/{'2' * 64}"
    csrf = re.search(r'name="csrf" value="(\w+)"', served.staff.get(place).text)[1]
    headers = {} if origin is None else {"Origin": origin}
    answer = served.staff.post(f"{place}/approve", data={"csrf": csrf, "by": "Mallory"}, headers=headers)
    assert answer.status_code == 403
    for wrong in ({}, {"csrf": "x"}):
        answer = served.staff.post(
            f"{place}/approve", data={"by": "Mallory", **wrong}, headers={"Origin": served.origin}
        )
        assert answer.status_code == 403
    assert served.staff.get(f"{place}/approve").status_code == 405
    assert guard_of(home).head() == before


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/page.css", "/icon.svg"])
def test_every_answer_forbids_scripts_and_foreign_sources(served: Served, path: str) -> None:
    answer = served.staff.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'")
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    if "html" in answer.headers["content-type"]:
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:", answer.text)
        assert not re.findall(r'(?:src|href|action)="(?!/)', answer.text.replace('href="#main"', ""))


def test_the_page_decides_as_the_command_does(served: Served, home: SiteHome) -> None:
    refused = served.decide("second-study", "deny", by="Grace Hopper")
    assert refused.status_code == 400
    assert "there is no reason" in refused.text
    assert 'value="Grace Hopper"' in refused.text
    assert served.decide("second-study", "approve", by=" ").status_code == 400
    assert served.decide("second-study", "applaud", by="Grace").status_code == 404
    steps = [("deny", "denied"), ("approve", "approved"), ("withdraw", "withdrawn")]
    for action, decision in steps:
        assert served.decide("second-study", action, by="Grace", reason="<i>why</i>").status_code == 200
        request = next(one for one in guard_of(home).requests() if one.study_name == "second-study")
        assert (request.decision, request.decided_by, request.reason) == (decision, "Grace", "<i>why</i>")
    shown = served.staff.get(f"/study/{'2' * 64}").text
    assert "&lt;i&gt;why&lt;/i&gt;" in shown
    assert "<b>hiv</b>" not in shown
    listed = CliRunner().invoke(app, ["requests", "--home", str(home.path)], env={"COLUMNS": "200"})
    assert "withdrawn by Grace" in listed.output


def test_what_left_names_every_round_its_noise_cost_and_digest(served: Served, home: SiteHome) -> None:
    pages = [served.staff.get("/left", params={"page": number}).text for number in (1, 2)]
    rounds = [int(number) for text in pages for number in re.findall(r">Round (\d+)<", text)]
    assert rounds == list(range(ROUNDS, 0, -1))
    assert "1 to 20 of 23" in pages[0]
    assert "21 to 23 of 23" in pages[1]
    assert sum(text.count(REPLY) for text in pages) == ROUNDS - 1
    assert pages[0].count("nothing left") == 1
    spends = [entry.body["spend_epsilon"] for entry in guard_of(home).history() if entry.kind == "debit"]
    assert f"<strong>{float(spends[-1]):.3f}".rstrip("0") in pages[0]
    assert "standard deviation 400 on each number, 200 times what one patient can add" in pages[0]
    assert "22 replies made from patients" in pages[0]


def test_a_round_without_its_kept_copy_says_so(served: Served) -> None:
    assert "is gone or is not that one" in served.staff.get("/left/run-1/1").text
    assert "nothing: the round ended here" in served.staff.get(f"/left/run-1/{ROUNDS}").text
    assert served.staff.get("/left/run-1/99").status_code == 404


def test_a_site_that_nobody_asked_yet_is_told_what_will_come(tmp_path: Path) -> None:
    site = create(tmp_path / "site")
    fresh = Served(site)
    try:
        for path, said in {
            "/": "No study has asked yet",
            "/left": "Nothing made from patients has left",
            "/refused": "Nothing was refused yet",
            "/notices": "No trouble was noted",
        }.items():
            assert said in fresh.staff.get(path).text
        good = site.policy_file.read_text()
        site.policy_file.write_text(good.replace("minimum = 10", "minimum = 0"))
        broken = fresh.staff.get("/")
        assert broken.status_code == 500
        assert "patients.minimum is 0; it must be a whole number, 1 or more" in broken.text
        site.policy_file.write_text(good)
        ask(site, "first-study")
        assert "waits for you" in fresh.staff.get("/").text
        cheap = {"run": "run-1", "round": 1, "study_name": "first-study", "spend_epsilon": "0.0001"}
        with Record(site.record_file).transaction(datetime.now(UTC)) as record:
            events = {"events": [MEASURE.to_dict()], "delta": "1e-05", "study_digest": STUDIES["first-study"]}
            record.append("debit", {**cheap, **events})
        understated = fresh.staff.get("/left")
        assert understated.status_code == 500
        assert "is recorded with epsilon 0.0001, but its events cost" in understated.text
        with sqlite3.connect(site.record_file) as record:
            record.execute("DROP TRIGGER never_changed")
            record.execute("UPDATE record SET entry = replace(entry, '\"age\"', '\"agf\"')")
        altered = fresh.staff.get("/")
        assert altered.status_code == 500
        assert "the record does not hold from entry" in altered.text
        assert "agf" not in altered.text
        for command in (["requests"], ["spent"], ["approve", "first-study", "--by", "Ada"]):
            ended = CliRunner().invoke(app, [*command, "--home", str(site.path)])
            assert ended.exit_code == 1
            assert ended.output.startswith("fedtwin: the record does not hold from entry")
    finally:
        fresh.close()


def test_a_port_in_use_is_said_in_words(served: Served, home: SiteHome) -> None:
    ended = CliRunner().invoke(app, ["page", "--home", str(home.path), "--port", str(served.port)])
    assert ended.exit_code == 1
    assert f"port {served.port} of this machine cannot be used" in ended.output


def test_a_notice_keeps_its_lines_and_the_newest_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "notices.log"
    assert read_notices(file) == []
    file.write_text(
        "2026-01-02T03:04:05+00:00 study a: 2 faults:\n  row 5\n  row 9\n2026-02-03T04:05:06+00:00 late\n"
    )
    found = read_notices(file)
    assert [one.title for one in found] == ["late", "study a: 2 faults:"]
    assert found[1].details == ("  row 5", "  row 9")


def test_the_words_change_with_every_part_of_the_policy(tmp_path: Path) -> None:
    policy = load_policy(create(tmp_path / "site").policy_file)
    changes = {
        "epsilon_per_run": 1.0,
        "epsilon_per_study": 1.0,
        "epsilon_total": 9.0,
        "max_delta": 1e-6,
        "min_patients": 77,
        "studies": frozenset({"one"}),
        "columns": frozenset({"age"}),
        "app_digests": frozenset(),
        "approval": "automatic",
        "quiet_hours": QuietHours(start=time(22), end=time(6)),
    }
    said = {str(policy_sentences(policy))}
    for name, value in changes.items():
        said.add(str(policy_sentences(replace(policy, **{name: value}))))
    said.add(str(policy_sentences(replace(policy, window_days=30, epsilon_per_window=2.0))))
    assert len(said) == len(changes) + 2


@pytest.mark.parametrize(
    ("asked", "shown"), [("", 1), ("0", 1), ("-3", 1), ("x", 1), ("²", 1), ("2", 2), ("9" * 30, 1), ("99", 3)]
)
def test_any_page_number_gives_a_page(asked: str, shown: int) -> None:
    part = part_of(range(45), asked)
    assert (part.number, part.last, part.total) == (shown, 3, 45)
    assert part.items[0] == part.first - 1
    assert part_of([], asked).first == 0


def test_a_bar_stays_within_its_width_whatever_is_asked() -> None:
    for spent, projected, cap in [(0, 1, 2), (1, 5, 2), (3, 1, 2), (0, float("inf"), 2), (0, 0, 0)]:
        bar = bar_of(spent, projected, cap)
        assert bar.spent_width + bar.added_width <= 100.01
        assert 0 <= bar.cap_place <= 100
        assert bar.is_beyond == (max(spent, projected) > cap)
