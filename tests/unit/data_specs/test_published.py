"""Every layout's miniature is recognised, checked and converted without loss; its page tells every fact."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_lines import parse
from miniatures import base_spec, miniature
from vcbench.data_specs import card_ids, dataset_ids, load_card, load_dataset
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.dataset_pages import dataset_page
from vcbench.data_specs.published_check import check_file, check_published
from vcbench.data_specs.recognise import recognise_file
from vcbench.data_specs.schema_check import check_standard
from vcbench.evaluator.cli import cli

LAYOUTS = [name for name in dataset_ids() if not name.startswith("layout_")]


def same_values(left, right):
    """Columns agree, whether they are stored as categories, text or numbers."""
    if pd.api.types.is_numeric_dtype(left) and pd.api.types.is_numeric_dtype(right):
        np.testing.assert_array_equal(left.to_numpy(), right.to_numpy())
    else:
        one, two = (column.astype(object).where(column.notna(), None) for column in (left, right))
        assert [None if v is None else str(v) for v in one] == [None if v is None else str(v) for v in two]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_miniature_is_recognised_checked_and_converted(tmp_path, name):
    file = miniature(tmp_path / "published.h5ad", name)
    spec = base_spec(tmp_path / "own.toml", name, file)
    shipped = recognise_file(file)
    assert shipped.best is not None, shipped.why()
    best = shipped.best.spec
    fitting = {best.id, *(c.spec.id for c in shipped.rivals)}
    assert name in fitting or load_dataset(name).derived_from == best.id, shipped.why()
    own = recognise_file(file, [*(load_dataset(other) for other in LAYOUTS), spec])
    # A spec without numbers of its own cannot lose against its copy with numbers by more than their weight.
    assert own.best.spec.id == spec.id and {c.spec.id for c in own.rivals} <= {name}

    issues = check_published(file, spec)
    assert [issue.render() for issue in issues if issue.severity == "error"] == []
    assert check_published(file, spec, block_bytes=1) == issues

    done = convert(file, spec, out=tmp_path / "standard.h5ad")
    assert [i.render() for i in check_standard(tmp_path / "standard.h5ad") if i.severity == "error"] == []
    source, result = ad.read_h5ad(file), ad.read_h5ad(tmp_path / "standard.h5ad")
    source = source[result.obs_names]
    x = source.X if spec.matrix.location == "X" else source.layers["counts"]
    np.testing.assert_array_equal(result.X.toarray(), x.toarray() if hasattr(x, "toarray") else x)
    kept = json.loads(result.uns["vcbench"]["columns"])
    same_values(source.obs[spec.labels.column], result.obs["label_source"])
    for written, published in kept.items():
        same_values(source.obs[published], result.obs[written])
    elsewhere = {spec.labels.column, spec.depth_column, spec.contexts.column}
    assert set(spec.obs_columns) <= set(kept.values()) | elsewhere
    assert done.n_cells == result.n_obs and done.n_dropped == len(ad.read_h5ad(file)) - done.n_cells


def test_the_two_releases_of_dixit_are_told_apart(tmp_path):
    for name in ("dixit2016_scperturb_v1", "dixit2016_scperturb"):
        found = recognise_file(miniature(tmp_path / f"{name}.h5ad", name))
        assert found.best.spec.id == name and not found.rivals
    file = tmp_path / "dixit2016_scperturb_v1.h5ad"
    codes = {issue.code for issue in check_published(file, load_dataset("dixit2016_scperturb_v1"))}
    assert {"W614", "W622", "W630"} <= codes and "E642" not in codes
    assert "E642" not in {i.code for i in check_published(file, load_dataset("dixit2016_gears"))}


def test_ambiguous_files_say_so_and_strangers_are_not_recognised(tmp_path):
    file = miniature(tmp_path / "a.h5ad", "replogle2022_k562_essential")
    done = check_file(file)
    (issue,) = [i for i in done.issues if i.code == "W637"]
    assert issue.severity == "info" and "replogle2022_k562_gwps" in issue.found
    data = ad.AnnData(np.eye(3, dtype=np.float32))
    data.obs["colour"] = ["red", "blue", "red"]
    data.write_h5ad(tmp_path / "b.h5ad")
    done = check_file(tmp_path / "b.h5ad")
    assert (
        done.spec is None
        and "W636" in {i.code for i in done.issues}
        and "E624" in {i.code for i in done.issues}
    )


def test_the_command_checks_by_recognition_and_by_spec(tmp_path, capsys):
    file = miniature(tmp_path / "a.h5ad", "kang2018_liana")
    spec = base_spec(tmp_path / "own.toml", "kang2018_liana", file)
    assert (
        cli.main(["data", "check", str(file), "--spec", str(tmp_path / "own.toml")], standalone_mode=False)
        is None
    )
    assert "valid" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["data", "check", str(file), "--format", "json"])
    shown = json.loads(capsys.readouterr().out)
    # The published file has other numbers of cells and genes, which the documents record.
    assert shown["checked_as"] == "kang2018_liana" and not shown["valid"]
    assert {i["code"] for i in shown["issues"] if i["severity"] == "error"} == {"E635"}
    assert shown["candidates"][0]["evidence"] and spec.labels.column == "condition"


@pytest.mark.parametrize("name", card_ids())
def test_a_page_tells_every_fact(name):
    card = load_card(name)
    page = dataset_page(card)
    assert page.startswith(f"# {card.title}\n") and card.citation.text in page and card.license in page
    for file in card.files:
        assert all(text in page for text in (file.name, *file.urls, file.md5 or "", file.sha256 or ""))
    assert all(trap.text in page for trap in card.traps)
    assert (f"--spec {name} " in page) == (name in dataset_ids())
    for line in page.splitlines():
        if line.startswith("vcbench "):
            parse(line)
