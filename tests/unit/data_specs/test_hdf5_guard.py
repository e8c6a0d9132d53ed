"""Files that crash the HDF5 library: a process of their own is lost, and the command answers with a code."""

import os
import signal
import time
import tracemalloc

import h5py
import pytest
from builders import standard_h5ad
from vcbench.data_specs import hdf5_guard
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.hdf5_guard import crash_of, guarded, walk
from vcbench.evaluator.cli import cli

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the look is spawned where there is no fork")


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_guard, "_seen", set())
    return standard_h5ad(tmp_path / "a.h5ad")


def crash(path):
    os.kill(os.getpid(), signal.SIGSEGV)


@forks
def test_a_crash_is_coded(path, monkeypatch, capsys):
    monkeypatch.setattr(hdf5_guard, "walk", crash)
    for command in (["validate", str(path), "--edition", "core"], ["inspect", str(path)]):
        assert run(cli, command) == 1
        shown = capsys.readouterr()
        assert "E016" in shown.out + shown.err and "SIGSEGV" in shown.out + shown.err


@forks
def test_a_hang_is_coded(path, monkeypatch):
    monkeypatch.setattr(hdf5_guard, "_LONGEST_LOOK_S", 1)
    monkeypatch.setattr(hdf5_guard, "walk", lambda path: time.sleep(30))
    with guarded():
        assert "no end after 1 s" in str(crash_of(path))


def test_good_files_are_looked_at_once_and_only_when_asked(path, monkeypatch):
    looks = []
    monkeypatch.setattr(hdf5_guard, "_forked", lambda path: looks.append(path) or 0)
    monkeypatch.setattr(hdf5_guard, "_spawned", lambda path: looks.append(path) or 0)
    with H5ad(path):
        assert not looks
    with guarded():
        for _ in range(2):
            H5ad(path).close()
        assert looks == [path]
        path.write_bytes(path.read_bytes() + b"x")
        with guarded(on=False):
            H5ad(path).close()
        assert looks == [path]
        H5ad(path).close()
    assert looks == [path, path]


def test_damage_that_can_be_read_around_is_no_crash(path):
    n_objects = walk(path)
    with h5py.File(path) as file:
        names = []
        file.visit(names.append)
        assert n_objects == len(names) + 1
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with guarded():
        assert crash_of(path) is None


def test_loops_and_links_out_of_the_file_end(path):
    with h5py.File(path, "r+") as file:
        file["obs/again"] = file["obs"]
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
        file["soft"] = h5py.SoftLink("/soft")
    assert walk(path) > 5


def test_without_fork_a_new_process_looks(path, tmp_path, monkeypatch):
    assert hdf5_guard._spawned(path) == 0
    broken = tmp_path / "b.h5ad"
    broken.write_bytes(b"no HDF5")
    assert hdf5_guard._spawned(broken) == 0
    monkeypatch.setattr(hdf5_guard, "_LONGEST_LOOK_S", 0.01)
    assert hdf5_guard._spawned(path) < 0


@pytest.mark.parametrize("chunks", [None, (1, 2**20), (1, 2**26)])
def test_declared_sizes_are_not_read(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", shape=(180, 2**29), dtype="f4", chunks=chunks)
    tracemalloc.start()
    try:
        assert walk(tmp_path / "a.h5") == 2
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
