"""Input files elsewhere: the same content as local ones, read in pieces, with the same issues."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from range_server import served
from vcbench.data_specs import remote
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import InvalidFile, OutputError, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.hashing import file_facts
from vcbench.data_specs.hdf5_guard import guarded
from vcbench.data_specs.named_files import named_files
from vcbench.evaluator.cli import cli

URLS = ("s3://bucket/a.h5ad", "https://host/a.h5ad?x=1", "simplecache::s3://b/a.h5ad", "memory://a.h5ad")
PATHS = ("a.h5ad", "/tmp/a.h5ad", "B=s3://bucket/a.h5ad", "c:/a.h5ad", "file:///tmp/a.h5ad", "a::b.h5ad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder):
    pytest.importorskip("upath", reason='needs fsspec: pip install "vcbench[remote]"')
    with served(folder) as found:
        yield found


def written(path, n_obs=60, n_vars=50, storage="csr"):
    x = np.random.default_rng(0).poisson(1.0, (n_obs, n_vars)).astype(np.float32)
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(["control", "G1"] * (n_obs // 2))}, index=np.arange(n_obs).astype(str)
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_vars)])
    matrix = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[storage](x)
    ad.AnnData(matrix, obs, var, uns={"vcbench": {"dataset_id": "made-up"}}).write_h5ad(path)
    return path


def code_of(path):
    with pytest.raises(InvalidFile) as caught:
        H5ad(path)
    return caught.value.issues[0]


def test_urls_are_told_from_paths():
    assert [remote.is_remote(text) for text in (*URLS, *PATHS)] == [True] * 4 + [False] * 6
    assert remote.input_path("file:///tmp/a.h5ad").as_posix() == "/tmp/a.h5ad"
    assert remote.absolute_text(URLS[0]) == URLS[0]


def test_secrets_of_urls_are_not_shown():
    signed = "vcbench score https://me:pass@host/a.h5ad?X-Sig=abc --truth s3://b/t.h5ad --edition core"
    shown = remote.public(signed)
    assert "pass" not in shown and "abc" not in shown
    assert shown == "vcbench score https://host/a.h5ad?… --truth s3://b/t.h5ad --edition core"
    # The part before @ is a container here, no password.
    assert remote.public("abfs://box@account.net/a.h5ad") == "abfs://box@account.net/a.h5ad"


def test_outputs_are_local(tmp_path, capsys):
    with pytest.raises(OutputError, match="outputs are local"):
        remote.output_path("s3://bucket/card")
    words = ["score", "none.h5ad", "--truth", "none.h5ad", "--edition", "core", "-o", "s3://bucket/card"]
    assert run(cli, words) == 1 and "outputs are local" in capsys.readouterr().err


def test_missing_packages_and_unknown_systems_are_named(monkeypatch, server):
    with pytest.raises(UsageError, match="nosuch"):
        remote.input_path("nosuch://a.h5ad")
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"vcbench\[remote\]"):
        remote.input_path("s3://bucket/a.h5ad")


def test_neighbours_of_an_address_with_a_query(server):
    path = remote.input_path(f"{server.url}/a/b.h5ad?x=1")
    assert (path.name, path.stem, path.suffix) == ("b.h5ad", "b", ".h5ad")
    assert str(path.with_suffix(".json")) == f"{server.url}/a/b.json?x=1"
    assert str(path.parent / "c.json").replace("//c", "/c") == f"{server.url}/a/c.json?x=1"
    assert str(path / "manifest.json") == f"{server.url}/a/b.h5ad/manifest.json?x=1"
    assert str(remote.input_path(f"{server.url}/a") / "c.json") == f"{server.url}/a/c.json"


def test_urls_with_contexts(server):
    found = named_files([f"B={server.url}/b.h5ad", f"{server.url}/a.h5ad?x=1"], "--controls")
    assert [(context, str(path)) for context, path in found] == [
        ("B", f"{server.url}/b.h5ad"),
        (None, f"{server.url}/a.h5ad?x=1"),
    ]


@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_the_content_is_that_of_the_local_file(server, folder, storage):
    path = written(folder / f"{storage}.h5ad", storage=storage)
    with H5ad(path) as here, guarded(), H5ad(f"{server.url}/{storage}.h5ad?token=1") as there:
        assert there.name == here.name and there.vcbench == here.vcbench and there.matrix == here.matrix
        assert list(there.genes) == list(here.genes)
        assert list(there.labels("perturbation").values()) == list(here.labels("perturbation").values())
        for left, right in zip(
            here.row_blocks(max_bytes=2000), there.row_blocks(max_bytes=2000), strict=True
        ):
            assert left.start == right.start and (left.matrix != right.matrix).nnz == 0
    assert file_facts(f"{server.url}/{storage}.h5ad") == file_facts(path)


def test_only_the_wanted_rows_travel(server, folder):
    path = written(folder / "large.h5ad", n_obs=6000, n_vars=2000, storage="dense")
    size = path.stat().st_size
    assert size > 40 * 2**20
    with H5ad(f"{server.url}/large.h5ad") as file:
        wanted = np.zeros(file.n_obs, dtype=bool)
        wanted[100:120] = True
        blocks = list(file.row_blocks(max_bytes=2**20, wanted=wanted))
    assert sum(len(block.matrix.indptr) - 1 for block in blocks) < 600
    assert server.given["large.h5ad"] < size / 2


def test_issues_of_remote_files(server, folder):
    missing = code_of(f"{server.url}/none.h5ad")
    assert missing.code == "E001" and "no answer" in missing.found
    (folder / "text.h5ad").write_text("no HDF5")
    assert code_of(f"{server.url}/text.h5ad").code == "E003"
    whole = written(folder / "whole.h5ad")
    (folder / "cut.h5ad").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert code_of(f"{server.url}/cut.h5ad").code == "E004"
    written(folder / "large.h5ad", n_obs=6000, n_vars=2000, storage="dense")
    with served(folder, parts=False) as other:
        refused = code_of(f"{other.url}/large.h5ad")
        assert refused.code == "E004" and "range requests" in refused.found


def test_a_server_that_only_streams_is_refused(folder):
    pytest.importorskip("upath", reason='needs fsspec: pip install "vcbench[remote]"')
    written(folder / "streamed.h5ad")
    with served(folder, parts=False, sizes=False) as other:
        refused = code_of(f"{other.url}/streamed.h5ad")
    assert refused.code == "E004" and "Cannot seek" in refused.found


def test_values_that_do_not_come_whole_are_no_values(folder):
    """h5py takes every read for a full one; a short one must be an error, not whatever the memory held."""
    pytest.importorskip("upath", reason='needs fsspec: pip install "vcbench[remote]"')
    path = written(folder / "short.h5ad", n_obs=6000, n_vars=2000, storage="dense")
    with served(folder, hole=(12 * 2**20, 20 * 2**20)) as other, H5ad(f"{other.url}/short.h5ad") as file:
        assert file.n_obs == 6000 and path.stat().st_size > 40 * 2**20
        with pytest.raises(InvalidFile) as caught:
            list(file.row_blocks())
    assert caught.value.issues[0].code == "E004"


def test_bugs_stay_bugs():
    path = remote.input_path(Unreachable(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        path.is_file()
    for error in (MemoryError(), AttributeError("x")):
        with pytest.raises(type(error)):
            remote.input_path(Unreachable(error)).stat()


def test_an_error_of_the_network_while_reading_is_an_issue(server, folder):
    written(folder / "dies.h5ad", n_obs=4000, n_vars=2000, storage="dense")
    with H5ad(f"{server.url}/dies.h5ad") as file, pytest.raises(InvalidFile) as caught:
        for block in file.row_blocks(max_bytes=2**20):
            if block.start == 0:
                (folder / "dies.h5ad").unlink()
    assert caught.value.issues[0].code == "E004"


def test_a_remote_column_that_cannot_be_read_is_named(server, folder):
    path = written(folder / "codes.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/perturbation/codes"][0] = 100
    with H5ad(f"{server.url}/codes.h5ad") as file, pytest.raises(InvalidFile) as caught:
        file.labels("perturbation")
    assert caught.value.issues[0].code == "E012"
    assert caught.value.issues[0].where.startswith("codes.h5ad:")


class Unreachable:
    """A path of a file system whose network library has errors of its own."""

    name, suffix, protocol, fs, path = "a.h5ad", ".h5ad", "s3", None, "bucket/a.h5ad"

    def __init__(self, error):
        self.error = error

    def __str__(self):
        return "s3://bucket/a.h5ad"

    def stat(self):
        raise self.error

    exists = is_file = is_dir = stat


def test_errors_of_network_libraries_are_issues():
    unreachable = Unreachable(RuntimeError("no credentials"))
    path = remote.input_path(unreachable)
    assert not path.exists() and not path.is_file() and not path.is_dir()
    for opened in (path, unreachable):
        issue = code_of(opened)
        assert issue.code == "E004" and "RuntimeError: no credentials" in issue.found
        assert issue.where == "s3://bucket/a.h5ad"
