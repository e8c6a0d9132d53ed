"""`vcbench list`, `explain`, `doctor`, `completion`: what the toolkit knows and what this machine has."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..data_specs.cli_support import echo_json, echo_table, format_option

KINDS = ("metrics", "baselines", "editions", "datasets", "issues")
REQUIRED = (
    "numpy",
    "scipy",
    "pandas",
    "h5py",
    "anndata",
    "scanpy",
    "numba",
    "click",
    "rich",
    "pydantic",
    "zstandard",
    "pooch",
    "jinja2",
    "matplotlib",
    "scikit-learn",
)
_CONTROL_PREFIX = "openproblems/"
OPTIONAL = {
    "torch": "train",
    "safetensors": "train",
    "dask": "dask",
    "universal_pathlib": "remote",
    "hdf5plugin": "fast",
    "pyarrow": "fast",
}


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS))
@format_option
def list_(kind: str, output_format: str) -> None:
    """List everything of one KIND.

    \b
    Examples:
      vcbench list metrics
      vcbench list editions --format json
    """
    headers, rows = _listing(kind)
    if output_format == "json":
        echo_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    echo_table(headers, rows)


def _listing(kind: str) -> tuple[list[str], list[list[Any]]]:
    if kind == "metrics":
        from .metrics.spec import FAMILIES, family_metrics

        found = [spec for family in FAMILIES for spec in family_metrics(family).values()]
        return ["metric", "family", "better", "title"], [[s.name, s.family, s.better, s.title] for s in found]
    if kind == "editions":
        from ..data_specs.specs import edition_ids, load_edition

        editions = [load_edition(name) for name in edition_ids()]
        return ["edition", "title", "profiles"], [[e.id, e.title, ", ".join(e.profiles)] for e in editions]
    if kind == "datasets":
        from ..data_specs.specs import dataset_ids, load_dataset

        datasets = [load_dataset(name) for name in dataset_ids()]
        return ["dataset", "modality", "title"], [[d.id, d.modality, d.title] for d in datasets]
    if kind == "issues":
        from ..data_specs.issues import catalogue

        return ["code", "severity", "title"], [[k.code, k.severity, k.title] for k in catalogue().values()]
    return ["baseline", "title"], [[name, text] for name, text in _baselines().items()]


def _baselines() -> dict[str, str]:
    # The registry lives in a part that this one may not import: it is reached by name, as the commands are.
    from importlib import import_module

    from .openproblems.controls import TITLES

    controls = {
        f"{_CONTROL_PREFIX}{name}": f"control method of edition openproblems: {text}"
        for name, text in TITLES.items()
    }
    return {**import_module("vcbench.baselines.registry").titles(), **controls}


def _baseline(name: str) -> dict[str, Any]:
    from importlib import import_module

    if name.startswith(_CONTROL_PREFIX):
        return {
            "title": _baselines()[name],
            "how": "vcbench score PRED --truth de_test.h5ad --reference train=de_train.h5ad --edition openproblems",
            "files": "vcbench truth control-methods de_test.h5ad --train de_train.h5ad -o FOLDER",
        }
    return import_module("vcbench.baselines.registry").explain(name)


@click.command()
@click.argument("name")
@format_option
def explain(name: str, output_format: str) -> None:
    """Explain NAME: an issue code, metric, edition, dataset or baseline.

    \b
    Examples:
      vcbench explain E104
      vcbench explain pearson_delta
      vcbench explain vcc2025
    """
    found = _explanations(name)
    if output_format == "json":
        echo_json(found)
        return
    for item in found:
        click.echo(f"{item['name']}  ({item['kind']})")
        for key, value in item.items():
            if key not in ("name", "kind") and value not in ("", None, [], {}):
                text = "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
                click.echo(f"  {key}: {text}")


def _explanations(name: str) -> list[dict[str, Any]]:
    from ..data_specs.errors import UnknownName
    from ..data_specs.issues import catalogue
    from ..data_specs.specs import dataset_ids, edition_ids, load_dataset, load_edition
    from .metrics.spec import FAMILIES, family_metrics

    found: list[dict[str, Any]] = []
    kinds = catalogue()
    if name in kinds:
        kind = kinds[name]
        found.append(
            {
                "name": name,
                "kind": "issue code",
                "severity": kind.severity,
                "title": kind.title,
                "explanation": kind.explanation,
                "fix": kind.fix,
                "official rules": ", ".join(kind.rules),
            }
        )
    metrics = {family: family_metrics(family) for family in FAMILIES}
    for family, specs in metrics.items():
        if name in specs:
            spec = specs[name]
            found.append(
                {
                    "name": name,
                    "kind": f"metric of family {family}",
                    "title": spec.title,
                    "formula": spec.formula,
                    "better": spec.better,
                    "perfect value": spec.perfect,
                    "nulls": spec.nulls,
                    "scope": spec.scope,
                    "source": spec.source,
                }
            )
    if name in edition_ids():
        found.append(
            {"name": name, "kind": "edition", **load_edition(name).model_dump(mode="json", exclude={"id"})}
        )
    if name in dataset_ids():
        found.append(
            {"name": name, "kind": "dataset", **load_dataset(name).model_dump(mode="json", exclude={"id"})}
        )
    baselines = _baselines()
    if name in baselines:
        found.append({"name": name, "kind": "baseline", **_baseline(name)})
    if not found:
        known = [
            *kinds,
            *(m for specs in metrics.values() for m in specs),
            *edition_ids(),
            *dataset_ids(),
            *baselines,
        ]
        raise UnknownName(
            "issue code, metric, edition, dataset or baseline", name, known, "vcbench list KIND"
        )
    return found


@click.command()
@format_option
def doctor(output_format: str) -> None:
    """Show versions, devices and what is missing. Exit code 1 when a required package is missing."""
    report = _doctor_report()
    if output_format == "json":
        echo_json(report)
    else:
        rows = [
            [name, item["version"] or "missing", item["needed for"]]
            for name, item in report["packages"].items()
        ]
        echo_table(["package", "version", "needed for"], rows)
        click.echo(f"\npython {report['python']}, {report['cpus']} CPUs, {report['memory_gb']} GB memory")
        click.echo(f"CUDA: {report['cuda']}")
        for line in report["problems"]:
            click.echo(f"problem: {line}")
    if report["problems"]:
        raise click.exceptions.Exit(1)


def _doctor_report() -> dict[str, Any]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, dict[str, Any]] = {}
    problems = []
    for name in ("vcbench", *REQUIRED, *OPTIONAL):
        try:
            found: str | None = version(name)
        except PackageNotFoundError:
            found = None
        extra = OPTIONAL.get(name)
        packages[name] = {"version": found, "needed for": f"vcbench[{extra}]" if extra else "everything"}
        if found is None and extra is None:
            problems.append(f"{name} is not installed: pip install vcbench")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": usable,
        "memory_gb": _memory_gb(),
        "cuda": _cuda(packages["torch"]["version"] is not None),
        "packages": packages,
        "problems": problems,
    }


def _memory_gb() -> float | None:
    import os

    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def _cuda(has_torch: bool) -> str:
    if not has_torch:
        return "unknown (torch is not installed; needed for vcbench[train])"
    from importlib import import_module

    torch = import_module("torch")
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Examples:
      vcbench completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from .cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}.")
    click.echo(kind(cli, {}, "vcbench", "_VCBENCH_COMPLETE").source(), file=sys.stdout)
