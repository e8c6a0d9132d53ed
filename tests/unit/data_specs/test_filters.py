"""Quality filters: every rule against a plain computation, the recipes, the report, and input that does not fit."""

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from builders import counts, standard_h5ad
from click.testing import CliRunner
from vcbench.data_specs.cli import data
from vcbench.data_specs.errors import InvalidFile, OutputError, SpecError, UnknownName, UsageError
from vcbench.data_specs.filters import apply, knockdown
from vcbench.data_specs.filters.apply import filter_file, read_de_counts, report_path
from vcbench.data_specs.filters.recipes import FilterRecipe, load_recipe, recipe_ids
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.issues import has_errors
from vcbench.data_specs.schema_check import check_standard
from vcbench.data_specs.specs import parse_spec
from vcbench.data_specs.standard import MatrixMeta, StandardMeta

PERTURBATIONS = ("G000", "G001", "G002", "G000+G001", "ABSENT")


def recipe(*steps):
    table = {"id": "own", "title": "own", "source": "test", "steps": list(steps)}
    return parse_spec(FilterRecipe, table, origin="own")


def step(rule, **parameters):
    return {"rule": rule, **parameters}


@pytest.fixture
def screen(tmp_path):
    """Two contexts, five perturbations in each; targets fall to about half."""
    return standard_h5ad(
        tmp_path / "screen.h5ad",
        perturbations=PERTURBATIONS,
        contexts=("A", "B"),
        cells=14,
        controls=30,
        effect=0.7,
        seed=3,
    )


def filtered(path, *steps, **options):
    out = path.with_name("filtered.h5ad")
    report = filter_file(path, recipe(*steps), out=out, force=True, **options)
    return report, ad.read_h5ad(out)


def dense(path):
    adata = ad.read_h5ad(path)
    return adata, adata.X.toarray().astype(np.float64)


def lognorm(x, target_sum=80.0):
    return np.log1p(x / x.sum(axis=1, keepdims=True) * target_sum)


def test_min_genes_per_cell(screen):
    adata, x = dense(screen)
    report, out = filtered(screen, step("min_genes_per_cell", min_genes=24))
    keep = (x > 0).sum(axis=1) >= 24
    assert 0 < keep.sum() < len(keep) and list(out.obs_names) == list(adata.obs_names[keep])
    assert (out.X.toarray() == x[keep]).all()
    assert report.steps[0].removed.cells == (~keep).sum() and report.after.cells == keep.sum()


def test_min_cells_per_gene_recomputes_totals_and_the_target_sum(screen):
    adata, x = dense(screen)
    adata.obs["total_counts"] = x.sum(axis=1).astype(np.float32)
    screen.unlink()
    adata.write_h5ad(screen)
    keep = (x > 0).sum(axis=0) >= 150
    report, out = filtered(screen, step("min_cells_per_gene", min_cells=150))
    assert 0 < keep.sum() < len(keep) and list(out.var_names) == list(adata.var_names[keep])
    totals = x[:, keep].sum(axis=1)
    assert np.array_equal(out.obs["total_counts"], totals.astype(np.float32))
    controls = (adata.obs["perturbation"] == "control").to_numpy()
    assert report.target_sum == np.median(totals[controls][totals[controls] > 0])
    assert out.uns["vcbench"]["matrix"]["target_sum"] == report.target_sum


def test_min_cells_per_perturbation_is_per_context(screen, tmp_path):
    adata, _ = dense(screen)
    gone = adata.obs_names[(adata.obs.perturbation == "G001") & (adata.obs.context == "B")][:5]
    adata[~adata.obs_names.isin(gone)].copy().write_h5ad(tmp_path / "few.h5ad")
    report, out = filtered(tmp_path / "few.h5ad", step("min_cells_per_perturbation", min_cells=10))
    assert report.steps[0].perturbations == (("B", "G001", "9 cells"),)
    assert set(out.obs.perturbation[out.obs.context == "A"]) == {"control", *PERTURBATIONS}
    assert report.steps[0].removed == apply.Size(cells=9, genes=0, perturbations=1, controls=0)


def test_measured_targets(screen):
    report, out = filtered(screen, step("measured_targets"))
    assert set(out.obs.perturbation) == {"control", "G000", "G001", "G002", "G000+G001"}
    assert set(report.steps[0].perturbations) == {(c, "ABSENT", "target not measured") for c in "AB"}


