"""The upload rules file by file: what vcc-cli 0.3.0 refuses and accepts, as the table of `upload_rules` says."""

import json
import subprocess
from pathlib import Path

import pytest
from packing_2026 import CONTEXTS, files_2026
from parity.official import HERE, tool_python
from upload_rules import CASES, COMMAND_CASES, build, build_command
from vcbench.data_specs.containers import open_entry
from vcbench.submission.packing import pack

pytestmark = pytest.mark.parity
# Cases where the reading library fails before the official rule is reached, so only the refusal is compared.
EARLIER = {"no X", "more indices than values", "indptr too short"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The official message of every case, from one process."""
    python = tool_python("VCBENCH_PARITY_PYTHON", "vcc")
    folder = tmp_path_factory.mktemp("official")
    files = files_2026(folder)
    pack(files.means, "vcc2026", out=folder / "e.vcc", **files.options(mode="scale"))
    with open_entry(folder / "e.vcc") as opened:
        (folder / "plain.h5ad").write_bytes(opened.h5ad.read_bytes())
    jobs = []
    for i, case in enumerate(CASES):
        path, lists = build(case, folder / "plain.h5ad", files, folder / str(i))
        options = {
            "input_path": str(path),
            "genes_path": str(lists["genes"]),
            "perts_path": str(lists["perts"]) if "perts" in lists else None,
            "required_contexts": list(case.contexts),
            "expected_gene_dim": 40,
            **case.official,
        }
        jobs.append({"name": case.name, "options": options})
    for i, case in enumerate(COMMAND_CASES):
        paths = build_command(folder / "plain.h5ad", files, folder / f"command{i}")
        options = {
            "input_path": str(paths["FILE"]),
            "genes_path": str(paths["GENES"]),
            "perts_path": str(files.perts),
            "required_contexts": list(CONTEXTS),
            "expected_gene_dim": 40,
            "output_path": str(folder / f"command{i}" / "out.vcc"),
            "dry_run": False,
            **{
                key: str(paths.get(value, value)) if isinstance(value, str) else value
                for key, value in case.official.items()
            },
        }
        jobs.append({"name": f"{case.rule} {case.name}", "options": options})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = [python, str(Path(HERE) / "run_vcc_prep.py"), str(folder / "jobs.json"), str(folder / "out.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[f"{c.rule} {c.name}".strip() for c in CASES])
def test_the_official_client_agrees(case, answers):
    message = answers[case.name]
    if not case.codes:
        assert message is None
    else:
        assert message is not None
        assert case.says in message or case.name in EARLIER, message


@pytest.mark.parametrize("case", COMMAND_CASES, ids=[f"{c.rule} {c.name}" for c in COMMAND_CASES])
def test_the_official_client_refuses_the_command(case, answers):
    message = answers[f"{case.rule} {case.name}"]
    assert message is not None and case.says in message, message
