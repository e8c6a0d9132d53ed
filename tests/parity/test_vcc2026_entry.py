"""Entries made by the official client (vcc-cli 0.3.0): read here, with the same fingerprint, and scored per context."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from packing_2026 import files_2026
from parity.official import tool_python
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.h5ad import H5ad
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth
from vcbench.evaluator.validation import validate
from vcbench.evaluator.vcc2026.fingerprints import perturbations_fingerprint
from vcbench.submission.packing import pack
from vcbench.submission.unpacking import unpack

pytestmark = pytest.mark.parity
CONTEXTS, TARGETS = ("A", "B", "C"), ("G1", "G7", "G12", "G30")
GENES = tuple(f"G{i}" for i in range(60))
CELLS, CONTROLS = 30, 60


def counts(rng: np.random.Generator, rates: np.ndarray, n: int) -> np.ndarray:
    return rng.poisson(rates * rng.gamma(8, 1 / 8, (n, 1)))


def write(path: Path, x: list[np.ndarray], labels: list[str], contexts: list[str], genes=GENES) -> Path:
    obs = pd.DataFrame(
        {"target_gene": labels, "context": contexts}, index=[f"c{i}" for i in range(len(labels))]
    )
    columns = [GENES.index(gene) for gene in genes]
    matrix = sp.csr_matrix(np.concatenate(x)[:, columns].astype(np.float32))
    ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def client() -> str:
    """The official client of the environment that VCBENCH_PARITY_PYTHON names."""
    python = tool_python("VCBENCH_PARITY_PYTHON", "vcc")
    command = Path(python).parent / "vcc"
    if not command.is_file():
        pytest.skip(
            f"{command.name} is not installed beside that Python (vcc-cli 0.3.0, tests/parity/official.txt)"
        )
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not installed")
    return str(command)


@pytest.fixture(scope="module")
def made(client, tmp_path_factory):
    """Truth files per context and the `.vcc` that the client packs of one prediction, genes in another order."""
    folder = tmp_path_factory.mktemp("client")
    rng = np.random.default_rng(11)
    base = 1 + rng.gamma(1.5, 8.0, len(GENES))
    truths, x, labels, contexts = {}, [], [], []
    for context in CONTEXTS:
        effects = np.exp(
            rng.normal(0, 0.8, (len(TARGETS), len(GENES))) * (rng.random((len(TARGETS), len(GENES))) < 0.5)
        )
        real = [counts(rng, base, CONTROLS), *(counts(rng, base * effect, CELLS) for effect in effects)]
        names = ["non-targeting"] * CONTROLS + [t for t in TARGETS for _ in range(CELLS)]
        truths[context] = write(folder / f"{context}.h5ad", real, names, [context] * len(names))
        x += [counts(rng, base * effect**0.7, CELLS) for effect in effects]
        labels += names[CONTROLS:]
        contexts += [context] * (CELLS * len(TARGETS))
    pred = write(folder / "pred.h5ad", x, labels, contexts, genes=tuple(reversed(GENES)))
    genes, perts = folder / "gene_names.csv", folder / "pert_counts.csv"
    genes.write_text("\n".join(GENES) + "\n")
    perts.write_text("\n".join(["target_gene", *reversed(TARGETS)]) + "\n")
    entry = folder / "entry.vcc"
    command = [
        client,
        "prep",
        str(pred),
        "-g",
        str(genes),
        "--perts",
        str(perts),
        "--contexts",
        ",".join(CONTEXTS),
    ]
    options = ["--cells-per-pert", str(CELLS), "--expected-gene-dim", str(len(GENES)), "-o", str(entry)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return entry, pred, truths, genes, perts


def test_the_container_is_read(made):
    entry, pred, *_ = made
    with open_entry(entry) as opened, H5ad(opened.h5ad) as source, H5ad(pred) as original:
        assert opened.container == "vcc2026"
        assert [issue for issue in opened.notes if issue.severity == "error"] == []
        assert tuple(source.genes) == GENES and source.n_obs == original.n_obs
        assert opened.meta["contexts"] == list(CONTEXTS)
        assert opened.meta["n_obs"] == source.n_obs and opened.meta["n_vars"] == source.n_vars
        assert opened.meta["nnz"] == source.matrix.n_stored
        assert opened.meta["perts_fingerprint"] == perturbations_fingerprint(
            source.labels("target_gene").values()
        )
        packed = np.concatenate([block.matrix.toarray() for block in source.row_blocks()])
        plain = np.concatenate([block.matrix.toarray() for block in original.row_blocks()])
        np.testing.assert_array_equal(packed, plain[:, ::-1])


def test_validation_finds_only_the_small_panel(made):
    """Everything but the panel's size and the cells per perturbation is as the rules want it."""
    entry, _, _, genes, perts = made
    report = validate(entry, edition="vcc2026", genes=genes, perts=perts, contexts=CONTEXTS)
    assert all("cells" in issue.message for issue in report.issues if issue.severity == "error"), (
        report.issues
    )