@pytest.mark.parametrize("scale", ["log1p", "scaled"])
def test_target_knockdown_is_the_ratio_of_means(screen, scale):
    adata, x = dense(screen)
    y = lognorm(x) if scale == "log1p" else np.expm1(lognorm(x))
    most = {}
    for context in "AB":
        here = (adata.obs.context == context).to_numpy()
        control = here & (adata.obs.perturbation == "control").to_numpy()
        for name in PERTURBATIONS[:-1]:
            cells = here & (adata.obs.perturbation == name).to_numpy()
            columns = [adata.var_names.get_loc(part) for part in name.split("+")]
            most[context, name] = (
                y[cells][:, columns].mean(axis=0) / y[control][:, columns].mean(axis=0)
            ).max()
    limit = float(np.mean(sorted(most.values())[-2:]))
    report, out = filtered(screen, step("target_knockdown", max_residual=limit, scale=scale))
    kept = set(zip(out.obs.context, out.obs.perturbation, strict=True))
    wanted = {key for key, ratio in most.items() if ratio < limit}
    assert kept == wanted | {("A", "control"), ("B", "control")} and len(wanted) == 7
    assert ("A", "ABSENT", "target not measured") in report.steps[0].perturbations
    assert sum(why.startswith("residual expression 0.") for _, _, why in report.steps[0].perturbations) == 1


def test_cell_knockdown_compares_every_cell_with_the_control_mean(screen):
    adata, x = dense(screen)
    y = lognorm(x)
    _, out = filtered(screen, step("cell_knockdown", max_residual=0.5))
    keep = (adata.obs.perturbation == "control").to_numpy().copy()
    for i, (context, name) in enumerate(zip(adata.obs.context, adata.obs.perturbation, strict=True)):
        control = ((adata.obs.context == context) & (adata.obs.perturbation == "control")).to_numpy()
        if name not in ("control", "ABSENT"):
            columns = [adata.var_names.get_loc(part) for part in name.split("+")]
            keep[i] = (y[i, columns] / y[control][:, columns].mean(axis=0) < 0.5).all()
    assert list(out.obs_names) == list(adata.obs_names[keep]) and 60 < keep.sum() < 180


@pytest.mark.parametrize("pass_bytes", [2**28, 200])
def test_target_percentile_of_the_controls_in_any_number_of_passes(screen, pass_bytes, monkeypatch):
    monkeypatch.setattr(knockdown, "PASS_BYTES", pass_bytes)
    adata, x = dense(screen)
    y = lognorm(x).astype(np.float32)
    _, out = filtered(screen, step("target_percentile", percentile=30.0), block_bytes=2000)
    keep = (adata.obs.perturbation == "control").to_numpy().copy()
    for i, (context, name) in enumerate(zip(adata.obs.context, adata.obs.perturbation, strict=True)):
        control = ((adata.obs.context == context) & (adata.obs.perturbation == "control")).to_numpy()
        if name not in ("control", "ABSENT"):
            columns = [adata.var_names.get_loc(part) for part in name.split("+")]
            keep[i] = (y[i, columns] <= np.percentile(y[control][:, columns], 30, axis=0)).all()
    assert list(out.obs_names) == list(adata.obs_names[keep]) and keep.sum() > 65


def test_min_de_genes_reads_the_users_table(screen, tmp_path):
    table = tmp_path / "de.csv"
    table.write_text(
        "context,perturbation,n_de_genes\nA,G000,60\nB,G000,50\n,G001,51\n,G002,3\n,G000+G001,99\n,ABSENT,70\n"
    )
    report, _ = filtered(screen, step("min_de_genes", more_than=50), de_genes=table)
    assert {(c, p): why for c, p, why in report.steps[0].perturbations} == {
        ("B", "G000"): "50 DE genes",
        ("A", "G002"): "3 DE genes",
        ("B", "G002"): "3 DE genes",
    }
    with pytest.raises(UsageError, match="--de-genes"):
        filtered(screen, step("min_de_genes", more_than=50))
    table.write_text("perturbation,n_de_genes\nG000,60\n")
    with pytest.raises(InvalidFile) as caught:
        filtered(screen, step("min_de_genes", more_than=50), de_genes=table)
    assert caught.value.issues[0].code == "E655" and "'G001'" in caught.value.issues[0].found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b\n1,2\n", "a, b"),
        ("perturbation,n_de_genes\nA,many\n", "'many'"),
        ("perturbation,n_de_genes\nA,1\nA,2\n", "'A' again"),
    ],
)
def test_broken_tables_of_de_genes(tmp_path, text, found):
    (tmp_path / "de.csv").write_text(text)
    with pytest.raises(InvalidFile) as caught:
        read_de_counts(tmp_path / "de.csv", "own")
    assert caught.value.issues[0].code == "E655" and found in caught.value.issues[0].found


