"""What the README and the guides tell people to type exists: every command, option, make target, file and link."""

import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from models.study import Study
from server.demo.surface import fedtwin_command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_of(page: Path) -> str:
    text = page.read_text().replace("\\\n", " ")
    return "\n".join([*re.findall(r"```\w*\n(.*?)```", text, flags=re.S), *re.findall(r"`([^`\n]+)`", text)])


def commands() -> list[str]:
    found = set()
    for page in PAGES:
        for line in code_of(page).splitlines():
            match = re.search(r"(?:^|\s)(fedtwin (?:demo|site|server|study|cohort|audit)\b.*)", line)
            if match and "..." not in match[1]:
                found.add(match[1].strip())
    return sorted(found)


@cache
def help_of(*words: str) -> str:
    ended = subprocess.run(
        fedtwin_command(*words, "--help"),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "240", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    return ended.stdout


@pytest.mark.parametrize("line", commands())
def test_a_command_that_a_page_shows_exists_with_its_options(line):
    words = shlex.split(line)[1:]
    depth = 1 if words[0] == "demo" or len(words) < 2 or words[1].startswith("-") else 2
    text = help_of(*words[:depth])
    for option in [word for word in words[depth:] if re.fullmatch(r"--?[a-z][a-z-]*", word)]:
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", text), f"{line}: {option} is not in its help"


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {
        match[1]
        for page in PAGES
        for line in code_of(page).splitlines()
        if (match := re.match(r"make ([a-z-]+)", line.strip()))
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:server|client|models|privacy|tests)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_every_study_that_a_page_shows_can_be_registered():
    blocks = [
        block for page in PAGES for block in re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.S)
    ]
    shown = [block for block in blocks if "privacy" in block]
    assert shown
    for text in shown:
        Study.from_toml(text)


def test_the_readme_is_short_and_its_picture_light():
    assert len((ROOT / "README.md").read_text().split()) < 450
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000
