"""The `data` group in-process: exit codes, JSON, files written, and the real subset from the command line."""

import json
from pathlib import Path

import h5py
import pytest
from builders import standard_h5ad
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.split_file import read_split
from vcbench.evaluator.cli import cli

SHARED = Path(__file__).parents[2] / "../shared/data"
NORMAN = SHARED / "norman2019_subset.h5ad"
GO = SHARED / "go_bp_human_2022-07.gmt.gz"
needs_data = pytest.mark.skipif(
    not NORMAN.exists() or not GO.exists(), reason="no real data in ../shared/data"
)


def call(capsys, *words):
    code = run(cli, ["data", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def call_json(capsys, *words):
    code, out, _ = call(capsys, *words, "--format", "json")
    return code, json.loads(out)


def test_list_and_show(capsys):
    code, rows = call_json(capsys, "list")
    assert code == 0 and "norman2019_subset" in {row["id"] for row in rows}
    code, out, _ = call(capsys, "list")
    assert code == 0 and "norman2019_subset" in out
    code, out, _ = call(capsys, "show", "norman2019_subset")
    assert code == 0 and "10.1126/science.aax4438" in out and "BSD-3-Clause" in out and "Traps" in out
    code, card = call_json(capsys, "show", "norman2019_subset")
    assert code == 0 and card["n_cells"] == {"value": 3375, "verified": "file", "rel_tolerance": 0.0}
    code, _, err = call(capsys, "show", "norman")
    assert code == 2 and "UnknownName" in err


def test_check_exit_codes(capsys, tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    clean = {"valid": True, "checked_as": "standard", "candidates": [], "issues": []}
    assert call_json(capsys, "check", path) == (0, clean)
    with h5py.File(path, "r+") as file:
        file["X/data"][0] = -1
    before = path.read_bytes()
    code, report = call_json(capsys, "check", path)
    assert code == 1 and not report["valid"] and [i["code"] for i in report["issues"]] == ["E615"]
    code, out, _ = call(capsys, "check", path)
    assert code == 1 and "E615 error" in out and "fix: vcbench inspect" in out and "1 errors" in out
    assert path.read_bytes() == before
    assert call(capsys, "check", tmp_path / "none.h5ad")[0] == 1
    assert call(capsys, "check")[0] == 2


def test_convert_refuses_and_leaves_nothing(capsys, tmp_path):
    src = standard_h5ad(tmp_path / "a.h5ad")
    code, report = call_json(
        capsys, "convert", src, "--spec", "norman2019_subset", "-o", tmp_path / "out.h5ad"
    )
    assert code == 1 and {i["code"] for i in report["issues"]} == {"E626"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
    code, _, err = call(capsys, "convert", src, "--spec", tmp_path / "no.toml", "-o", tmp_path / "out.h5ad")
    assert code == 2 and "SpecError" in err


def test_convert_with_an_own_spec(capsys, tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'spec_version = 1\nid = "mine"\nfamily = "mine"\ntitle = "t"\nlicense = "MIT"\norganism = "x"\n'
        'modality = "CRISPRi"\ncitation = { text = "c", year = 2020 }\nmatrix = { kind = "counts" }\n'
        'contexts = { value = "HeLa" }\n'
        'labels = { column = "perturbation", control = ["control"], separator = "+" }\n'
    )
    src = standard_h5ad(tmp_path / "a.h5ad", perturbations=("G001+G000", "G002", "*"))
    code, report = call_json(capsys, "convert", src, "--spec", toml, "-o", tmp_path / "out.h5ad")
    assert code == 0 and report["contexts"] == ["HeLa"] and report["n_dropped"] == 12
    assert report["label_map"]["G001+G000"] == "G000+G001"
    assert [i["code"] for i in report["issues"]] == ["W614"]
    code, out, err = call(capsys, "convert", src, "--spec", toml, "-o", tmp_path / "out.h5ad", "--force")
    assert code == 0 and "target_sum" in out and "W614" in err
    assert call(capsys, "convert", src, "--spec", toml, "-o", tmp_path / "out.h5ad")[0] == 1
    assert call(capsys, "check", tmp_path / "out.h5ad")[0] == 0


@needs_data
def test_norman_from_the_command_line(capsys, tmp_path):
    out = tmp_path / "norman.h5ad"
    code, report = call_json(capsys, "convert", NORMAN, "--spec", "norman2019_subset", "-o", out)
    assert code == 0 and (report["n_cells"], report["n_perturbations"]) == (3375, 33)
    assert (report["target_sum"], report["target_sum_from"]) == (106.5, "control median")
    for seed in range(1, 6):
        path = tmp_path / f"split{seed}.csv"
        code, drawn = call_json(
            capsys, "split", out, "--scheme", "gears-simulation", "--seed", seed, "-o", path
        )
        split = read_split(path)
        assert code == 0 and drawn["splits"][0]["seed"] == seed and split.record["excluded"] == []
        assert len(split.rows) == 34 and split.keys("test") and split.keys("validation")
        assert split.rows["K562", "control"] == ("train", "")
    doubles = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    code, drawn = call_json(capsys, "split", out, "--scheme", "leave-one-double-out", "-o", tmp_path / "lodo")
    assert code == 0 and [Path(s["path"]).stem for s in drawn["splits"]] == doubles
    for name in doubles:
        assert read_split(tmp_path / "lodo" / f"{name}.csv").keys("test") == [("K562", name)]
    one = (
        "split",
        out,
        "--scheme",
        "leave-one-double-out",
        "--double",
        doubles[0],
        "-o",
        tmp_path / "one.csv",
    )
    assert call(capsys, *one)[0] == 0
    assert read_split(tmp_path / "one.csv").keys("test") == [("K562", doubles[0])]
    code, out_text, err = call(
        capsys,
        "split",
        out,
        "--scheme",
        "gears-simulation",
        "--drop-uncovered",
        GO,
        "-o",
        tmp_path / "go.csv",
    )
    assert code == 0 and "go.csv" in out_text and "IER5L" in err
    assert ("K562", "IER5L") not in read_split(tmp_path / "go.csv").rows


def test_split_usage_errors(capsys, tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    code, _, err = call(capsys, "split", path, "--scheme", "fold", "-o", tmp_path / "s.csv")
    assert code == 2 and "'folds'" in err
    code, _, err = call(
        capsys, "split", path, "--scheme", "folds", "--context", "K562", "-o", tmp_path / "s.csv"
    )
    assert code == 2 and "does not take --context" in err
    code, _, err = call(
        capsys, "split", path, "--scheme", "random", "--fractions", "a,b", "-o", tmp_path / "s.csv"
    )
    assert code == 2 and "three numbers" in err
    assert call(capsys, "split", path, "--scheme", "folds", "--folds", 2, "-o", path)[0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad"]


def test_split_of_a_file_that_is_not_standard(capsys, tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/context"]
    code, report = call_json(capsys, "split", path, "--scheme", "folds", "-o", tmp_path / "s.csv")
    assert code == 1 and [i["code"] for i in report["issues"]] == ["E626"]
    assert report["issues"][0]["fix"].startswith("vcbench data convert")
    path = standard_h5ad(tmp_path / "b.h5ad", perturbations=("G001+G000",))
    code, report = call_json(capsys, "split", path, "--scheme", "folds", "-o", tmp_path / "s.csv")
    assert code == 1 and [i["code"] for i in report["issues"]] == ["E621"]


def test_simulate_then_check_and_split(capsys, tmp_path):
    out = tmp_path / "sim.h5ad"
    sizes = {"genes": 100, "singles": 8, "doubles": 4, "cells": 10, "controls": 15, "depth": 800}
    words = [word for name, value in sizes.items() for word in (f"--{name}", value)] + ["--contexts", "A,B"]
    code, facts = call_json(capsys, "simulate", "-o", out, *words, "--seed", 1, "--gmt", tmp_path / "sim.gmt")
    assert code == 0 and facts["contexts"] == ["A", "B"] and facts["n_perturbations"] == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sim.gmt", "sim.h5ad", "sim.truth.h5ad"]
    assert call(capsys, "check", out)[0] == 0
    split = ("split", out, "--scheme", "leave-one-context-out", "--context", "B", "-o", tmp_path / "b.csv")
    code, text, _ = call(capsys, *split)
    assert code == 0 and "b.csv  12     0           12" in text
    code, _, err = call(capsys, "simulate", "-o", tmp_path / "no.h5ad", "--genes", 5)
    assert code == 2 and "genes must be at least 10" in err
    assert call(capsys, "simulate", "-o", out, *words)[0] == 1
