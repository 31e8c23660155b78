"""docs/operator.md and docs/site.md, typed as they stand: from nothing to a published release, a page, and a leave.

Before each block of commands the pages say, in a comment, at which step and on whose machine it runs, or why it cannot
run here. Each machine is a folder; real processes; what differs from the text is declared below and nowhere else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "operator.md", ROOT / "docs" / "site.md"]
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<kind>\w*)\n(?P<text>.*?)```", re.S)
STEP = re.compile(
    r"<!-- step (?P<number>\d+) at (?P<place>\w+)(?:; types (?P<types>\S+))?(?P<stays>; stays)?"
    r"(?:; ends with (?P<status>\d))? -->"
)
NOT_RUN = re.compile(r"<!-- not run here: (?P<reason>.{20,}) -->")

# What a reader puts in the place of these words, and where on the screen it was shown before.
SHOWN = {
    "INVITATION": r"^(fedtwin-invitation-1\.\S+)$",
    "1a2b3c4d": r"digits of your key: (\w+)",
    "http://127.0.0.1:8000": r"its API will be at (\S+)\.$",
    "ftw_...": r"^(ftw_\S+)$",
    "RUN": r"^(run-\S+)$",
    "RELEASE": r"^Release candidate: (\S+)$",
}
# What is carried from one machine to another, before which step.
CARRIED = {
    51: ("operator/coordinator/federation.json", "hillcrest/federation.json"),
    52: ("hillcrest/site/card.json", "operator/card.json"),
}
# When a command that stays has begun its work.
READY = {
    "server up": [f"{name}: ready" for name in ("superlink", "worker", "api", "gateway", "jobs")],
    "site up": ["supernode: ready", "worker: ready"],
    "site page": ["Open http"],
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One block of commands."""

    page: str
    number: int
    place: str
    types: str
    stays: bool
    status: int
    script: str


def blocks() -> list[tuple[str, re.Match[str]]]:
    return [(page.name, block) for page in PAGES for block in FENCE.finditer(page.read_text())]


def steps() -> list[Step]:
    found = []
    for page, block in blocks():
        marked = STEP.fullmatch(block["before"])
        if block["kind"] == "sh" and marked:
            one = Step(
                page=page,
                number=int(marked["number"]),
                place=marked["place"],
                types=marked["types"] or "",
                stays=bool(marked["stays"]),
                status=int(marked["status"] or 0),
                script=block["text"],
            )
            found.append(one)
    return sorted(found, key=lambda step: step.number)


@dataclass
class Machines:
    """Everybody's folder, what was on their screens, and what they have exported."""

    folder: Path
    screens: dict[str, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    staying: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def run(self, step: Step) -> None:
        place = step.place
        script = self.exports.get(place, "") + self.filled(step.script)
        if step.stays:
            self.start(step, script)
            return
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            input=self.filled(step.types) + "\n",
            cwd=self.folder / place,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == step.status, f"{step.page}, at {place}:\n{script}\n{ended.stdout}"
        self.screens[place] = self.screens.get(place, "") + ended.stdout
        exports = [line for line in script.splitlines() if line.startswith("export ")]
        self.exports[place] = "".join(f"{line}\n" for line in exports)

    def start(self, step: Step, script: str) -> None:
        place = step.place
        log = self.folder / place / f"screen-{step.number}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {script}"],
                cwd=self.folder / place,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.staying.append((process, log))
        wanted = READY[" ".join(script.split()[1:3])]
        until = time.monotonic() + 150
        while not all(line in log.read_text() for line in wanted):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.screens[place] = self.screens.get(place, "") + log.read_text()

    def filled(self, text: str) -> str:
        for word, shown in SHOWN.items():
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
                found = re.findall(shown, "\n".join(self.screens.values()), flags=re.M)
                assert found, f"nothing on a screen says what {word} is"
                text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", found[-1], text)
        return text

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDTWIN_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**inherited, "PATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

    def stop(self) -> list[int]:
        for process, _ in reversed(self.staying):
            process.send_signal(signal.SIGINT)
        return [process.wait(60) for process, _ in self.staying]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("guides")
    study = next(block["text"] for _, block in blocks() if "[privacy]" in block["text"])
    for number, place in enumerate(("operator", "lakeside", "hillcrest")):
        (folder / place).mkdir()
        (folder / place / "study.toml").write_text(study)
        source = np.random.default_rng(number)
        rows = [
            f"p{line},{source.integers(20, 90)},{source.choice(['female', 'male', ''])}\n"
            for line in range(300)
        ]
        if place != "operator":
            (folder / place / "patients.csv").write_text("patient_id,age,sex\n" + "".join(rows))
    made = Machines(folder)
    try:
        yield made
    finally:
        made.stop()


def test_every_block_of_commands_runs_here_or_says_why_not() -> None:
    numbers = []
    for page, block in blocks():
        place = f"{page}: {block['text'][:60]!r}"
        assert block["kind"] in {"sh", "toml", "ini"}, f"{place} names no language"
        if block["kind"] == "sh":
            assert STEP.fullmatch(block["before"]) or NOT_RUN.fullmatch(block["before"]), (
                f"{place} has no step"
            )
    for step in steps():
        numbers.append(step.number)
        assert step.place in {"operator", "lakeside", "hillcrest"}
    assert len(numbers) == len(set(numbers)) >= 20


def test_what_does_not_run_here_names_things_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = {" ".join(step.script.split()[:3]) for step in steps() if step.stays}
    seen = set()
    for _, block in blocks():
        for extra in re.findall(r"'\.\[([\w,]+)\]'", block["text"]):
            assert set(extra.split(",")) <= set(extras)
            seen.add("install")
        for file in re.findall(r"--constraint (\S+)", block["text"]):
            assert (ROOT / file).is_file()
        for command in re.findall(r"^ExecStart=\S+/(fedtwin \w+ \w+) --home \S+$", block["text"], flags=re.M):
            assert command in shown
            seen.add(command)
    assert seen == {"install", "fedtwin server up", "fedtwin site up"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("guides")
def test_the_guides_lead_from_nothing_to_a_release_and_out_again(machines: Machines) -> None:
    for step in steps():
        if step.number in CARRIED:
            source, target = (machines.folder / part for part in CARRIED[step.number])
            shutil.copyfile(source, target)
        machines.run(step)
        if step.number == 95:
            look_at(machines)
    operator = machines.folder / "operator"
    listed = subprocess.run(
        ["fedtwin", "server", "sites", "--home", "coordinator"],
        cwd=operator,
        env=machines.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"lakeside\W+left", listed.stdout)
    assert re.search(r"hillcrest\W+active|hillcrest\W+enrolled", listed.stdout), listed.stdout


def look_at(machines: Machines) -> None:
    """After the release: it is published, the site spent within the study's budget, and the page shows it."""
    screens = machines.screens
    assert re.search(r"Release sha256:\w+ is published", screens["operator"])
    assert all("Everything passed" in screens[place] for place in ("lakeside", "hillcrest"))
    spent = [float(value) for value in re.findall(r"(\d\.\d{4}) at delta 1e-05", screens["lakeside"])]
    assert spent
    assert 0 < max(spent) <= 1.0
    assert "The record's hash chain holds." in screens["lakeside"]
    address = re.search(r"^Open (\S+)$", screens["lakeside"], flags=re.M)[1]
    with httpx.Client(follow_redirects=True, trust_env=False, timeout=60) as browser:
        assert "first-study" in browser.get(address).text
        left = browser.get(str(httpx.URL(address).copy_with(path="/left", query=None))).text
    assert re.search(r"(One reply|\d+ replies) made from patients", left)
