"""How good synthetic images are: a classifier's figures on real test images, coverage, distances, sheets.

The classifier's recipe is one and the same for every data set, budget and for real images, fixed here.

References:
    Kynkaanniemi and others: Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS 2019.
    Naeem and others: Reliable Fidelity and Diversity Metrics for Generative Models (density, coverage), ICML 2020.
    Kataoka and others: Pre-training without Natural Images (fractals as classes), ACCV 2020.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from models.image_features import fastest_device

CLASSIFIER_STEPS = 2500
CLASSIFIER_BATCH = 128
FRACTAL_CLASSES, FRACTALS_EACH = 40, 150
NEIGHBOURS = 5


class Classifier(nn.Sequential):
    """Two convolutions, two linear layers: a usual small network. `features` are its last hidden units."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(64 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    @torch.no_grad()
    def outputs(self, images: Tensor, *, features: bool = False) -> Tensor:
        """Logits or features of uint8 images, on the CPU."""
        self.eval()
        layers = nn.Sequential(*list(self)[:-1]) if features else self
        device, found = next(self.parameters()).device, []
        for part in images.split(1000):
            with torch.autocast(device.type, torch.bfloat16):
                found.append(layers(part.to(device).float() / 255).float().cpu())
        return torch.cat(found)


def train_classifier(images: Tensor, labels: Tensor, classes: int, *, seed: int, steps: int) -> Classifier:
    """Train on uint8 images (N, C, H, W): Adam, cosine, small shifts, turns and zooms, noise, classes in balance."""
    torch.manual_seed(seed)
    device = fastest_device()
    model = Classifier(images.shape[1], images.shape[2], classes)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    members = [(labels == c).nonzero().squeeze(1) for c in range(classes)]
    members = [rows for rows in members if len(rows)]
    for _ in range(steps):
        picked = torch.cat(
            [rows[torch.randint(len(rows), (CLASSIFIER_BATCH // len(members) + 1,))] for rows in members]
        )
        batch = jittered(images[picked].to(device).float() / 255)
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(model(batch).float(), labels[picked].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def jittered(images: Tensor) -> Tensor:
    """Random turns of up to 10 degrees, zooms of 10 %, shifts of 7 % and a little noise."""
    count, device = len(images), images.device
    angle = (torch.rand(count, device=device) * 2 - 1) * math.radians(10)
    zoom = 1 + (torch.rand(count, device=device) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2, 1, device=device) * 2 - 1) * 0.14
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    grid = functional.affine_grid(
        torch.cat([rows * zoom[:, None, None], shift], 2), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
    return moved + 0.05 * torch.randn_like(moved)


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """How often the model names the label."""
    return float((model.outputs(images).argmax(1) == labels).float().mean())


def downstream(model: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy on real images, and the AUC where there are two classes."""
    logits = model.outputs(images)
    figures = {"accuracy": float((logits.argmax(1) == labels).float().mean())}
    if logits.shape[1] == 2:
        figures["auc"] = float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    return figures


def fractal_network(channels: int, size: int) -> Classifier:
    """A classifier of fractals: what the distances are measured in. It has seen no real image."""
    rng = np.random.default_rng(20)
    images = np.zeros((FRACTAL_CLASSES * FRACTALS_EACH, channels, size, size), np.uint8)
    for c in range(FRACTAL_CLASSES):
        maps = rng.uniform(-1, 1, (3, 2, 3))
        for one in range(FRACTALS_EACH):
            images[c * FRACTALS_EACH + one] = _fractal(maps + 0.06 * rng.normal(size=maps.shape), size, rng)
    labels = torch.arange(FRACTAL_CLASSES).repeat_interleave(FRACTALS_EACH)
    return train_classifier(torch.from_numpy(images), labels, FRACTAL_CLASSES, seed=0, steps=600)


def _fractal(maps: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The attractor of three contracting affine maps, 300 points at once for 12 iterations."""
    scale = np.linalg.norm(maps[:, :, :2], ord=2, axis=(1, 2))
    maps = maps.copy()
    maps[:, :, :2] *= np.minimum(1, 0.8 / scale)[:, None, None]
    points, density = rng.uniform(-1, 1, (300, 2)), np.zeros((size, size))
    for step in range(12):
        chosen = maps[rng.integers(0, 3, 300)]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
        if step >= 4:
            low, high = points.min(0), points.max(0)
            cells = ((points - low) / np.maximum(high - low, 1e-9) * (size - 1)).astype(int)
            np.add.at(density, (cells[:, 0], cells[:, 1]), 1)
    return (np.minimum(density / 4, 1) * 255).astype(np.uint8)


def fidelity(real: Tensor, synthetic: Tensor) -> dict[str, float]:
    """Precision, recall, density, coverage and the Frechet distance of two samples of features (N, D)."""
    real, synthetic = real.double(), synthetic.double()
    across = torch.cdist(real, synthetic)
    real_reach = torch.cdist(real, real).kthvalue(NEIGHBOURS + 1, 1).values  # of the 5th other
    synthetic_reach = torch.cdist(synthetic, synthetic).kthvalue(NEIGHBOURS + 1, 1).values
    within = across < real_reach[:, None]
    return {
        "precision": float(within.any(0).double().mean()),
        "recall": float((across < synthetic_reach).any(1).double().mean()),
        "density": float(within.sum(0).double().mean() / NEIGHBOURS),
        "coverage": float((across.min(1).values < real_reach).double().mean()),
        "frechet": frechet_distance(real, synthetic),
    }


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the samples' means and covariances."""
    a, b = torch.cov(first.T), torch.cov(second.T)
    # trace sqrt(a b) from the eigenvalues of the similar, symmetric sqrt(a) b sqrt(a)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    return float((first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross)


def save_sheet(images: Tensor, path: Path, *, columns: int, scale: int = 3) -> None:
    """Images (N, C, H, W) uint8 in rows of `columns`, as a PNG."""
    _, channels, height, width = images.shape
    rows = len(images) // columns
    tiles = images[: rows * columns].view(rows, columns, channels, height, width)
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).numpy()
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    picture.resize((columns * width * scale, rows * height * scale), Image.Resampling.NEAREST).save(path)


def nearest(real: Tensor, synthetic: Tensor) -> Tensor:
    """The training image nearest to each synthetic one, in pixels: (N, C, H, W)."""
    flat = real.flatten(1).float()
    closest = torch.cdist(synthetic.flatten(1).float(), flat).argmin(1)
    return real[closest]
