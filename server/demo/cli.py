"""`fedtwin demo`: the main job on one machine, from nothing to a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from server.demo.driver import DemoResult

app = typer.Typer(
    help="Three hospitals train one generator on real data on this machine, and a cohort arrives.",
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local values, and those hold keys and patients
)


@app.command()
def demo(
    home: Annotated[
        Path, typer.Option("--home", help="Where everything is put; an earlier demo there is replaced.")
    ] = Path("demo-run"),
    exit_when_done: Annotated[
        bool, typer.Option("--exit", help="End when the cohort is there, instead of staying up.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep/--fresh", help="Move an earlier demo's folder aside, or remove it.")
    ] = False,
) -> None:
    """Run the main job: three hospitals, one study, a release, a cohort of 1,000 patients, a report, an audit."""
    import signal

    from rich.console import Console

    from server.demo.folder import FolderError, demo_folder

    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with demo_folder(home, keep=keep) as folder:
            status = _run(folder, console, stay=not exit_when_done)
    except FolderError as error:
        typer.echo(f"fedtwin: {error}", err=True)
        status = 1
    raise typer.Exit(status)


def _run(folder: Path, console: Console, *, stay: bool) -> int:
    import signal

    from privacy.cli.supervisor import ProcessFailedError
    from server.coordinator_error import CoordinatorError
    from server.demo.display import Display
    from server.demo.driver import Demo
    from server.demo.surface import SurfaceError

    console.print(f"fedtwin demo in {folder}", markup=False)
    display = Display(console)
    demo = Demo(folder, display)
    result: DemoResult | None = None
    try:
        with display.running():
            result = demo.run()
        _tell(result, console)
        if stay:
            console.print("\nEverything stays up until Ctrl-C.", markup=False)
            demo.processes.wait()
        return 0
    except KeyboardInterrupt:
        console.print("\nStopping.", markup=False)
        return 130 if result is None else 0
    except (SurfaceError, CoordinatorError, ProcessFailedError) as error:
        console.print(f"\nThe demo failed: {error}", markup=False)
        console.print(demo.processes.explain(str(error)), markup=False)
        return 1
    finally:
        # A second Ctrl-C must not keep a process alive that the first one is about to end.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.processes.stop()
        signal.signal(signal.SIGINT, before)
        console.print("All processes have ended.", markup=False)


def _tell(result: DemoResult, console: Console) -> None:
    from rich.table import Table

    table = Table(title="Spent of cap (epsilon, per patient)", title_justify="left")
    for heading in ("hospital", "spent", "cap", "delta"):
        table.add_column(heading, justify="left" if heading == "hospital" else "right")
    for site in result.sites:
        table.add_row(site.name, f"{site.spent:.3f}", f"{site.cap:.3f}", f"{site.delta:g}")
    console.print()
    console.print(table)
    console.print(
        f"\nWhat `fedtwin audit verify` says of the exported ledger:\n{_indented(result.verdict)}",
        markup=False,
    )
    console.print("\nFiles", markup=False)
    for what, path in (
        ("report", result.report),
        *(("cohort", file) for file in result.cohort_files),
        ("ledger", result.ledger),
    ):
        console.print(f"  {what:<8} {path}", markup=False)
    console.print(f"\nPages    {result.url}/ (sign in with one of the keys below)", markup=False)
    console.print(f"API      {result.url}/docs", markup=False)
    for role, key in result.keys.items():
        console.print(f"  {role:<11} {key}", markup=False)
    console.print("\nTry next, in another terminal:", markup=False)
    for command in result.next_commands:
        console.print(f"  {command}", markup=False)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
