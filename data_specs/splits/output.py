"""Where drawn splits go: one CSV, or a folder with one CSV for each thing left out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ..atomic import atomic_folder, check_output
from ..errors import OutputError
from ..split_file import Split, write_split


def write_splits(
    drawn: Split | Mapping[str, Split],
    out: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str],
    force: bool = False,
) -> list[tuple[Path, Split]]:
    """The files written, with their splits: `out` itself, or `out/NAME.csv` for each name.

    Names keep letters, digits and `+-_.`; other characters are percent-encoded.

    Raises
    ------
    OutputError
        `out` cannot be written, exists without `force`, or is `source`; its record beside it likewise.
    """
    target = Path(out)
    if isinstance(drawn, Split):
        if target.suffix == ".json":
            raise OutputError(f"{target}: the record takes the name with .json; give --out a name with .csv.")
        check_output(target, inputs=[source], force=force)
        check_output(target.with_suffix(".json"), inputs=[source], force=force)
        write_split(drawn, target)
        return [(target, drawn)]
    written = []
    with atomic_folder(target, force=force) as folder:
        for name, part in drawn.items():
            file = f"{quote(name, safe='+')}.csv"
            write_split(part, folder / file)
            written.append((target / file, part))
    return written
