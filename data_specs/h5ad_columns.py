"""Columns and mappings of AnnData files: text, numbers, nullable arrays, categoricals, as they are stored in HDF5."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from .errors import InvalidFile
from .h5ad_structure import is_group
from .issues import make_issue
from .remote import input_path


@dataclass(frozen=True)
class Labels:
    """A text column: `categories[codes[i]]` is the value of row i, code -1 a missing value.

    Categories are those that occur, sorted by code point, so equal columns are equal however stored.
    """

    codes: np.ndarray
    categories: np.ndarray

    def values(self) -> np.ndarray:
        """The column as an object array of str, with None for missing values."""
        out = np.empty(len(self.codes), dtype=object)
        known = self.codes >= 0
        out[known] = self.categories[self.codes[known]]
        return out

    def counts(self) -> dict[str, int]:
        """Rows per category; missing values are not counted."""
        tally = np.bincount(self.codes[self.codes >= 0], minlength=len(self.categories))
        return {str(name): int(n) for name, n in zip(self.categories, tally, strict=True)}

    @classmethod
    def from_values(cls, values: Any) -> Labels:
        """Labels of any sequence; None and NaN become missing."""
        raw = np.asarray(values, dtype=object)
        missing = np.fromiter((v is None or v != v for v in raw), dtype=bool, count=len(raw))
        text = np.array([str(v) for v in raw[~missing]], dtype=object)
        categories, inverse = (
            np.unique(text, return_inverse=True) if len(text) else (np.array([], object), np.array([], int))
        )
        codes = np.full(len(raw), -1, dtype=np.int32)
        codes[~missing] = inverse
        return cls(codes, categories.astype(object))

    @classmethod
    def from_codes(cls, codes: np.ndarray, categories: Any) -> Labels:
        """Labels of stored categorical codes: unused and repeated categories are dropped, order is by code point."""
        names = np.array([str(c) for c in categories], dtype=object)
        codes = np.asarray(codes).astype(np.int64)
        used = np.unique(codes[codes >= 0])
        unique, position = (
            np.unique(names[used], return_inverse=True)
            if len(used)
            else (np.array([], object), np.array([], int))
        )
        table = np.full(len(names) + 1, -1, dtype=np.int32)
        table[used] = position
        return cls(table[np.where(codes >= 0, codes, len(names))], unique.astype(object))


def member_name(key: str | bytes) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else key


def read_strings(node: Any) -> np.ndarray:
    values = read_values(node)
    if np.ndim(values) != 1:
        raise _bad_column(node, f"an array of {np.ndim(values)} dimensions")
    return np.array([str(v) for v in values], dtype=object)


def read_values(node: Any) -> np.ndarray:
    """A dataset or nullable group as an array; text as str objects, masked entries as None."""
    if is_group(node):
        if "values" in node and "mask" in node:
            values, mask = read_values(node["values"]), node["mask"]
            if is_group(mask) or np.shape(values) != mask.shape:
                raise _bad_column(node, "a mask of another shape than the values")
            values = np.asarray(values).astype(object)
            values[mask[()].astype(bool)] = None
            return values
        if "codes" in node:
            return read_categorical(node).values()
        raise _bad_column(node, f"the encoding {node.attrs.get('encoding-type')!r}")
    if h5py.check_string_dtype(node.dtype) is not None:
        return np.asarray(node.asstr(errors="replace")[()], dtype=object)
    values = node[()]
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace").astype(object)
    return values


def read_categorical(node: Any) -> Labels:
    if "categories" not in node or is_group(node["codes"]) or node["codes"].ndim != 1:
        raise _bad_column(node, "codes or categories that are no arrays")
    codes, categories = node["codes"][()], read_strings(node["categories"])
    if codes.dtype.kind not in "iu":
        raise _bad_column(node, f"codes of dtype {codes.dtype}")
    if len(codes) and int(codes.max()) >= len(categories):
        raise _bad_column(node, f"code {codes.max()} for {len(categories):,} categories")
    return Labels.from_codes(codes, categories)


def _bad_column(node: Any, found: str) -> InvalidFile:
    path = input_path(node.file.filename)
    issue = make_issue(
        "E012",
        where=f"{path.name}:{node.name}",
        found=found,
        expected="text, numbers, a nullable array or a categorical",
        file=shlex.quote(str(path)),
        key=node.name.rsplit("/", 1)[-1],
    )
    return InvalidFile([issue])


def read_mapping(group: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, node in group.items():
        if node is None:
            # A link that leads nowhere.
            continue
        encoding = node.attrs.get("encoding-type", "")
        if is_group(node):
            if encoding in ("", "dict"):
                out[key] = read_mapping(node)
            continue
        if encoding == "null" or node.shape is None:
            out[key] = None
        elif node.shape == ():
            value = (
                node.asstr(errors="replace")[()]
                if h5py.check_string_dtype(node.dtype) is not None
                else node[()]
            )
            out[key] = value.item() if isinstance(value, np.generic) else value
        else:
            out[key] = read_values(node)
    return out
