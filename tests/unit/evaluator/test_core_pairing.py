"""Prediction against truth: every pair code from one valid pair with one defect."""

import json
import shlex
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from core_support import cell_file, draw_cells, mean_file, split_of
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.data_specs.issues import catalogue
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.core.pairing import match
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.scoring import score

GENES = [f"G{i:03d}" for i in range(12)]
SIZES = {("K562", "control"): 6, ("K562", "G001"): 4, ("K562", "G002"): 5}
KEYS = list(SIZES)[1:]


def cells(path, sizes=SIZES, *, genes=GENES, columns=None, seed=0, **options):
    x, labels, contexts = draw_cells(np.random.default_rng(seed), sizes, len(genes))
    if columns is not None:
        columns = {"perturbation": labels, "context": contexts} | columns
        columns = {name: values for name, values in columns.items() if values is not None}
    return cell_file(path, x, labels, contexts, genes, columns=columns, **options)


def means(path, keys=KEYS, *, genes=GENES, **options):
    rng = np.random.default_rng(1)
    return mean_file(path, {key: rng.uniform(0, 3, len(genes)) for key in keys}, genes, **options)


def matched(pred, truth, **options):
    from vcbench.data_specs.h5ad import H5ad

    with H5ad(pred) as ours, H5ad(truth) as theirs:
        return match(ours, theirs, edition=load_edition("core"), options=ScoreOptions(**options))


def error_codes(pred, truth, **options):
    with pytest.raises(InvalidFile) as caught:
        matched(pred, truth, **options)
    return [issue.code for issue in caught.value.issues if issue.severity == "error"]


@pytest.fixture
def truth(tmp_path):
    return cells(tmp_path / "truth.h5ad")


def test_a_good_pair_has_no_issue(tmp_path, truth):
    pair = matched(means(tmp_path / "p.h5ad"), truth)
    assert pair.issues == () and pair.evaluated == tuple(KEYS)


def duplicate_gene(path):
    return means(path, genes=[GENES[0], *GENES[:-1]])


DEFECTS = {
    "E551": lambda path: means(path, genes=[*GENES[:-1], "OTHER"]),
    "E552": lambda path: means(path, target_sum=81.0),
    "E554": lambda path: means(path, KEYS[:1]),
    "E015": lambda path: means(path, refused_text="not json"),
    "E560": lambda path: means(path, kind="counts"),
}


@pytest.mark.parametrize("code", DEFECTS)
def test_defect_of_the_prediction(tmp_path, truth, code):
    assert error_codes(DEFECTS[code](tmp_path / "p.h5ad"), truth) == [code]


def test_repeated_gene(tmp_path, truth):
    assert set(error_codes(duplicate_gene(tmp_path / "p.h5ad"), truth)) == {"E551"}


@pytest.mark.parametrize("text", ["{}", '[{"context": "K562"}]', "[1]"])
def test_refusals_of_a_wrong_form(tmp_path, truth, text):
    assert error_codes(means(tmp_path / "p.h5ad", refused_text=text), truth) == ["E015"]


def test_truth_without_controls(tmp_path):
    truth = cells(tmp_path / "t.h5ad", dict.fromkeys(KEYS, 4) | {("A549", "control"): 4})
    assert error_codes(means(tmp_path / "p.h5ad"), truth) == ["E550"]


def test_counts_without_target_sum(tmp_path):
    truth = cells(tmp_path / "t.h5ad", target_sum=None)
    assert error_codes(means(tmp_path / "p.h5ad"), truth) == ["E553"]


def test_nothing_to_evaluate(tmp_path, truth):
    split = split_of(KEYS, [("K562", "G009")])
    assert error_codes(means(tmp_path / "p.h5ad"), truth, split=split) == ["E555"]
    only_controls = cells(tmp_path / "c.h5ad", {("K562", "control"): 5})
    assert error_codes(means(tmp_path / "p.h5ad"), only_controls) == ["E555"]


def test_prediction_without_contexts(tmp_path):
    both = {(c, p): n for (_, p), n in SIZES.items() for c in ("A", "B")}
    truth = cells(tmp_path / "t.h5ad", both)
    pred = cells(tmp_path / "p.h5ad", columns={"context": None})
    assert error_codes(pred, truth) == ["E556"]


def test_repeated_mean_profile(tmp_path, truth):
    from vcbench.data_specs.h5ad_write import write_h5ad_dense
    from vcbench.data_specs.standard import MatrixMeta, StandardMeta

    obs = {"perturbation": ["G001", "G001", "G002"], "context": ["K562"] * 3}
    uns = StandardMeta("test", MatrixMeta("log1p", 80.0), rows="mean").to_uns()
    write_h5ad_dense(tmp_path / "p.h5ad", np.ones((3, 12)), genes=GENES, obs=obs, uns=uns)
    assert error_codes(tmp_path / "p.h5ad", truth) == ["E212"]


def test_undeclared_matrix(tmp_path, truth):
    import anndata as ad

    data = ad.read_h5ad(cells(tmp_path / "p.h5ad", seed=2))
    data.uns.clear()
    data.write_h5ad(tmp_path / "plain.h5ad")
    assert error_codes(tmp_path / "plain.h5ad", truth) == ["E559"]
    assert matched(tmp_path / "plain.h5ad", truth, matrix="counts").pred.matrix.target_sum == 80.0


def test_matrix_option_against_both_declarations(tmp_path, truth):
    with pytest.raises(UsageError, match="declares counts"):
        matched(truth, truth, matrix="log1p")


def test_truth_of_means(tmp_path):
    pred = means(tmp_path / "p.h5ad")
    assert error_codes(pred, pred) == ["E561"]


