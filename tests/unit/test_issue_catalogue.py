"""The catalogue of issues as a whole: complete entries, commands that parse, a test for every code."""

import re
import string
from pathlib import Path

import click
import pytest
from command_lines import parse
from vcbench.data_specs.errors import UnknownName
from vcbench.data_specs.issues import catalogue, issue_kind, make_issue

ROOT = Path(__file__).parents[2]
SAMPLE = {
    "file": "'my pred.h5ad'",
    "edition": "vcc2025",
    "out": "ENTRY.vcc",
    "genes": "gene_names.csv",
    "perts": "pert_counts.csv",
    "column": "target_gene",
    "control": "ctrl",
    "key": "X",
}


def filled(template):
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return template.format(**{name: SAMPLE.get(name, name.upper()) for name in names})


def test_entries_are_complete():
    for code, kind in catalogue().items():
        assert re.fullmatch(r"[EW]\d{3}", code), code
        assert kind.severity in ("error", "warning", "info"), code
        assert kind.severity == "error" or code.startswith("W"), code
        assert len(kind.title) > 5 and not kind.title.endswith("."), code
        assert len(kind.explanation) > 20 and kind.explanation.endswith((".", ")")), code


@pytest.mark.parametrize("code", list(catalogue()))
def test_fix_is_a_command_that_parses(code):
    parse(filled(catalogue()[code].fix))


@pytest.mark.parametrize(
    "line",
    [
        "vcbench nothing",
        "vcbench validate",
        "vcbench validate a.h5ad",
        "vcbench validate a.h5ad --edition x --mend b",
    ],
)
def test_the_parser_of_this_test_refuses_wrong_lines(line):
    with pytest.raises((AssertionError, click.ClickException)):
        parse(line)


def test_every_code_has_a_test_that_triggers_it():
    # The tables of rules are what their tests are made of.
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").glob("*_rules.py")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.name != Path(__file__).name]
    untested = [
        code for code in catalogue() if not any(re.search(rf'["\']{code}["\']', text) for text in texts)
    ]
    assert untested == []


def test_every_code_is_made_somewhere():
    parts = ("data_specs", "evaluator", "submission", "baselines")
    sources = [path.read_text(encoding="utf-8") for part in parts for path in (ROOT / part).rglob("*.py")]
    unused = [code for code in catalogue() if not any(f'"{code}"' in text for text in sources)]
    assert unused == []


def test_unknown_codes_and_missing_placeholders_are_programming_errors():
    with pytest.raises(UnknownName, match="no issue code 'E999'"):
        issue_kind("E999")
    with pytest.raises(KeyError):
        make_issue("E001", where="x", found="y", expected="z")