def test_scored_against_a_truth_per_context(made, tmp_path):
    entry, _, truths, *_ = made
    direct = score(entry, truths, edition="vcc2026").card
    assert set(direct.strata) == {f"context={context}" for context in CONTEXTS}
    assert direct.metrics["pds_cosine"].n_total == len(TARGETS) * len(CONTEXTS)
    bundles = {
        context: build_truth(path, tmp_path / context, baseline="generic", n_splits=2).path
        for context, path in truths.items()
    }
    through = score(entry, bundles, edition="vcc2026")
    assert through.card.metrics == direct.metrics and through.card.score is not None
    assert through.result.tables["leaderboard"]["context"].tolist() == [*CONTEXTS, "mean"]


READERS = """
import json, sys
from vcc import vccfile
vccfile.validate_vcc(sys.argv[1])
read = (vccfile.nnz_from_vcc, vccfile.contexts_from_vcc, vccfile.read_vcc_meta)
print(json.dumps([reader(sys.argv[1]) for reader in read]))
"""


def official(client: str, *words: object) -> None:
    done = subprocess.run(
        [client, *(str(word) for word in words)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_our_entry_is_accepted_by_the_client(client, tmp_path):
    """Its container check, its readers of meta.json, and a full dry run of prep on the content; fingerprints agree."""
    files = files_2026(tmp_path)
    entry = tmp_path / "ours.vcc"
    pack(files.means, "vcc2026", out=entry, **files.options(mode="scale"))
    python = Path(client).with_name("python")
    done = subprocess.run([python, "-c", READERS, entry], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nnz, contexts, meta = json.loads(done.stdout)
    plain = unpack(entry, out=tmp_path / "plain.h5ad").h5ad
    with H5ad(plain) as source:
        assert nnz == source.matrix.n_stored and contexts == ["A", "B"]
    lists = ["-g", files.genes, "--perts", files.perts, "--contexts", "A,B", "--expected-gene-dim", "40"]
    official(client, "prep", plain, *lists, "--dry-run")
    official(client, "prep", plain, *lists, "-o", tmp_path / "theirs.vcc")
    with open_entry(tmp_path / "theirs.vcc") as theirs:
        for key in ("schema", "nnz", "n_obs", "n_vars", "contexts", "perts_fingerprint"):
            assert theirs.meta[key] == meta[key], key


def test_a_sample_of_the_client_is_accepted_here(client, tmp_path):
    files = files_2026(tmp_path)
    entry = tmp_path / "sample.vcc"
    words = [
        "-g",
        files.genes,
        "-p",
        files.perts,
        "--contexts",
        "A,B",
        "--genes-per-cell",
        "12",
        "--seed",
        "3",
    ]
    official(client, "sample", *words, "-o", entry)
    report = validate(entry, edition="vcc2026", genes=files.genes, perts=files.perts, contexts=("A", "B"))
    assert report.valid, report.issues
    assert "E541" not in {issue.code for issue in report.issues}
