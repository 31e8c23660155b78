"""What synthetic pictures are worth: sites that each add their own noise, a classifier trained on the synthetic only.

    python benchmarks/images.py --data DIR --dataset mnist --epsilon 1 --sites 4
    python benchmarks/images.py --data DIR --dataset mnist --profile

Trains through the product's own code (`federation.train_with_pictures`): each site reads its pictures from files of its
own, and its guard debits before any noise is drawn. The synthetic patients are drawn as a researcher gets them, rows
with pictures. The classifier's recipe is the same for real and synthetic pictures and for every data set; the test
pictures are looked at once, at the end. How well pictures follow their rows is what classifiers trained on real
pictures read out of the synthetic ones.

Published figures (accuracy on MNIST's test images at epsilon 1 and 10, a trusted centre, no public data):
DPImageBench, Gong and others, CCS 2025; and for epsilon 10 alone Bie, Kamath, Zhang, Private GANs, Revisited, 2023.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from federation import train_with_pictures
from images_data import NAMES, ImageData, data_folder, load
from images_metrics import (
    CLASSIFIER_STEPS,
    Classifier,
    accuracy,
    downstream,
    fidelity,
    fractal_network,
    nearest,
    save_sheet,
    train_classifier,
)
from images_profile import profile, show_profile
from tabular import write_json

from models.sampling import sample_cohort
from models.study import Study
from models.study_generator import StudyGenerator
from models.weights import encode_arrays

PUBLISHED = {
    "mnist": {
        "DP-GAN": ("92.4", "92.7"),
        "GS-WGAN": ("72.4", "75.3"),
        "DP-MERF": ("80.3", "81.3"),
        "DP-Kernel": ("94.0", "93.6"),
        "DPDM": ("89.2", "97.7"),
        "DP-FETA": ("95.6", "98.1"),
        "Bie, Kamath, Zhang": ("", "94.4"),
    }
}
MEASURES = ("accuracy", "auc", "precision", "recall", "density", "coverage", "frechet")
MAX_SYNTHETIC = 60_000
FIDELITY_SAMPLE = 4_000
SHEET_ROWS, SHEET_COLUMNS = 10, 10
SLOW_SITE_SECONDS = 3600.0
Found = dict[str, list[dict[str, float]]]


def make_study(
    data: ImageData, *, epsilon: float, delta: float, steps: int, changes: Sequence[str] = ()
) -> Study:
    """The study; `changes` are settings such as `measure.table_share=0.2` or `warm_start.image.width=48`."""
    definition: dict[str, dict[str, object]] = {
        "measure": {},
        "warm_start": {"image": {"steps": steps}},
        "refine": {},
    }
    for change in changes:
        name, _, value = change.partition("=")
        section: dict[str, object] = {**definition}
        *path, field = name.split(".")
        for part in path:
            section = section[part]  # type: ignore[assignment]
        section[field] = json.loads(value)
    return Study.from_dict(
        {
            "name": f"benchmark-{data.name.replace('_', '-')}",
            "privacy": {"epsilon": epsilon, "delta": delta},
            "table": data.table.model_dump(mode="json"),
            "image": data.image.model_dump(mode="json"),
            "federation": {"round_deadline_seconds": SLOW_SITE_SECONDS},
            **definition,
        }
    )


def train(study: Study, data: ImageData, num_sites: int) -> StudyGenerator:
    """Lay out the sites' files, and train over them."""
    with tempfile.TemporaryDirectory() as folder:
        return train_with_pictures(study, data.place(num_sites, Path(folder)))


def draw(generator: StudyGenerator, count: int, *, seed: int) -> tuple[Tensor, pd.DataFrame]:
    """Synthetic patients as a researcher gets them: pictures uint8 (N, C, H, W), and their rows."""
    pictures, rows = [], []
    for chunk, frame in enumerate(sample_cohort(generator.table, generator.study.table, count, seed=seed)):
        for part, images in generator.with_pictures(frame, seed=seed, chunk=chunk):
            assert images is not None
            pictures.append(images)
            rows.append(part)
    return torch.from_numpy(np.concatenate(pictures)), pd.concat(rows, ignore_index=True)


