"""`fedtwin cohort`: what a researcher does; through the API."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from privacy.cli.problem import say_problem
from server.cli.api_client import ApiClient, Key, Url

app = typer.Typer(
    help="A researcher: request synthetic patients from a release and download them.", no_args_is_help=True
)
CohortId = Annotated[str, typer.Argument(help="The cohort's identifier.")]
POLL_SECONDS = 0.5


@app.command()
def releases(url: Url, key: Key) -> None:
    """List the releases that cohorts can be drawn from."""
    found = ApiClient(url, key).get("/releases")["items"]
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
        list[str] | None, typer.Option("--format", help="csv, parquet; may be repeated.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder to download into.")] = Path(),
) -> None:
    """Request a cohort, wait for it, download its files and check their digests. Costs no privacy budget."""
    api = ApiClient(url, key)
    wanted: dict[str, Any] = {"release": release, "num_patients": num_patients}
    if where:
        wanted["conditions"] = [where]
    if seed is not None:
        wanted["seed"] = seed
    if formats:
        wanted["formats"] = formats
    made = api.post("/cohorts", wanted).json()
    typer.echo(f"Cohort {made['id']} is requested.")
    _fetch(api, made["id"], to)


@app.command()
def fetch(
    url: Url, key: Key, cohort: CohortId, to: Annotated[Path, typer.Option(help="Folder.")] = Path()
) -> None:
    """Wait for a cohort that was requested before, and download it."""
    _fetch(ApiClient(url, key), cohort, to)


@app.command(name="list")
def list_(url: Url, key: Key) -> None:
    """List your cohorts, newest first."""
    found = ApiClient(url, key).get("/cohorts")["items"]
    for one in found:
        typer.echo(f"{one['id']}  {one['num_patients']} patients  {one['state']}  {one['release']}")
    if not found:
        typer.echo("No cohort yet; fedtwin cohort request")


@app.command()
def cancel(url: Url, key: Key, cohort: CohortId) -> None:
    """Cancel a cohort that is not finished."""
    ApiClient(url, key).delete(f"/cohorts/{cohort}")
    typer.echo(f"Cohort {cohort} is cancelled.")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A cohort's folder, with its certificate.json.")],
    key: Annotated[
        str, typer.Option(help="The coordinator's ledger key, name+hash+base64; from federation.json.")
    ],
) -> None:
    """Check a cohort offline: its files, its certificate, and that the ledger has it. Needs no server."""
    from models.digests import digest_of
    from privacy.merkle import LedgerVerificationError
    from privacy.signing import SignatureError, VerifyKey
    from server.provenance import CERTIFICATE_FILE, verify_certificate

    try:
        certificate = json.loads((folder / CERTIFICATE_FILE).read_bytes())
        files = {
            path.name: digest_of(path.read_bytes())
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name != CERTIFICATE_FILE
        }
        verify_certificate(certificate, VerifyKey.from_text(key), files)
    except (OSError, ValueError) as error:
        raise say_problem(f"{folder} holds no readable cohort: {error}") from None
    except SignatureError as error:
        raise say_problem(f"--key: {error}") from None
    except LedgerVerificationError as error:
        raise say_problem(f"this cohort does NOT hold: {error}") from None
    statement = certificate["statement"]
    missing = sorted(set(statement["files"]) - set(files))
    typer.echo(
        f"Holds: cohort {statement['cohort']}, {statement['num_patients']} synthetic patients, in the ledger"
    )
    typer.echo(
        f"at index {certificate['ledger']['index']}; study {statement['study']['name']}; every file is unchanged."
    )
    for site in statement["privacy"]["sites"]:
        typer.echo(f"  {site['site']}: epsilon {site['epsilon']} at delta {site['delta']}, cap {site['cap']}")
    if missing:
        typer.echo(f"Not here, so not checked: {', '.join(missing)}")


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
        target = folder / Path(file["name"]).name
        api.download(f"/cohorts/{cohort}/files/{file['name']}", target)
        found = "sha256:" + hashlib.sha256(target.read_bytes()).hexdigest()
        if found != file["digest"]:
            target.unlink()
            raise say_problem(
                f"{file['name']} arrived with the digest {found}, not {file['digest']}; fetch again"
            )
        typer.echo(str(target))
