"""The `vcbench` command: a lazy group that names every command without importing it."""

from __future__ import annotations

import sys

import click

from ..data_specs.cli_support import LazyGroup, run

COMMANDS = {
    "demo": (
        "vcbench.baselines.demo:demo",
        "Simulate, train, predict, pack, validate, score, compare: all in one.",
    ),
    "data": ("vcbench.data_specs.cli:data", "List, show, check, convert, split and simulate datasets."),
    "train": ("vcbench.baselines.cli:train", "Fit a baseline on a dataset and a split; write a run folder."),
    "predict": ("vcbench.baselines.cli:predict", "Predict perturbations with a run folder."),
    "tune": (
        "vcbench.baselines.cli_tune:tune",
        "Tune models on one split with one budget, chosen on its validation rows.",
    ),
    "features": (
        "vcbench.baselines.cli:features",
        "Write a model's gene embeddings as a feature table.",
    ),
    "perfect": (
        "vcbench.baselines.cli:perfect",
        "Write the measured test means: the upper bound of a leaderboard.",
    ),
    "pack": ("vcbench.submission.cli:pack", "Turn predictions into a valid submission file."),
    "unpack": ("vcbench.submission.cli:unpack", "Turn a submission file back into an h5ad."),
    "inspect": ("vcbench.submission.cli:inspect", "Show what is in an h5ad or a submission file."),
    "validate": (
        "vcbench.evaluator.cli_validate:validate",
        "Check a file against an edition; all problems at once.",
    ),
    "verify": (
        "vcbench.evaluator.cli_validate:verify",
        "Check a finished submission file, its meta.json included.",
    ),
    "diff": ("vcbench.submission.cli:diff", "Show what separates two entries."),
    "score": ("vcbench.evaluator.cli_score:score", "Score predictions against the truth; write a ScoreCard."),
    "truth": (
        "vcbench.evaluator.cli_truth:truth",
        "Build truth bundles: the real data measured once, with baseline and replicate anchors.",
    ),
    "probe": (
        "vcbench.evaluator.cli_probe:probe",
        "Apply documented exploits to an entry, show how the scores move, and flag what looks like one.",
    ),
    "calibrate": (
        "vcbench.evaluator.cli_calibrate:calibrate",
        "Find out which metrics can tell predictions apart on a dataset.",
    ),
    "compare": ("vcbench.evaluator.cli_compare:compare", "Rank ScoreCards in one table."),
    "report": (
        "vcbench.evaluator.cli_report:report",
        "One self-contained HTML page about ScoreCards: tables, plots, probes, provenance.",
    ),
    "list": (
        "vcbench.evaluator.cli_about:list_",
        "List metrics, baselines, editions, datasets or issue codes.",
    ),
    "explain": (
        "vcbench.evaluator.cli_about:explain",
        "Explain an issue code, metric, edition, dataset or baseline.",
    ),
    "doctor": ("vcbench.evaluator.cli_about:doctor", "Show versions, devices and what is missing."),
    "completion": ("vcbench.evaluator.cli_about:completion", "Print the shell completion script."),
}


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: vcbench demo",
)
@click.version_option(package_name="vcbench", prog_name="vcbench")
def cli() -> None:
    """Score, train and package perturbation predictions (Virtual Cell Challenge and friends)."""


def main() -> None:
    """Console entry point."""
    sys.exit(run(cli))


if __name__ == "__main__":
    main()
