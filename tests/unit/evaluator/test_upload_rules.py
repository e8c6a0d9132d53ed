"""Every upload rule of 2026 by its file (`upload_rules`); the official client says the same in `tests/parity`."""

import pytest
from packing_2026 import CONTEXTS, files_2026
from upload_rules import CASES, COMMAND_CASES, build, build_command
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.issues import catalogue
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.cli import cli
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

# Rules without a code: they are about options and paths of a command (`COMMAND_CASES`), not about a file.
ELSEWHERE = {"U01", "U02", "U03", "U04", "U05", "U13"}


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


@pytest.mark.parametrize("case", COMMAND_CASES, ids=[f"{c.rule} {c.name}" for c in COMMAND_CASES])
def test_command(case, plain, tmp_path, capsys):
    paths = build_command(*plain, tmp_path / "case")
    before = {path: path.read_bytes() for path in paths.values()}
    words = ["pack", paths["FILE"], "--edition", "vcc2026", "--contexts", ",".join(CONTEXTS)]
    words += ["--genes", paths["GENES"], "--perts", plain[1].perts, *(paths.get(w, w) for w in case.words)]
    words += [] if "-o" in case.words else ["-o", tmp_path / "out.vcc"]
    # Paths are refused by an error of their own (1), options as wrong usage (2).
    assert run(cli, [str(word) for word in words]) == (1 if case.rule in ("U04", "U05") else 2)
    assert case.told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in paths.values()} == before
    assert not (tmp_path / "out.vcc").exists()


def test_every_rule_of_the_client_is_in_a_table():
    """U22 cannot be met: the client takes the length of the gene list as its expectation and warns (W1)."""
    listed = {case.rule for case in CASES} | {case.rule for case in COMMAND_CASES}
    assert {f"U{i:02d}" for i in range(1, 30)} - listed == {"U22"}
    assert {case.rule for case in COMMAND_CASES} == ELSEWHERE


def test_every_rule_has_a_code_or_is_about_a_command():
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
