"""docs/researcher.md, typed as it stands: a researcher's machine, and a coordinator's processes behind the gateway.

The page's shell blocks run in bash, its Python blocks in one interpreter, as a notebook's cells do. What
`expression  # value` says is held to it. What a reader puts in the place of the page's words is declared in `filled`.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from models.study import Study
from privacy.cli.supervisor import Supervisor
from server.home import CoordinatorHome
from server.keys import create_key
from server.processes import coordinator_processes
from server.releases import list_releases, publish_release

PAGE = Path(__file__).parents[2] / "docs" / "researcher.md"
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<kind>\w*)\n(?P<text>.*?)```", re.S)
NOT_RUN = re.compile(r"<!-- not run here: .{20,} -->")
TOLD = re.compile(r"^(?P<code>\S.*?)  # (?P<value>[\[('\dTF].*)$")
RUNNER = """
import sys
sys.ps1 = ""
names = {}
for number, cell in enumerate(sys.stdin.read().split("\\0")):
    exec(compile(cell, f"cell {number}", "exec"), names)
"""
PATIENTS = 5000
STUDY = {
    "name": "diabetes-clinics",
    "title": "Diabetes clinics",
    "privacy": {"epsilon": 6.0, "delta": 1e-5},
    "warm_start": {"components": 30, "steps": 40},
    "federation": {"quorum": 1},
    "table": {
        "label": "diabetes",
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 18, "maximum": 97, "bins": 80, "unit": "a"},
            {"name": "sex", "kind": "categorical", "categories": ["female", "male"]},
            {"name": "bmi", "kind": "continuous", "minimum": 15, "maximum": 45, "bins": 15},
            {"name": "diabetes", "kind": "boolean"},
        ],
    },
}


@dataclass(frozen=True, kw_only=True)
class Researcher:
    """A machine, and what its owner was given."""

    folder: Path
    home: CoordinatorHome
    key: str
    release: str

    def filled(self, text: str) -> str:
        words = {
            "https://coordinator.example.org": self.home.public_url,
            "ftw_...": self.key,
            "coordinator+937acbfd+AYaH": self.home.verify_key.text,
            "RELEASE": self.release,
            "COHORT": next((path.name for path in sorted(self.folder.glob("cohorts/cohort-*"))), "(none)"),
        }
        for word, stands_for in words.items():
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", stands_for, text)
        return text

    def run(self, *command: str, typed: str = "") -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            command,
            input=typed,
            cwd=self.folder,
            env={**os.environ, "PATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
            check=False,
        )
        assert ended.returncode == 0, f"{typed or command[-1]}\n{ended.stdout}"
        return ended.stdout


@pytest.fixture
def researcher(tmp_path: Path) -> Iterator[Researcher]:
    source = np.random.default_rng(0)
    age = source.integers(18, 98, 1500)
    patients = pd.DataFrame(
        {
            "age": age,
            "sex": source.choice(["female", "male"], len(age)),
            "bmi": source.uniform(15, 45, len(age)),
            "diabetes": source.random(len(age)) < age / 150,
        }
    )
    lab = InProcessLab(tmp_path, {"north": patients})
    lab.train(Study.from_dict(STUDY))
    (candidate,) = list_releases(lab.store)
    release = publish_release(lab.store, candidate.digest).digest
    key = create_key(lab.store, role="researcher", owner="rita").text
    lab.store.close()
    machine = tmp_path / "researcher"
    machine.mkdir()
    shutil.copyfile(lab.coordinator.ca_certificate, machine / "ca.crt")
    specs = [one for one in coordinator_processes(lab.coordinator) if one.name in ("api", "gateway", "jobs")]
    supervisor = Supervisor([replace(one, after=()) for one in specs], tmp_path / "logs")
    supervisor.start()
    try:
        supervisor.wait_until_ready(120)
        yield Researcher(folder=machine, home=lab.coordinator, key=key, release=release)
    finally:
        supervisor.stop()


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every block that is to run, in order."""
    found = []
    for block in FENCE.finditer(PAGE.read_text()):
        assert block["kind"] in ("sh", "python"), f"{block['text'][:60]!r} names no language"
        if not NOT_RUN.fullmatch(block["before"]):
            found.append((block["kind"], block["text"]))
    return found


def held(cell: str) -> str:
    """The cell, with every `expression  # value` asserted, and a last expression shown in both of its forms."""
    lines = []
    for line in cell.splitlines():
        told = TOLD.match(line)
        lines.append(f"_ = {told['code']}; assert repr(_) == {told['value']!r}, _" if told else line)
    *_, last = ast.parse("\n".join(lines)).body
    if isinstance(last, ast.Expr):
        text = lines.pop()
        lines.append(f"_ = {text}\nprint(repr(_)); getattr(_, '_repr_html_', str)()")
    return "\n".join(lines)


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("guides")
def test_the_page_leads_from_a_question_to_patients_that_can_be_checked(researcher: Researcher) -> None:
    kinds = [kind for kind, _ in blocks()]
    assert kinds.count("python") >= 6
    exports = "".join(text for kind, text in blocks() if kind == "sh" and text.startswith("export "))
    cells = "\0".join(held(text) for kind, text in blocks() if kind == "python")
    script = f"{researcher.filled(exports)}exec {sys.executable} -c '{RUNNER}'"
    said = researcher.run("bash", "-euc", script, typed=researcher.filled(cells))
    assert "Diabetes clinics" in said
    assert "Holds: cohort" in said
    assert re.search(r"conditions.*'weight'|no column.*weight", said)
    typed = "".join(
        researcher.filled(text) for kind, text in blocks() if kind == "sh" and not text.startswith("export ")
    )
    said = researcher.run("bash", "-euo", "pipefail", "-c", researcher.filled(exports) + typed)
    assert said.count(f"{PATIENTS:,}") >= 2
    assert "Holds: cohort" in said
    assert "HTTP/1.1 202" in said
    first, second = (
        pd.read_parquet(path) for path in sorted(researcher.folder.glob("cohorts/*/cohort.parquet"))
    )
    pd.testing.assert_frame_equal(
        first, second
    )  # the notebook's and the command line's: one seed, one cohort
    assert list(researcher.folder.glob("elsewhere/*/cohort.parquet"))
