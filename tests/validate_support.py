"""Assertions about validation reports."""

from __future__ import annotations

from vcbench.data_specs.issues import Issue
from vcbench.evaluator.validation_report import ValidationReport


def codes_of(report: ValidationReport) -> set[str]:
    return {issue.code for issue in report.issues}


def expect(
    report: ValidationReport,
    code: str,
    *,
    where: str = "",
    found: str = "",
    expected: str = "",
    fix: str = "vcbench ",
    only: bool = False,
) -> Issue:
    """The one issue of this code; its place, findings and command hold the given texts and none is empty."""
    named = [issue for issue in report.issues if issue.code == code]
    assert len(named) == 1, [issue.render() for issue in report.issues]
    issue = named[0]
    if only:
        assert codes_of(report) == {code}, [i.render() for i in report.issues]
    parts = ((issue.where, where), (issue.found, found), (issue.expected, expected), (issue.fix, fix))
    for text, part in parts:
        assert text and part in text, issue.render()
    assert "{" not in issue.fix and "{" not in issue.message
    assert report.valid == all(i.severity != "error" for i in report.issues)
    return issue
