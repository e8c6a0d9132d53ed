"""`vcbench demo`: every step of the main job on simulated data, as the commands a user would type."""

from __future__ import annotations

import io
import shlex
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import click

from ..data_specs.cli_support import force_option, note, quiet_option, run
from ..data_specs.errors import OutputError, VCBenchError
from ..data_specs.split_file import read_split
from ..evaluator.cli import cli
from .deep import has_torch
from .registry import SuiteModel, default_suite

MARKER = "commands.sh"
SIMULATION = {
    "--genes": 600,
    "--singles": 48,
    "--doubles": 24,
    "--contexts": "K562",
    "--cells": 50,
    "--controls": 400,
    "--depth": 4000,
}
LEFT_OUT = ("linear-go-spectral", "random-forest", "coexpression-neighbours")
# A network for those who installed torch: small, without adversaries, since a demo must end within two minutes.
NETWORK = SuiteModel(
    "cpa-go",
    "cpa",
    {
        "epochs": 20,
        "lr": 0.005,
        "n_latent": 32,
        "n_hidden_encoder": 64,
        "n_hidden_decoder": 64,
        "n_samples": 200,
        "validation_samples": 50,
        "n_epochs_pretrain_ae": 20,
        "adv_steps": 1000,
        "validate_every": 10,
    },
    True,
)
CELLS_PER_PERTURBATION = 30
FILES = (
    ("report.html", "everything about the entries on one page, for a browser"),
    ("leaderboard.html", "the ranked table alone"),
    ("leaderboard.csv", "the same as CSV"),
    ("data.h5ad", "the simulated screen: raw counts, standard schema"),
    ("data.truth.h5ad", "its true effects"),
    ("terms.gmt", "GO-like gene sets of the simulated programs"),
    ("split.csv, split.json", "which perturbations train and test, and how that was drawn"),
    ("runs/NAME/", "one fitted model: weights, config, card"),
    ("predictions/NAME.h5ad", "its mean effects for the test perturbations"),
    ("entries/NAME.h5ad", "the packed and validated entry"),
    ("entries/NAME.vcc", "the best model as a 2025 challenge file"),
    ("scores/NAME/", "its ScoreCard: scorecard.json, per_perturbation.csv, aggregate.csv"),
    ("gene_names.csv, pert_counts.csv", "gene order and cells per target of the challenge file"),
    (MARKER, "every command of this demo, to repeat or change"),
    ("log.txt", "what the commands printed"),
)


class StepFailed(VCBenchError):
    """A command of the demo did not succeed; its output is in the log."""

    exit_code = 1


@dataclass
class Steps:
    """Runs commands inside the demo folder and keeps their text and output."""

    folder: Path
    quiet: bool
    commands: list[str] = field(default_factory=list)
    log: io.StringIO = field(default_factory=io.StringIO)

    def run(self, *args: object) -> str:
        """Run one vcbench command and return its stdout. Raises `StepFailed` when it does not exit with 0."""
        words = [str(arg) for arg in args]
        shown = "vcbench " + shlex.join(word.replace(f"{self.folder}/", "") for word in words)
        self.commands.append(shown)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(cli, words)
        self.log.write(f"$ {shown}\n{out.getvalue()}{err.getvalue()}\n")
        if code:
            self.save()
            raise StepFailed(f"`{shown}` ended with {code}; see {self.folder / 'log.txt'}\n{err.getvalue()}")
        return out.getvalue()

    def say(self, text: str) -> None:
        """One line about the step to come."""
        note(text, quiet=self.quiet)

    def save(self) -> None:
        """Write the commands and the log."""
        script = (
            "#!/bin/sh\n# Run in a folder that holds copies of gene_names.csv and pert_counts.csv.\n"
            "set -e\nmkdir -p runs predictions entries scores\n"
        )
        (self.folder / MARKER).write_text(script + "\n".join(self.commands) + "\n", encoding="utf-8")
        (self.folder / "log.txt").write_text(self.log.getvalue(), encoding="utf-8")


@click.command()
@click.option(
    "-o",
    "--out",
    default="vcbench-demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to fill.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Root seed of the simulation."
)
@force_option
@quiet_option
def demo(out: Path, seed: int, force: bool, quiet: bool) -> None:
    """Simulate a screen, train the simple baselines, pack, validate, score, compare and report them.

    Where torch is installed (`pip install "vcbench[train]"`), a small CPA network is trained as well.
    """
    start = time.perf_counter()
    folder = _fresh_folder(out, force)
    steps = Steps(folder, quiet)
    table = run_demo(steps, seed)
    steps.save()
    click.echo(table)
    click.echo(f"{folder}/ ({time.perf_counter() - start:.0f} s)")
    width = max(len(name) for name, _ in FILES)
    for name, text in FILES:
        click.echo(f"  {name:<{width}}  {text}")


