"""`truth de`: from cells to a table of differential expression that edition openproblems scores."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from vcbench.data_specs.errors import InvalidFile, OutputError, UsageError
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli
from vcbench.evaluator.openproblems.de_table import de_table, write_de_table
from vcbench.evaluator.openproblems.limma import fit_contrasts, log_cpm, moderated_test
from vcbench.evaluator.scoring import score

COMPOUNDS = ("alpha", "beta", "gamma")
CELL_TYPES = ("B cells", "T cells")
DONORS = ("d1", "d2", "d3")
N_GENES, CELLS = 60, 12


def screen(seed=0, *, donors=DONORS, cells=CELLS, effect=2.0):
    """Counts with a donor shift; each compound raises ten genes of its own in every cell type."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 4.0, N_GENES)
    shift = {donor: np.exp(rng.normal(0, 0.2, N_GENES)) for donor in DONORS}
    parts, rows = [], []
    for cell_type in CELL_TYPES:
        for name in ("control", *COMPOUNDS):
            for donor in donors:
                rate = base * shift[donor]
                if name != "control":
                    own = 10 * COMPOUNDS.index(name)
                    rate = rate.copy()
                    rate[own : own + 10] *= effect
                noise = np.exp(rng.normal(0, 0.05, N_GENES))
                parts.append(rng.poisson(rate * noise, (cells, N_GENES)))
                rows += [(cell_type, name, donor)] * cells
    obs = pd.DataFrame(rows, columns=["context", "perturbation", "donor"]).astype("category")
    obs.index = [f"c{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"G{i:02d}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.concatenate(parts).astype(np.float32)), obs=obs, var=var)


def run(capsys, *args):
    from vcbench.data_specs.cli_support import run as run_command

    code = run_command(cli, [str(a) for a in args])
    return code, capsys.readouterr()


def test_the_table_equals_a_dense_computation():
    cells = screen()
    table = de_table(cells, replicates=["donor"], filter_genes=False)
    frame = pd.DataFrame(cells.X.toarray().astype(float)).groupby(
        [cells.obs[c].astype(str).to_numpy() for c in ("context", "perturbation", "donor")]
    )
    bulks = frame.sum()
    counts = bulks.to_numpy()
    names = [f"{a}:{b}" for a, b, _ in bulks.index]
    groups = sorted(set(names))
    design = np.array(
        [
            [float(n == g) for g in groups] + [float(d == x) for x in DONORS[1:]]
            for n, (_, _, d) in zip(names, bulks.index, strict=True)
        ]
    )
    y = log_cpm(counts, counts.sum(axis=1))
    beta, rest, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    assert rank == design.shape[1] and table.record["de"]["df_residual"] == len(y) - rank
    for i, (cell_type, name) in enumerate(table.keys):
        at = groups.index(f"{cell_type}:{name}"), groups.index(f"{cell_type}:control")
        np.testing.assert_allclose(table.layers["logFC"][i], beta[at[0]] - beta[at[1]], atol=1e-10)
    contrasts = np.zeros((1, design.shape[1]))
    contrasts[0, groups.index("B cells:alpha")], contrasts[0, groups.index("B cells:control")] = 1, -1
    test = moderated_test(fit_contrasts(y, design, contrasts))
    np.testing.assert_allclose(table.layers["P.Value"][0], test.p[0], rtol=1e-8)
    np.testing.assert_allclose(table.var["sigma"] ** 2, rest / (len(y) - rank), rtol=1e-9)
    assert table.keys == tuple((c, p) for c in CELL_TYPES for p in COMPOUNDS)


def test_layers_follow_from_each_other():
    layers = de_table(screen(), replicates=["donor"]).layers
    p, sign = layers["P.Value"], np.sign(layers["logFC"])
    np.testing.assert_allclose(layers["sign_log10_pval"], -sign * np.log10(p))
    np.testing.assert_allclose(layers["clipped_sign_log10_pval"], np.clip(-sign * np.log10(p), -4, 4))
    np.testing.assert_array_equal(layers["is_de"], p < 0.05)
    for row, adjusted in zip(p, layers["adj.P.Value"], strict=True):
        ranked = np.sort(row)
        q = [min(ranked[j] * len(row) / (j + 1) for j in range(i, len(row))) for i in range(len(row))]
        np.testing.assert_allclose(np.sort(adjusted), np.minimum(q, 1))


