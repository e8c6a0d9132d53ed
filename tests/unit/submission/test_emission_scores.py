"""`pack --score-emission`: what emission alone costs, scored against stand-in cells of the same means."""

import json

import pytest
from packing_2026 import files_2026
from packing_files import pack_files
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scoring import Scorer
from vcbench.submission import emission_scores as module
from vcbench.submission.packing import pack

GENES = tuple(f"G{i:03d}" for i in range(60))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return files_2026(tmp_path_factory.mktemp("in"), genes=GENES, controls=600)


def by_metric(result):
    return {score["metric"]: score for score in result.record["emission_scores"]["metrics"]}


def test_the_entry_is_the_same_and_the_record_and_card_have_the_scores(files, tmp_path):
    plain = pack(files.means, "vcc2026", out=tmp_path / "plain.vcc", **files.options())
    scored = pack(files.means, "vcc2026", out=tmp_path / "scored.vcc", score_emission=3, **files.options())
    assert plain.entry.read_bytes() == scored.entry.read_bytes()
    assert "emission_scores" not in plain.record
    record = json.loads(scored.manifest.read_text())["emission_scores"]
    assert record == scored.record["emission_scores"] and record["n_perturbations"] == 3
    assert "What emission alone costs (3 perturbations" in scored.card.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name + end for name in ("plain.vcc", "scored.vcc") for end in ("", ".card.md", ".manifest.json")
    )


def test_the_cells_scored_are_those_of_the_entry(files, tmp_path, monkeypatch):
    seen = {}

    class Watching(Scorer):
        def score(self, pred, **options):
            with H5ad(pred) as file:
                rows = [block.matrix.toarray() for block in file.row_blocks()]
                names, contexts = file.labels("target_gene").values(), file.labels("context").values()
                seen[pred.name] = dict(zip(zip(contexts, names, strict=True), rows[0].tolist(), strict=True))
            return super().score(pred, **options)

    monkeypatch.setattr("vcbench.evaluator.scoring.Scorer", Watching)
    options = files.options(mode="thin", score_emission=2)
    entry = pack(files.means, "vcc2026", out=tmp_path / "e.h5ad", **{**options, "force": True}).entry
    with H5ad(entry) as file:
        (block,) = file.row_blocks()
        names, contexts = file.labels("target_gene").values(), file.labels("context").values()
        packed = dict(zip(zip(contexts, names, strict=True), block.matrix.toarray().tolist(), strict=True))
    assert len(seen["emitted.h5ad"]) == 4
    assert all(packed[key] == row for key, row in seen["emitted.h5ad"].items())
    assert seen["second-draw.h5ad"] != seen["emitted.h5ad"]


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_for_any_number_of_threads(threads, files, tmp_path):
    first = pack(
        files.means, "vcc2026", out=tmp_path / "a.vcc", threads=1, score_emission=2, **files.options()
    )
    again = pack(
        files.means, "vcc2026", out=tmp_path / "b.vcc", threads=threads, score_emission=2, **files.options()
    )
    assert first.record["emission_scores"] == again.record["emission_scores"]


def test_cells_without_spread_cost_what_rank_tests_see(files, tmp_path):
    scored = {
        mode: by_metric(
            pack(
                files.means,
                "vcc2026",
                out=tmp_path / f"{mode}.vcc",
                mode=mode,
                score_emission=3,
                **files.options(),
            )
        )
        for mode in ("tile", "scale")
    }
    name = "de_wilcoxon_sig_jaccard"
    assert scored["tile"][name]["entry"] < scored["scale"][name]["entry"]
    # The stand-in does not depend on the entry's mode.
    assert scored["tile"][name]["second_draw"] == scored["scale"][name]["second_draw"]
    assert scored["tile"][name]["perfect"] == 1 and scored["tile"][name]["better"] == "higher"


def test_a_log_edition_is_scored_in_log_space(tmp_path):
    (tmp_path / "in").mkdir()
    files = pack_files(tmp_path / "in", genes=GENES)
    result = pack(
        files.means,
        "vcc2025",
        out=tmp_path / "e.vcc",
        genes=files.genes,
        perts=files.perts,
        controls=files.cells,
        score_emission=4,
    )
    found = by_metric(result)
    # Tiled profiles are the exact means: nearer to the stand-in's means than a second draw of cells is.
    assert 0 < found["mae"]["entry"] < found["mae"]["second_draw"]
    assert found["discrimination_score_l1"]["entry"] == 1


def test_refusals(files, tmp_path):
    (tmp_path / "in").mkdir()
    other = pack_files(tmp_path / "in")
    lists = {"genes": other.genes, "perts": other.perts}
    with pytest.raises(UsageError, match="nothing is emitted"):
        pack(other.cells, "vcc2025", out=tmp_path / "e.vcc", score_emission=2, **lists)
    with pytest.raises(UsageError, match="at least 2"):
        pack(files.means, "vcc2026", out=tmp_path / "e.vcc", score_emission=1, **files.options())
    with pytest.raises(UsageError, match="leave out --dry-run"):
        pack(
            files.means, "vcc2026", out=tmp_path / "e.vcc", score_emission=2, dry_run=True, **files.options()
        )
    with pytest.raises(UsageError, match="raw counts"):
        module._controls(["A"], module.Pools(lambda context: None))
    assert not (tmp_path / "e.vcc").exists()


def test_command_prints_the_table(files, tmp_path, capsys):
    words = ["pack", files.means, "--edition", "vcc2026", "--contexts", "A,B", "--score-emission", "2"]
    words += ["--genes", files.genes, "--perts", files.perts, "--controls", files.controls]
    cli.main([str(word) for word in [*words, "-o", tmp_path / "e.vcc"]], standalone_mode=False)
    out = capsys.readouterr().out
    assert "what emission alone costs, on 2 perturbations per context" in out
    assert "de_wilcoxon_sig_jaccard" in out and "second draw" in out
