"""`validate` for tables: entries of Open Problems and its training and test tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import Issue, first_of
from ...data_specs.spec_models import Edition
from ..reference_files import read_gene_list
from .pairing import TableRules, layer_issues, repeat_issues, table_rules, truth_issues, value_issues
from .tables import EffectTable, IdMap, open_table, read_id_map, repeats, table_issue

# Difference of a stored clipped value from its formula that rounding to float32 explains.
FORMULA_ATOL = 1e-4


@dataclass
class TableChecks:
    """What was found: issues, plain facts, and (what, why) of checks that were not made."""

    issues: list[Issue] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    not_checked: list[tuple[str, str]] = field(default_factory=list)


def check_table(
    source: Any,
    edition: Edition,
    *,
    genes: str | Path | Sequence[str] | None = None,
    id_map: Any = None,
    header_only: bool = False,
) -> TableChecks:
    """Every problem of an entry (a table with the prediction layer) or of a training or test table.

    `genes` is the gene list an entry must hold, `id_map` the CSV of the rows to predict. Problems are issues, never
    exceptions; the input is not changed.
    """
    found = TableChecks()
    rules = table_rules(edition)
    try:
        rows = None if id_map is None else read_id_map(id_map)
        listed = None if genes is None else read_gene_list(genes).genes
        table = open_table(source)
    except InvalidFile as error:
        found.issues += error.issues
        found.not_checked.append(("the table", "a file could not be read"))
        return found
    is_entry = rules.prediction_layer in table.layers or rules.layer not in table.layers
    found.facts = {
        "source": str(table.path),
        "table": "prediction" if is_entry else "differential expression",
        "n_obs": table.n_obs,
        "n_vars": table.n_vars,
        "layers": sorted(table.layers),
    }
    layer = rules.prediction_layer if is_entry else rules.layer
    found.issues += layer_issues(table, layer) + repeat_issues(table, rules, needs_keys=not is_entry)
    _check_names(table, listed, found)
    found.issues += _uns_issues(table, is_entry)
    if is_entry and rows is not None:
        found.issues += _id_issues(table, rows, rules)
    elif is_entry:
        found.not_checked.append(("rows against the id map", "no --perts id_map.csv given"))
    if header_only or layer not in table.layers:
        why = "only the header was asked for" if header_only else f"there is no layer {layer}"
        found.not_checked.append(("values", why))
        return found
    values = table.layers[layer].astype(np.float64)
    if is_entry:
        found.issues += value_issues(table, rules, values)
    else:
        found.issues += truth_issues(table, rules, values) + _formula_issues(table, rules, values)
    return found


def _check_names(table: EffectTable, listed: Sequence[str] | None, found: TableChecks) -> None:
    if listed is None:
        found.not_checked.append(("genes against the official list", "no --genes given"))
        return
    missing, extra = sorted(set(listed) - set(table.genes)), sorted(set(table.genes) - set(listed))
    if missing:
        expected = f"the {len(listed):,} genes of the list"
        found.issues.append(table_issue("E706", table.path, "/var", f"missing {first_of(missing)}", expected))
    if extra:
        text = f"{first_of(extra)} not in the list"
        found.issues.append(table_issue("W704", table.path, "/var", text, "the listed genes"))


def _uns_issues(table: EffectTable, is_entry: bool) -> list[Issue]:
    wanted = ("dataset_id", "method_id") if is_entry else ("dataset_id",)
    absent = [name for name in wanted if name not in table.uns]
    if not absent:
        return []
    return [table_issue("W703", table.path, "/uns", f"no {' and no '.join(absent)}", " and ".join(wanted))]


def _id_issues(table: EffectTable, rows: IdMap, rules: TableRules) -> list[Issue]:
    names = [str(name) for name in table.obs_names]
    if repeats(names):
        return []
    missing, extra = sorted(set(rows.ids) - set(names)), sorted(set(names) - set(rows.ids))
    if missing or extra:
        text = f"missing {first_of(missing)}; unexpected {first_of(extra)}"
        return [table_issue("E707", table.path, "/obs", text, f"the {len(rows.ids):,} ids of {rows.name}")]
    keys = table.keys(rules.columns)
    place = dict(zip(rows.ids, rows.keys, strict=True))
    wrong = [] if keys is None else [n for n, key in zip(names, keys, strict=True) if place[n] != key]
    if wrong:
        text = f"another cell type or compound in rows {first_of(wrong)}"
        return [table_issue("E707", table.path, "/obs", text, "what the id map says of each id")]
    if tuple(names) != rows.ids:
        return [table_issue("W702", table.path, "/obs", "other order", f"the order of {rows.name}")]
    return []


def _formula_issues(table: EffectTable, rules: TableRules, values: np.ndarray) -> list[Issue]:
    """E711 where the scored layer leaves its range or does not follow from logFC and P.Value."""
    place = f"/layers/{rules.layer}"
    beyond = int((np.abs(values) > rules.limit + FORMULA_ATOL).sum())
    if beyond:
        expected = f"-{rules.limit:g} to {rules.limit:g}"
        return [table_issue("E711", table.path, place, f"{beyond:,} values beyond it", expected)]
    if not {"logFC", "P.Value"} <= set(table.layers):
        return []
    p = np.maximum(table.layers["P.Value"].astype(np.float64), rules.p_floor)
    wanted = -np.sign(table.layers["logFC"].astype(np.float64)) * np.log10(p)
    wrong = int((np.abs(wanted - values) > FORMULA_ATOL).sum())
    if not wrong:
        return []
    expected = f"sign(logFC) * -log10(max({rules.p_floor:g}, P.Value))"
    return [table_issue("E711", table.path, place, f"{wrong:,} of {values.size:,} other values", expected)]
