"""The scoring rules pair by pair: what cell-eval2 0.20.0 refuses, as the table of `scoring_rules` says."""

import json
import subprocess

import pytest
from parity.official import HERE, tool_python
from scoring_rules import CASES, arms, changed
from vcc2026_panels import CONTROL

pytestmark = pytest.mark.parity
COMPARED = [case for case in CASES if case.says is not None]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The official answer to every case and to the valid pair, from one process."""
    python = tool_python("VCBENCH_PARITY_PYTHON", "cell_eval2")
    folder = tmp_path_factory.mktemp("scoring")
    panels = []
    for i, case in enumerate([None, *COMPARED]):
        paths = {}
        for arm in ("pred", "real"):
            adata = changed(arm, case.edit) if case is not None and case.arm == arm else arms()[arm].copy()
            paths[arm] = folder / f"{i}_{arm}.h5ad"
            adata.write_h5ad(paths[arm])
        panels.append(
            {
                "name": "valid" if case is None else case.name,
                "pred": str(paths["pred"]),
                "truth": str(paths["real"]),
                "column": "target",
                "control": CONTROL,
                "profiles": ["vcc2026"],
                "may_refuse": True,
            }
        )
    (folder / "job.json").write_text(json.dumps({"panels": panels}))
    words = [python, str(HERE / "run_celleval2.py"), str(folder / "job.json"), str(folder / "out.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())["panels"]


def test_the_valid_pair_is_scored(answers):
    assert "refused" not in answers["valid"] and answers["valid"]["values"]


@pytest.mark.parametrize("case", COMPARED, ids=[f"{c.rule} {c.name}" for c in COMPARED])
def test_the_official_scorer_agrees(case, answers):
    assert "refused" in answers[case.name]
    assert case.says in answers[case.name]["refused"], answers[case.name]
