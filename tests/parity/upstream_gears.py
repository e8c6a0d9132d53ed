"""Open data with cell-gears 0.1.2; imported by scripts that run in upstream's environment.

Three things keep the published wheel from running there, and are set right around it, not in it: it downloads its GO
annotation (a pickle is put in place), it hands a pandas mask to a SciPy matrix (which SciPy 1.15 refuses), and it
writes below `./data`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp


def accept_masks() -> None:
    """Let sparse matrices be indexed by a pandas mask again."""
    plain = sp.csr_matrix.__getitem__

    def getitem(self, key):
        return plain(self, key.to_numpy() if isinstance(key, pd.Series) else key)

    sp.csr_matrix.__getitem__ = getitem


def one_process_pool() -> None:
    """Build the GO graph in this process: upstream starts 25."""
    import gears.utils

    class Here:
        def __init__(self, workers: int) -> None:
            self.imap = map

        def __enter__(self):
            return self

        def __exit__(self, *failure) -> None:
            return None

    gears.utils.Pool = Here


def open_data(folder: Path, adata, gene2go: dict[str, set[str]], *, seed: int):
    """A processed and reloaded `PertData` of log-normalised cells, below `folder`, which becomes the working folder."""
    accept_masks()
    one_process_pool()
    from gears import PertData

    os.chdir(folder)
    Path("data").mkdir(exist_ok=True)
    with Path("data/gene2go_all.pkl").open("wb") as out:
        pickle.dump(gene2go, out)
    np.random.seed(seed)  # noqa: NPY002 upstream pairs cells with numpy's global generator
    with contextlib.redirect_stdout(sys.stderr):
        PertData("./data", default_pert_graph=False).new_data_process("screen", adata=adata)
        data = PertData("./data", default_pert_graph=False)
        Path("data/screen/data_pyg/cell_graphs.pkl").unlink()
        np.random.seed(seed)  # noqa: NPY002
        data.load(data_path="./data/screen")
    return data


def set_split(data, parts: dict[str, list[str]], batch_size: int) -> None:
    """Give `data` a custom split and its loaders."""
    path = Path("custom_split.pkl")
    with path.open("wb") as out:
        pickle.dump(parts, out)
    data.prepare_split(split="custom", seed=1, split_dict_path=str(path))
    data.get_dataloader(batch_size=batch_size)
