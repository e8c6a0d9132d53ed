"""The cells of a published file as the standard sees them: canonical labels with their doses, contexts, who is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .h5ad import H5ad
from .h5ad_columns import Labels
from .labels import CONTROL, UNASSIGNED, LabelRecipe, part_with_dose
from .spec_models import DatasetSpec, DoseRules


@dataclass(frozen=True)
class SourceCells:
    """Labels and contexts, one entry per cell of the source; `keep` masks those with an assigned perturbation.

    `hours` is float64 with NaN where unknown, or None without a column of times; `n_without_dose` counts kept cells
    of a compound whose dose, unit or time cannot be read. `label_map` is published label (with dose, where columns
    complete it) to canonical label.
    """

    source: Labels
    label_map: dict[str, str]
    perturbation: Labels
    context: Labels
    keep: np.ndarray
    hours: np.ndarray | None = None
    n_without_dose: int = 0

    @property
    def controls(self) -> np.ndarray:
        """Mask of the kept control cells."""
        return self.keep & rows_of(self.perturbation, CONTROL)


def recipe_of(spec: DatasetSpec) -> LabelRecipe:
    """The label recipe of a dataset spec."""
    rules = spec.labels
    return LabelRecipe(
        control=rules.control,
        control_patterns=rules.control_patterns,
        unassigned=rules.unassigned,
        separator=rules.separator,
        fillers=rules.fillers,
        strip_regex=rules.strip_regex,
        aliases=rules.aliases,
        filler_patterns=rules.filler_patterns,
        target_regex=rules.target_regex,
        form=rules.form,
    )


def source_cells(file: H5ad, spec: DatasetSpec) -> SourceCells:
    """Read labels, doses and contexts as `spec` describes them. Columns must be there (see E626)."""
    source = file.labels(spec.labels.column)
    label_map = recipe_of(spec).label_map(source.categories)
    canonical = [label_map[str(name)] for name in source.categories]
    perturbation = Labels.from_codes(source.codes, canonical)
    keep = (perturbation.codes >= 0) & ~rows_of(perturbation, UNASSIGNED)
    hours, n_bad = None, 0
    if spec.labels.dose is not None:
        treated = keep & ~rows_of(perturbation, CONTROL)
        perturbation, label_map, hours, n_bad = _dosed(
            file, spec.labels.dose, source, perturbation, treated, label_map
        )
    return SourceCells(source, label_map, perturbation, _contexts(file, spec), keep, hours, n_bad)


def rows_of(labels: Labels, name: str) -> np.ndarray:
    """Mask of the rows with this label."""
    at = np.flatnonzero(labels.categories == name)
    return labels.codes == at[0] if len(at) else np.zeros(len(labels.codes), dtype=bool)


def taken_labels(labels: Labels, keep: np.ndarray) -> Labels:
    """The rows under the mask, with the categories that occur in them."""
    return Labels.from_codes(labels.codes[keep], labels.categories)


def _contexts(file: H5ad, spec: DatasetSpec) -> Labels:
    if spec.contexts.column is None:
        return Labels(np.zeros(file.n_obs, np.int32), np.array([spec.contexts.value], dtype=object))
    published = file.labels(spec.contexts.column)
    renamed = [spec.contexts.rename.get(str(name), str(name)) for name in published.categories]
    return Labels.from_codes(published.codes, renamed)


def _dosed(
    file: H5ad,
    rules: DoseRules,
    source: Labels,
    compounds: Labels,
    treated: np.ndarray,
    label_map: dict[str, str],
) -> tuple[Labels, dict[str, str], np.ndarray | None, int]:
    """(labels with doses, the label map by published label and dose, hours, treated cells without a dose)."""
    dose = _numbers(file, rules.column)
    if rules.unit_column is None:
        unit = Labels(np.zeros(file.n_obs, np.int32), np.array([rules.unit], dtype=object))
    else:
        unit = file.labels(rules.unit_column)
    hours = None if rules.time_column is None else _numbers(file, rules.time_column)
    bad = ~(np.isfinite(dose) & (dose > 0)) | (unit.codes < 0)
    if hours is not None:
        bad |= ~(np.isfinite(hours) & (hours >= 0))
    dosed = treated & ~bad
    # One time for all treated cells says nothing about a perturbation, so only times that vary enter the label.
    timed = hours is not None and len(np.unique(hours[dosed])) > 1
    values, dose_code = np.unique(np.where(dosed, dose, np.zeros(1, dose.dtype)), return_inverse=True)
    times = hours if timed and hours is not None else np.zeros(file.n_obs)
    moments, time_code = np.unique(np.where(dosed, times, 0.0), return_inverse=True)
    keys = np.stack([source.codes, compounds.codes, dose_code, np.where(dosed, unit.codes, -1), time_code])
    unique, inverse = np.unique(keys, axis=1, return_inverse=True)
    names: list[str] = []
    by_dose: dict[str, str] = {}
    # List items are scalars of the column's own precision, so that 0.1 stays 0.1.
    dose_of = list(values)
    codes = np.arange(unique.shape[1])
    for at, (published, compound, d, u, t) in enumerate(unique.T):
        if compound < 0 or published < 0:
            codes[at] = -1
            names.append("")
            continue
        name, text = str(compounds.categories[compound]), str(source.categories[published])
        if u >= 0:
            time = float(moments[t]) if timed else None
            name = part_with_dose(name, dose_of[d], str(unit.categories[u]), time)
            text = part_with_dose(text, dose_of[d], str(unit.categories[u]), time)
        names.append(name)
        by_dose[text] = name
    labels = Labels.from_codes(codes[inverse.ravel()], names)
    kept = {text: name for text, name in label_map.items() if name in (CONTROL, UNASSIGNED)}
    return labels, {**kept, **by_dose}, hours, int((treated & bad).sum())


def _numbers(file: H5ad, column: str) -> np.ndarray:
    """A column of numbers or their text as floats, NaN where it cannot be read; single precision stays single."""
    values = file.values(column)
    if values.dtype.kind == "f":
        return values
    if values.dtype.kind in "iub":
        return values.astype(np.float64)
    labels = file.labels(column)
    table = np.array([*(_number(str(name)) for name in labels.categories), np.nan])
    return table[labels.codes]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
