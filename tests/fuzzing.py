"""Mutated and hostile files from seeds: what a stranger could send instead of an entry.

Mutation `n` depends on `n` and the base files alone, so a number that once failed is a test forever (`CORPUS`).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import zstandard

# Numbers kept because each shows another way of being broken.
CORPUS = tuple(range(200))
Maker = Callable[[np.random.Generator, bytes, bytes, Path], None]


def mutant(number: int, h5ad: bytes, vcc: bytes, folder: Path) -> Path:
    """The file of a number: an `.h5ad` or `.vcc` in `folder`."""
    rng = np.random.default_rng([2026, number])
    maker = MAKERS[number % len(MAKERS)]
    suffix = ".vcc" if maker.__name__.startswith("vcc") or (maker in EITHER and number % 2) else ".h5ad"
    path = folder / f"{number}{suffix}"
    maker(rng, h5ad, vcc, path)
    return path


def _base(path: Path, h5ad: bytes, vcc: bytes) -> bytearray:
    return bytearray(vcc if path.suffix == ".vcc" else h5ad)


def bit_flips(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    data = _base(path, h5ad, vcc)
    for at in rng.integers(0, len(data), int(rng.integers(1, 40))):
        data[at] ^= 1 << int(rng.integers(0, 8))
    path.write_bytes(data)


def head_flips(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """Flips where the structure is: in the first 4 KiB."""
    data = _base(path, h5ad, vcc)
    for at in rng.integers(0, min(4096, len(data)), int(rng.integers(1, 12))):
        data[at] = int(rng.integers(0, 256))
    path.write_bytes(data)


def truncation(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    data = _base(path, h5ad, vcc)
    path.write_bytes(data[: int(rng.integers(0, len(data)))])


def splice(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A piece of the file replaced by zeros, noise or another piece."""
    data = _base(path, h5ad, vcc)
    n = int(rng.integers(1, max(2, len(data) // 4)))
    at, other = (int(v) for v in rng.integers(0, max(1, len(data) - n), 2))
    pieces = (bytes(n), rng.bytes(n), bytes(data[other : other + n]))
    data[at : at + n] = pieces[int(rng.integers(0, 3))]
    path.write_bytes(data)


KEYS = (
    "X", "X/data", "X/indices", "X/indptr", "obs", "obs/_index", "obs/target_gene", "obs/target_gene/codes",
    "obs/target_gene/categories", "obs/context", "obs/context/codes", "var", "var/_index", "uns",
)  # fmt: skip


def wrong_type(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A dataset or group replaced by something else, or an attribute by another value."""
    path.write_bytes(h5ad)
    with h5py.File(path, "r+") as file:
        key = KEYS[int(rng.integers(0, len(KEYS)))]
        values = (
            np.zeros(3), np.array([b"text"]), np.float64(1), np.full((2, 2), 1 + 1j), np.zeros((2, 2, 2)),
            np.array([-1, 2**31, 5]), np.zeros(0), np.array([np.nan, np.inf]),
        )  # fmt: skip
        if rng.random() < 0.3:
            for name in list(file[key].attrs):
                file[key].attrs[name] = ("nonsense", -5, [2**62, 2**62], "")[int(rng.integers(0, 4))]
            return
        del file[key]
        if rng.random() < 0.2:
            file.create_group(key)
        elif rng.random() < 0.2:
            file[key] = h5py.SoftLink("/nowhere" if rng.random() < 0.5 else f"/{key}")
        elif rng.random() < 0.1:
            file[key] = h5py.ExternalLink("/etc/passwd", "/")
        else:
            file.create_dataset(key, data=values[int(rng.integers(0, len(values)))])


def huge_shape(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A dataset that declares terabytes and stores nothing, or compresses to almost nothing."""
    path.write_bytes(h5ad)
    with h5py.File(path, "r+") as file:
        key = ("X/data", "X/indices", "X/indptr", "obs/target_gene/codes", "var/_index", "X")[
            int(rng.integers(0, 6))
        ]
        kind = file[key].dtype if isinstance(file[key], h5py.Dataset) else np.dtype("f4")
        del file[key]
        n = int(10 ** rng.uniform(8, 13))
        shape = (n,) if key != "X" else (180, n)
        chunks = (2**20,) if key != "X" else (1, 2**20)
        file.create_dataset(key, shape=shape, dtype=kind, chunks=chunks, compression="gzip")


def deflate_bomb(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """Values that take about a thousandth of their size in the file."""
    path.write_bytes(h5ad)
    with h5py.File(path, "r+") as file:
        n = int(rng.integers(2**22, 2**24))
        for key in ("X/data", "X/indices"):
            del file[key]
            file.create_dataset(key, data=np.zeros(n, "f4" if key == "X/data" else "i4"), compression="gzip")


def _tar(path: Path, members: list[tuple[str, bytes, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(data), kind) if kind == tarfile.REGTYPE else (0, kind)
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(data))


def vcc_traversal(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """Members with names that lead out of the folder, links and devices."""
    names = (
        "../escaped",
        "/tmp/escaped",
        "a/../../escaped",
        "..\\escaped",
        "pred.h5ad.zst",
        "meta.json",
        "x" * 300,
    )
    kinds = (
        tarfile.REGTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
    )
    payload = zstandard.ZstdCompressor().compress(h5ad)
    members = [("meta.json", b'{"schema": 1}', tarfile.REGTYPE), ("pred.h5ad.zst", payload, tarfile.REGTYPE)]
    for _ in range(int(rng.integers(1, 4))):
        name, kind = names[int(rng.integers(0, len(names)))], kinds[int(rng.integers(0, len(kinds)))]
        members.insert(int(rng.integers(0, len(members) + 1)), (name, b"data", kind))
    _tar(path, members, ("w", "w:gz", "w:xz")[int(rng.integers(0, 3))])


def vcc_bomb(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A zstd stream that grows thirty-thousandfold and says nothing, or lies, about its size."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=bool(rng.integers(0, 2)))
    plain = (b"\x89HDF\r\n\x1a\n" if rng.random() < 0.5 else b"") + bytes(int(rng.integers(2**24, 2**26)))
    payload = compressor.compress(plain)
    _tar(path, [("meta.json", b"{}", tarfile.REGTYPE), ("pred.h5ad.zst", payload, tarfile.REGTYPE)])


def vcc_meta(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """Deep, huge, malformed or lying meta.json around a good payload."""
    deep = b"[" * int(rng.integers(10, 60_000))
    texts = (
        deep, b'{"schema": 1, "nnz": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"", b"null", b'{"schema": true}',
        b'{"schema": 1, "contexts": [[["A"]]], "n_obs": 1e999}', json.dumps({"schema": 1, "x": "y" * 70_000}).encode(),
        b'{"schema": 1, "contexts": {"a": 1}, "nnz": -1, "perts_fingerprint": 5}', b'{"schema": 1, "nnz": NaN}',
    )  # fmt: skip
    payload = zstandard.ZstdCompressor().compress(h5ad)
    text = texts[int(rng.integers(0, len(texts)))]
    _tar(path, [("meta.json", text, tarfile.REGTYPE), ("pred.h5ad.zst", payload, tarfile.REGTYPE)])


def vcc_headers(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A tar header with wild numbers in it and a checksum that holds."""
    data = bytearray(vcc)
    field = ((124, 12), (100, 8), (108, 8), (136, 12), (156, 1), (0, 100))[int(rng.integers(0, 6))]
    data[field[0] : field[0] + field[1]] = rng.bytes(field[1])
    if rng.random() < 0.5:
        data[124:136] = b"%011o\0" % int(rng.integers(0, 2**33))
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


def not_a_file(rng: np.random.Generator, h5ad: bytes, vcc: bytes, path: Path) -> None:
    """A pipe, a link to itself or to nothing, a folder, an empty or foreign file."""
    kind = int(rng.integers(0, 6))
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to(path.with_name("missing"))
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.write_bytes(b"")
    else:
        path.write_bytes(
            (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh9")[int(rng.integers(0, 4))]
            + rng.bytes(600)
        )


EITHER = (bit_flips, head_flips, truncation, splice, not_a_file)
MAKERS: tuple[Maker, ...] = (
    bit_flips, head_flips, truncation, splice, wrong_type, huge_shape, deflate_bomb, vcc_traversal, vcc_bomb, vcc_meta,
    vcc_headers, not_a_file, wrong_type, bit_flips, head_flips, wrong_type,
)  # fmt: skip
