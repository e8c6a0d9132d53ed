"""The table of expected signs, row by row: complete, exercised, and true on simulated and on the real Norman cells."""

from itertools import product

import pytest
from probe_support import FORMS, NORMAN, halves, informative, norman, report, simulated, strongest
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.probes.expectations import expectation, table
from vcbench.evaluator.probes.registry import all_probes
from vcbench.evaluator.profiles import resolve_profile

EDITIONS = ("core", "vcc2025", "celleval-0.8", "vcc2026")
PROFILES = {"vcc2025": ("vcc", "generalist")}
KINDS = ("counts", "log1p", "mean")
SCALES = ("scale-4", "scale-10")
# Edition vcc2025 has three metrics of celleval-0.8; one form of it is enough for every run.
FAST = [pair for pair in FORMS if pair != ("vcc2025", "counts")]


def covering(edition, probe, metric, kind):
    """The number of the table's row that holds, or None."""
    rows = enumerate(table())
    return next((i for i, row in rows if row.covers(edition, probe, metric, kind)), None)


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_metric_of_every_probe_has_a_row_with_a_reason(edition):
    rules = load_edition(edition)
    for profile in PROFILES.get(edition, (rules.scoring.default_profile,)):
        for probe, metric, kind in product(all_probes(), resolve_profile(rules, profile).metrics, KINDS):
            assert covering(edition, probe, metric, kind) is not None
            assert expectation(edition, probe, metric, rows=kind).reason


def test_rows_name_probes_and_editions_that_exist():
    from fnmatch import fnmatchcase

    for row in table():
        assert set(row.editions) <= set(EDITIONS)
        for pattern in row.probes:
            assert any(fnmatchcase(name, pattern) for name in all_probes()), pattern
        assert set(row.rows) <= set(KINDS)


@pytest.fixture(scope="module")
def simulated_reports(tmp_path_factory):
    """Reports of one informative entry in every form, and of one with weak effects under scaling."""
    folder = tmp_path_factory.mktemp("probes")
    truth, replicate = halves(simulated(folder))
    entry = informative(truth, replicate)
    found = {
        (edition, form): report(folder / f"{edition}-{form}", entry, truth, edition=edition, form=form)
        for edition, form in FAST
    }
    found["vcc2025", "generalist log1p"] = report(
        folder / "generalist",
        entry,
        truth,
        edition="vcc2025",
        form="log1p",
        profile="generalist",
        probes=("label-shuffle", "sign-flip"),
    )
    truth, replicate = halves(simulated(folder, seed=5, cells=300))
    weak = informative(truth, replicate, responding=0.2)
    for edition, form in (("vcc2025", "log1p"), ("vcc2026", "counts")):
        found[edition, f"weak {form}"] = report(
            folder / f"weak-{edition}", weak, truth, edition=edition, form=form, probes=SCALES
        )
    return found


def wrong(found):
    return [
        f"{row.probe} {row.metric}: {row.before:.5g} -> {row.after:.5g}, expected {row.expected}"
        for row in found.rows
        if row.as_expected is False
    ]


@pytest.mark.parametrize("edition,form", FAST)
def test_signs_on_simulated_cells(simulated_reports, edition, form):
    found = simulated_reports[edition, form]
    assert wrong(found) == []
    assert sum(row.as_expected is True for row in found.rows) >= 10


@pytest.mark.parametrize("edition,form", FAST)
def test_exploits_are_caught_when_applied_and_the_entry_itself_is_clean(simulated_reports, edition, form):
    found = simulated_reports[edition, form]
    assert found.flags == () and found.marks == ()
    probes = all_probes()
    applied = [outcome for outcome in found.outcomes if outcome.applied and probes[outcome.name].caught_by]
    # A twist of controls that the edition never reads changes no score.
    assert {outcome.name for outcome in applied if not outcome.caught} == set()
    assert len(applied) >= 5


def test_every_sign_of_the_table_was_seen(simulated_reports):
    seen = set()
    for (edition, form), found in simulated_reports.items():
        kind = form.split()[-1]
        for row in found.rows:
            if row.as_expected is not None:
                seen.add(covering(edition, row.probe, row.metric, kind))
    unseen = [i for i, row in enumerate(table()) if row.expectation.sign is not None and i not in seen]
    assert [(table()[i].editions, table()[i].probes, table()[i].metrics) for i in unseen] == []


def test_tenfold_scaling_raises_the_discrimination_of_2025_and_not_the_cosine_of_2026(simulated_reports):
    moved = {}
    for edition, form, metric in (
        ("vcc2025", "weak log1p", "discrimination_score_l1"),
        ("vcc2026", "weak counts", "pds_cosine"),
    ):
        found = simulated_reports[edition, form]
        assert wrong(found) == []
        moved[edition] = next(row for row in found.rows if (row.probe, row.metric) == ("scale-10", metric))
    assert moved["vcc2025"].expected == "up" and moved["vcc2025"].change > 0.1
    assert moved["vcc2026"].expected == "same" and moved["vcc2026"].change < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("edition,form", FORMS)
def test_signs_on_real_cells(tmp_path, edition, form):
    if not NORMAN.exists():
        pytest.skip(f"real data not found: {NORMAN}")
    cells = norman(tmp_path)
    truth, replicate = halves(cells)
    if edition == "vcc2026":
        truth = replicate = strongest(cells)
    found = report(tmp_path / "n", informative(truth, replicate), truth, edition=edition, form=form)
    assert wrong(found) == []
    assert sum(row.as_expected is True for row in found.rows) >= 5
    assert found.flags == ()
    probes = all_probes()
    missed = [o.name for o in found.outcomes if o.applied and probes[o.name].caught_by and not o.caught]
    assert missed == []