def test_missing_label_column(tmp_path, truth):
    assert error_codes(means(tmp_path / "p.h5ad"), truth, pert_col="gene") == ["E563", "E563"]


def test_truth_files_that_do_not_fit(tmp_path, truth):
    other = cells(tmp_path / "b.h5ad", {("B", p): n for (_, p), n in SIZES.items()}, target_sum=90.0)
    with pytest.raises(InvalidFile) as caught:
        score(means(tmp_path / "p.h5ad"), [truth, other])
    assert [issue.code for issue in caught.value.issues] == ["E562"]
    fewer = cells(tmp_path / "c.h5ad", genes=GENES[:-1])
    with pytest.raises(InvalidFile) as caught:
        score(means(tmp_path / "p2.h5ad"), {"A": truth, "B": fewer})
    assert "missing 1 ('G011')" in caught.value.issues[0].found


def warned(pair):
    return {issue.code: issue for issue in pair.issues}


def test_extra_rows_and_controls_are_ignored(tmp_path, truth):
    pred = cells(tmp_path / "p.h5ad", SIZES | {("K562", "G003"): 3}, seed=3)
    found = warned(matched(pred, truth))
    assert set(found) == {"W550", "W551"}
    assert found["W550"].found == "1 ('K562/G003')"


def test_unknown_scale_of_log_values(tmp_path, truth):
    assert set(warned(matched(means(tmp_path / "p.h5ad", target_sum=None), truth))) == {"W552"}


def test_split_rows_without_truth(tmp_path, truth):
    split = split_of([KEYS[0]], [KEYS[1], ("K562", "G009")])
    pair = matched(means(tmp_path / "p.h5ad", KEYS[1:]), truth, split=split)
    assert set(warned(pair)) == {"W553"}
    assert pair.evaluated == (KEYS[1],) and pair.train == (KEYS[0],)


def test_refusals(tmp_path, truth):
    refused = [("K562", "G002", "no GO term"), ("K562", "G777", "not asked")]
    pair = matched(means(tmp_path / "p.h5ad", KEYS[:1], refused=refused), truth)
    assert set(warned(pair)) == {"W554"}
    assert pair.refused == {("K562", "G002"): "no GO term"}


def test_refused_and_predicted(tmp_path, truth):
    pair = matched(means(tmp_path / "p.h5ad", refused=[("K562", "G002", "no GO term")]), truth)
    assert set(warned(pair)) == {"W555"} and pair.refused == {}


def test_rows_without_label(tmp_path):
    labels = ["control"] * 6 + ["G001"] * 4 + ["G002", None, "unassigned", "*", "G002"]
    truth = cells(tmp_path / "t.h5ad", columns={"perturbation": labels})
    pair = matched(means(tmp_path / "p.h5ad"), truth)
    assert warned(pair)["W556"].found == "3 rows"
    assert dict(zip(pair.truth.keys, pair.truth.n_rows, strict=True))["K562", "G002"] == 2


def test_gene_order_is_free(tmp_path, truth):
    order = np.random.default_rng(0).permutation(12)
    x = np.random.default_rng(1).uniform(0, 3, (2, 12))
    straight = mean_file(tmp_path / "a.h5ad", dict(zip(KEYS, x, strict=True)), GENES)
    genes = [GENES[i] for i in order]
    shuffled = mean_file(tmp_path / "b.h5ad", dict(zip(KEYS, x[:, order], strict=True)), genes)
    tables = [score(path, truth, profile="means").result.per_perturbation for path in (straight, shuffled)]
    assert tables[0].equals(tables[1])


def test_log1p_prediction_of_counts_with_one_target_sum(tmp_path, truth):
    pair = matched(means(tmp_path / "p.h5ad"), truth)
    assert (pair.pred.matrix.kind, pair.truth.matrix.kind, pair.target_sum) == ("log1p", "counts", 80.0)


def test_all_problems_at_once(tmp_path, truth):
    pred = means(tmp_path / "p.h5ad", genes=[*GENES[:-1], "OTHER"], target_sum=70.0)
    assert error_codes(pred, truth) == ["E551", "E552"]


def test_every_pair_code_is_tested_here():
    folder = resources.files("vcbench.data_specs").joinpath("issue_codes")
    codes = set(tomllib.loads(folder.joinpath("pair.toml").read_text(encoding="utf-8")))
    assert codes and codes <= set(catalogue())
    text = Path(__file__).read_text(encoding="utf-8")
    assert {code for code in codes if f'"{code}"' not in text} == set()


def test_messages_name_file_place_found_expected_and_a_command(tmp_path, truth):
    pred = means(tmp_path / "with space.h5ad", KEYS[:1])
    with pytest.raises(InvalidFile) as caught:
        matched(pred, truth)
    issue = caught.value.issues[0]
    assert issue.where == "with space.h5ad:/obs"
    assert (issue.found, issue.expected) == ("missing 1 ('K562/G002')", "all 2 evaluated rows")
    assert shlex.split(issue.fix)[:2] == ["vcbench", "predict"]
    assert json.loads(json.dumps(issue.to_json()))["code"] == "E554"


def test_a_fix_holds_for_paths_with_spaces(tmp_path, truth):
    (tmp_path / "my files").mkdir()
    pred = means(tmp_path / "my files" / "p 1.h5ad")
    (issue,) = matched(pred, truth, split=split_of([], KEYS[:1])).issues
    assert issue.code == "W550" and str(pred) in shlex.split(issue.fix)


def test_a_context_is_quoted_once(tmp_path):
    truth = cells(tmp_path / "t.h5ad", dict.fromkeys(KEYS, 4) | {("A549", "control"): 4})
    with pytest.raises(InvalidFile, match="no control cells in context 'K562'"):
        matched(means(tmp_path / "p.h5ad"), truth)