def test_cap_cells_is_a_seeded_choice(screen, tmp_path):
    adata, _ = dense(screen)
    names = adata.obs_names[(adata.obs.perturbation == "G001")][:12]
    adata[~adata.obs_names.isin(names)].copy().write_h5ad(tmp_path / "uneven.h5ad")
    cap = step("cap_cells", per_perturbation="mean", control=25)
    _, first = filtered(tmp_path / "uneven.h5ad", cap, seed=1)
    _, again = filtered(tmp_path / "uneven.h5ad", cap, seed=1)
    _, other = filtered(tmp_path / "uneven.h5ad", cap, seed=2)
    assert list(first.obs_names) == list(again.obs_names) != list(other.obs_names)
    sizes = first.obs.groupby(["context", "perturbation"], observed=True).size()
    # 128 perturbed cells in 10 groups: 12 at most.
    assert sizes["A", "control"] == 25 and sizes["B", "G001"] == 12 == sizes["A", "G000"]
    assert sizes["A", "G001"] == 2


def test_variable_genes_are_scanpys(tmp_path):
    import scanpy as sc

    rng = np.random.default_rng(5)
    genes = [f"G{i:03d}" for i in range(300)]
    x = counts(120, 300, rng)
    x[:40, 100:130] *= rng.integers(1, 6, (40, 30))
    path = standard_h5ad(
        tmp_path / "a.h5ad", perturbations=("G000",), cells=60, controls=60, genes=genes, x=x
    )
    _, out = filtered(path, step("variable_genes", n_genes=50, keep_targets=False))
    theirs = ad.AnnData(sp.csr_matrix(x), var={"gene": genes})
    theirs.var_names = genes
    sc.pp.normalize_total(theirs, target_sum=80.0)
    sc.pp.log1p(theirs)
    sc.pp.highly_variable_genes(theirs, n_top_genes=50)
    assert list(out.var_names) == list(theirs.var_names[theirs.var.highly_variable])
    _, with_target = filtered(path, step("variable_genes", n_genes=50))
    assert set(with_target.var_names) == {*out.var_names, "G000"}


@pytest.mark.parametrize("kind", ["counts", "log1p"])
def test_output_is_a_standard_file_and_does_not_depend_on_the_blocks(tmp_path, kind):
    path = standard_h5ad(tmp_path / "a.h5ad", contexts=("A", "B"), kind=kind, effect=2.0, cells=16)
    before = path.read_bytes()
    steps = (
        step("target_knockdown", max_residual=0.8),
        step("cell_knockdown", max_residual=0.9),
        step("min_cells_per_gene", min_cells=20),
        step("cap_cells", per_perturbation=10),
        step("variable_genes", n_genes=20),
    )
    reports, files = [], []
    for block_bytes in (2**24, 900):
        out = tmp_path / f"{block_bytes}.h5ad"
        reports.append(filter_file(path, recipe(*steps), out=out, block_bytes=block_bytes, seed=4))
        files.append(out.read_bytes())
    assert files[0] == files[1] and path.read_bytes() == before
    assert reports[0].to_json() == reports[1].to_json()
    assert not has_errors(check_standard(out))
    record = ad.read_h5ad(out).uns["vcbench"]
    told = json.loads(report_path(out).read_text())
    assert json.loads(record["filtering"]["report"]) == told == reports[1].to_json()
    listed = json.loads(record["filters"])
    assert [entry["filter"] for entry in listed] == [f"own: {s['rule']}" for s in steps]
    assert (
        listed[-1]["after"] == told["after"]["cells"] and listed[-1]["genes_after"] == told["after"]["genes"]
    )
    sums = [sum(s["removed"][what] for s in told["steps"]) for what in told["before"]]
    assert sums == [told["before"][what] - told["after"][what] for what in told["before"]]


def test_two_filters_in_turn_keep_both_records(screen, tmp_path):
    filter_file(screen, recipe(step("measured_targets")), out=tmp_path / "one.h5ad")
    filter_file(tmp_path / "one.h5ad", recipe(step("cap_cells", control=9)), out=tmp_path / "two.h5ad")
    with H5ad(tmp_path / "two.h5ad") as file:
        listed = json.loads(file.vcbench["filters"])
    assert [entry["filter"] for entry in listed] == ["own: measured_targets", "own: cap_cells"]


def codes(call):
    with pytest.raises(InvalidFile) as caught:
        call()
    return [issue.code for issue in caught.value.issues]


def test_mean_profiles_are_refused(tmp_path):
    meta = StandardMeta("t", MatrixMeta("log1p", 80.0), rows="mean", modality="CRISPRi")
    columns = {"perturbation": ["control", "G0"], "context": ["A", "A"]}
    path = tmp_path / "means.h5ad"
    write_h5ad_dense(path, np.ones((2, 3)), genes=["G0", "G1", "G2"], obs=columns, uns=meta.to_uns())
    assert codes(lambda: filter_file(path, load_recipe("cascade"))) == ["E651"]


