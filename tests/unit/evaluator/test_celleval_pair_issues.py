"""Every reason why two files cannot be compared, each from a valid pair with one defect; and what must be accepted."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from unit.evaluator.celleval_golden import GENES, LABELS, golden_counts, write_cells
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import InvalidFile, SpecError, UnknownName, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.issues import issue_kind
from vcbench.data_specs.specs import load_edition
from vcbench.data_specs.split_file import Split
from vcbench.evaluator.celleval.pipeline import choose_metrics, score_celleval
from vcbench.evaluator.celleval.rules import Rules
from vcbench.evaluator.score_options import ScoreOptions

EDITION = load_edition("celleval-0.8")


def score(pred, truth, *, profile="vcc", **options):
    with H5ad(pred) as p, H5ad(truth) as t:
        return score_celleval(
            p,
            t,
            edition=EDITION,
            profile=EDITION.profile(profile),
            options=ScoreOptions(**options),
            progress=lambda *_: None,
        )


def codes(pred, truth, **options) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        score(pred, truth, **options)
    for issue in caught.value.issues:
        assert issue.where and issue.found and issue.expected and issue.fix.startswith("vcbench ")
    return [issue.code for issue in caught.value.issues]


@pytest.fixture
def truth(tmp_path):
    return write_cells(tmp_path / "truth.h5ad", golden_counts("real"), LABELS)


@pytest.fixture
def make(tmp_path):
    def build(x=None, labels=LABELS, **kwargs):
        x = golden_counts("pred") if x is None else x
        return write_cells(tmp_path / "pred.h5ad", x, labels, **kwargs)

    return build


def test_other_genes(make, truth):
    assert codes(make(genes=(*GENES[:-1], "other")), truth) == ["E565"]
    assert codes(make(golden_counts("pred")[:, :7], genes=GENES[:7]), truth) == ["E565"]


def test_other_gene_order(make, truth):
    assert codes(make(genes=GENES[::-1]), truth) == ["E566"]


def test_repeated_genes(make, truth):
    assert codes(make(genes=(*GENES[:-1], "g0")), truth) == ["E565", "E577"]


def test_missing_column(make, truth):
    assert codes(make(column="other"), truth) == ["E567"]
    assert codes(make(), truth, pert_col="absent") == ["E567", "E567"]


@pytest.mark.parametrize("renamed", ["g9", "g0"])
def test_other_labels(make, truth, renamed):
    labels = [renamed if label == "g5" else label for label in LABELS]
    assert codes(make(labels=labels), truth) == ["E568"]


def test_no_control(make, truth):
    labels = ["g0" if label == "non-targeting" else label for label in LABELS]
    assert codes(make(labels=labels), truth) == ["E569"]
    assert codes(make(), truth, control="absent").count("E569") == 2


def test_missing_labels(make, truth):
    assert codes(make(labels=[None, *LABELS[1:]]), truth) == ["E570"]


def test_header_problems_come_together(make, truth):
    labels = [None, *("g9" if label == "g5" else label for label in LABELS[1:])]
    assert codes(make(labels=labels, genes=GENES[::-1]), truth) == ["E566", "E568", "E570"]


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "E571"), (-1.0, "E572"), (np.inf, "E573"), (20.5, "E573")]
)
def test_bad_values(make, truth, value, code):
    x = golden_counts("pred")
    x[3, 2] = value
    assert code in codes(make(x), truth)


def test_value_problems_of_both_files_come_together(make, tmp_path):
    broken, negative = golden_counts("pred"), golden_counts("real")
    broken[0, 0], negative[0, 0] = np.nan, -2
    truth = write_cells(tmp_path / "bad_truth.h5ad", negative, LABELS)
    assert codes(make(broken), truth) == ["E571", "E572"]


def test_negative_fractions(make, truth):
    x = np.log1p(golden_counts("pred"))
    x[0, 0] = -0.5
    assert codes(make(x), truth) == ["E572"]


def test_mostly_empty_cells(make, truth):
    x = golden_counts("pred")
    x[5:] = 0
    assert codes(make(x), truth) == ["E574"]


def test_mean_profiles(tmp_path, truth):
    path = tmp_path / "means.h5ad"
    uns = {"vcbench": {"schema_version": 1, "rows": "mean"}}
    with write_h5ad_stream(path, genes=GENES, obs={"target_gene": LABELS}, uns=uns) as writer:
        writer.append(sp.csr_array(golden_counts("pred")))
    assert codes(path, truth) == ["E575"]


def test_nothing_to_evaluate(make, tmp_path):
    only_control = ["non-targeting"] * 42
    truth = write_cells(tmp_path / "controls.h5ad", golden_counts("real"), only_control)
    assert codes(make(labels=only_control), truth) == ["E576"]


def test_unusable_baseline(make, truth, tmp_path):
    table = tmp_path / "agg.csv"
    for text in (
        "",
        "a,b\n1,2\n",
        "statistic,mae\nmean,0.1\n",
        "statistic,overlap_at_N,mae,discrimination_score_l1\nmean,x,1,1\n",
    ):
        table.write_text(text)
        assert codes(make(), truth, references={"baseline": table}) == ["E578"]
    assert codes(make(), truth, references={"baseline": tmp_path / "absent.csv"}) == ["E578"]


def test_a_declared_kind_that_the_rule_contradicts_is_reported(tmp_path, truth):
    path = tmp_path / "declared.h5ad"
    uns = {"vcbench": {"schema_version": 1, "rows": "cell", "matrix": {"kind": "log1p"}}}
    with write_h5ad_stream(path, genes=GENES, obs={"target_gene": LABELS}, uns=uns) as writer:
        writer.append(sp.csr_array(golden_counts("pred")))
    assert [issue.code for issue in score(path, truth).issues] == ["W565"]


def test_accepted_where_the_official_tools_stumble(make, truth, tmp_path):
    """Stored zeros, an unused category, CSC, dense and float16: the same scores as the plain file."""
    expected = score(make(), truth).per_perturbation
    x = golden_counts("pred")
    files = [tmp_path / f"{name}.h5ad" for name in ("zeros", "category", "csc", "dense", "half")]
    for path in files:
        write_cells(path, x, LABELS)
    with h5py.File(files[0], "r+") as file:
        group = file["X"]
        dense_parts = {
            "data": x.ravel(),
            "indices": np.tile(np.arange(8), 42),
            "indptr": np.arange(0, 337, 8),
        }
        for name, part in dense_parts.items():
            del group[name]
            group[name] = part
    with h5py.File(files[1], "r+") as file:
        node = file["obs/target_gene"]
        names = [*node["categories"].asstr()[()], "never"]
        attributes = dict(node["categories"].attrs)
        del node["categories"]
        node.create_dataset("categories", data=names, dtype=h5py.string_dtype())
        node["categories"].attrs.update(attributes)
    csc = sp.csc_array(x)
    with h5py.File(files[2], "r+") as file:
        group = file["X"]
        for name in ("data", "indices", "indptr"):
            del group[name]
            group[name] = getattr(csc, name)
        group.attrs["encoding-type"] = "csc_matrix"
    for path, dtype in ((files[3], np.float32), (files[4], np.float16)):
        with h5py.File(path, "r+") as file:
            del file["X"]
            file["X"] = x.astype(dtype)
    for path in files:
        found = score(path, truth).per_perturbation
        np.testing.assert_allclose(found.iloc[:, 4:], expected.iloc[:, 4:], rtol=0, atol=0, err_msg=path.stem)


def test_linear_values_below_fifteen_are_taken_for_log1p(make, truth):
    result = score(make(golden_counts("pred") * 0.5), truth)
    assert result.parameters["matrices"][1]["kind"] == "log1p"


def test_the_matrix_kind_can_be_set(make, tmp_path):
    truth = write_cells(tmp_path / "low.h5ad", np.minimum(golden_counts("real"), 14), LABELS)
    x = np.minimum(golden_counts("pred"), 14)
    detected = score(make(x), truth)
    set_by_user = score(make(x), truth, matrix="log1p")
    kinds = [[m["kind"] for m in r.parameters["matrices"]] for r in (detected, set_by_user)]
    assert kinds == [["counts", "counts"], ["log1p", "log1p"]]
    assert set_by_user.parameters["matrices"][0]["decided_by"] == "requested"
    assert detected.metrics["mae"].value != set_by_user.metrics["mae"].value


def test_a_split_restricts_both_files(make, truth, tmp_path):
    split = Split({("", "g0"): ("train", ""), ("", "g3"): ("test", ""), ("", "g5"): ("test", "")})
    found = score(make(), truth, split=split)
    assert found.per_perturbation["perturbation"].tolist() == ["g3", "g5"]
    keep = [i for i, label in enumerate(LABELS) if label != "g0"]
    small = [
        write_cells(tmp_path / f"small_{side}.h5ad", golden_counts(side)[keep], [LABELS[i] for i in keep])
        for side in ("pred", "real")
    ]
    expected = score(*small).per_perturbation
    np.testing.assert_array_equal(found.per_perturbation.iloc[:, 2:], expected.iloc[:, 2:])


def test_contexts_are_scored_one_by_one(tmp_path):
    labels = LABELS * 2
    contexts = ["B"] * 42 + ["A"] * 42
    paths = []
    for side, other in (("pred", "real"), ("real", "pred")):
        x = np.vstack([golden_counts(side), golden_counts(other)])
        path = tmp_path / f"{side}.h5ad"
        with write_h5ad_stream(path, genes=GENES, obs={"target_gene": labels, "line": contexts}) as writer:
            writer.append(sp.csr_array(x))
        paths.append(path)
    result = score(*paths, context_col="line")
    assert result.per_perturbation["context"].tolist() == ["A"] * 3 + ["B"] * 3
    alone = [
        write_cells(tmp_path / f"one_{side}.h5ad", golden_counts(side), LABELS) for side in ("pred", "real")
    ]
    forward, backward = score(*alone), score(*alone[::-1])
    assert result.strata["context=B"]["mae"] == forward.metrics["mae"]
    assert result.strata["context=A"]["overlap_at_N"] == backward.metrics["overlap_at_N"]
    assert result.tables["results"]["context"].tolist() == ["A"] * 3 + ["B"] * 3
    many = Split({("A", "g0"): ("test", ""), ("B", "g3"): ("test", "")})
    with pytest.raises(UsageError, match="context"):
        score(*paths, split=many)


def test_unknown_metric_and_broken_edition():
    with pytest.raises(UnknownName, match="overlap_at_N"):
        choose_metrics(["overlap_at_n"])
    parameters = {"version": "0.8", "strange": 1}
    broken = EDITION.model_copy(
        update={"scoring": EDITION.scoring.model_copy(update={"parameters": parameters})}
    )
    with pytest.raises(SpecError, match=r"unknown key 'strange'.*missing key 'alpha'"):
        Rules.of(broken)


@pytest.mark.parametrize("code", [f"E{n}" for n in range(565, 579)] + ["W565"])
def test_every_fix_parses(code):
    from vcbench.evaluator.cli import cli

    command = issue_kind(code).fix.format(file="x.h5ad", edition="celleval-0.8").split()[1:]
    assert run(cli, [command[0], "--help"]) == 0
