"""What synthetic images are worth: four sites, noise added at each, a classifier trained on the synthetic only.

    python benchmarks/images.py --data DIR --dataset mnist --epsilon 1 --sites 4

Every site sums its patients' bounded features and adds its own noise with the product's mechanism; the sum is
fitted by the product's warm start. One image is one patient. The classifier's recipe is the same for real and
synthetic images and for every data set; the test images are looked at once, at the end.

Published figures (accuracy on MNIST's test images at epsilon 1 and 10, a trusted centre, no public data):
DPImageBench, Gong and others, CCS 2025; and for epsilon 10 alone Bie, Kamath, Zhang, Private GANs, Revisited, 2023.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from images_data import NAMES, ImageData, data_folder, load
from images_metrics import (
    CLASSIFIER_STEPS,
    Classifier,
    downstream,
    fidelity,
    fractal_network,
    nearest,
    save_sheet,
    train_classifier,
)

from models.image_generator import ImageGenerator
from models.measurement import Measurement
from models.study import Study
from models.study_generator import fit_study
from models.table import EncodedTable
from privacy.budget import PrivacyBudget
from privacy.calibration import calibrate_phases
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum
from privacy.noise import SystemNoise

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
SYNTHETIC_PER_RUN = 60_000
FIDELITY_SAMPLE = 4_000
SHEET_ROWS = 10


def make_study(data: ImageData, *, epsilon: float, delta: float, steps: int) -> Study:
    """The study, with the noise that keeps it within the budget."""
    study = Study.from_dict(
        {
            "name": f"benchmark-{data.name}",
            "privacy": {"epsilon": epsilon, "delta": delta},
            "table": {**data.table.model_dump(mode="json"), "patient_id": "patient"},
            "image": data.image.model_dump(mode="json"),
            "warm_start": {"image": {"steps": steps}},
        }
    )
    plan = calibrate_phases(
        budget=PrivacyBudget(epsilon=epsilon, delta=delta),
        measure=[MechanismEvent.from_dict(study.mechanism("measure"))],
        refine=[],
        measure_share=1.0,
    )
    assert plan.measure_noise_multiplier is not None
    return study.calibrated(measure=plan.measure_noise_multiplier, refine=None)


def train(study: Study, data: ImageData, sites: int, tell: Any) -> tuple[ImageGenerator, dict[str, float]]:
    """Measure at each site with its own noise, and fit the sum; the generator and how long each took."""
    assert study.measure.noise_multiplier is not None
    measurement, noise = Measurement.of(study), SystemNoise()
    started, total = time.perf_counter(), torch.zeros(measurement.size, dtype=torch.float64)
    for images, labels in data.split(sites):
        patients = EncodedTable(
            codes=labels[:, None], patient_offsets=torch.arange(len(images) + 1), images=images
        )
        total += release_sum(
            measurement.sum(patients),
            max_norm=measurement.sensitivity,
            noise_multiplier=study.measure.noise_multiplier,
            noise=noise,
        )
    measured = time.perf_counter()
    noise_std = study.measure.noise_multiplier * measurement.sensitivity * sites**0.5
    fitted = fit_study(study, total, noise_std=noise_std, progress=tell)
    done = time.perf_counter()
    assert fitted.generator.image is not None
    return fitted.generator.image, {"measure_s": measured - started, "fit_s": done - measured}


def drawn(generator: ImageGenerator, num_classes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Synthetic images with labels, classes in equal numbers."""
    labels = torch.arange(count) % num_classes
    return generator.sample(labels[:, None], seed=seed), labels


def plain_step_seconds(generator: ImageGenerator, batch: int = 300, repeats: int = 5) -> float:
    """A step of the same generator on a plain loss in pixels, without privacy or features: the yardstick."""
    model = ImageGenerator.from_arrays(
        generator.to_arrays(), generator.schema, generator.cardinalities
    ).train()
    codes = torch.arange(batch)[:, None] % generator.cardinalities[0]
    target = torch.rand(batch, *generator.schema.shape)
    optimizer, started = torch.optim.Adam(model.parameters(), 1e-5), 0.0
    for k in range(repeats + 1):
        if k == 1:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.mse_loss(model.images(codes).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / repeats


def judge(
    images: Tensor, labels: Tensor, data: ImageData, network: Classifier, steps: int
) -> dict[str, float]:
    """All figures of one set of training images against the real test images."""
    model = train_classifier(images, labels, data.num_classes, seed=0, steps=steps)
    figures = downstream(model, data.test, data.test_labels)
    # In the classes' real proportions, so that coverage and distance compare like with like.
    shares = data.train_labels.bincount(minlength=data.num_classes) / len(data.train_labels)
    size = min(FIDELITY_SAMPLE, len(data.test))
    picked = torch.cat(
        [(labels == c).nonzero().squeeze(1)[: int(size * share)] for c, share in enumerate(shares.tolist())]
    )
    real = data.test[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:size]]
    seen = network.outputs(real, features=True), network.outputs(images[picked], features=True)
    return figures | fidelity(*seen)


