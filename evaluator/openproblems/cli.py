"""`vcbench truth control-methods`: the control predictions of Open Problems as files."""

from __future__ import annotations

from pathlib import Path

import click

from ...data_specs.cli_support import (
    echo_json,
    echo_table,
    force_option,
    format_option,
    out_option,
    quiet_option,
    seed_option,
)


@click.command("control-methods")
@click.argument("real", type=click.Path())
@click.option("--train", type=click.Path(dir_okay=False), help="Training table; four of the methods need it.")
@click.option(
    "--id-map", type=click.Path(dir_okay=False), help="CSV id,cell_type,sm_name: the rows to predict."
)
@seed_option
@out_option(help="Folder of the predictions, METHOD.h5ad each.")
@force_option
@quiet_option
@format_option
def control_methods(
    real: str,
    train: str | None,
    id_map: str | None,
    seed: int,
    out: str,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Write what the six control methods of Open Problems predict for the test table REAL.

    \b
    Example:
      vcbench truth control-methods de_test.h5ad --train de_train.h5ad --id-map id_map.csv -o controls/
    """
    from .controls import write_control_predictions

    done = write_control_predictions(out, real, train, id_map=id_map, seed=seed, force=force)
    if output_format == "json":
        entries = {
            name: {"path": str(item), "reason": None}
            if isinstance(item, Path)
            else {"path": None, "reason": item}
            for name, item in done.items()
        }
        echo_json(entries)
        return
    rows = [(name, item if isinstance(item, Path) else f"not written: {item}") for name, item in done.items()]
    echo_table(("method", "file"), rows)
