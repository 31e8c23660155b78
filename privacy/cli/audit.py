"""`fedtwin audit`: an auditor's offline check of a ledger export. The only part of the ledger that opens files.

Exit status: 0 everything held, 1 something broke, 2 the question could not be asked (no such file, no such key).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from privacy.audit_report import AuditReport
    from privacy.export import ReadFile
    from privacy.signing import VerifyKey

app = typer.Typer(help="Check a ledger export offline, with nothing but a public key.", no_args_is_help=True)

FEW_ENTRIES = 2_000  # below this a second process costs more than it saves
FEW_EPSILONS = 24
Task = TypeVar("Task")
Result = TypeVar("Result")

Export = Annotated[Path, typer.Argument(help="Folder or .zip of the export.", metavar="EXPORT")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


@app.command()
def verify(
    export: Export,
    key: Annotated[
        str,
        typer.Option(help="The coordinator's key: its text (name+hash+base64), or a file with it or a PEM."),
    ],
    since: Annotated[
        Path | None, typer.Option(help="A checkpoint file that you kept: the ledger must continue it.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(min=1, help="Sites that must have countersigned. Default: more than half.")
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of a site that you know; it must have countersigned. May be given more than once."
        ),
    ] = None,
    accounting: Annotated[
        str,
        typer.Option(help="Recompute `every` claimed epsilon, or only the `last` of each site and study."),
    ] = "every",
    keep: Annotated[
        Path | None, typer.Option(help="If everything held, keep the checkpoint here for the next --since.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every signature, the tree, each claimed epsilon, each cap and each release's descent.

    Exit status 0: everything held. 1: something broke. 2: it could not be checked at all.
    """
    if accounting not in ("every", "last"):
        _stop(f"--accounting is {accounting!r}; it must be every or last")
    from privacy.verification import audit_export

    with _reader(export) as read:
        note = read("checkpoint")
        if note is None:
            _stop(f"{export} has no file named checkpoint, so it is no ledger export")
        old = _read_file(since, "--since") if since is not None else None
        with _progress(quiet=as_json) as progress, _pool(_size_of(note), jobs) as spread:
            report = audit_export(
                read,
                key=_read_key(key, note),
                since=old,
                quorum=quorum,
                witnesses=[_read_key(text, note) for text in witness or []],
                accounting="every" if accounting == "every" else "last",
                map_bundles=spread,
                map_spends=_few_or(spread),
                progress=progress,
            )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_report(report)
    if not report.held:
        raise typer.Exit(1)
    if keep is not None:
        keep.write_bytes(note)
        if not as_json:
            typer.echo(f"Kept the checkpoint in {keep}: give it as --since the next time.")


