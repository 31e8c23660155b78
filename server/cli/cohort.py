"""`fedtwin cohort`: what a researcher does; a thin shell around `server.researcher`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.cli.problem import say_problem
from server.cli.connection import ApiCommands, Ca, Key, Url

if TYPE_CHECKING:
    from server.researcher import Cohort, Coordinator

app = typer.Typer(
    cls=ApiCommands,
    help="A researcher: find a release, request synthetic patients from it and download them.",
    no_args_is_help=True,
)
CohortId = Annotated[str, typer.Argument(help="The cohort's identifier, cohort-...")]
WHICH = "Digest of a release, or the name of a study: its newest. Not needed where there is one study only."
Release = Annotated[str, typer.Option(help=WHICH)]
Where = Annotated[str, typer.Option(help="A condition, such as: age >= 70 and sex == 'female'")]
Columns = Annotated[str, typer.Option(help="Only these columns, with commas between: age,sex")]
To = Annotated[Path, typer.Option(help="Folder to download into; each cohort gets its own in it.")]


@app.command()
def releases(
    url: Url,
    key: Key,
    search: Annotated[str, typer.Option(help="Words that the study's texts or columns hold.")] = "",
    ca: Ca = None,
) -> None:
    """List the releases that cohorts can be drawn from."""
    found = _hub(url, key, ca).releases(search or None)
    for one in found:
        typer.echo(f"{one.digest}  {one.study}  {one.title}")
    if not found:
        typer.echo("Nothing like that is published; ask the coordinator's operator.")


@app.command()
def release(
    url: Url,
    key: Key,
    release: Annotated[str, typer.Argument(help=WHICH)] = "",
    ca: Ca = None,
) -> None:
    """Show a release: its data dictionary, what it cost, and what it is not for."""
    hub = _hub(url, key, ca)
    typer.echo(repr(hub.release(_chosen(hub, release))))


@app.command()
def preview(
    url: Url,
    key: Key,
    release: Release = "",
    where: Where = "",
    columns: Columns = "",
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    ca: Ca = None,
) -> None:
    """Show twenty synthetic patients at once, and how many of the release's satisfy the condition."""
    hub = _hub(url, key, ca)
    shown = hub.preview(_chosen(hub, release), where=where, columns=_names(columns), seed=seed)
    typer.echo(shown.to_string(index=False, na_rep=""))
    about = "" if shown.attrs["share_is_exact"] else "about "
    typer.echo(f"\nOf the release's patients {about}{shown.attrs['share_of_release']:.2%} are like that.")


@app.command()
def request(
    url: Url,
    key: Key,
    num_patients: Annotated[int, typer.Option("-n", "--num-patients", help="How many synthetic patients.")],
    release: Release = "",
    where: Where = "",
    seed: Annotated[int | None, typer.Option(help="The same seed and release give the same bytes.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="csv, parquet, jsonl, fhir, omop, png, dicom, zip; may be repeated. Without it: csv and parquet.",
        ),
    ] = None,
    columns: Columns = "",
    to: To = Path(),
    ca: Ca = None,
) -> None:
    """Request a cohort, wait for it, download its files and check their digests. Costs no privacy budget.

    If it breaks off, the same command in the same folder goes on with the same cohort.
    """
    from server.cli.unfinished import UnfinishedRequest

    wanted = {
        "num_patients": num_patients,
        "where": where,
        "seed": seed,
        "columns": _names(columns),
        "formats": tuple(formats or ("csv", "parquet")),
    }
    hub = _hub(url, key, ca)
    digest = _chosen(hub, release)
    unfinished = UnfinishedRequest(to, {"url": url, "release": digest, **wanted})
    made, goes_on = unfinished.ask(lambda name: hub.request(digest, **wanted, name=name))  # type: ignore[arg-type]
    if goes_on:
        typer.echo(f"This was asked for before: going on with cohort {made.id}.")
    else:
        typer.echo(f"Cohort {made.id} is requested.")
        typer.echo(
            f"If this breaks off: the same command again, or fedtwin cohort resume {made.id}", err=True
        )
    _bring(made, to)
    unfinished.forget()


