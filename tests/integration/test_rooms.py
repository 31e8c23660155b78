"""The walls of the house: names resolve to us, walls hold, the command starts fast, no framework strays."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from privacy.cli.rooms import ROOMS, ForeignRoomError, check_rooms

HOME = Path(__file__).resolve().parents[2]
FLOWER_FILES = {
    "client/flower_adapter.py",
    "client/flower_supernode.py",
    "server/flower_adapter.py",
    "server/flower_control.py",
    "server/flower_worker.py",
    "server/app.py",
    "server/bundle.py",
}
OPACUS_FILES = {
    "privacy/dpsgd.py",
    "privacy/accounting.py",
    "privacy/opacus_hooks.py",
    "privacy/bookkeeping.py",
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def _files(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((HOME / room).rglob("*.py"))]


def _users_of(package: str, *rooms: str) -> set[str]:
    return {
        path.relative_to(HOME).as_posix()
        for path in _files(*rooms)
        if any(name.split(".")[0] == package for name in _imports(path))
    }


def test_each_room_resolves_inside_this_distribution():
    check_rooms()
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        assert spec is not None
        assert Path(spec.origin).resolve().parent == HOME / room


def test_a_foreign_room_is_refused(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    with pytest.raises(ForeignRoomError, match="'models' resolves to"):
        check_rooms()


def test_flower_stays_in_the_apps_and_adapters():
    assert _users_of("flwr", *ROOMS) <= FLOWER_FILES


def test_opacus_stays_in_dpsgd_and_accounting():
    assert _users_of("opacus", *ROOMS) <= OPACUS_FILES


def test_fastapi_stays_in_the_api():
    assert all(path.startswith("server/api/") for path in _users_of("fastapi", *ROOMS))


def test_nothing_anywhere_reads_or_writes_pickle():
    for package in ("pickle", "dill", "cloudpickle", "joblib"):
        assert _users_of(package, *ROOMS) == set()
    for path in _files(*ROOMS):
        assert "torch.load" not in path.read_text(), path


def test_privacy_does_no_input_or_output_outside_its_command_line():
    for path in _files("privacy"):
        if path.relative_to(HOME).as_posix().startswith("privacy/cli/"):
            continue
        names = {name.split(".")[0] for name in _imports(path)}
        assert not names & {
            "sqlite3",
            "socket",
            "httpx",
            "requests",
            "subprocess",
            "shutil",
            "urllib",
            "pathlib",
        }, path


def test_the_walls_hold():
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


def test_every_group_of_the_command_loads():
    for group in ("demo", "site", "server", "study", "cohort", "audit"):
        (found,) = entry_points(group="fedtwin.commands", name=group)
        assert callable(found.load())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fedtwin', '--help']\n"
        "from privacy.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "print(sorted({'torch', 'flwr', 'pandas', 'numpy', 'typer'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    assert ended.stdout.strip().endswith("[]")


@pytest.mark.parametrize("group", ["site", "server", "study", "cohort", "audit", "demo"])
def test_the_help_of_a_group_imports_neither_torch_nor_flower(group):
    code = (
        f"import sys; sys.argv = ['fedtwin', '{group}', '--help']\n"
        "from privacy.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "print(sorted({'torch', 'flwr', 'pandas', 'opacus', 'sqlalchemy'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    assert ended.stdout.strip().endswith("[]"), ended.stdout[-300:]


def test_help_says_what_an_argument_is():
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("fedtwin")), "site", "approve", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "A study's name or digest" in ended.stdout


def test_an_unknown_group_is_answered_with_those_there_are():
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("fedtwin")), "hospital"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "no group 'hospital'" in ended.stderr
    assert "site" in ended.stderr


def test_the_clock_has_a_zone_everywhere():
    # utcnow() and now() without a zone have cost other projects their audit trails.
    for path in _files(*ROOMS):
        assert "utcnow(" not in path.read_text(), path
