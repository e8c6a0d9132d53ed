"""Published splits as named recipes: a scheme with its parameters, and what the labels and the sizes should be.

One TOML under `split_recipes/` is one recipe. It stores hashes of the labels that the published split was drawn on,
never the labels; a file whose labels differ is split by the same rule, and the difference is an issue.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..errors import InvalidFile, UnknownName, UsageError
from ..issues import Issue, Severity, make_issue
from ..remote import input_path
from ..spec_models import Strict
from ..specs import parse_spec, read_toml
from ..split_file import SPLIT_NAMES, Split, labels_sha256
from . import SCHEMES, draw_split
from .labels_table import LabelTable

FOLDER = "split_recipes"
LIST_COMMAND = "vcbench data split --help"


class KnownLabels(Strict):
    """The labels that the published split was drawn on, without control.

    `n` counts what the scheme draws on: published condition strings for GEARS' schemes, perturbations for others.
    `sha256` is `labels_sha256` of those strings, `perturbations_sha256` that of the canonical perturbations.
    """

    n: int = Field(ge=1)
    sha256: str | None = Field(default=None, pattern=r"[0-9a-f]{64}")
    perturbations_sha256: str | None = Field(default=None, pattern=r"[0-9a-f]{64}")
    note: str = ""


class ExpectedSizes(Strict):
    """Sizes of the published split at one seed; what is not published stays None or empty."""

    seed: int
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    test_subgroups: Mapping[str, int] = Field(default_factory=dict)


class SplitRecipe(Strict):
    """A published split. `draw` says whether the scheme repeats the publication's own draw (`published`), or
    follows its rule with a generator of our own (`own`): then sizes agree and lists do not.

    `open` names the options that the publication leaves to the user, such as the context that is left out.
    """

    id: str
    title: str
    source: str
    scheme: str
    draw: Literal["published", "own"]
    datasets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(min_length=1)
    options: Mapping[str, Any] = Field(default_factory=dict)
    open: tuple[str, ...] = ()
    labels: KnownLabels | None = None
    expected: tuple[ExpectedSizes, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SplitRecipe:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme: no split scheme {self.scheme!r}")
        known = set(SCHEMES[self.scheme].options()) - {"seed"}
        foreign = sorted((set(self.options) | set(self.open)) - known)
        if foreign:
            raise ValueError(f"scheme {self.scheme} has no option {foreign[0]!r}")
        both = sorted(set(self.options) & set(self.open))
        if both:
            raise ValueError(f"option {both[0]!r} is both fixed and open")
        if any(sizes.seed not in self.seeds for sizes in self.expected):
            raise ValueError("expected: a seed that `seeds` does not list")
        return self


@dataclass(frozen=True)
class RecipeDraw:
    """What `draw_recipe` made: the splits as a scheme gives them, and how the labels compare to the published ones.

    `labels` is `same` (the stored hash), `reordered` (the same perturbations under other published strings),
    `different`, or `unknown` (the recipe stores no hash). `issues` holds warnings; they are in the records too.
    """

    splits: Split | dict[str, Split]
    labels: Literal["same", "reordered", "different", "unknown"]
    issues: tuple[Issue, ...]


def recipe_ids() -> list[str]:
    """Ids of the shipped split recipes, sorted."""
    root = resources.files("vcbench.data_specs").joinpath(FOLDER)
    return sorted(entry.name[:-5] for entry in root.iterdir() if entry.name.endswith(".toml"))


@cache
def load_recipe(name: str) -> SplitRecipe:
    """A shipped recipe by id, or a TOML of the user's by path.

    Raises
    ------
    UnknownName
        No shipped recipe has this id.
    SpecError
        The TOML breaks the schema.
    """
    if name.endswith(".toml"):
        return parse_spec(SplitRecipe, {"id": Path(name).stem, **read_toml(Path(name))}, origin=name)
    if name not in recipe_ids():
        raise UnknownName("split recipe", name, recipe_ids(), LIST_COMMAND)
    text = resources.files("vcbench.data_specs").joinpath(FOLDER, f"{name}.toml").read_text(encoding="utf-8")
    return parse_spec(SplitRecipe, {"id": name, **tomllib.loads(text)}, origin=f"{name}.toml")


def draw_recipe(
    table: LabelTable,
    recipe: SplitRecipe,
    *,
    seed: int | None = None,
    source: str | os.PathLike[str] = "the file",
    **options: Any,
) -> RecipeDraw:
    """The split of `table` by a published recipe, compared with what was published.

    `seed` defaults to the recipe's first. `options` are those that the recipe leaves open; None leaves one out.
    `source` is how issues name the file.

    Raises
    ------
    UsageError
        A seed that was not published, or an option that the recipe fixes.
    InvalidFile
        The labels are the published ones, but the sizes of the split are not (E605).
    """
    given = {name: value for name, value in options.items() if value is not None}
    fixed = sorted(set(given) - set(recipe.open))
    if fixed:
        names = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise UsageError(f"recipe {recipe.id} fixes {names}; draw your own with --scheme {recipe.scheme}.")
    seed = recipe.seeds[0] if seed is None else seed
    if seed not in recipe.seeds:
        published = ", ".join(str(s) for s in recipe.seeds)
        raise UsageError(
            f"recipe {recipe.id} has the seeds {published}, not {seed}; use --scheme {recipe.scheme}."
        )
    drawn = draw_split(table, recipe.scheme, seed=seed, **recipe.options, **given)
    parts = {"": drawn} if isinstance(drawn, Split) else drawn
    first = next(iter(parts.values()))
    labels, issues = _compare_labels(table, recipe, first, source)
    for part in parts.values():
        issues += _compare_sizes(recipe, part, seed, labels, source)
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        raise InvalidFile(errors)
    note = {
        "recipe": recipe.id,
        "draw": recipe.draw,
        "labels": labels,
        "issues": [i.to_json() for i in issues],
    }
    named = {name: Split(part.rows, {**part.record, "recipe": note}) for name, part in parts.items()}
    return RecipeDraw(named[""] if isinstance(drawn, Split) else named, labels, tuple(issues))


def _drawn_on(table: LabelTable, split: Split) -> tuple[int, str, str]:
    """(number, hash, hash of the perturbations) of what a scheme draws on."""
    own = split.record.get("conditions")
    if own is not None:
        return own["n_drawn_on"], own["sha256"], own["perturbations_sha256"]
    digest = labels_sha256(table.perturbations)
    return len(table.perturbations), digest, digest


def _compare_labels(
    table: LabelTable, recipe: SplitRecipe, split: Split, source: str | os.PathLike[str]
) -> tuple[Literal["same", "reordered", "different", "unknown"], list[Issue]]:
    known = recipe.labels
    n, digest, of_perturbations = _drawn_on(table, split)
    foreign = bool(recipe.datasets) and not any(table.dataset_id.startswith(name) for name in recipe.datasets)
    if known is None or known.sha256 is None:
        if foreign or (known is not None and known.n != n):
            return "different", [_labels_issue(table, recipe, n, digest, source)]
        return "unknown", []
    if digest == known.sha256:
        return "same", []
    if of_perturbations == known.perturbations_sha256:
        found = f"{n:,} label strings, sha256 {digest[:16]}…"
        expected = f"{known.n:,} label strings, sha256 {known.sha256[:16]}…"
        return "reordered", [_issue("W602", recipe, source, found, expected)]
    return "different", [_labels_issue(table, recipe, n, digest, source)]


def _labels_issue(
    table: LabelTable, recipe: SplitRecipe, n: int, digest: str, source: str | os.PathLike[str]
) -> Issue:
    known = recipe.labels
    found = f"{n:,} labels, sha256 {digest[:16]}…, of dataset {table.dataset_id}"
    sha = f", sha256 {known.sha256[:16]}…" if known and known.sha256 else ""
    count = f"{known.n:,} labels{sha}" if known else "labels"
    of = f", of dataset {' or '.join(recipe.datasets)}" if recipe.datasets else ""
    return _issue("W601", recipe, source, found, count + of)


def _compare_sizes(
    recipe: SplitRecipe, split: Split, seed: int, labels: str, source: str | os.PathLike[str]
) -> list[Issue]:
    sizes = next((sizes for sizes in recipe.expected if sizes.seed == seed), None)
    if sizes is None or labels in ("different", "reordered"):
        return []
    own = split.record.get("conditions", split.record)
    wanted = {name: getattr(sizes, name) for name in SPLIT_NAMES if getattr(sizes, name) is not None}
    found = {name: own["n"][name] for name in wanted}
    wanted |= sizes.test_subgroups
    found |= {name: own["subgroups"]["test"].get(name, 0) for name in sizes.test_subgroups}
    if found == wanted:
        return []
    # Without a stored hash the labels may be others of the same number, so other sizes prove nothing.
    severity = "error" if labels == "same" else "warning"
    return [_issue("E605", recipe, source, _listed(found), _listed(wanted), severity)]


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sizes.items())


def _issue(
    code: str,
    recipe: SplitRecipe,
    source: str | os.PathLike[str],
    found: str,
    expected: str,
    severity: Severity | None = None,
) -> Issue:
    return make_issue(
        code,
        where=f"{input_path(source).name}:/obs/perturbation",
        found=found,
        expected=expected,
        severity=severity,
        file=shlex.quote(str(source)),
        recipe=recipe.id,
        scheme=recipe.scheme,
    )