def test_effects_are_found_and_the_null_is_not():
    table = de_table(screen(), replicates=["donor"], filter_genes=False)
    raised = np.zeros(table.layers["is_de_adj"].shape, dtype=bool)
    for i, (_, name) in enumerate(table.keys):
        raised[i, 10 * COMPOUNDS.index(name) :][:10] = True
    found = table.layers["is_de_adj"]
    assert found[raised].mean() > 0.8 and (table.layers["logFC"][raised] > 0).all()
    null = de_table(screen(effect=1.0), replicates=["donor"])
    assert null.layers["is_de_adj"].mean() < 0.01 and 0.02 < null.layers["is_de"].mean() < 0.09


def test_cell_order_and_blocks_do_not_matter(tmp_path):
    cells = screen()
    order = np.random.default_rng(1).permutation(cells.n_obs)
    cells[order].copy().write_h5ad(tmp_path / "shuffled.h5ad")
    one = de_table(cells, replicates=["donor"])
    two = de_table(tmp_path / "shuffled.h5ad", replicates=["donor"], block_bytes=4096)
    assert one.keys == two.keys and one.genes == two.genes
    for key, values in one.layers.items():
        np.testing.assert_array_equal(values, two.layers[key], err_msg=key)


def test_from_cells_to_a_score(tmp_path, capsys):
    cells = screen()
    cells.obs = cells.obs.rename(columns={"context": "cell_type", "perturbation": "sm_name"})
    cells.obs["sm_name"] = cells.obs["sm_name"].cat.rename_categories({"control": "DMSO"})
    cells.write_h5ad(tmp_path / "cells.h5ad")
    held_out = ("B cells", "gamma")
    rows = {(c, p): ("train", "") for c in CELL_TYPES for p in ("DMSO", *COMPOUNDS)}
    write_split(Split({**rows, held_out: ("test", "")}), tmp_path / "split.csv")
    shared = ["--replicate", "donor", "--pert-col", "sm_name", "--control", "DMSO", "--all-genes"]
    shared += ["--context-col", "cell_type", "--split", tmp_path / "split.csv", "--format", "json"]
    for part, n_rows in (("train", 5), ("test", 1)):
        out = tmp_path / f"de_{part}.h5ad"
        code, text = run(capsys, "truth", "de", tmp_path / "cells.h5ad", *shared, "--part", part, "-o", out)
        assert code == 0, text.err
        facts = json.loads(text.out)
        assert facts["n_rows"] == n_rows and facts["n_genes"] == N_GENES and facts["issues"] == []
    code, _ = run(
        capsys, "truth", "control-methods", tmp_path / "de_test.h5ad",
        "--train", tmp_path / "de_train.h5ad", "-o", tmp_path / "controls",
    )  # fmt: skip
    assert code == 0
    code, text = run(
        capsys, "score", tmp_path / "controls/mean_across_compounds.h5ad", "--truth", tmp_path / "de_test.h5ad",
        "--edition", "openproblems", "--reference", f"train={tmp_path / 'de_train.h5ad'}",
        "-o", tmp_path / "card", "--format", "json",
    )  # fmt: skip
    assert code == 0, text.err
    card = json.loads(text.out)
    assert card["metrics"]["mean_rowwise_pearson"]["value"] > 0.8
    assert not [issue for issue in card["issues"] if issue["code"] not in ("W703", "W705")]
    perfect = score(
        tmp_path / "controls/ground_truth.h5ad", tmp_path / "de_test.h5ad", edition="openproblems"
    )
    assert perfect.card.metrics["mean_rowwise_rmse"].value == 0
    test = ad.read_h5ad(tmp_path / "de_test.h5ad")
    assert list(test.obs["cell_type"]) == ["B cells"] and list(test.obs["split"]) == ["test"]
    assert float(np.abs(test.layers["clipped_sign_log10_pval"]).max()) <= 4


