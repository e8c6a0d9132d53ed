"""The GEARS metrics equal the values that GEARS 0.1.2 gave."""

import numpy as np
import pytest
from core_support import cell_file, draw_cells, log_normalized, mean_file
from gears_arrays import GOLDEN, needs_golden
from vcbench.evaluator.core.de import de_table
from vcbench.evaluator.metrics import gears
from vcbench.evaluator.metrics.spec import family_metrics
from vcbench.evaluator.scoring import score


def analyses(z, i):
    """Our values of condition i, by the name of upstream's function."""
    x, condition, rows = z["metrics/X"], z["metrics/condition"], z["metrics/test_rows"]
    name = z["metrics/conditions"][i]
    means = np.stack([x[condition == other].mean(axis=0) for other in np.unique(condition)])
    c, cells = x[condition == "ctrl"].mean(axis=0), x[rows][condition[rows] == name]
    p, t, de = (
        z["metrics/pred"][condition[rows] == name].mean(axis=0),
        cells.mean(axis=0),
        z["metrics/de_rank"][i],
    )
    hvg = np.argsort(means.std(axis=0))[-200:]
    out = {
        "compute_metrics": gears.core_values(p, t, de),
        "deeper_analysis": gears.deeper_values(p, t, c, de, hvg, cells[:, de[:20]]),
    }
    for suffix in ("non_dropout", "non_zero"):
        top = z[f"metrics/top_{suffix}_de_20"][i]
        out[f"{suffix}_analysis"] = gears.top_set_values(p, t, c, top, cells[:, top], suffix)
    out["non_dropout_analysis"] |= gears.gene_set_directions(p, t, c, gears.gene_sets(t, c))
    return out


@needs_golden
@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize(
    "function", ["compute_metrics", "deeper_analysis", "non_dropout_analysis", "non_zero_analysis"]
)
def test_values_equal_upstream(function, i):
    with np.load(GOLDEN, allow_pickle=False) as z:
        found = analyses(z, i)[function]
        names, values = z[f"metrics/{function}/names"], z[f"metrics/{function}/values"][i]
    expected = {str(n): v for n, v in zip(names, values, strict=True) if not np.isnan(v)}
    # Upstream's mixed gene orders are kept under a name of their own.
    defect = "frac_correct_direction_20_nonzero"
    if defect in expected:
        expected[f"{defect}_upstream"] = expected.pop(defect)
        corrected = found.pop(defect)
        assert 0 <= corrected <= 1
    assert found == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}


@needs_golden
def test_gene_sets_equal_upstream():
    with np.load(GOLDEN, allow_pickle=False) as z:
        x, condition = z["metrics/X"], z["metrics/condition"]
        for i, name in enumerate(z["metrics/conditions"]):
            masks = gears.gene_sets(x[condition == name].mean(axis=0), x[condition == "ctrl"].mean(axis=0))
            order = z["metrics/de_rank"][i]
            for key, mask in masks.items():
                stored = z[
                    "metrics/non_zeros_gene_idx" if key == "non_zero" else "metrics/non_dropout_gene_idx"
                ][i]
                np.testing.assert_array_equal(mask, stored)
                np.testing.assert_array_equal(order[mask[order]][:20], z[f"metrics/top_{key}_de_20"][i])


@needs_golden
def test_every_upstream_name_is_registered():
    known = set(family_metrics("gears"))
    with np.load(GOLDEN, allow_pickle=False) as z:
        for function in ("compute_metrics", "deeper_analysis", "non_dropout_analysis", "non_zero_analysis"):
            assert set(map(str, z[f"metrics/{function}/names"])) <= known


def test_undefined_correlation_is_zero_and_directions_are_three_valued():
    p, t, c = np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.0, 0.0, 1.0, 3.0]), np.ones(4)
    assert gears.pearson(p - c, t - c) == 0.0
    assert list(gears.direction_gap(p, t, c)) == [1, 1, 0, 1]
    assert list(gears.direction_gap(2 * c - t, t, c)) == [2, 2, 0, 2]


def test_a_file_of_means_gives_the_same_as_the_functions(tmp_path):
    genes = [f"G{i:03d}" for i in range(60)]
    sizes = {("K562", "control"): 30, ("K562", "G001"): 20, ("K562", "G002+G003"): 15}
    x, labels, contexts = draw_cells(np.random.default_rng(1), sizes, len(genes))
    truth = cell_file(tmp_path / "t.h5ad", x, labels, contexts, genes)
    dense, names = log_normalized(x), np.array(labels)
    c = dense[names == "control"].mean(axis=0)
    profiles = {key: np.float32(dense[names == key[1]].mean(axis=0) * 0.9) for key in list(sizes)[1:]}
    scored = score(mean_file(tmp_path / "p.h5ad", profiles, genes), truth, profile="gears")
    for row in scored.result.per_perturbation.to_dict("records"):
        p = profiles["K562", row["perturbation"]].astype(float)
        t = dense[names == row["perturbation"]].mean(axis=0)
        assert row["mse"] == pytest.approx(np.mean((p - t) ** 2), abs=1e-12)
        assert row["pearson_delta"] == pytest.approx(np.corrcoef(p - c, t - c)[0, 1], abs=1e-9)
        gap = np.abs(np.sign(p - c) - np.sign(t - c))
        assert row["frac_correct_direction_all"] == np.mean(gap == 0)
    assert scored.card.profile == "gears"
    assert scored.card.metrics["mse_top20_de_non_dropout"].n == 2


def test_no_change_stays_no_change_in_float32(tmp_path):
    genes = [f"G{i:03d}" for i in range(40)]
    x, labels, contexts = draw_cells(
        np.random.default_rng(2), {("K", "control"): 30, ("K", "G001"): 20}, len(genes)
    )
    truth = cell_file(tmp_path / "t.h5ad", x, labels, contexts, genes)
    control = log_normalized(x)[np.array(labels) == "control"].mean(axis=0)
    pred = mean_file(tmp_path / "p.h5ad", {("K", "G001"): control}, genes)
    assert score(pred, truth, profile="gears").card.metrics["frac_opposite_direction_non_zero"].value == 0.0
    core = score(pred, truth).card.metrics
    assert core["pearson_delta"].value is None and core["direction_accuracy"].value == 0.0
    assert core["top20_overlap"].value == 0.0 and core["topk_precision"].value is None


@needs_golden
@pytest.mark.parametrize("panel", ["data", "metrics"])
def test_de_ranking_equals_upstream(panel):
    with np.load(GOLDEN, allow_pickle=False) as z:
        x, condition = z[f"{panel}/X"].astype(np.float64), z[f"{panel}/condition"]
        names, ranks = z[f"{panel}/conditions"], z[f"{panel}/de_rank"]
    control = x[condition == "ctrl"]
    for name, rank in zip(names, ranks, strict=True):
        if name == "ctrl":
            continue
        cells = x[condition == name]
        table = de_table(
            *(cells.mean(axis=0), cells.var(axis=0, ddof=1), len(cells)),
            *(control.mean(axis=0), control.var(axis=0, ddof=1), len(control)),
            alpha=0.05,
        )
        np.testing.assert_array_equal(table.order[:20], rank[:20])
        # Further down, genes with equal statistics may swap places.
        np.testing.assert_allclose(np.abs(table.t[table.order]), np.abs(table.t[rank]), rtol=1e-5, atol=1e-5)
