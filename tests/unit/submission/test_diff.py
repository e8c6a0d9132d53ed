"""`diff`, the card, and the official tools' memory in `inspect`."""

import json

import numpy as np
import pytest
from builders import GENES
from packing_2026 import CONTEXTS, TARGETS, files_2026, official_cells
from vcbench.data_specs.cli_support import run
from vcbench.evaluator.cli import cli
from vcbench.submission.diffing import diff_entries
from vcbench.submission.inspection import inspect_file
from vcbench.submission.packing import pack

KEYS = [(c, t) for c in CONTEXTS for t in TARGETS for _ in range(4)]


@pytest.fixture
def x():
    return np.random.default_rng(1).poisson(2.0, (len(KEYS), len(GENES))).astype(float)


def write(path, x, keys=KEYS, genes=GENES):
    return official_cells(path, x, [t for _, t in keys], [c for c, _ in keys], genes)


def test_equal_files(x, tmp_path):
    found = diff_entries(write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", x))
    assert found.equal and found.same_values and found.groups == ()


def test_another_gene_order_is_no_other_value(x, tmp_path):
    found = diff_entries(
        write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", x[:, ::-1], genes=GENES[::-1])
    )
    assert not found.equal and found.same_values and not found.same_gene_order and found.groups == ()


def test_changed_values_are_found_per_group(x, tmp_path):
    other = x.copy()
    other[:4, 7] += 2
    found = diff_entries(write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", other))
    assert not found.equal and found.same_values is False and found.same_labels
    (group,) = found.groups
    assert (group.context, group.perturbation, group.largest) == ("A", TARGETS[0], 2.0)
    assert group.rms == pytest.approx(2 / np.sqrt(len(GENES)))


def test_other_labels_and_genes(x, tmp_path):
    keys = [("A", "G009") if k == ("A", TARGETS[0]) else k for k in KEYS]
    keys[-1] = ("A", TARGETS[1])
    found = diff_entries(write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", x, keys))
    assert found.groups_only_left == (("A", TARGETS[0]),) and found.groups_only_right == (("A", "G009"),)
    assert set(found.sizes_differ) == {("A", TARGETS[1]), ("B", TARGETS[2])}
    genes = [*GENES[:-1], "NEW"]
    found = diff_entries(write(tmp_path / "a.h5ad", x), write(tmp_path / "c.h5ad", x, genes=genes))
    assert found.genes_only_left == (GENES[-1],) and found.genes_only_right == ("NEW",)
    assert found.same_values is None and found.groups == ()


def test_block_size_does_not_change_the_answer(x, tmp_path):
    other = x + (np.arange(len(KEYS)) % 2)[:, None]
    paths = write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", other)
    assert diff_entries(*paths) == diff_entries(*paths, block_bytes=400)


def test_command_and_exit_codes(x, tmp_path, capsys):
    a, b = write(tmp_path / "a.h5ad", x), write(tmp_path / "b.h5ad", x + 1)
    assert run(cli, ["diff", str(a), str(a)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal"
    assert run(cli, ["diff", str(a), str(b), "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["groups"][0]["largest"] == 1.0
    assert run(cli, ["diff", str(a), str(b)]) == 1
    assert run(cli, ["diff", str(a), str(tmp_path / "none.h5ad")]) == 1


def test_memory_of_the_official_tools(x, tmp_path):
    memory = inspect_file(write(tmp_path / "a.h5ad", x)).memory
    n = int((x != 0).sum())
    assert memory["official_packing"] == int(1.3 * 8 * n) + 2 * 2**30
    assert memory["official_scoring"] == int(1.12 * 8 * n) + 26 * 2**30


def test_card_beside_the_entry(tmp_path):
    files = files_2026(tmp_path)
    result = pack(files.means, "vcc2026", out=tmp_path / "e.vcc", **files.options(mode="scale"))
    assert result.card == tmp_path / "e.vcc.card.md"
    text = result.card.read_text()
    for part in (
        "Edition: vcc2026",
        "180 x 40",
        result.record["entry"]["sha256"],
        "means.h5ad",
        "scale: asked for.",
        "Variance / mean, relative to controls",
        "W107",
        "vcc submit",
    ):
        assert part in text, part
    assert result.record["model"]["dataset_id"] == "test"
