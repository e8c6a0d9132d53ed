"""Every upload rule of 2026 by its file (`upload_rules`); the official client says the same in `tests/parity`."""

import pytest
from packing_2026 import files_2026
from upload_rules import CASES, build
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.issues import catalogue
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

# Rules without a code: options that only the official client has, or paths that are refused as such.
ELSEWHERE = {
    "U01": "packing always writes float32",
    "U02": "--cells is at least 1: a usage error",
    "U03": "the cap belongs to the edition",
    "U04": "OutputError: inputs are never overwritten",
    "U05": "OutputError: an existing output needs --force",
    "U13": "no cell-type column is asked for",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    files = files_2026(folder)
    pack(files.means, "vcc2026", out=folder / "e.vcc", **files.options(mode="scale"))
    with open_entry(folder / "e.vcc") as opened:
        (folder / "plain.h5ad").write_bytes(opened.h5ad.read_bytes())
    return folder / "plain.h5ad", files


def edition_of(case):
    edition = load_edition("vcc2026")
    rules = {"gene_count": 40, **case.edition}
    return edition.model_copy(update={"panel": edition.panel.model_copy(update=rules)})


@pytest.mark.parametrize("case", CASES, ids=[f"{c.rule} {c.name}".strip() for c in CASES])
def test_rule(case, plain, tmp_path):
    path, lists = build(case, *plain, tmp_path / "case")
    report = validate(path, edition=edition_of(case), contexts=case.contexts, **lists)
    errors = {issue.code for issue in report.issues if issue.severity == "error"}
    assert set(case.codes) <= errors if case.codes else not errors, report.issues
    assert report.valid == (not case.codes)


def test_every_rule_has_a_code_or_a_reason():
    named = {rule for kind in catalogue().values() for rule in kind.rules}
    wanted = (
        {f"2026:U{i:02d}" for i in range(1, 30)}
        | {"2026:W1", "2026:W2"}
        | {f"2026:S{i:02d}" for i in range(1, 11)}
    )
    assert wanted - named == {f"2026:{rule}" for rule in ELSEWHERE}


def test_codes_of_the_table_name_their_rule():
    for case in CASES:
        for code in case.codes:
            assert f"2026:{case.rule}" in catalogue()[code].rules, (case.name, code)
