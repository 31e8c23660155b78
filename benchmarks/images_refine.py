"""Does a discriminator under DP-SGD improve pictures, at the same total epsilon as measuring alone? Not the product.

    python benchmarks/images_refine.py --data DIR --epsilon 10 1 --keep FOLDER
    python benchmarks/images_refine.py --data DIR --dataset mnist --epsilon 10 --rows "two looks" "two looks, opposed"

Sites measure once or twice with all of epsilon; or with a part of it, and train a discriminator with the rest
(`images_discriminator.py`), against which the generator goes on, held by what was measured. Every row has the same
epsilon, delta, patients and steps of the generator in all. Mechanisms, noise and accounting are the product's; there is
no ledger, and all sites are in this process. "Weighed" are pictures of the same generator, drawn again with weights
exp(D)^0.5 of the last discriminator.

With `--keep FOLDER` the figures of each run are kept as soon as they are there, and a later call takes them from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from images import MEASURES, draw, save_pictures
from images_data import ImageData, data_folder, load
from images_discriminator import (
    DiscriminatorPlan,
    FederatedDiscriminator,
    PictureDiscriminator,
    records_of,
    refined,
    weights_of,
)
from images_looks import Planned, Sites, measured, planned
from images_metrics import Classifier, downstream, fidelity, fractal_network, train_classifier
from rich.console import Console
from rich.table import Table
from tabular import write_json
from torch import Tensor

from models.image_targets import looks_from_arrays
from models.image_warm_start import LATER_RATE, POOL_ROWS, CodeBatches
from models.study_generator import StudyGenerator

REAL = "real data"
ROWS = {
    "one look": (1, False),
    "two looks": (2, False),
    "one look, opposed": (1, True),
    "two looks, opposed": (2, True),
}
PICTURES = 12_000
MOST_JUDGED = 4000
FIDELITY_DRAWS = 5  # of as many synthetic pictures as there are test pictures; the figures are their means
POWER = 0.5  # of the weights exp(D): a discriminator is too sure
NOT_IN_KEY = ("data", "epsilon", "rows", "runs", "keep", "json", "pictures")
Figures = dict[str, float]
Found = dict[str, list[Figures]]


def opposed_by_sites(
    row: Planned,
    sites: Sites,
    warm: StudyGenerator,
    anchor: Mapping[str, Tensor],
    options: argparse.Namespace,
) -> tuple[StudyGenerator, PictureDiscriminator]:
    """Go on from the warm start with what is left of epsilon."""
    study, (categories,) = row.study, warm_cardinalities(warm)
    multiplier = row.plan.refine_noise_multiplier
    assert study.image is not None
    assert warm.image is not None
    assert multiplier is not None
    source = torch.Generator().manual_seed(0)
    rows = warm.table.sample_codes(POOL_ROWS, generator=source)[:, list(study.image.columns_in(study.table))]
    codes = rows[:PICTURES]
    pictures = warm.image.sample(codes, seed=0)
    module = PictureDiscriminator(study.image, categories, pictures.float() / 255)
    module.pretrain(pictures, codes[:, 0])
    place = study.table.names.index(study.image.conditioned_on[0])
    patients = [
        records_of(module, table.images.float() / 255, table.codes[:, place].long())
        for table in sites.tables
        if table.images is not None
    ]
    plan = DiscriminatorPlan(
        steps=options.discriminator_steps,
        sample_rate=options.sample_rate,
        noise_multiplier=multiplier,
        # Of the data set's published size.
        batch_size=max(1, round(options.sample_rate * sum(map(len, patients)) / len(patients))),
    )
    looks = looks_from_arrays(anchor, study.table, study.image)
    settings = study.warm_start.image
    image = refined(
        warm.image,
        looks,
        CodeBatches(rows, looks, settings.batch_size),
        FederatedDiscriminator(module, patients, plan),
        settings.model_copy(
            update={
                "steps": options.steps // (study.measure.exchanges + 1),
                "learning_rate": settings.learning_rate * LATER_RATE,
            }
        ),
        strength=options.strength,
        source=source,
    )
    return StudyGenerator(study=study, table=warm.table, image=image), module


def warm_cardinalities(warm: StudyGenerator) -> tuple[int, ...]:
    """Categories of the column that the pictures depend on.

    Raises:
        SystemExit: there are several such columns.
    """
    assert warm.image is not None
    if len(warm.image.cardinalities) != 1:
        raise SystemExit("this benchmark needs a data set whose pictures depend on one column")
    return warm.image.cardinalities


def judge(images: Tensor, codes: Tensor, data: ImageData, network: Classifier, steps: int) -> Figures:
    """All figures: of a classifier trained on the pictures, and fidelity as the mean over several draws."""
    model = train_classifier(images, codes, data.levels(data.label), seed=0, steps=steps)
    found = downstream(model, data.test, data.codes(data.test_rows, data.label))
    real, synthetic = (network.outputs(part, features=True) for part in (data.test, images))
    draws = []
    for seed in range(FIDELITY_DRAWS):
        source = torch.Generator().manual_seed(seed)
        size = min(MOST_JUDGED, len(real), len(synthetic))
        picked = [part[torch.randperm(len(part), generator=source)[:size]] for part in (real, synthetic)]
        draws.append(fidelity(*picked))
    return found | {name: float(np.mean([one[name] for one in draws])) for name in draws[0]}


def one_row(
    title: str,
    epsilon: float,
    data: ImageData,
    sites: Sites,
    network: Classifier,
    options: argparse.Namespace,
) -> dict[str, Figures]:
    """Measure, fit and judge one row; where there is a discriminator, also what its weights give."""
    steps = options.classifier_steps
    if title == REAL:
        codes = data.codes(data.train_rows, data.label)
        return {title: judge(data.train, codes, data, network, steps) | {"seconds": 0.0}}
    started = time.perf_counter()
    looks, against = ROWS[title]
    row = planned(data, looks, against, epsilon, options)
    generator, anchor = measured(row.study, sites)
    module = None
    if against:
        generator, module = opposed_by_sites(row, sites, generator, anchor, options)
    spent = {"seconds": time.perf_counter() - started, "epsilon": row.plan.spend.epsilon}
    images, rows = draw(generator, PICTURES, seed=0)
    codes = data.codes(rows, data.label)
    if options.pictures:
        save_pictures(images, rows, data, options.pictures, _stem(title, epsilon, options))
    found = {title: judge(images, codes, data, network, steps) | spent}
    if module is not None:
        weights = weights_of(module, images, codes, power=POWER)
        again = weights.multinomial(len(images), replacement=True, generator=torch.Generator().manual_seed(0))
        found[f"{title}, weighed"] = judge(images[again], codes[again], data, network, steps) | spent
    return found


def _stem(title: str, epsilon: float, options: argparse.Namespace) -> str:
    return f"{options.dataset}-{epsilon:g}-{title.replace(', ', '-').replace(' ', '-')}"


def kept(
    options: argparse.Namespace, stem: str, run: int, make: Callable[[], dict[str, Figures]]
) -> dict[str, Figures]:
    """The figures of a run from `--keep`, or made and kept there; other settings are other runs."""
    if options.keep is None:
        return make()
    options.keep.mkdir(parents=True, exist_ok=True)
    key = {name: str(value) for name, value in sorted(vars(options).items()) if name not in NOT_IN_KEY}
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    file = options.keep / f"{stem}-{digest}-{run}.json"
    if not file.exists():
        file.write_text(json.dumps(make(), indent=1) + "\n")
    found: dict[str, Figures] = json.loads(file.read_text())
    return found


def run(options: argparse.Namespace, data: ImageData, console: Console) -> Found:
    """All rows of all epsilons, so often; tells of each as it is there."""
    network = functools.cache(lambda: fractal_network(data.image.channels, data.image.size))
    sites, found = Sites(data, options.sites), Found()
    # What needs no noise is the same for every epsilon and in every run.
    wanted = [(REAL, 0.0, 0)] if REAL in options.rows else []
    wanted += [
        (title, epsilon, number)
        for epsilon in options.epsilon
        for title in options.rows
        for number in range(options.runs)
        if title != REAL
    ]
    for title, epsilon, number in wanted:

        def make(title: str = title, epsilon: float = epsilon) -> dict[str, Figures]:
            return one_row(title, epsilon, data, sites, network(), options)

        for name, figures in kept(options, _stem(title, epsilon, options), number, make).items():
            full = name if title == REAL else f"epsilon {epsilon:g}, {name}"
            found.setdefault(full, []).append(figures)
        console.print(f"epsilon {epsilon:g}, {title}, run {number + 1}: done", style="dim")
    return found


def show(found: Mapping[str, Sequence[Figures]], options: argparse.Namespace, console: Console) -> None:
    """The table: means over runs, and their spread where there are several."""
    table = Table(
        title=f"{options.dataset}: {options.sites} sites, {options.steps} steps, {options.runs} runs"
    )
    table.add_column("")
    names = [*MEASURES, "seconds"]
    names = [name for name in names if all(name in one for one, *_ in found.values())]
    for name in names:
        table.add_column(name, justify="right")
    for title, runs in found.items():
        table.add_row(title, *(_cell(name, [one[name] for one in runs]) for name in names))
    console.print(table)


def _cell(name: str, values: Sequence[float]) -> str:
    digits = {"seconds": 0, "frechet": 1}.get(name, 3)
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets; FEDTWIN_DATA if left out")
    parser.add_argument("--dataset", choices=["pneumoniamnist", "mnist"], default="pneumoniamnist")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[10.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rows", nargs="+", choices=[REAL, *ROWS], default=[REAL, *ROWS])
    parser.add_argument("--runs", type=int, default=1, help="of each row, with other noise")
    parser.add_argument("--steps", type=int, default=900, help="of the generator, all fits of a row together")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of epsilon that measures, beside a discriminator"
    )
    parser.add_argument("--discriminator-steps", type=int, default=500, help="of DP-SGD at each site")
    parser.add_argument("--sample-rate", type=float, default=0.05, help="of a patient in one of these")
    parser.add_argument("--strength", type=float, default=0.5, help="of its gradient beside the moments'")
    parser.add_argument("--classifier-steps", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, help="folder for sample sheets")
    parser.add_argument("--keep", type=Path, help="folder for the figures of each run, to go on from")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="of the study"
    )
    return parser.parse_args(words)


def main() -> None:
    """Run, print."""
    options = read_arguments()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    found = run(options, load(options.dataset, data_folder(options.data)), console)
    show(found, options, console)
    if options.json:
        write_json(found, options)


if __name__ == "__main__":
    main()
