"""How fast is a long ledger verified? Writes one, then verifies it with all cores, beside a bare reader.

    python benchmarks/ledger.py [--entries 1000000] [--jobs 2] [--json FILE]

The mix is that of a federation of eight sites whose studies run 30 rounds, each release then serving cohorts:
about 60 % receipts, 30 % cohorts. The baseline reads the same files in the same processes and does what any
verifier must: `json.loads` and one SHA-256 per entry, no signature, no rule.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path: find the rooms beside this folder

from privacy.accounting import spend_of
from privacy.cli.audit import _few_or, _pool
from privacy.export import bundle_paths, unpack, write_export
from privacy.ledger_example import ExampleLedger, ExampleScale
from privacy.verification import audit_export

ROUNDS, SITES, COHORTS = 30, 8, 120


def write_ledger(folder: Path, entries: int, settings: int) -> tuple[str, int]:
    """Write an export of about that many entries; (key text, exact number)."""
    per_study = 1 + ROUNDS * (SITES + 1) + 1 + COHORTS
    studies = max(1, round((entries - 2 * SITES) / per_study))
    scale = ExampleScale(
        num_sites=SITES,
        num_studies=studies,
        num_rounds=ROUNDS,
        num_cohorts=COHORTS,
        num_settings=settings,
        cosigned_every=ROUNDS,
    )
    ledger = ExampleLedger(scale=scale, cost=lambda events, delta: spend_of(events, delta=delta).epsilon)
    spool = folder / "spool"
    total = studies * per_study + 2 * SITES
    with spool.open("wb") as file:
        for data in track(ledger.write(), "writing a ledger", total=total, console=Console(stderr=True)):
            file.write(len(data).to_bytes(4, "big") + data)
    for name, data in write_export(_spooled(spool), ledger.note(), history=ledger.history):
        path = folder / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    spool.unlink()
    return ledger.key.public.text, total


def _spooled(spool: Path) -> Iterator[bytes]:
    with spool.open("rb") as file:
        while head := file.read(4):
            yield file.read(int.from_bytes(head, "big"))


def bare_bundle(data: bytes) -> int:
    """The baseline's work on one bundle."""
    entries = unpack(data)
    for entry in entries:
        json.loads(entry)
        hashlib.sha256(entry).digest()
    return len(entries)


class PeakMemory(threading.Thread):
    """Largest resident memory of this process and its children together, in MiB, looked at twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self.done.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total / 2**20)


def cpu_seconds() -> float:
    """Processor time of this process and its ended children."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def measure(folder: Path, key_text: str, total: int, jobs: int, accounting: str) -> dict[str, float]:
    from privacy.signing import VerifyKey

    def read(name: str) -> bytes | None:
        path = folder / "export" / name
        return path.read_bytes() if path.is_file() else None

    started, cpu = time.perf_counter(), cpu_seconds()
    with _pool(total, jobs) as spread:
        files = (read(path) or b"" for path, _ in bundle_paths(total))
        assert sum(spread(bare_bundle, files)) == total
    baseline, baseline_cpu = time.perf_counter() - started, cpu_seconds() - cpu
    stages: dict[str, float] = {}
    memory = PeakMemory()
    memory.start()
    started, cpu = time.perf_counter(), cpu_seconds()
    with _pool(total, jobs) as spread:
        report = audit_export(
            read,
            key=VerifyKey.from_text(key_text),
            map_bundles=spread,
            map_spends=_few_or(spread),
            accounting="last" if accounting == "last" else "every",
            progress=lambda stage, done, of: stages.__setitem__(stage, time.perf_counter()),
        )
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    memory.done.set()
    report.raise_for_problems()
    return {
        "entries": total,
        "receipts": report.counts["receipt"],
        "compositions": report.num_compositions,
        "jobs": jobs,
        "baseline_seconds": baseline,
        "baseline_cpu_seconds": baseline_cpu,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "seconds_entries": stages["entries"] - started,
        "seconds_epsilons": seconds - (stages["entries"] - started),
        "ratio": seconds / baseline,
        "cpu_ratio": cpu / baseline_cpu,
        "peak_mib": memory.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--settings", type=int, default=2, help="different study settings in the ledger")
    parser.add_argument("--accounting", choices=("every", "last"), default="every")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="keep the export here and reuse it the next time")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fedtwin-ledger-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        kept = folder / "key.json"
        if not kept.exists():
            kept.write_text(json.dumps(write_ledger(folder, arguments.entries, arguments.settings)))
        key_text, total = json.loads(kept.read_text())
        figures = measure(folder, key_text, total, arguments.jobs, arguments.accounting)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    table = Table(
        "",
        "seconds",
        "processor seconds",
        "entries/s",
        title=f"{total:,} entries, {arguments.jobs} processes",
    )
    table.add_row(
        "json.loads + SHA-256",
        f"{figures['baseline_seconds']:.1f}",
        f"{figures['baseline_cpu_seconds']:.1f}",
        f"{total / figures['baseline_seconds']:,.0f}",
    )
    table.add_row(
        "audit verify",
        f"{figures['seconds']:.1f}",
        f"{figures['cpu_seconds']:.1f}",
        f"{total / figures['seconds']:,.0f}",
    )
    table.add_row("  entries, tree, signatures", f"{figures['seconds_entries']:.1f}", "", "")
    table.add_row(f"  {figures['compositions']} epsilons", f"{figures['seconds_epsilons']:.1f}", "", "")
    table.add_row("ratio", f"{figures['ratio']:.1f}", f"{figures['cpu_ratio']:.1f}", "")
    Console().print(table)
    Console().print(
        f"{figures['receipts']:,} receipts; peak memory of all processes {figures['peak_mib']:,.0f} MiB",
        highlight=False,
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
