"""The panel simulator: thinning, determinism, and the way from panel to score."""

import anndata as ad
import numpy as np
import pytest
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.panel import simulate_panel, thin_row
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "sim.h5ad"
    spec = SimulationSpec(
        genes=120, singles=6, doubles=2, contexts=("A", "B"), cells=30, controls=60, depth=900.0
    )
    simulate_dataset(path, spec, 3)
    return path


def test_thinning_is_hypergeometric():
    counts = np.array([50, 30, 0, 20])
    draws = np.array([thin_row(counts, 40, np.random.default_rng(i)) for i in range(4000)])
    assert (draws.sum(axis=1) == 40).all() and (draws <= counts).all()
    p, n, k = counts / 100, 100, 40
    np.testing.assert_allclose(draws.mean(axis=0), k * p, atol=0.2)
    np.testing.assert_allclose(draws.var(axis=0), k * p * (1 - p) * (n - k) / (n - 1), rtol=0.08)
    np.testing.assert_array_equal(thin_row(counts, 100, np.random.default_rng(0)), counts)


def test_panel_holds_what_it_says_and_is_deterministic(screen, tmp_path):
    made = simulate_panel(screen, tmp_path / "p", contexts=["A"], cells=20, controls=50, depth=500, seed=5)
    truth, controls = (ad.read_h5ad(tmp_path / "p" / n) for n in ("truth.h5ad", "controls.h5ad"))
    original = ad.read_h5ad(screen)
    assert made.n_perturbations == 6 and truth.n_obs == 6 * 20 + 50 and controls.n_obs == 50
    assert set(controls.obs["target_gene"]) == {"non-targeting"} and set(truth.obs["context"]) == {"A"}
    x, before = truth.X.toarray(), original[truth.obs_names].X.toarray()
    assert (x == np.rint(x)).all() and (x <= before).all()
    np.testing.assert_array_equal(x.sum(axis=1), np.minimum(before.sum(axis=1), 500))
    np.testing.assert_array_equal(controls.X.toarray(), truth[controls.obs_names].X.toarray())
    assert made.n_shallow == int((before.sum(axis=1) < 500).sum())
    simulate_panel(
        screen, tmp_path / "q", contexts=["A"], cells=20, controls=50, depth=500, seed=5, block_bytes=5000
    )
    for name in ("truth.h5ad", "controls.h5ad", "gene_names.csv", "pert_counts.csv", "manifest.json"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes(), name


def test_panel_to_score(screen, tmp_path):
    from vcbench.data_specs.specs import load_edition
    from vcbench.submission.packing import pack

    simulate_panel(screen, tmp_path / "p", cells=20, depth=500)
    panel = tmp_path / "p"
    truth = ad.read_h5ad(panel / "truth.h5ad")
    entry = truth[truth.obs["target_gene"] != "non-targeting"].copy()
    entry.write_h5ad(tmp_path / "pred.h5ad")
    rules = load_edition("vcc2026")
    panel_rules = rules.panel.model_copy(update={"gene_count": 120, "cells_per_perturbation": 20})
    local = rules.model_copy(update={"panel": panel_rules})
    lists = {"genes": panel / "gene_names.csv", "perts": panel / "pert_counts.csv"}
    pack(tmp_path / "pred.h5ad", local, out=tmp_path / "e.vcc", contexts=["A", "B"], **lists)
    report = validate(tmp_path / "e.vcc", edition=local, contexts=["A", "B"], **lists)
    assert report.valid, report.issues
    card = score(tmp_path / "e.vcc", panel / "truth.h5ad", edition=local).card
    assert card.metrics["pds_cosine"].value == pytest.approx(1.0)


@pytest.mark.slow
def test_a_panel_of_full_size_passes_the_edition_as_it_is(tmp_path):
    """18,533 genes, 400 cells per target, 20,000 counts: no rule of vcc2026 is changed."""
    from vcbench.submission.packing import pack

    spec = SimulationSpec(genes=18533, singles=3, doubles=0, cells=420, controls=300, depth=60000.0)
    simulate_dataset(tmp_path / "screen.h5ad", spec, 0)
    panel = simulate_panel(tmp_path / "screen.h5ad", tmp_path / "p").folder
    truth = ad.read_h5ad(panel / "truth.h5ad")
    truth[truth.obs["target_gene"] != "non-targeting"].copy().write_h5ad(tmp_path / "pred.h5ad")
    options = {"contexts": ["A"], "genes": panel / "gene_names.csv", "perts": panel / "pert_counts.csv"}
    pack(tmp_path / "pred.h5ad", "vcc2026", out=tmp_path / "e.vcc", **options)
    report = validate(tmp_path / "e.vcc", edition="vcc2026", **options)
    assert report.valid and not report.issues
    card = score(tmp_path / "e.vcc", panel / "truth.h5ad", edition="vcc2026").card
    assert card.metrics["pds_cosine"].value == 1.0
    assert card.metrics["de_wilcoxon_sig_jaccard"].value == 1.0


def test_what_cannot_be_cut(screen, tmp_path):
    for options, text in (({"contexts": ["C"]}, "no context"), ({"cells": 31}, "lower --cells")):
        with pytest.raises(UsageError, match=text):
            simulate_panel(screen, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
