"""`fedtwin study`: define studies, run them, watch them, publish what comes out; through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from privacy.cli.problem import say_problem
from server.api_client import ApiClient
from server.cli.connection import ApiCommands, Ca, Key, Url
from server.cli.following import follow_run

app = typer.Typer(
    cls=ApiCommands,
    help="Studies and their runs: define, start, watch, stop, release.",
    no_args_is_help=True,
)
RunId = Annotated[str, typer.Argument(help="The run's identifier, run-...")]


@app.command()
def create(
    url: Url, key: Key, file: Annotated[Path, typer.Argument(help="study.toml")], ca: Ca = None
) -> None:
    """Register a study: it is checked, its noise is calibrated to its budget, and it never changes again."""
    text = _read(file)
    study = (
        ApiClient(url, key, ca=ca).post("/studies", text, headers={"Content-Type": "application/toml"}).json()
    )
    typer.echo(f"Study {study['name']!r} is registered: {study['digest']}")
    typer.echo(
        f"Each site spends at most epsilon {study['budget']['epsilon']} at delta {study['budget']['delta']} "
        f"in {study['rounds']} rounds. Next: fedtwin study run {study['name']}"
    )


@app.command()
def check(file: Annotated[Path, typer.Argument(help="study.toml")]) -> None:
    """Read a study's file here, without a coordinator: what is wrong with it, or what it would do."""
    from models.algorithm import decide
    from models.study import Study, StudyError

    try:
        decision = decide(Study.from_toml(_read(file)))
    except StudyError as error:
        raise say_problem(str(error)) from None
    study = decision.study
    refined = study.refine.rounds
    typer.echo(
        f"Study {study.name!r} can be registered: {len(study.table.columns)} columns, epsilon "
        f"{study.privacy.epsilon:g} at delta {study.privacy.delta:g} at each site, rounds: {study.num_rounds}."
    )
    chosen = "measure-and-refine" if refined else "measure"
    typer.echo(f"Algorithm: {chosen}, {decision.because}.")
    for constraint in study.table.constraints:
        typer.echo(f"Every patient served satisfies: {constraint}")


@app.command(name="list")
def list_(url: Url, key: Key, ca: Ca = None) -> None:
    """List the registered studies."""
    found = ApiClient(url, key, ca=ca).get("/studies")["items"]
    for study in found:
        typer.echo(
            f"{study['name']}  epsilon {study['budget']['epsilon']}  {study['digest']}  {study['title']}"
        )
    if not found:
        typer.echo("No study is registered yet; fedtwin study create FILE")


@app.command()
def run(
    url: Url, key: Key, name: Annotated[str, typer.Argument(help="The study's name.")], ca: Ca = None
) -> None:
    """Start a run over all enrolled sites; prints its identifier. Follow it with `fedtwin study watch`."""
    typer.echo(ApiClient(url, key, ca=ca).post("/runs", {"study": name}).json()["id"])


@app.command()
def runs(url: Url, key: Key, ca: Ca = None) -> None:
    """List runs, newest first."""
    found = ApiClient(url, key, ca=ca).get("/runs")["items"]
    for one in found:
        typer.echo(f"{one['id']}  {one['study']}  {one['state']}  round {one['round']} of {one['rounds']}")
    if not found:
        typer.echo("No run yet; fedtwin study run NAME")


@app.command()
def watch(url: Url, key: Key, run_id: RunId, ca: Ca = None) -> None:
    """Follow a run to its end: progress, messages, and what each site has spent of its cap."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    api, console = ApiClient(url, key, ca=ca), Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("queued", total=100)
        for event, content in follow_run(api, run_id):
            if event == "message":
                style = {"warning": "yellow", "error": "red"}.get(content["level"], "")
                line = f"{content['at'][11:19]} {content['text']}"
                progress.console.print(line, style=style, markup=False)
            else:
                label = f"{content['phase']}, {content['round']} of {content['rounds']} rounds done"
                progress.update(task, completed=content["percent"], description=label)
    state = api.get(f"/runs/{run_id}")
    console.print(_spend_table(state))
    if state["state"] != "completed":
        raise say_problem(f"the run is {state['state']}: {state['reason']}")
    typer.echo(f"Release candidate: {state['release']}")
    typer.echo(f"Next: fedtwin study publish {state['release']}")


@app.command()
def stop(url: Url, key: Key, run_id: RunId, ca: Ca = None) -> None:
    """Stop a run within seconds, at the sites too; what is recorded stays, what was debited stays spent."""
    typer.echo(f"Run {run_id} is {ApiClient(url, key, ca=ca).post(f'/runs/{run_id}/stop').json()['state']}.")


@app.command()
def resume(url: Url, key: Key, run_id: RunId, ca: Ca = None) -> None:
    """Go on with a stopped or failed run after its last recorded round; nothing is spent twice."""
    typer.echo(
        f"Run {run_id} is {ApiClient(url, key, ca=ca).post(f'/runs/{run_id}/resume').json()['state']}."
    )


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise say_problem(f"{file} cannot be read: {error}") from None


Release = Annotated[str, typer.Argument(help="The release's digest, sha256:...")]


@app.command()
def publish(url: Url, key: Key, release: Release, ca: Ca = None) -> None:
    """Let researchers request cohorts from a release. There is no release gate yet: none was passed."""
    state = ApiClient(url, key, ca=ca).post(f"/releases/{release}/publish").json()["state"]
    typer.echo(f"Release {release} is {state}.")


@app.command()
def withdraw(
    url: Url,
    key: Key,
    release: Release,
    reason: Annotated[str, typer.Option(help="A code: operator, site-request.")],
    ca: Ca = None,
) -> None:
    """Take a release back: no cohort can be drawn from it any more."""
    body = {"reason": reason}
    state = ApiClient(url, key, ca=ca).post(f"/releases/{release}/withdraw", body).json()["state"]
    typer.echo(f"Release {release} is {state}.")


def _spend_table(state: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="Spent per patient at each site, out of its cap")
    for heading in ("site", "last round", "epsilon spent", "cap", "delta"):
        table.add_column(heading)
    for spend in state["spends"]:
        spent = spend["spent_epsilon"]
        table.add_row(
            spend["site"],
            f"{spend['round']} ({spend['outcome']})",
            f"{float(spent):.4f}" if spent else "unknown",
            str(spend["cap_epsilon"] or ""),
            str(spend["spent_delta"] or ""),
        )
    return table