@app.command()
def resume(url: Url, key: Key, cohort: CohortId, to: To = Path(), ca: Ca = None) -> None:
    """Wait for a cohort that was requested before, and download what is not here yet."""
    _bring(_hub(url, key, ca).cohort(cohort), to)


@app.command(name="list")
def list_(url: Url, key: Key, ca: Ca = None) -> None:
    """List your cohorts, newest first."""
    found = _hub(url, key, ca).cohorts()
    typer.echo(repr(found) if found else "No cohort yet; fedtwin cohort request")


@app.command()
def show(url: Url, key: Key, cohort: CohortId, ca: Ca = None) -> None:
    """Show a cohort: what was asked, how far it is, its files."""
    typer.echo(repr(_hub(url, key, ca).cohort(cohort)))


@app.command()
def cancel(url: Url, key: Key, cohort: CohortId, ca: Ca = None) -> None:
    """Cancel a cohort that is not finished."""
    _hub(url, key, ca).cohort(cohort).cancel()
    typer.echo(f"Cohort {cohort} is cancelled.")


@app.command()
def delete(
    url: Url,
    key: Key,
    cohort: CohortId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    ca: Ca = None,
) -> None:
    """Remove a cohort's files from the coordinator before they expire; its certificate stays there."""
    found = _hub(url, key, ca).cohort(cohort)
    if not yes:
        typer.confirm(
            f"Remove the files of {found.last_status.num_patients:,} patients from the coordinator? What you "
            f"downloaded stays; seed {found.last_status.seed} gives the same files again",
            abort=True,
        )
    found.delete()
    told = {"deleted": "its files are removed", "cancelled": "it is cancelled"}
    state = found.last_status.state
    typer.echo(f"Cohort {cohort}: {told.get(state, f'it is {state}; there is nothing to remove')}.")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A cohort's folder, with its certificate.json.")],
    key: Annotated[
        str,
        typer.Option(
            envvar="FEDTWIN_LEDGER_KEY",
            help="The coordinator's ledger key, name+hash+base64; from its operator, or from federation.json.",
        ),
    ] = "",
) -> None:
    """Check a cohort offline: its files, its certificate, and that the ledger has it. Needs no server."""
    from privacy.merkle import LedgerVerificationError
    from privacy.signing import SignatureError
    from server.researcher import UnreadableCohortError, verify_folder

    if not key:
        raise say_problem(
            "there is no ledger key to check it with; the coordinator's operator tells it (name+hash+base64): give it "
            "with --key, or set FEDTWIN_LEDGER_KEY. Never take it from whoever gave you the cohort"
        )
    try:
        typer.echo(repr(verify_folder(folder, key)))
    except UnreadableCohortError as error:
        raise say_problem(error) from None
    except SignatureError as error:
        raise say_problem(f"--key: {error}") from None
    except LedgerVerificationError as error:
        raise say_problem(f"this cohort does NOT hold: {error}") from None


def _hub(url: str, key: str, ca: Path | None) -> Coordinator:
    from server.researcher import Coordinator

    return Coordinator(url, key=key, ca=ca)


def _chosen(hub: Coordinator, named: str) -> str:
    """The digest of the release that is meant.

    Raises:
        CoordinatorError: there is none, or it could be one of several studies'.
    """
    from server.coordinator_error import CoordinatorError

    if named.startswith("sha256:"):
        return named
    found = hub.releases(study=named or None)
    if len({one.study for one in found}) == 1:
        typer.echo(
            f"Release {found[0].digest}: {found[0].title}, made {found[0].created_at:%Y-%m-%d}.", err=True
        )
        return found[0].digest
    known = ", ".join(dict.fromkeys(one.study for one in (found or hub.releases()))) or "none yet"
    wrong = (
        f"there is no published release of a study {named!r}" if named else "name the release that you mean"
    )
    raise CoordinatorError(f"{wrong}; --release takes a digest or a study's name. Studies with one: {known}")


def _names(columns: str) -> tuple[str, ...]:
    return tuple(name for part in columns.split(",") if (name := part.strip()))


def _bring(cohort: Cohort, to: Path) -> None:
    folder = cohort.download(to)
    for file in cohort.last_status.files:
        typer.echo(str(folder / file.name))
