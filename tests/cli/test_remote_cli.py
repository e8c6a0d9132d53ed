"""Commands on URLs: scored by workers of other processes, the numbers of local files, nothing copied whole."""

import json
import shutil

import pytest
from builders import standard_h5ad
from executor_tasks import Here
from range_server import served
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.container_write import write_vcc2026
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scoring import score
from vcc2026_panels import random_panel, write

pytest.importorskip("upath", reason='needs fsspec: pip install "vcbench[remote]"')
LABELS = ("G000", "G001", "G002", "G003")
TABLES = ("per_perturbation.csv", "aggregate.csv")


def call(*words):
    return run(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    standard_h5ad(folder / "screen.h5ad", perturbations=LABELS, cells=15, controls=20)
    for i in range(2):
        standard_h5ad(folder / f"p{i}.h5ad", perturbations=LABELS, cells=9 + i, controls=5, seed=i)
    for arm, adata in random_panel(4, n_genes=120, cells=(40,) * 6, n_control=80).items():
        write(adata, folder / f"{arm}.h5ad")
    words = [
        "truth",
        "build",
        folder / "real.h5ad",
        "--edition",
        "vcc2026",
        "--pert-col",
        "target",
        "--quiet",
    ]
    assert call(*words, "-o", folder / "bundle") == 0
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as found:
        yield found


def same_tables(left, right):
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in TABLES)


@pytest.mark.parametrize("truth", ["real.h5ad", "bundle"])
def test_a_panel_is_scored_by_workers_from_urls(server, folder, tmp_path, truth):
    for name, root, more in (("here", folder, []), ("there", server.url, ["--executor", "processes:2"])):
        words = [
            "score",
            f"{root}/pred.h5ad",
            "--truth",
            f"{root}/{truth}",
            "--edition",
            "vcc2026",
            "--quiet",
        ]
        assert call(*words, "--pert-col", "target", *more, "-o", tmp_path / name) == 0
    assert same_tables(tmp_path / "here", tmp_path / "there")
    cards = [json.loads((tmp_path / name / "scorecard.json").read_text()) for name in ("here", "there")]
    assert cards[0]["inputs"] == cards[1]["inputs"] and cards[0]["metrics"] == cards[1]["metrics"]


def test_entries_of_any_edition_and_only_missing(server, folder, tmp_path, capsys):
    for name, root, more in (("here", folder, []), ("there", server.url, ["--executor", "processes:2"])):
        words = ["score", f"{root}/p0.h5ad", f"{root}/p1.h5ad", "--truth", f"{root}/screen.h5ad", *more]
        assert call(*words, "--edition", "core", "-o", tmp_path / name, "--quiet") == 0
    for entry in ("p0", "p1"):
        assert same_tables(tmp_path / "here" / entry, tmp_path / "there" / entry)
    capsys.readouterr()
    words = ["score", f"{server.url}/p0.h5ad", "--truth", f"{server.url}/screen.h5ad", "--edition", "core"]
    assert call(*words, "-o", tmp_path / "kept", "--only-missing", "--quiet") == 0
    assert call(*words, "-o", tmp_path / "kept", "--only-missing") == 0
    assert "kept" in capsys.readouterr().err


def test_calibration_split_training_and_prediction(server, folder, tmp_path):
    url = f"{server.url}/screen.h5ad"
    for name, source in (("here", folder / "screen.h5ad"), ("there", url)):
        assert (
            call("calibrate", source, "--edition", "core", "-o", tmp_path / f"c-{name}.json", "--quiet") == 0
        )
        words = ["data", "split", source, "--scheme", "random", "--seed", "1", "-o", tmp_path / f"{name}.csv"]
        assert call(*words) == 0
        more = "?token=sesame" if name == "there" else ""
        words = [
            "train",
            "perturbation-mean",
            f"{source}{more}",
            "--split",
            tmp_path / f"{name}.csv",
            "--quiet",
        ]
        assert call(*words, "-o", tmp_path / f"run-{name}") == 0
        words = ["predict", tmp_path / f"run-{name}", "-o", tmp_path / f"{name}.h5ad", "--quiet"]
        assert call(*words) == 0
    kept = (tmp_path / "run-there" / "inputs.json").read_text()
    assert f"{url}?…" in json.loads(kept)["data"]["file"] and "sesame" not in kept
    assert (tmp_path / "c-here.json").read_bytes() == (tmp_path / "c-there.json").read_bytes()
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()
    assert call("diff", tmp_path / "here.h5ad", tmp_path / "there.h5ad") == 0


