"""What a dataset, a challenge edition and a file must look like; convert, split, simulate."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "DatasetSpec": "spec_models",
    "Edition": "spec_models",
    "H5ad": "h5ad",
    "InvalidFile": "errors",
    "Issue": "issues",
    "LabelRecipe": "labels",
    "Labels": "h5ad",
    "SimulationSpec": "simulate_model",
    "SpecError": "errors",
    "Split": "split_file",
    "UsageError": "errors",
    "VCBenchError": "errors",
    "check_file": "published_check",
    "check_standard": "schema_check",
    "convert": "conversion",
    "card_ids": "specs",
    "dataset_ids": "specs",
    "dataset_page": "dataset_pages",
    "draw_split": "splits",
    "edition_ids": "specs",
    "load_card": "specs",
    "load_dataset": "specs",
    "load_edition": "specs",
    "read_gmt": "gmt",
    "recognise_file": "recognise",
    "read_split": "split_file",
    "simulate_dataset": "simulate",
    "write_h5ad_dense": "h5ad_write",
    "write_h5ad_stream": "h5ad_write",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