def run_demo(steps: Steps, seed: int) -> str:
    """Run every step and return the leaderboard as text. `steps.folder` must exist and be empty."""
    folder = steps.folder
    data, gmt, split = folder / "data.h5ad", folder / "terms.gmt", folder / "split.csv"
    for name in ("runs", "predictions", "entries", "scores"):
        (folder / name).mkdir()
    steps.say("1/6 simulate a CRISPRi screen, check it, split it as GEARS does")
    sizes = [word for pair in SIMULATION.items() for word in pair]
    steps.run("data", "simulate", "-o", data, *sizes, "--seed", seed, "--gmt", gmt)
    steps.run("data", "check", data)
    steps.run("data", "split", data, "--scheme", "gears-simulation", "--seed", 1, "-o", split)
    models = demo_models()
    for number, model in enumerate(models, start=1):
        steps.say(f"2/6 {model.label}: train, predict, pack, validate, score ({number} of {len(models)})")
        settings = [word for key, value in model.settings.items() for word in ("--set", f"{key}={value}")]
        features = ["--features", f"go:{gmt}"] if model.uses_features else []
        run_folder, prediction = folder / "runs" / model.label, folder / "predictions" / f"{model.label}.h5ad"
        steps.run("train", model.name, data, "--split", split, *settings, *features, "-o", run_folder)
        steps.run("predict", run_folder, "-o", prediction)
        _score(steps, model.label, prediction, data, split)
    steps.say("3/6 perfect: the measured means of the test perturbations, as the upper bound")
    perfect = folder / "predictions" / "perfect.h5ad"
    steps.run("perfect", data, "--split", split, "-o", perfect)
    _score(steps, "perfect", perfect, data, split)
    steps.say("4/6 compare: one table")
    boards = ["--html", folder / "leaderboard.html", "--csv", folder / "leaderboard.csv"]
    table = steps.run("compare", folder / "scores", *boards, "--title", "vcbench demo")
    best = _best(folder)
    steps.say(f"5/6 {best}: pack its cells as a 2025 challenge file")
    _pack_challenge_file(steps, best, data, split)
    steps.say("6/6 report: one page about all of it")
    _report(steps, best, data)
    return table


def demo_models() -> list[SuiteModel]:
    """The models of the demo in order: the simple ones, and the network where torch is installed."""
    simple = [model for model in default_suite(features=True) if model.label not in LEFT_OUT]
    return [*simple, NETWORK] if has_torch() else simple


def _score(steps: Steps, label: str, prediction: Path, data: Path, split: Path) -> None:
    entry = steps.folder / "entries" / f"{label}.h5ad"
    steps.run("pack", prediction, "--edition", "core", "-o", entry)
    steps.run("validate", entry, "--edition", "core")
    card = steps.folder / "scores" / label
    common = ["--truth", data, "--edition", "core", "--split", split, "--name", label]
    steps.run("score", entry, *common, "-o", card)


def _best(folder: Path) -> str:
    """The first-ranked entry that predicts every row, so that a complete challenge file can be made of it."""
    import pandas as pd

    table = pd.read_csv(folder / "leaderboard.csv")
    ranked = table[table["rank"].notna() & (table["n_filled"] == 0)]
    complete = ranked[ranked["table"] != "Rows that every entry predicts"]
    return str((complete if len(complete) else ranked)["name"].tolist()[0])


def _report(steps: Steps, best: str, data: Path) -> None:
    folder = steps.folder
    shown = dict.fromkeys((best, "mean"))
    files = [word for name in shown for word in ("--pred", f"{name}={folder / 'entries' / f'{name}.h5ad'}")]
    network = folder / "runs" / NETWORK.label
    runs = ["--run", f"{NETWORK.label}={network}"] if network.is_dir() else []
    page = ["-o", folder / "report.html", "--title", "vcbench demo"]
    steps.run("report", folder / "scores", *files, "--truth", data, *runs, *page)


def _pack_challenge_file(steps: Steps, best: str, data: Path, split: Path) -> None:
    from ..data_specs.h5ad import H5ad

    folder = steps.folder
    with H5ad(data) as file:
        (folder / "gene_names.csv").write_text("\n".join(file.genes) + "\n", encoding="utf-8")
    targets = [perturbation for _, perturbation in read_split(split).keys("test")]
    rows = "".join(f"{target},{CELLS_PER_PERTURBATION}\n" for target in targets)
    (folder / "pert_counts.csv").write_text("target_gene,n_cells\n" + rows, encoding="utf-8")
    lists = ["--genes", folder / "gene_names.csv", "--perts", folder / "pert_counts.csv"]
    entry = folder / "entries" / f"{best}.vcc"
    prediction = folder / "predictions" / f"{best}.h5ad"
    steps.run("pack", prediction, "--edition", "vcc2025", *lists, "--controls", data, "-o", entry)
    steps.run("validate", entry, "--edition", "vcc2025", *lists)
    steps.run("inspect", entry)


def _fresh_folder(out: Path, force: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; --out needs a folder here.")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise OutputError(f"{out}: is not empty. Choose another --out or add --force.")
        if not (out / MARKER).exists():
            raise OutputError(f"{out}: is no demo folder; --force replaces demo folders only.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    return out
