"""Normals per second and core: the site's source beside torch.randn and the naive version of the same cipher.

    python benchmarks/noise.py

All on one thread, best of several turns taken in alternation; `x naive` compares within this run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from privacy.noise import SystemNoise


def naive(count: int) -> Tensor:
    """AES-CTR and Box-Muller without any care for caches, as in the prototype."""
    cipher = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    half = (count + 1) // 2
    words = torch.frombuffer(bytearray(cipher.update(bytes(16 * half))), dtype=torch.int64)
    uniform = ((words >> 11) & (2**53 - 1)).to(torch.float64).add_(0.5).mul_(2.0**-53)
    radius, angle = torch.sqrt(-2 * torch.log(uniform[:half])), uniform[half:] * (2 * math.pi)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]


def one_by_one(source: SystemNoise, count: int) -> None:
    for _ in range(count // 256):
        source.normal((256,))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def errors() -> tuple[float, float]:
    """Mean and largest distance of normals from Box-Muller in extended precision, in standard deviations."""
    means, worst = [], 0.0
    for _ in range(20):
        words, made = SystemNoise().example_block()
        half = len(words) // 2
        u = (words[:half].astype(np.longdouble) + np.longdouble(0.5)) / np.longdouble(2) ** 64
        angle = words[half:].view(np.int64).astype(np.longdouble) / np.longdouble(2) ** 63
        angle *= np.arccos(np.longdouble(-1))
        radius = np.sqrt(-2 * np.log(u))
        exact = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        means.append(float(np.abs(made - exact).mean()))
        worst = max(worst, float(np.abs(made - exact).max()))
    return float(np.mean(means)), worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="normals per turn")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, count = SystemNoise(), options.count
    ways: dict[str, Callable[[], object]] = {
        "naive AES-CTR, float64": lambda: naive(count),
        "SystemNoise, AES-CTR, float64": lambda: source.normal((count,)),
        "SystemNoise, 256 at a time": lambda: one_by_one(source, count),
        "torch.randn float32 (not cryptographic)": lambda: torch.randn(count),
        "torch.randn float64 (not cryptographic)": lambda: torch.randn(count, dtype=torch.float64),
        "SystemNoise.uniform, float64": lambda: source.uniform(count),
    }
    best = dict.fromkeys(ways, math.inf)
    console = Console(width=None if sys.stdout.isatty() else 100)
    for _ in track(range(options.turns), "drawing", console=console):
        for name, draw in ways.items():
            best[name] = min(best[name], seconds(draw))
    table = Table("source, one core", "million / s", "x naive", title="Noise")
    for name, value in best.items():
        table.add_row(name, f"{count / value / 1e6:.1f}", f"{best['naive AES-CTR, float64'] / value:.1f}")
    console.print(table)
    mean, largest = errors()
    console.print(
        f"distance from Box-Muller in extended precision: mean 2^{math.log2(mean):.1f} sigma, "
        f"largest 2^{math.log2(largest):.1f} sigma"
    )
    if options.json:
        figures = {name: count / value for name, value in best.items()}
        options.json.write_text(
            json.dumps({"per_second": figures, "mean_error": mean, "largest_error": largest}, indent=1)
        )
    reached = count / best["SystemNoise, AES-CTR, float64"] >= 10e6
    console.print(
        "reach of 10 million a second and core: " + ("met" if reached else "[red]missed on this machine, now")
    )
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
