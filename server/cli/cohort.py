"""`fedtwin cohort`: what a researcher does; through the API."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from privacy.cli.problem import say_problem
from server.cli.api_client import ApiClient, Ca, Key, Url

app = typer.Typer(
    help="A researcher: request synthetic patients from a release and download them.", no_args_is_help=True
)
CohortId = Annotated[str, typer.Argument(help="The cohort's identifier.")]
POLL_SECONDS = 0.5


@app.command()
def releases(url: Url, key: Key, ca: Ca = None) -> None:
    """List the releases that cohorts can be drawn from."""
    found = ApiClient(url, key, ca=ca).get("/releases")["items"]
    for one in found:
        typer.echo(f"{one['digest']}  {one['study']}  {one['state']}")
    if not found:
        typer.echo("Nothing is published yet; ask the coordinator's operator.")


@app.command()
def request(
    url: Url,
    key: Key,
    release: Annotated[str, typer.Option(help="The release's digest; see `fedtwin cohort releases`.")],
    num_patients: Annotated[int, typer.Option("-n", "--num-patients", help="How many synthetic patients.")],
    where: Annotated[str, typer.Option(help="A condition, such as: age >= 70 and sex == 'female'")] = "",
    seed: Annotated[int | None, typer.Option(help="The same seed and release give the same bytes.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="csv, parquet, jsonl, fhir, omop, png, dicom, zip; may be repeated."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Only this column; may be repeated.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder to download into.")] = Path(),
    ca: Ca = None,
) -> None:
    """Request a cohort, wait for it, download its files and check their digests. Costs no privacy budget."""
    api = ApiClient(url, key, ca=ca)
    wanted: dict[str, Any] = {"release": release, "num_patients": num_patients}
    if where:
        wanted["conditions"] = [where]
    if seed is not None:
        wanted["seed"] = seed
    if formats:
        wanted["formats"] = formats
    if columns:
        wanted["columns"] = columns
    made = api.post("/cohorts", wanted).json()
    typer.echo(f"Cohort {made['id']} is requested.")
    _fetch(api, made["id"], to)


@app.command()
def fetch(
    url: Url,
    key: Key,
    cohort: CohortId,
    to: Annotated[Path, typer.Option(help="Folder.")] = Path(),
    ca: Ca = None,
) -> None:
    """Wait for a cohort that was requested before, and download it."""
    _fetch(ApiClient(url, key, ca=ca), cohort, to)


@app.command(name="list")
def list_(url: Url, key: Key, ca: Ca = None) -> None:
    """List your cohorts, newest first."""
    found = ApiClient(url, key, ca=ca).get("/cohorts")["items"]
    for one in found:
        typer.echo(f"{one['id']}  {one['num_patients']} patients  {one['state']}  {one['release']}")
    if not found:
        typer.echo("No cohort yet; fedtwin cohort request")


@app.command()
def cancel(url: Url, key: Key, cohort: CohortId, ca: Ca = None) -> None:
    """Cancel a cohort that is not finished."""
    ApiClient(url, key, ca=ca).delete(f"/cohorts/{cohort}")
    typer.echo(f"Cohort {cohort} is cancelled.")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A cohort's folder, with its certificate.json.")],
    key: Annotated[
        str, typer.Option(help="The coordinator's ledger key, name+hash+base64; from federation.json.")
    ],
) -> None:
    """Check a cohort offline: its files, its certificate, and that the ledger has it. Needs no server."""
    from privacy.cohort_certificate import CERTIFICATE_FILE, verify_certificate
    from privacy.merkle import LedgerVerificationError
    from privacy.signing import SignatureError, VerifyKey

    try:
        certificate = json.loads((folder / CERTIFICATE_FILE).read_bytes())
        files, unfinished = _files_of(folder)
        verify_certificate(certificate, verify_key := VerifyKey.from_text(key), files)
        packed = _files_in(folder / "cohort.zip")
        verify_certificate(certificate, verify_key, packed)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise say_problem(f"{folder} holds no readable cohort: {error}") from None
    except SignatureError as error:
        raise say_problem(f"--key: {error}") from None
    except LedgerVerificationError as error:
        raise say_problem(f"this cohort does NOT hold: {error}") from None
    statement, checked = certificate["statement"], {**files, **packed}
    missing = sorted(set(statement["files"]) - set(checked))
    typer.echo(
        f"Holds: cohort {statement['cohort']}, {statement['num_patients']} synthetic patients, in the ledger"
    )
    typer.echo(f"at index {certificate['ledger']['index']}; study {statement['study']['name']}.")
    for site in statement["privacy"]["sites"]:
        typer.echo(f"  {site['site']}: epsilon {site['epsilon']} at delta {site['delta']}, cap {site['cap']}")
    typer.echo(f"Unchanged: {', '.join(sorted(checked)) or 'no file is here'}")
    if packed:
        typer.echo(f"cohort.zip holds {len(packed)} of them.")
    if missing:
        typer.echo(f"Not here, so not checked: {', '.join(missing)}")
    if unfinished:
        typer.echo(f"Downloads that broke off, not checked; fetch again: {', '.join(unfinished)}")


def _files_of(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Digests of a cohort's files by their names in the certificate, and downloads that broke off."""
    from privacy.cohort_certificate import CERTIFICATE_FILE

    found: dict[str, str] = {}
    unfinished = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or name == CERTIFICATE_FILE:
            continue
        if path.suffix == ".part":
            unfinished.append(name)
            continue
        with path.open("rb") as file:
            found[name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return found, unfinished


def _files_in(archive: Path) -> dict[str, str]:
    """Digests of the files that a cohort's zip holds; none where there is no zip."""
    if not archive.is_file():
        return {}
    found = {}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            with opened.open(name) as file:
                found[name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]
    return found


def _fetch(api: ApiClient, cohort: str, to: Path) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("drawing patients", total=100)
        while (state := api.get(f"/cohorts/{cohort}"))["state"] in {"queued", "running"}:
            progress.update(task, completed=state["percent"])
            time.sleep(POLL_SECONDS)
        progress.update(task, completed=100)
    if state["state"] != "completed":
        raise say_problem(f"the cohort is {state['state']}: {state['reason']}")
    folder = to / cohort
    folder.mkdir(parents=True, exist_ok=True)
    for file in state["files"]:
        target = folder.joinpath(*PurePosixPath(file["name"]).parts)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise say_problem(
                f"the coordinator names a file {file['name']!r}, which would lie outside {folder}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        api.download(f"/cohorts/{cohort}/files/{file['name']}", target)
        with target.open("rb") as opened:
            found = "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()
        if found != file["digest"]:
            target.unlink()
            raise say_problem(
                f"{file['name']} arrived with the digest {found}, not {file['digest']}; fetch again"
            )
        typer.echo(str(target))