@pytest.mark.parametrize(
    ("modality", "name", "refused"),
    [
        ("CRISPRa", "cell-load", True),
        ("CRISPRa", "cascade", False),
        ("drug", "cascade", True),
        ("drug", "perturbench", False),
    ],
)
def test_rules_on_targets_need_a_modality_that_fits(screen, modality, name, refused):
    adata = ad.read_h5ad(screen)
    adata.uns["vcbench"]["modality"] = modality
    adata.write_h5ad(screen)
    if refused:
        assert codes(lambda: filter_file(screen, load_recipe(name))) == ["E652"]
    else:
        assert filter_file(screen, load_recipe(name)).path is None


def test_nothing_left(screen):
    assert codes(lambda: filtered(screen, step("min_cells_per_perturbation", min_cells=99))) == ["E653"]
    assert codes(lambda: filtered(screen, step("min_cells_per_gene", min_cells=9999))) == ["E653"]
    assert codes(lambda: filtered(screen, step("cap_cells", control=0))) == ["E654"]
    assert not screen.with_name("filtered.h5ad").exists()


def test_files_that_are_not_standard(screen):
    adata = ad.read_h5ad(screen)
    record = adata.uns.pop("vcbench")
    adata.write_h5ad(screen)
    assert codes(lambda: filter_file(screen, load_recipe("cascade"))) == ["E624"]
    adata.uns["vcbench"] = record
    adata[adata.obs.perturbation != "control"].copy().write_h5ad(screen)
    assert codes(lambda: filter_file(screen, load_recipe("cascade"))) == ["E619"]
    del adata.obs["context"]
    adata.write_h5ad(screen)
    assert codes(lambda: filter_file(screen, load_recipe("cascade"))) == ["E626"]


def test_values_that_cannot_be(screen):
    adata = ad.read_h5ad(screen)
    for value, code in ((-1.0, "E615"), (np.nan, "E614")):
        adata.X.data[3] = value
        adata.write_h5ad(screen)
        assert codes(lambda: filter_file(screen, load_recipe("scperteval"))) == [code]


def test_layers_are_left_behind_and_silent_targets_told(screen):
    adata, x = dense(screen)
    controls = (adata.obs.perturbation == "control").to_numpy()
    x[controls, adata.var_names.get_loc("G002")] = 0
    adata.X = sp.csr_matrix(x.astype(np.float32))
    adata.layers["more"] = adata.X.copy()
    adata.write_h5ad(screen)
    report, out = filtered(screen, step("cell_knockdown", max_residual=2.0))
    assert [issue.code for issue in report.issues] == ["W651", "W652"] and not out.layers
    assert ("A", "G002", "target silent in controls") in report.steps[0].perturbations


def test_outputs_are_never_inputs_and_never_replaced_unasked(screen, tmp_path):
    with pytest.raises(OutputError, match="is also an input"):
        filter_file(screen, load_recipe("cascade"), out=screen, force=True)
    (tmp_path / "out.filter.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        filter_file(screen, load_recipe("cascade"), out=tmp_path / "out.h5ad")


@pytest.mark.parametrize("name", recipe_ids())
def test_shipped_recipes(name):
    shipped = load_recipe(name)
    assert shipped.id == name and shipped.title and shipped.source and shipped.steps


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([step("coin")], "no rule 'coin'"),
        ([step("min_genes_per_cell", genes=3)], "no parameter 'genes'"),
        ([step("min_genes_per_cell")], "needs 'min_genes'"),
        ([], "at least 1 item"),
    ],
)
def test_recipes_that_break_the_schema(steps, text):
    with pytest.raises(SpecError, match=text):
        recipe(*steps)


def test_unknown_recipes_and_own_ones(tmp_path):
    with pytest.raises(UnknownName, match="cell-load"):
        load_recipe("cell-lode")
    own = tmp_path / "mine.toml"
    own.write_text('title = "t"\nsource = "s"\n[[steps]]\nrule = "cap_cells"\ncontrol = 5\n')
    assert load_recipe(str(own)).steps[0].parameters == {"control": 5}


def test_command(screen, tmp_path):
    out = tmp_path / "out.h5ad"
    done = CliRunner().invoke(data, ["filter", str(screen), "--recipe", "cascade", "--dry-run"])
    assert done.exit_code == 0 and "measured_targets" in done.stdout and "Mixscape" in done.stderr
    assert not out.exists()
    command = ["filter", str(screen), "--recipe", "cascade", "-o", str(out), "--format", "json"]
    done = CliRunner().invoke(data, command)
    told = json.loads(done.stdout)
    assert (
        done.exit_code == 0 and told["out"] == str(out) and told["steps"][0]["removed"]["perturbations"] == 2
    )
    assert json.loads((tmp_path / "out.filter.json").read_text())["after"] == told["after"]
    assert isinstance(CliRunner().invoke(data, command[:4]).exception, UsageError)
