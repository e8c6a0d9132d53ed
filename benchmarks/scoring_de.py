"""The DE table of one side in memory, by one tool: median wall and CPU seconds of several runs as JSON.

Usage: scoring_de.py vcbench|illico|pdex REAL.h5ad ROUNDS [DEVICE]

Every tool gets float64 log1p(y / (L / 1e6)) as CSR, made before the clock starts, two threads, and one warm-up
run. Only ranks, p-values and fold changes are timed; the peers take the values as they are (`is_log1p=False`).
DEVICE (vcbench): where rank sums are taken, as in `vcbench score --device`.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import h5py
import numpy as np
import scipy.sparse as sp

CONTROL = "non-targeting"
THREADS = 2


def main() -> None:
    tool, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    matrix, labels, genes = load(path)
    device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    if tool == "vcbench":
        job = ours(matrix, labels, genes, device)
    else:
        job = {"illico": illico, "pdex": pdex}[tool](matrix, labels, genes)
    job()
    figures = []
    for _ in range(rounds):
        before, started = _cpu(), time.perf_counter()
        job()
        figures.append((time.perf_counter() - started, _cpu() - before))
    wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak}))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def load(path: str) -> tuple[sp.csr_array, np.ndarray, np.ndarray]:
    """(log1p values, label of each cell, genes)."""
    with h5py.File(path) as file:
        x, column = file["X"], file["obs/target_gene"]
        data, indices, indptr = x["data"][()], x["indices"][()], x["indptr"][()].astype(np.int64)
        genes = file["var"][file["var"].attrs["_index"]].asstr()[()]
        labels = (
            column["categories"].asstr()[()][column["codes"][()]]
            if isinstance(column, h5py.Group)
            else column.asstr()[()]
        )
    totals = np.add.reduceat(data, indptr[:-1], dtype=np.float64)
    values = np.log1p(data / np.repeat(totals / 1e6, np.diff(indptr)))
    return sp.csr_array((values, indices, indptr), shape=(len(labels), len(genes))), labels, genes


def ours(matrix: sp.csr_array, labels: np.ndarray, genes: np.ndarray, device: str):
    """Counting, gathering, ranks, p-values, adjustment and fold changes."""
    from vcbench.evaluator.kernels.blocks import count_genes
    from vcbench.evaluator.kernels.rank_buffer import rank_buffer
    from vcbench.evaluator.vcc2026.de import adjust, rank_sum_p

    names = [*sorted(set(labels) - {CONTROL}), CONTROL]
    position = {name: i for i, name in enumerate(names)}

    def job() -> tuple[np.ndarray, ...]:
        groups = np.array([position[label] for label in labels])
        sizes = np.bincount(groups)
        stored = count_genes(matrix.indices, matrix.indptr, groups, len(genes), THREADS)
        buffer = rank_buffer(
            stored,
            0,
            len(genes),
            dtype=matrix.data.dtype,
            n_groups=len(names),
            threads=THREADS,
            device=device,
        )
        buffer.add(matrix, groups)
        control = len(names) - 1
        two_u, ties = buffer.rank_sums(sizes, control)
        p = rank_sum_p(two_u[:-1], ties[:-1], sizes[:-1, None], int(sizes[-1]))
        indicator = sp.csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
        means = (indicator @ matrix).toarray() / sizes[:, None]
        folds = np.log2((means[:-1] + 1e-9) / (means[-1] + 1e-9))
        return p, adjust(p), folds

    return job


def _annotated(matrix: sp.csr_array, labels: np.ndarray, genes: np.ndarray):
    import anndata as ad
    import pandas as pd

    obs = pd.DataFrame({"target_gene": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(matrix), obs=obs, var=pd.DataFrame(index=genes))


def illico(matrix: sp.csr_array, labels: np.ndarray, genes: np.ndarray):
    """illico's asymptotic Wilcoxon test against the control."""
    from illico import asymptotic_wilcoxon

    adata = _annotated(matrix, labels, genes)
    return lambda: asymptotic_wilcoxon(
        adata, is_log1p=False, group_keys="target_gene", reference=CONTROL, n_threads=THREADS
    )


def pdex(matrix: sp.csr_array, labels: np.ndarray, genes: np.ndarray):
    """pdex against the control."""
    from pdex import pdex as test

    adata = _annotated(matrix, labels, genes)
    return lambda: test(adata, groupby="target_gene", threads=THREADS, is_log1p=False)


if __name__ == "__main__":
    main()