def test_training_rows_do_not_see_test_cells(tmp_path):
    cells = screen()
    split = Split(
        {
            **{(c, p): ("train", "") for c in CELL_TYPES for p in ("control", *COMPOUNDS)},
            ("B cells", "gamma"): ("test", ""),
        }
    )
    train = de_table(cells, replicates=["donor"], split=split, part="train")
    cut = cells[~((cells.obs["context"] == "B cells") & (cells.obs["perturbation"] == "gamma"))].copy()
    alone = de_table(cut, replicates=["donor"])
    assert train.keys == alone.keys
    np.testing.assert_array_equal(train.layers["P.Value"], alone.layers["P.Value"])


def codes(error):
    return {issue.code for issue in error.value.issues}


def test_one_replicate_is_refused():
    with pytest.raises(InvalidFile) as error:
        de_table(screen(donors=("d1",)), replicates=["donor"])
    assert codes(error) == {"E712"}


def test_no_control_is_refused():
    cells = screen()
    with pytest.raises(InvalidFile) as error:
        de_table(cells, replicates=["donor"], control="DMSO")
    assert codes(error) == {"E713"}
    # Every compound has donors of its own, so none can be told from its donors.
    alone = cells[(cells.obs["donor"] == "d1") == (cells.obs["perturbation"] == "control")].copy()
    with pytest.raises(InvalidFile) as error:
        de_table(alone, replicates=["donor"])
    assert codes(error) == {"E713"}
    # Without the donors in the model the comparison is possible.
    assert len(de_table(alone, replicates=["donor"], covariates=[]).keys) == 6


def test_cells_without_a_replicate_are_refused():
    cells = screen()
    cells.obs["donor"] = cells.obs["donor"].where(np.arange(cells.n_obs) > 0)
    with pytest.raises(InvalidFile) as error:
        de_table(cells, replicates=["donor"])
    assert codes(error) == {"E714"}


def test_genes_that_are_never_expressed_leave_nothing():
    cells = screen()
    cells.X = sp.csr_matrix((cells.X.toarray() > 12).astype(np.float32))
    with pytest.raises(InvalidFile) as error:
        de_table(cells[:, 1:3].copy(), replicates=["donor"])
    assert codes(error) == {"E715"}


def test_what_is_no_count_or_repeats_is_refused():
    cells = screen()
    cells.X = cells.X * 0.5
    with pytest.raises(InvalidFile) as error:
        de_table(cells, replicates=["donor"])
    assert codes(error) == {"E616"}
    twice = screen()
    twice.var_names = ["G00", *twice.var_names[:1], *twice.var_names[2:]]
    with pytest.raises(InvalidFile) as error:
        de_table(twice, replicates=["donor"])
    assert codes(error) == {"E705"}


def test_rows_that_cannot_be_tested_and_small_pseudobulks_are_told():
    cells = screen()
    no_control = (cells.obs["context"] == "T cells") & (cells.obs["perturbation"] == "control")
    small = np.zeros(cells.n_obs, dtype=bool)
    small[np.flatnonzero((cells.obs["perturbation"] == "beta") & (cells.obs["context"] == "B cells"))[:4]] = (
        True
    )
    table = de_table(cells[~(no_control | small).to_numpy()].copy(), replicates=["donor"])
    assert table.keys == tuple(("B cells", p) for p in COMPOUNDS)
    found = {issue.code: issue.found for issue in table.issues}
    assert set(found) == {"W707", "W708"} and "T cells/alpha" in found["W707"]
    assert found["W708"].startswith("1 of 21 pseudobulks, 8 cells")
    assert list(table.obs["n_pseudobulks"]) == [3, 2, 3]


def test_contradicting_options_are_refused(tmp_path):
    cells = screen()
    for options, text in (
        ({"replicates": []}, "at least one"),
        ({"replicates": ["donor"], "covariates": ["plate"]}, "not among the replicate"),
        ({"replicates": ["donor"], "part": "test"}, "needs a split"),
        ({"replicates": ["donor"], "split": Split({})}, "give the part"),
        ({"replicates": ["nope"]}, "no column 'nope'"),
    ):
        with pytest.raises(UsageError, match=text):
            de_table(cells, **options)
    cells.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(OutputError, match="also an input"):
        write_de_table(tmp_path / "c.h5ad", tmp_path / "c.h5ad", force=True, replicates=["donor"])