def judge(
    model: Classifier, images: Tensor, data: ImageData, network: Classifier, *, seed: int
) -> dict[str, float]:
    """All figures of training pictures and of the classifier that was trained on them, on the real test pictures."""
    figures = downstream(model, data.test, data.codes(data.test_rows, data.label))
    source = torch.Generator().manual_seed(seed)
    size = min(FIDELITY_SAMPLE, len(data.test), len(images))
    real, picked = (part[torch.randperm(len(part), generator=source)[:size]] for part in (data.test, images))
    return figures | fidelity(network.outputs(real, features=True), network.outputs(picked, features=True))


def save_pictures(images: Tensor, rows: pd.DataFrame, data: ImageData, folder: Path, stem: str) -> None:
    """A sheet of synthetic pictures, a label per column, and one with the nearest training picture below each."""
    folder.mkdir(parents=True, exist_ok=True)
    codes, levels = data.codes(rows, data.label), data.levels(data.label)
    columns = max(1, SHEET_COLUMNS // levels) * levels
    sheet = torch.zeros(SHEET_ROWS, columns, *data.image.shape, dtype=torch.uint8)
    for column in range(columns):
        turn, level = column // levels, column % levels
        own = images[codes == level][turn * SHEET_ROWS : (turn + 1) * SHEET_ROWS]
        sheet[: len(own), column] = own
    save_sheet(sheet.flatten(0, 1), folder / f"{stem}.png", columns=columns)
    shown = sheet[:2]
    pairs = torch.stack([shown, nearest(data.train, shown.flatten(0, 1)).view_as(shown)], 1)
    save_sheet(pairs.flatten(0, 2), folder / f"{stem}-nearest.png", columns=columns)


class Telling(logging.Handler):
    """Shows what the round loop says, beside the time."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self._bar, self._task = bar, bar.add_task("starts", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._bar.update(self._task, description=record.getMessage().partition(": ")[2][:90])


def run(arguments: argparse.Namespace, data: ImageData, console: Console) -> Found:
    """Train and judge; figures by row, one entry per seed."""
    steps = CLASSIFIER_STEPS // (10 if arguments.quick else 1)
    network, found = (
        fractal_network(data.image.channels, data.image.size),
        dict[str, list[dict[str, float]]](),
    )
    readers: dict[str, Classifier] = {}
    if not arguments.no_real:
        for name in data.image.conditioned_on:
            codes = data.codes(data.train_rows, name)
            readers[name] = train_classifier(data.train, codes, data.levels(name), seed=0, steps=steps)
        follows = follow(readers, data.test, data.test_rows, data)
        found["real data"] = [judge(readers[data.label], data.train, data, network, seed=0) | follows]
    num_sites = arguments.sites or data.sites
    study = make_study(
        data,
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        steps=60 if arguments.quick else arguments.steps,
        changes=arguments.set,
    )
    title = f"epsilon {arguments.epsilon:g}, {num_sites} sites"
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        rounds = logging.getLogger("fedtwin.rounds")
        telling = Telling(bar)
        rounds.addHandler(telling)
        rounds.setLevel(logging.INFO)
        rounds.propagate = False
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            generator = train(study, data, num_sites)
            seconds = {"seconds": time.perf_counter() - started}
            started = time.perf_counter()
            images, rows = draw(generator, MAX_SYNTHETIC // (10 if arguments.quick else 1), seed=seed)
            seconds["draw_seconds"] = time.perf_counter() - started
            codes = data.codes(rows, data.label)
            model = train_classifier(images, codes, data.levels(data.label), seed=seed, steps=steps)
            figures = judge(model, images, data, network, seed=seed) | follow(readers, images, rows, data)
            found.setdefault(title, []).append(figures | seconds)
        rounds.removeHandler(telling)
    if arguments.save:
        arguments.save.write_bytes(encode_arrays(generator.to_arrays()))
    if arguments.pictures:
        stem = f"{data.name}-epsilon-{arguments.epsilon:g}"
        save_pictures(images, rows, data, arguments.pictures, stem)
    return found


def follow(
    readers: Mapping[str, Classifier], images: Tensor, rows: pd.DataFrame, data: ImageData
) -> dict[str, float]:
    """For each column that pictures depend on: how often a classifier of real pictures reads the row's value."""
    return {
        f"follows {name}": accuracy(reader, images, data.codes(rows, name))
        for name, reader in readers.items()
    }


def show(found: Found, arguments: argparse.Namespace, console: Console) -> None:
    """Tables: ours, how pictures follow their rows, the published."""
    rows = {title: {name: [one[name] for one in runs] for name in runs[0]} for title, runs in found.items()}
    table = Table(
        title=f"{arguments.dataset}: delta {arguments.delta:g}, distances in features of a fractal classifier"
    )
    table.add_column("trained on")
    kept = [name for name in MEASURES if any(name in row for row in rows.values())]
    for name in kept:
        table.add_column(name, justify="right")
    for title, row in rows.items():
        table.add_row(title, *(_cell(row.get(name, [])) for name in kept))
    console.print(table)
    for title, row in rows.items():
        told = {name: values for name, values in row.items() if name not in MEASURES}
        if told:
            console.print(
                f"{title}: " + ", ".join(f"{name} {_cell(values)}" for name, values in told.items())
            )
    if arguments.dataset in PUBLISHED:
        table = Table(title="published, accuracy in % (a trusted centre, no public data)")
        for name in ("method", "epsilon 1", "epsilon 10"):
            table.add_column(name)
        for method, (low, high) in PUBLISHED[arguments.dataset].items():
            table.add_row(method, low, high)
        console.print(table)


def _cell(values: Sequence[float]) -> str:
    """Mean, and spread over runs where there are several."""
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets; FEDTWIN_DATA if left out")
    parser.add_argument("--dataset", choices=NAMES, default="mnist")
    parser.add_argument("--folder", type=Path, help="of --dataset dicom; see benchmarks/images_dicom.py")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--sites", type=int, default=0, help="0 takes the data set's own number, mostly 4")
    parser.add_argument("--patients", type=int, default=0, help="the first so many to train on; 0 takes all")
    parser.add_argument("--seeds", type=int, default=1, help="runs with other noise and samples")
    parser.add_argument("--steps", type=int, default=6000, help="of the generator's fit")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it alone")
    parser.add_argument(
        "--no-real", action="store_true", help="leave out the row of real data, and who follows"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument(
        "--profile", action="store_true", help="time the feature pass and the fit, train nothing"
    )
    parser.add_argument("--pictures", type=Path, help="folder for sample sheets and nearest training images")
    parser.add_argument("--save", type=Path, help="write the last generator's arrays to this file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="e.g. measure.table_share=0.2",
    )
    arguments = parser.parse_args(words)
    if (arguments.dataset == "dicom") != (arguments.folder is not None):
        parser.error("--folder FOLDER and --dataset dicom go together")
    return arguments


def main() -> None:
    """Run, print."""
    arguments = read_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 120)
    data = load(arguments.dataset, arguments.folder or data_folder(arguments.data))
    if arguments.patients:
        data = data.first(arguments.patients)
    if arguments.profile:
        study = make_study(data, epsilon=1.0, delta=1e-5, steps=arguments.steps, changes=arguments.set)
        timed = profile(
            data, study.warm_start.image, most_images=1_000 if arguments.quick else len(data.train)
        )
        show_profile(timed, f"{data.name}, {torch.get_num_threads()} threads", console)
        found = {name: [row] for name, row in timed.items()}
    else:
        found = run(arguments, data, console)
        show(found, arguments, console)
    if arguments.json:
        write_json(found, arguments)


if __name__ == "__main__":
    main()
