"""Every code of schema.toml, each from one valid file with one defect: code, place, found, expected and fix."""

import shlex
import tomllib
from importlib import resources

import numpy as np
import pytest
from builders import GENES
from schema_edits import (
    CONVERT,
    DUPLICATE_GENES,
    INSPECT,
    OBS,
    SHOW,
    SPLIT,
    TABLE,
    checked,
    drop,
    edited,
    empty_cell,
    extra_category,
    fractions,
    gmt,
    good,
    means,
    no_controls,
    noted,
    put,
    refused,
    relabel,
    repeated_cell,
    set_value,
    stored_zero,
    unlabel,
)

DEFECTS = {
    "duplicate gene": (
        "E611",
        lambda p: checked(good(p, genes=DUPLICATE_GENES), "E611"),
        "f.h5ad:/var",
        "1 ('G000')",
        "once",
        CONVERT,
    ),
    "duplicate gene in a source": (
        "E611",
        lambda p: refused(good(p, genes=DUPLICATE_GENES), "E611"),
        "f.h5ad:/var",
        "1 ('G000')",
        "once",
        CONVERT,
    ),
    "duplicate cell": (
        "E612",
        lambda p: checked(edited(good(p), repeated_cell), "E612"),
        "f.h5ad:/obs",
        "1 ('2')",
        "once",
        INSPECT,
    ),
    "duplicate cell in a source": (
        "E612",
        lambda p: refused(edited(good(p), repeated_cell), "E612"),
        "f.h5ad:/obs",
        "1 ('2')",
        "once",
        INSPECT,
    ),
    "nan": (
        "E614",
        lambda p: checked(edited(good(p), set_value(5, np.nan)), "E614"),
        "f.h5ad:/X",
        "1 values (first: nan in cell '0', gene",
        "finite",
        INSPECT,
    ),
    "infinity in a source": (
        "E614",
        lambda p: refused(edited(good(p), set_value(5, np.inf)), "E614"),
        "f.h5ad:/X",
        "1 values (first: inf in cell '0', gene",
        "finite",
        INSPECT,
    ),
    "negative": (
        "E615",
        lambda p: checked(edited(good(p), set_value(5, -2)), "E615"),
        "f.h5ad:/X",
        "1 values (first: -2 in cell '0', gene",
        "at least 0",
        INSPECT,
    ),
    "negative in a source": (
        "E615",
        lambda p: refused(edited(good(p), set_value(5, -2)), "E615"),
        "f.h5ad:/X",
        "first: -2",
        "at least 0",
        INSPECT,
    ),
    "fraction": (
        "E616",
        lambda p: checked(fractions(p), "E616"),
        "f.h5ad:/X",
        "1 values (first: 1.5 in cell",
        "whole",
        CONVERT,
    ),
    "log1p source declared counts": (
        "E616",
        lambda p: refused(good(p, kind="log1p"), "E616"),
        "f.h5ad:/X",
        "values (first:",
        "whole",
        CONVERT,
    ),
    "counts declared log1p": (
        "E617",
        lambda p: checked(edited(good(p), put("uns/vcbench/matrix/kind", "log1p")), "E617"),
        "f.h5ad:/X",
        "and no fraction",
        "ln(1 + scaled counts)",
        CONVERT,
    ),
    "counts source declared log1p": (
        "E617",
        lambda p: refused(good(p), "E617", matrix={"kind": "log1p"}),
        "f.h5ad:/X",
        "and no fraction",
        "ln(1 + scaled counts)",
        CONVERT,
    ),
    "another target sum": (
        "E618",
        lambda p: checked(edited(good(p, kind="log1p"), put("uns/vcbench/matrix/target_sum", 100.0)), "E618"),
        "f.h5ad:/X",
        "every row of expm1(X) sums to 80",
        "target sum 100",
        CONVERT,
    ),
    "one row above the target sum": (
        "E618",
        lambda p: refused(
            edited(good(p, kind="log1p"), set_value(0, 5.5)),
            "E618",
            matrix={"kind": "log1p", "target_sum": 80.0},
        ),
        "f.h5ad:/X",
        "1 rows of expm1(X) sum to more",
        "at most the target sum 80",
        CONVERT,
    ),
    "no control": (
        "E619",
        lambda p: checked(no_controls(p), "E619"),
        OBS + "perturbation",
        "no control in 1 ('K562')",
        "'control' cells in every context",
        CONVERT,
    ),
    "no control in a source": (
        "E619",
        lambda p: refused(no_controls(p), "E619"),
        OBS + "perturbation",
        "4 ('G000', 'G000+G001', 'G001', …) and no control",
        "'control'",
        CONVERT,
    ),
    "no context": (
        "E620",
        lambda p: checked(edited(good(p), unlabel("context", 4)), "E620"),
        OBS + "context",
        "1 cells",
        "every cell",
        CONVERT,
    ),
    "no context in a source": (
        "E620",
        lambda p: refused(edited(good(p), unlabel("context", 4)), "E620"),
        OBS + "context",
        "1 cells",
        "every cell",
        CONVERT,
    ),
    "wrong order in a label": (
        "E621",
        lambda p: checked(edited(good(p), relabel("perturbation", 60, "G001+G000")), "E621"),
        OBS + "perturbation",
        "1 ('G001+G000')",
        "A+B with parts in order",
        CONVERT,
    ),
    "is_control": (
        "E622",
        lambda p: checked(edited(good(p), lambda f: f["obs/is_control"].__setitem__(0, False)), "E622"),
        OBS + "is_control",
        "1 cells (first: 0 for cell '0' of 'control')",
        "1 there",
        CONVERT,
    ),
    "n_targets": (
        "E623",
        lambda p: checked(edited(good(p), lambda f: f["obs/n_targets"].__setitem__(67, 1)), "E623"),
        OBS + "n_targets",
        "1 cells (first: 1 for cell '67' of 'G000+G001')",
        "2 there",
        CONVERT,
    ),
    "no record": (
        "E624",
        lambda p: checked(edited(good(p), drop("uns/vcbench")), "E624"),
        "f.h5ad:/uns",
        "no entry vcbench",
        "uns/vcbench",
        CONVERT,
    ),
    "newer schema": (
        "E625",
        lambda p: checked(edited(good(p), put("uns/vcbench/schema_version", 2)), "E625"),
        "f.h5ad:/uns/vcbench",
        "schema version 2",
        "schema version 1",
        CONVERT,
    ),
    "other control label": (
        "E625",
        lambda p: checked(edited(good(p), put("uns/vcbench/control_label", "NT")), "E625"),
        "f.h5ad:/uns/vcbench",
        "'NT'",
        "'control'",
        CONVERT,
    ),
    "missing column": (
        "E626",
        lambda p: checked(edited(good(p), drop("obs/label_source")), "E626"),
        "f.h5ad:/obs",
        "perturbation",
        "label_source",
        CONVERT,
    ),
    "missing column in a source": (
        "E626",
        lambda p: refused(good(p), "E626", depth_column="umi"),
        "f.h5ad:/obs",
        "perturbation",
        "umi",
        CONVERT,
    ),
    "missing label": (
        "E627",
        lambda p: checked(edited(good(p), unlabel("perturbation", 30)), "E627"),
        OBS + "perturbation",
        "1 cells",
        "every cell",
        CONVERT,
    ),
    "no target sum": (
        "E628",
        lambda p: checked(good(p, target_sum=None), "E628"),
        "f.h5ad:/uns/vcbench/matrix",
        "target_sum None",
        "a positive number",
        CONVERT,
    ),
    "log1p without a target sum": (
        "E628",
        lambda p: refused(edited(good(p, kind="log1p"), set_value(0, 5.5)), "E628", matrix={"kind": "log1p"}),
        "f.h5ad:/X",
        "and no matrix.target_sum in mine",
        "equal row sums",
        CONVERT,
    ),
    "empty file": (
        "E629",
        lambda p: checked(good(p, controls=0, perturbations=(), x=np.zeros((0, len(GENES)))), "E629"),
        "f.h5ad:/X",
        "0 cells x 40 genes",
        "at least one cell",
        INSPECT,
    ),
    "empty source": (
        "E629",
        lambda p: refused(good(p, controls=0, perturbations=(), x=np.zeros((0, len(GENES)))), "E629"),
        "f.h5ad:/X",
        "0 cells x 40 genes",
        "at least one cell",
        INSPECT,
    ),
    "nothing assigned": (
        "E630",
        lambda p: refused(good(p, perturbations=("*",), controls=0), "E630"),
        OBS + "perturbation",
        "12 unassigned",
        "labelled cells",
        CONVERT,
    ),
    "empty controls": (
        "E631",
        lambda p: refused(empty_cell(p, slice(0, 20)), "E631"),
        "f.h5ad:/X",
        "20 control cells, all empty",
        "a control cell with a count",
        INSPECT,
    ),
    "gene sets that are no text": (
        "E632",
        lambda p: gmt(p, b"\x1f\x8b broken"),
        "sets.gmt",
        "",
        "GMT file",
        SPLIT,
    ),
    "gene set without genes": (
        "E633",
        lambda p: gmt(p, b"T1\td\tA\tB\nT2\td\n"),
        "sets.gmt:2",
        "0 genes for term 'T2'",
        "at least one gene",
        SPLIT,
    ),
    "gene set twice": (
        "E633",
        lambda p: gmt(p, b"T1\td\tA\tB\nT1\td\tC\n"),
        "sets.gmt:2",
        "'T1' of line 1 again",
        "a new term",
        SPLIT,
    ),
    "source label with two meanings": (
        "E634",
        lambda p: checked(edited(good(p), lambda f: f["obs/label_source/codes"].__setitem__(25, 3)), "E634"),
        OBS + "label_source",
        "1 ('G002')",
        "one perturbation",
        CONVERT,
    ),
    "another number of cells": (
        "E635",
        lambda p: refused(good(p), "E635", n_cells={"value": 70, "verified": "file"}),
        "f.h5ad",
        "68 cells",
        "70 (evidence: file)",
        SHOW,
    ),
    "mean profile twice": (
        "E636",
        lambda p: checked(means(p), "E636"),
        "f.h5ad:/obs",
        "1 ('K562/G000')",
        "one row per context",
        INSPECT,
    ),
    "total_counts of more genes": (
        "E637",
        lambda p: checked(good(p, obs={"total_counts": np.full(68, 5.0, np.float32)}), "E637"),
        OBS + "total_counts",
        "cells (first: 5 for cell '0')",
        "the sum over the genes of the file",
        CONVERT,
    ),
    "undeclared control": (
        "E638",
        lambda p: refused(good(p), "E638", labels={**TABLE["labels"], "control": ["NT"]}),
        OBS + "perturbation",
        "1 ('control')",
        "labels.control",
        CONVERT,
    ),
    "cell without counts": (
        "W610",
        lambda p: checked(empty_cell(p, slice(30, 31)), "W610"),
        "f.h5ad:/X",
        "1 cells (first: '30')",
        "a count in every cell",
        INSPECT,
    ),
    "stored zero": (
        "W611",
        lambda p: checked(edited(good(p), stored_zero), "W611"),
        "f.h5ad:/X",
        "1 stored zeros",
        "non-zero",
        CONVERT,
    ),
    "target not measured": (
        "W612",
        lambda p: checked(good(p, perturbations=("G000", "G000+NOPE")), "W612"),
        "f.h5ad:/var",
        "1 ('NOPE')",
        "all 2 targets",
        INSPECT,
    ),
    "label without cells": (
        "W613",
        lambda p: checked(edited(good(p), extra_category), "W613"),
        OBS + "perturbation",
        "1 ('GONE')",
        "categories that occur",
        CONVERT,
    ),
    "unassigned cells": (
        "W614",
        lambda p: noted(good(p, perturbations=("G000", "*")), "W614"),
        OBS + "perturbation",
        "12 of 44 cells",
        "a label",
        INSPECT,
    ),
    "another file": (
        "W615",
        lambda p: noted(good(p), "W615", files=[{"role": "main", "name": "a.h5ad", "sha256": "0" * 64}]),
        "f.h5ad",
        "sha256",
        "a.h5ad 0000000000000000",
        SHOW,
    ),
    "one cell": (
        "W616",
        lambda p: checked(good(p, cells=1), "W616"),
        OBS + "perturbation",
        "4 ('G000', 'G000+G001', 'G001', …)",
        "at least 2",
        INSPECT,
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_one_defect_gives_its_issue(tmp_path, name):
    code, make, where, found, expected, fix = DEFECTS[name]
    issue = make(tmp_path)
    assert issue.code == code
    assert issue.severity == ("error" if code.startswith("E") else "warning")
    assert issue.where == where or issue.where.endswith(f"/{where}")
    assert found in issue.found and expected in issue.expected
    file = tmp_path / "f.h5ad"
    assert issue.fix == fix.format(file=shlex.quote(str(file)))
    assert issue.message and code in issue.render()


def test_every_code_of_the_catalogue_has_a_defect():
    text = resources.files("vcbench.data_specs").joinpath("issue_codes/schema.toml").read_text("utf-8")
    # The codes of doses have their defects in test_doses.
    assert set(tomllib.loads(text)) - {"E639", "E640"} == {code for code, *_ in DEFECTS.values()}


def test_fixes_are_command_lines_that_parse():
    from vcbench.data_specs.cli import COMMANDS, data

    text = resources.files("vcbench.data_specs").joinpath("issue_codes/schema.toml").read_text("utf-8")
    for table in tomllib.loads(text).values():
        words = shlex.split(table["fix"].format(file="f.h5ad", spec="mine"))
        assert words[0] == "vcbench"
        if words[1] == "data":
            assert words[2] in COMMANDS
            command = data.get_command(None, words[2])
            assert command.make_context(words[2], words[3:]).params
        else:
            assert words[1:] == ["inspect", "f.h5ad"]
