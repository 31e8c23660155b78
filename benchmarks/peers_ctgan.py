"""DP-CTGAN in the environment of `peers.py`: SmartNoise's, with its defaults, stopped by its own accountant.

    python benchmarks/peers_ctgan.py --folder FOLDER --epsilon 1

All columns are given as categories, so none of the budget goes to preparing them.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peers_budget import read_table


def main() -> None:
    """Read the command line, train, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="with codes.npy and columns.json")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, default=1e-5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    from snsynth.pytorch.nn import DPCTGAN

    codes, columns = read_table(arguments.folder)
    table = pd.DataFrame(codes, columns=list(columns))
    peer = DPCTGAN(epsilon=arguments.epsilon, delta=arguments.delta, cuda=False, verbose=False)
    peer.fit(table, categorical_columns=list(columns), preprocessor_eps=0.0)
    print(
        f"its accountant says epsilon {peer.epsilon_list[-1]:.3f} after {len(peer.epsilon_list)} epochs",
        flush=True,
    )
    rows = peer.sample(len(codes))[list(columns)].to_numpy().astype(np.int64)
    np.save(arguments.folder / "ctgan.npy", rows)


if __name__ == "__main__":
    main()