def save_pictures(generator: ImageGenerator, data: ImageData, folder: Path, stem: str) -> None:
    """A sheet of synthetic images, one class per column, and one of each with its nearest training image."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = max(data.num_classes, 10)
    images, _ = drawn(generator, data.num_classes, columns * SHEET_ROWS, seed=1)
    save_sheet(images, folder / f"{stem}.png", columns=columns)
    pairs = torch.stack([images[: 2 * columns], nearest(data.train, images[: 2 * columns])], 1)
    rows = pairs.view(2, columns, 2, *images.shape[1:]).transpose(1, 2).reshape(-1, *images.shape[1:])
    save_sheet(rows, folder / f"{stem}-nearest.png", columns=columns)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, dict[str, float]]:
    """Train and judge; figures by row."""
    data = load(arguments.dataset, data_folder(arguments.data))
    steps = CLASSIFIER_STEPS // (10 if arguments.quick else 1)
    network, found = fractal_network(data.image.channels, data.image.size), {}
    if not arguments.no_real:
        found["real data"] = judge(data.train, data.train_labels, data, network, steps)
    study = make_study(
        data,
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        steps=60 if arguments.quick else arguments.steps,
    )
    bar = Progress(*Progress.get_default_columns(), SpinnerColumn(), TimeElapsedColumn(), console=console)
    with bar:
        task = bar.add_task("fit", total=1.0)
        generator, seconds = train(
            study,
            data,
            arguments.sites,
            lambda what, done: bar.update(task, description=what, completed=done),
        )
    if arguments.save:
        from models.weights import encode_arrays

        arguments.save.write_bytes(encode_arrays(generator.to_arrays()))
    started = time.perf_counter()
    images, labels = drawn(
        generator, data.num_classes, SYNTHETIC_PER_RUN // (10 if arguments.quick else 1), 0
    )
    seconds["draw_s"] = time.perf_counter() - started
    figures = judge(images, labels, data, network, steps)
    fit_step = seconds["fit_s"] / study.warm_start.image.steps
    seconds |= {"fit_step_ms": 1e3 * fit_step, "step_over_plain": fit_step / plain_step_seconds(generator)}
    found[f"epsilon {arguments.epsilon:g}, {arguments.sites} sites"] = figures | seconds
    if arguments.pictures:
        save_pictures(generator, data, arguments.pictures, f"{data.name}-epsilon-{arguments.epsilon:g}")
    return found


def show(found: dict[str, dict[str, float]], arguments: argparse.Namespace, console: Console) -> None:
    """Tables: ours, then the published."""
    names = ["accuracy", "auc", "precision", "recall", "density", "coverage", "frechet"]
    table = Table(
        title=f"{arguments.dataset}: delta {arguments.delta:g}, distances in features of a fractal classifier"
    )
    table.add_column("trained on")
    kept = [name for name in names if any(name in row for row in found.values())]
    for name in kept:
        table.add_column(name, justify="right")
    for title, row in found.items():
        table.add_row(title, *(f"{row[name]:.4f}" if name in row else "" for name in kept))
    console.print(table)
    for title, row in found.items():
        told = {name: value for name, value in row.items() if name not in names}
        if told:
            console.print(title, ", ".join(f"{name} {value:.1f}" for name, value in told.items()))
    if arguments.dataset in PUBLISHED:
        table = Table(title="published, accuracy in % (a trusted centre, no public data)")
        for name in ("method", "epsilon 1", "epsilon 10"):
            table.add_column(name)
        for method, (low, high) in PUBLISHED[arguments.dataset].items():
            table.add_row(method, low, high)
        console.print(table)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets; FEDTWIN_DATA if left out")
    parser.add_argument("--dataset", choices=NAMES, default="mnist")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6000, help="of the generator's fit")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it alone")
    parser.add_argument("--no-real", action="store_true", help="leave out the row of real data")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--pictures", type=Path, help="folder for sample sheets and nearest training images")
    parser.add_argument("--save", type=Path, help="write the generator's arrays to this file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    found = run(arguments, console)
    show(found, arguments, console)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("json", "data")}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
