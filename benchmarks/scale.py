"""What size costs: sampling to Parquet, summing moments and fitting, with the memory each step peaked at.

python benchmarks/scale.py --patients 1000000 --columns 50 100 200
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from models.generator import MixtureGenerator
from models.moments import MomentLayout
from models.sampling import sample_cohort
from models.schema import StudySchema
from models.site_fit import site_moments
from models.study import Study
from models.table import EncodedTable
from models.warm_start import warm_start


def wide_schema(num_columns: int) -> StudySchema:
    """Columns of 2 to 24 levels in turn, and a label of two."""
    columns: list[dict[str, object]] = [{"kind": "boolean", "name": "label"}]
    for number in range(num_columns - 1):
        levels = (2, 4, 8, 16, 24)[number % 5]
        columns.append(
            {
                "kind": "integer",
                "name": f"c{number}",
                "minimum": 0,
                "maximum": 10 * levels - 1,
                "bins": levels,
            }
        )
    return StudySchema.model_validate_json(json.dumps({"columns": columns, "label": "label"}))


def some_generator(schema: StudySchema, components: int = 300) -> MixtureGenerator:
    """A generator with strong dependencies."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(components, sum(schema.cardinalities), generator=source)
    return MixtureGenerator(logits, torch.zeros(components), schema.cardinalities)


def sample_to_parquet(num_columns: int, num_patients: int) -> None:
    """Draw a cohort chunk by chunk into one file."""
    schema = wide_schema(num_columns)
    with tempfile.TemporaryDirectory() as folder:
        writer = None
        for frame in sample_cohort(some_generator(schema), schema, num_patients, seed=0):
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or pq.ParquetWriter(Path(folder) / "cohort.parquet", table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def sum_moments(num_columns: int, num_patients: int) -> None:
    """The measure phase's exact sum, chunk by chunk of 100,000 patients."""
    schema = wide_schema(num_columns)
    layout, generator = MomentLayout.of(schema), some_generator(schema, 20)
    chunk = min(num_patients, 100_000)
    codes = generator.sample_codes(chunk, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(layout.size, dtype=torch.float64)
    for _ in range(num_patients // chunk):
        total += layout.sum(EncodedTable(codes, torch.arange(chunk + 1)))


def fit(num_columns: int, num_patients: int) -> None:
    """The whole warm start from what four sites of 25,000 patients release at epsilon 1.

    The choice of the penalty, whether by site, and the fit: what the coordinator does after a measurement.
    """
    schema = wide_schema(num_columns)
    layout = MomentLayout.of(schema)
    codes = some_generator(schema, 20).sample_codes(100_000, generator=torch.Generator().manual_seed(0))
    std = 3.77 * layout.sensitivity
    released = {
        f"site {number}": layout.sum(EncodedTable(part, torch.arange(len(part) + 1)))
        + std * torch.randn(layout.size, dtype=torch.float64)
        for number, part in enumerate(codes.split(25_000))
    }
    study = Study.from_dict(
        {"name": "scale", "privacy": {"epsilon": 1.0, "delta": 1e-5}, "table": schema.model_dump(mode="json")}
    )
    started = time.perf_counter()
    sites = site_moments(layout, released, [0.25] * 4, noise_std=std)
    warm_start(study, torch.stack(list(released.values())).sum(0), noise_std=2 * std, sites=sites)
    fit.seconds = time.perf_counter() - started  # type: ignore[attr-defined]


STEPS: dict[str, Callable[[int, int], None]] = {
    "sample to Parquet": sample_to_parquet,
    "sum moments": sum_moments,
    "fit": fit,
}


def _measure(name: str, columns: int, patients: int, threads: int, answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(threads)
    before, step = time.perf_counter(), STEPS[name]
    step(columns, patients)
    seconds = getattr(step, "seconds", time.perf_counter() - before)
    answers.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Read the command line, run each step in a process of its own, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patients", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, nargs="+", default=[13, 50, 100])
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    table = Table(title=f"{arguments.patients:,} patients, {arguments.threads} threads")
    for name in ("step", "columns", "one-hot width", "seconds", "peak memory, MB"):
        table.add_column(name, justify="right")
    found = []
    for name in arguments.steps:
        for columns in arguments.columns:
            answers = context.Queue()
            process = context.Process(
                target=_measure, args=(name, columns, arguments.patients, arguments.threads, answers)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} with {columns} columns ended with status {process.exitcode}")
            seconds, memory = answers.get()
            width = sum(wide_schema(columns).cardinalities)
            found.append(
                {"step": name, "columns": columns, "width": width, "seconds": seconds, "megabytes": memory}
            )
            table.add_row(name, str(columns), str(width), f"{seconds:.1f}", f"{memory:.0f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    if arguments.json:
        settings = {"patients": arguments.patients, "threads": arguments.threads}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
