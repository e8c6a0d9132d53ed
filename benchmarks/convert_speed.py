"""Time and peak memory of `vcbench data convert` on a large dense file, beside a copy of that file.

    python benchmarks/convert_speed.py --work DIR [--gigabytes 8] [--density 0.2] [--report OUT.md]

A dense, uncompressed h5ad of whole counts is generated in DIR. The copy reads it in pieces, writes it and syncs it to
disk; the conversion is the command in a process of its own, whose output is synced before it is renamed. Both start
with the source dropped from the page cache as far as the system allows; peak resident memory comes from the operating
system. All large files are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from machine import machine
from vcbench.data_specs.h5ad_columns import Labels
from vcbench.data_specs.h5ad_write import write_h5ad_dense

N_GENES = 18_080
BLOCK_ROWS = 512
SPEC = """
spec_version = 1
id = "dense_benchmark"
family = "dense_benchmark"
title = "Generated dense counts"
license = "none"
organism = "none"
modality = "CRISPRi"
[citation]
text = "generated"
year = 2026
[matrix]
kind = "counts"
[contexts]
value = "A"
[labels]
column = "target_gene"
control = ["non-targeting"]
"""


def generate(path: Path, n_cells: int, density: float) -> None:
    """Dense float32 counts with a share `density` of non-zero values."""
    rng = np.random.default_rng(0)
    codes = (np.arange(n_cells) % 151).astype(np.int32)
    names = np.array(["non-targeting", *(f"G{i:05d}" for i in range(150))], dtype=object)
    genes = [f"G{i:05d}" for i in range(N_GENES)]
    labels = Labels.from_codes(codes, names)
    # A file of one row gives obs, var and the encoding; X and obs are then written at full size.
    write_h5ad_dense(path, np.zeros((0, N_GENES), np.float32), genes=genes, obs={})
    with h5py.File(path, "r+") as file:
        attrs = dict(file["X"].attrs)
        del file["X"]
        x = file.create_dataset("X", (n_cells, N_GENES), np.float32)
        x.attrs.update(attrs)
        for start in range(0, n_cells, BLOCK_ROWS):
            n = min(BLOCK_ROWS, n_cells - start)
            uniform = rng.random((n, N_GENES), dtype=np.float32)
            x[start : start + n] = np.floor(np.float32(density) / np.maximum(uniform, np.float32(1e-3)))
        del file["obs"]["_index"]
        text = h5py.string_dtype("utf-8")
        index = file["obs"].create_dataset("_index", (n_cells,), text)
        index[:] = np.array([f"cell{i}" for i in range(n_cells)], dtype=object)
        index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        group = file["obs"].create_group("target_gene")
        group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        group.create_dataset("codes", data=labels.codes.astype(np.int16))
        stored = group.create_dataset("categories", (len(labels.categories),), text)
        stored[:] = labels.categories
        file["obs"].attrs["column-order"] = np.array(["target_gene"], dtype=object)
    sync(path)


def sync(path: Path) -> None:
    """Write a file's pages to disk."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def drop(path: Path) -> None:
    """Ask the system to forget the cached pages of a file."""
    with path.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: Path, target: Path) -> float:
    """Wall seconds of a copy that is synced to disk."""
    drop(source)
    started = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(2**24):
            write.write(piece)
        write.flush()
        os.fsync(write.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def convert_cost(source: Path, spec: Path, out: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident MiB of the conversion."""
    drop(source)
    command = [
        sys.executable, "-m", "vcbench.evaluator.cli", "data", "convert", str(source), "--spec", str(spec),
        "-o", str(out), "--quiet", "--force",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"convert failed with status {status}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    source, copy, out, spec = (
        args.work / n for n in ("dense.h5ad", "copy.h5ad", "standard.h5ad", "spec.toml")
    )
    spec.write_text(SPEC)
    n_cells = int(args.gigabytes * 1e9 / (4 * N_GENES))
    try:
        generate(source, n_cells, args.density)
        rows = []
        for _ in range(args.repeats):
            copied = copy_seconds(source, copy)
            seconds, cpu, peak = convert_cost(source, spec, out)
            rows.append((copied, seconds, cpu, peak, seconds / copied))
            print(
                f"copy {copied:.1f} s, convert {seconds:.1f} s ({cpu:.1f} CPU s), {peak:.0f} MiB", flush=True
            )
        size = source.stat().st_size / 1e9
        written = out.stat().st_size / 1e9
    finally:
        for path in (source, copy, out, spec):
            path.unlink(missing_ok=True)
    lines = [
        "# Converting a large dense file, beside a copy of it",
        "",
        f"`python benchmarks/convert_speed.py --gigabytes {args.gigabytes:g} --density {args.density:g}`, {machine()}:",
        f"{n_cells:,} cells x {N_GENES:,} genes, {size:.2f} GB dense and uncompressed, {written:.2f} GB as CSR.",
        "Copy and conversion are synced to disk; the conversion reads X twice (verify, write) and hashes it.",
        "",
        "| run | copy, s | convert, s | convert, CPU s | peak memory, MiB | convert / copy |",
        "|---|---|---|---|---|---|",
        *(
            f"| {i} | {a:.1f} | {b:.1f} | {c:.1f} | {d:.0f} | {e:.2f} |"
            for i, (a, b, c, d, e) in enumerate(rows, start=1)
        ),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.report:
        args.report.write_text(text)


if __name__ == "__main__":
    main()