def test_a_container_is_unpacked_where_it_is_told(server, folder, tmp_path):
    write_vcc2026(folder / "pred.h5ad", folder / "entry.vcc", meta={"schema": 1, "tool": "made up"})
    where = tmp_path / "tmp"
    where.mkdir()
    workers, about = Here(2), {"edition": "vcc2026", "pert_col": "target"}
    scored = score(f"{server.url}/entry.vcc", f"{server.url}/real.h5ad", executor=workers, tmp=where, **about)
    assert scored.card.metrics == score(folder / "entry.vcc", folder / "real.h5ad", **about).card.metrics
    opened = {str(file) for file in workers.files}
    assert f"{server.url}/real.h5ad" in opened and any(file.startswith(str(where)) for file in opened)
    assert not list(where.iterdir())


def test_other_commands_take_urls(server, tmp_path):
    for words in (
        ["validate", f"{server.url}/p0.h5ad", "--edition", "core"],
        ["inspect", f"{server.url}/p0.h5ad"],
        ["pack", f"{server.url}/p0.h5ad?token=sesame", "--edition", "core", "-o", tmp_path / "packed.h5ad"],
        ["data", "check", f"{server.url}/screen.h5ad"],
        ["probe", f"{server.url}/p0.h5ad", "--truth", f"{server.url}/screen.h5ad", "--edition", "core"],
    ):
        assert call(*words) == 0, words
    left = [path.read_text() for path in tmp_path.iterdir() if path.suffix in (".json", ".md")]
    assert left and not any("sesame" in text for text in left)


def test_every_command_by_url_gives_the_local_result_and_keeps_no_secret(server, folder, tmp_path, capsys):
    """Each command from files and from URLs with a token: equal exit codes and data; the token is in no output."""
    genes = [f"G{i:03d}" for i in range(40)]
    (folder / "genes.csv").write_text("\n".join(["gene", *genes]) + "\n")
    (folder / "perts.csv").write_text("target_gene\n" + "\n".join(LABELS) + "\n")
    (folder / "table.tsv").write_text(
        "".join(f"{gene}\t{i}\t{i * i % 7}\n" for i, gene in enumerate(["gene", *genes]))
    )
    token = "?token=sesame"
    for name, root, end in (("here", folder, ""), ("there", server.url, token)):
        out = tmp_path / name
        out.mkdir()
        screen, real = f"{root}/screen.h5ad{end}", f"{root}/real.h5ad{end}"
        assert (
            call("data", "split", screen, "--scheme", "random", "--seed", "1", "-o", out / "split.csv") == 0
        )
        shutil.copy(out / "split.csv", folder / "split.csv")
        split, genes_csv = f"{root}/split.csv{end}", f"{root}/genes.csv{end}"
        for words in (
            ["truth", "build", real, "--edition", "vcc2026", "--pert-col", "target", "-o", out / "bundle"],
            ["calibrate", screen, "--edition", "core", "-o", out / "calibration.json"],
            ["data", "filter", screen, "--recipe", "perturbench", "-o", out / "filtered.h5ad"],
            [
                "train",
                "ridge",
                screen,
                "--split",
                split,
                "--features",
                f"{root}/table.tsv{end}",
                "-o",
                out / "run",
            ],
            ["predict", out / "run", "--controls", screen, "-o", out / "pred.h5ad"],
            [
                "score",
                out / "pred.h5ad",
                "--truth",
                screen,
                "--edition",
                "core",
                "--split",
                split,
                "-o",
                out / "card",
            ],
            [
                "pack",
                out / "pred.h5ad",
                "--edition",
                "core",
                "--genes",
                genes_csv,
                "-o",
                out / "packed.h5ad",
            ],
            ["report", out / "card", "-o", out / "report.html"],
        ):
            assert call(*words) == 0, (name, words, capsys.readouterr().err)
    written = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert len(written) > 30 and {path.name for path in written} == {
        path.name for path in (tmp_path / "here").rglob("*") if path.is_file()
    }
    for path in written:
        assert b"sesame" not in path.read_bytes(), path
    assert same_tables(tmp_path / "here" / "card", tmp_path / "there" / "card")
    for name in ("calibration.json", "split.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_the_card_keeps_no_secret(server, tmp_path):
    entry, truth = f"{server.url}/p0.h5ad?token=sesame", f"{server.url}/screen.h5ad"
    words = ["score", entry, "--truth", truth, "--edition", "core", "-o", tmp_path / "card", "--quiet"]
    assert call(*words) == 0
    text = (tmp_path / "card" / "scorecard.json").read_text()
    assert "sesame" not in text and "p0.h5ad?…" in text
