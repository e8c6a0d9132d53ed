"""Waiting threads sleep in scoring commands, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest
from vcbench.evaluator.kernels.idle import let_idle_threads_sleep


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_only_where_nothing_is_set(before, after, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == after
    monkeypatch.delenv("OMP_WAIT_POLICY")


def test_it_can_come_before_numba_and_torch():
    code = "import sys, vcbench.evaluator.kernels.idle; print(sorted({'numba', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
