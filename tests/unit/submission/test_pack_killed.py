"""A killed pack leaves the old entry or none, and the next run removes what it left."""

import os
import signal
import subprocess
import sys
import time

import pytest
from packing_2026 import files_2026
from vcbench.data_specs.temporary import TEMP_PREFIX
from vcbench.submission.packing import pack

CODE = """
import sys, time, pathlib
from vcbench.submission import packing
from vcbench.data_specs import container_write
step, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def stop(*a, **k):
    (folder / "reached").touch()
    time.sleep(600)
if step == "rows":
    packing.validate = stop
elif step == "container":
    container_write._holds = stop
else:
    packing.entry_card = stop
packing.pack(sys.argv[3], "vcc2026", out=sys.argv[4], genes=sys.argv[5], perts=sys.argv[6], controls=sys.argv[7],
             contexts=["A", "B"], force=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.parametrize("step", ["rows", "container", "card"])
def test_killed(step, tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    out.mkdir()
    files = files_2026(inputs)
    entry = out / "entry.vcc"
    old = b"the old entry" if step != "rows" else None
    if old is not None:
        entry.write_bytes(old)
    words = [step, tmp_path, files.means, entry, files.genes, files.perts, files.controls]
    process = subprocess.Popen([sys.executable, "-c", CODE, *(str(w) for w in words)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "reached").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [p for p in out.iterdir() if not p.name.startswith(TEMP_PREFIX)]
    assert left == ([] if old is None else [entry])
    assert old is None or entry.read_bytes() == old
    assert any(p.name.startswith(TEMP_PREFIX) for p in out.iterdir())
    pack(files.means, "vcc2026", out=entry, **files.options(force=True))
    assert not any(p.name.startswith(TEMP_PREFIX) for p in out.iterdir())