@app.command()
def show(
    export: Export,
    start: Annotated[int, typer.Option(min=0, help="First entry.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many entries.")] = 20,
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind, such as receipt.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print entries as they stand. Nothing is verified: `verify` does that."""
    from privacy.checkpoint import parse_checkpoint
    from privacy.export import TILE_WIDTH, bundle_paths, unpack
    from privacy.merkle import LedgerVerificationError

    shown = 0
    with _reader(export) as read:
        try:
            note = read("checkpoint")
            if note is None:
                _stop(f"{export} has no file named checkpoint, so it is no ledger export")
            head = parse_checkpoint(note).checkpoint
            if not as_json:
                typer.echo(
                    f"{head.origin}, {head.size} entries, head sha256:{head.root.hex()} (not verified)"
                )
            for number, (path, _) in enumerate(bundle_paths(head.size)):
                if (number + 1) * TILE_WIDTH <= start:
                    continue
                data = read(path)
                if data is None:
                    _stop(f"{path} is missing")
                for offset, entry in enumerate(unpack(data)):
                    index = number * TILE_WIDTH + offset
                    if index < start or not _is_kind(entry, kind):
                        continue
                    typer.echo(_entry_line(index, entry, as_json=as_json))
                    shown += 1
                    if shown == count:
                        return
        except LedgerVerificationError as error:
            _stop(str(error))


@app.command()
def example(
    folder: Annotated[Path, typer.Argument(help="New folder to write into.")],
    sites: Annotated[int, typer.Option(min=1, max=100)] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=1000)] = 3,
) -> None:
    """Write an invented ledger to practise on, and print the command that verifies it."""
    from privacy.accounting import spend_of
    from privacy.export import write_export
    from privacy.ledger_example import ExampleLedger, ExampleScale

    if folder.exists():
        _stop(f"{folder} exists; give a new one")
    ledger = ExampleLedger(
        scale=ExampleScale(num_sites=sites, num_rounds=rounds),
        cost=lambda events, delta: spend_of(events, delta=delta).epsilon,
    )
    entries = list(ledger.write())
    for name, data in write_export(entries, ledger.note(), history=ledger.history):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    typer.echo(f"Wrote {len(entries)} invented entries. Verify them with:\n")
    typer.echo(f"  fedtwin audit verify {folder} --key '{ledger.key.public.text}'")


def _print_report(report: AuditReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(f"Ledger {report.origin}, {report.size} entries, head {report.root}", highlight=False)
    words = {True: Text("held ", "green"), False: Text("BROKE", "bold red"), None: Text("  -  ", "dim")}
    for check in report.checks:
        note = f" ({check.note})" if check.note else ""
        console.print(
            Text.assemble(words[check.held], "  ", check.title[0].upper() + check.title[1:], (note, "dim"))
        )
        for problem in check.problems:
            console.print(Text(f"         {problem}"), highlight=False)
        if check.num_problems > len(check.problems):
            console.print(f"         and {check.num_problems - len(check.problems)} more", highlight=False)
    if 0 < len(report.spends) <= 200:
        table = Table("site", "study", "epsilon claimed", "budget", title="Spent so far")
        for spend in report.spends:
            budget = "unknown" if spend.budget is None else f"{spend.budget:g}"
            table.add_row(spend.site, spend.study_digest[:19], f"{spend.epsilon:.6f}", budget)
        console.print(table)
    broken = sum(check.held is False for check in report.checks)
    if broken:
        console.print(
            f"{broken} of {len(report.checks)} checks broke: do not trust this ledger until it is explained."
        )
    else:
        console.print("Everything that could be checked held.")


@contextmanager
def _reader(export: Path) -> Iterator[ReadFile]:
    """A function from file name to bytes, over a folder or a zip."""
    if export.is_dir():
        root = export.resolve()

        def read_folder(name: str) -> bytes | None:
            path = root / name
            return path.read_bytes() if path.is_file() else None

        yield read_folder
    elif zipfile.is_zipfile(export):
        with zipfile.ZipFile(export) as archive:
            names = set(archive.namelist())
            yield lambda name: archive.read(name) if name in names else None
    else:
        _stop(f"{export} is neither a folder nor a zip")


def _read_key(key: str, note: bytes) -> VerifyKey:
    from privacy.checkpoint import parse_checkpoint
    from privacy.merkle import LedgerVerificationError
    from privacy.signing import SignatureError, VerifyKey

    text = key
    if Path(key).is_file():
        text = _read_file(Path(key), "--key").decode("utf-8", "replace")
    try:
        if "BEGIN" in text:
            origin = parse_checkpoint(note).checkpoint.origin
            return VerifyKey.from_pem(text.encode(), name=origin)
        return VerifyKey.from_text(text)
    except (SignatureError, LedgerVerificationError) as error:
        _stop(f"--key: {error}")


def _read_file(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _stop(f"{option}: {error}")


def _size_of(note: bytes) -> int:
    from privacy.checkpoint import parse_checkpoint
    from privacy.merkle import LedgerVerificationError

    try:
        return parse_checkpoint(note).checkpoint.size
    except LedgerVerificationError:
        return 0


def _is_kind(entry: bytes, kind: str | None) -> bool:
    return kind is None or f'"kind":{json.dumps(kind)}'.encode() in entry


def _entry_line(index: int, data: bytes, *, as_json: bool) -> str:
    from privacy.canonical import CanonicalError, parse_canonical
    from privacy.envelope import envelope_parts
    from privacy.signing import SignatureError

    try:
        entry: Any = parse_canonical(data)
        envelope = entry["body"].get("envelope")
        if envelope is not None:
            entry["body"] = parse_canonical(envelope_parts(envelope, envelope["payloadType"])[1])
        if as_json:
            return json.dumps({"index": index, **entry}, ensure_ascii=False)
        return (
            f"{index}  {entry['logged_at']}  {entry['kind']}  {json.dumps(entry['body'], ensure_ascii=False)}"
        )
    except (CanonicalError, SignatureError, KeyError, TypeError, AttributeError) as error:
        return f"{index}  cannot be read: {error}"


@contextmanager
def _pool(size: int, jobs: int | None) -> Iterator[Any]:
    """`map`, or one over processes that keeps the order and never holds more than a few items."""
    jobs = (
        jobs or len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else jobs or os.cpu_count() or 1
    )
    if jobs == 1 or size < FEW_ENTRIES:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

        def spread(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
            waiting: deque[Any] = deque()
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > 4 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield spread
        except BrokenProcessPool:
            _stop(
                "a process that was checking entries was killed, by lack of memory perhaps; try again with --jobs 1"
            )


def _few_or(spread: Any) -> Any:
    """`map` for a few epsilons: each process would first spend seconds on loading the accountants."""

    def spends(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        listed = list(tasks)
        return iter(map(work, listed) if len(listed) < FEW_EPSILONS else spread(work, listed))

    return spends


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A progress bar on the terminal for whoever watches; nothing in a pipe or with --json."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show_progress(stage: Literal["entries", "epsilons"], done: int, total: int) -> None:
            if stage not in tasks:
                words = {"entries": "checking entries", "epsilons": "recomputing epsilons"}
                tasks[stage] = bars.add_task(words[stage], total=total)
            bars.update(tasks[stage], completed=done)

        yield show_progress


def _stop(message: str) -> NoReturn:
    typer.echo(f"fedtwin audit: {message}", err=True)
    raise typer.Exit(2)
