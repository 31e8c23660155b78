"""What pictures cost: the feature pass of a site, and a step of the coordinator's fit beside a plain one.

The plain step is of the same generator, batch and optimiser with a loss in pixels: no features, no privacy. The two are
timed in turn, so that whatever else the machine does slows both. Called by `images.py --profile`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from images_data import ImageData
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from models.image_features import fastest_device
from models.image_generator import ImageGenerator
from models.image_moments import ImageMomentLayout
from models.image_schema import ImageFitSettings
from models.image_targets import ImageTargets
from models.image_warm_start import CodeBatches, MomentFit

FEATURE_IMAGES = 60_000
TURNS = 12


def profile(data: ImageData, settings: ImageFitSettings, *, most_images: int) -> dict[str, dict[str, float]]:
    """Seconds by what was done.

    Args:
        data: whose pictures, shape and categories.
        settings: of the fit.
        most_images: how many pictures the feature pass is timed on; its time is told for `FEATURE_IMAGES`.
    """
    device = fastest_device()
    layout = ImageMomentLayout.of(data.table, data.image)
    codes = torch.stack([data.codes(data.train_rows, name) for name in data.image.conditioned_on], 1)
    measured = min(most_images, len(data.train))
    pass_seconds = _feature_pass(layout, data.train[:measured], codes[:measured])
    source = torch.Generator().manual_seed(0)
    totals = [codes[:, k].bincount(minlength=d).double() for k, d in enumerate(layout.cardinalities)]
    targets = ImageTargets.from_sum(layout, torch.ones(layout.size), totals, noise_std=0.0)
    batches = CodeBatches(codes, [targets], settings.batch_size)
    generators = [
        ImageGenerator(data.image, layout.cardinalities, latent=settings.latent, width=settings.width).to(
            device, memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        for _ in range(3)
    ]
    fit = MomentFit(generators[0], [targets], settings)
    pixels, features = PlainStep(generators[1]), PlainStep(generators[2], layout.features)

    def fit_step() -> None:
        fit.step(batches.draw(source), source)

    steps = {
        "plain": lambda: pixels(batches.draw(source)[0], source),
        "features": lambda: features(batches.draw(source)[0], source),
        "fit": fit_step,
    }
    seconds = _in_turn(steps)
    batch = len(batches.draw(source)[0])
    return {
        f"features of {FEATURE_IMAGES} images (timed on {measured})": {
            "seconds": pass_seconds * FEATURE_IMAGES / measured
        },
        f"plain step, loss in pixels, {batch} images": {"seconds": seconds["plain"], "over_plain": 1.0},
        "the same, loss in features": {
            "seconds": seconds["features"],
            "over_plain": seconds["features"] / seconds["plain"],
        },
        "fit step, with moving averages": {
            "seconds": seconds["fit"],
            "over_plain": seconds["fit"] / seconds["plain"],
        },
    }


class PlainStep:
    """Adam on a squared distance, in pixels or in features."""

    def __init__(
        self,
        generator: ImageGenerator,
        features: Callable[[torch.Tensor], torch.Tensor] = torch.nn.Identity(),
    ) -> None:
        self._generator, self._features = generator.train(), features
        self._optimizer = torch.optim.Adam(generator.parameters(), 1e-5)

    def __call__(self, codes: torch.Tensor, source: torch.Generator) -> None:
        """One step."""
        with torch.autocast(self._generator.start.weight.device.type, torch.bfloat16):
            found = self._features(self._generator.images(codes, source)).float()
        loss = functional.mse_loss(found, torch.zeros_like(found))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _feature_pass(layout: ImageMomentLayout, images: torch.Tensor, codes: torch.Tensor) -> float:
    layout.sum(images[:256], codes[:256], torch.arange(257))  # so that nothing is set up while the clock runs
    started = time.perf_counter()
    layout.sum(images, codes, torch.arange(len(images) + 1))
    return time.perf_counter() - started


def _in_turn(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median time of each, after two turns that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS + 2):
        for name, step in steps.items():
            _wait()
            started = time.perf_counter()
            step()
            _wait()
            if turn >= 2:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show_profile(found: dict[str, dict[str, float]], title: str, console: Console) -> None:
    """The table."""
    table = Table(title=title)
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("over the plain step", justify="right")
    for name, row in found.items():
        ratio = f"{row['over_plain']:.2f}" if "over_plain" in row else ""
        table.add_row(name, f"{row['seconds']:.3f}" if row["seconds"] < 1 else f"{row['seconds']:.1f}", ratio)
    console.print(table)
