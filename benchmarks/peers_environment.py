"""The peers' environments: made once under benchmarks/.peers with pinned versions, apart from the project's own.

The two do not go together: SmartNoise needs mbi 1.x and Opacus 0.14, AIM and MST here use mbi 2.0.
Licences: mbi (private-pgm) Apache-2.0, JAX, jaxlib, chex and optax Apache-2.0, SmartNoise Synth MIT,
Opacus Apache-2.0, PyTorch BSD and Apache-2.0; below them BSD, MIT and Apache-2.0.
Nothing of them is part of fedtwin or installed with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent / ".peers"
PINS = {
    "pgm": (
        *("mbi==2.0.0", "jax==0.10.2", "jaxlib==0.10.2", "chex==0.1.92", "optax==0.2.8"),
        *("networkx==3.6.1", "opt_einsum==3.4.0", "numpy==2.4.6", "scipy==1.17.1"),
    ),
    "smartnoise": (
        *("smartnoise-synth==1.0.8", "smartnoise-sql==1.0.10", "opacus==0.14.0", "mbi==1.1.0"),
        # SmartNoise imports `packaging` without asking for it.
        *("torch==2.13.0", "packaging==26.0", "numpy==2.4.6", "pandas==2.3.3", "scipy==1.17.1"),
    ),
}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, made when it is missing or was made of other versions."""
    folder = HOME / name
    python, made_of = folder / "bin" / "python", folder / "pins.txt"
    wanted = "\n".join(PINS[name])
    if not made_of.exists() or made_of.read_text() != wanted:
        print(f"making the environment {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS[name]], check=True)
        made_of.write_text(wanted)
    return python


def run_in(name: str, script: str, *options: str) -> None:
    """Run a script of this folder in an environment, on one thread.

    Raises:
        CalledProcessError: the script failed.
    """
    command = [str(python_of(name)), "-W", "ignore", "-u", str(Path(__file__).parent / script), *options]
    subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD})
