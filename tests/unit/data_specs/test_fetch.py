"""`data fetch` against a local server with range support: resume, checksums, full disks, no network."""

import errno
import hashlib
import json
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from vcbench.data_specs import fetch as module
from vcbench.data_specs.errors import DownloadError, OutputError, UsageError
from vcbench.data_specs.fetch import chosen_file, fetch_file
from vcbench.data_specs.spec_models import SourceFile
from vcbench.data_specs.specs import load_dataset
from vcbench.evaluator.cli import cli

BODY = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        state = self.server.state
        start = 0
        asked = self.headers.get("Range")
        state["ranges"].append(asked)
        if state["missing"]:
            self.send_error(404)
            return
        if asked and self.headers.get("If-Range") == state["etag"]:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(state["body"]) - start))
        self.send_header("ETag", state["etag"])
        self.end_headers()
        cut = state["cuts"].pop(0) if state["cuts"] else len(state["body"])
        self.wfile.write(state["body"][start : max(start, cut)])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.state = {"ranges": [], "cuts": [], "etag": '"one"', "missing": False, "body": BODY}
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield web
    web.shutdown()
    web.server_close()


def source(server, **options):
    known = {
        "bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "md5": hashlib.md5(BODY).hexdigest(),
    }
    url = f"http://127.0.0.1:{server.server_port}/a.h5ad"
    return SourceFile(role="main", name="a.h5ad", urls=(url,), **{**known, **options})


def test_whole_file(server, tmp_path):
    done = fetch_file(source(server), tmp_path)
    assert done.path.read_bytes() == BODY and done.verified == "sha256" and done.resumed_from == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
    with pytest.raises(OutputError, match="exists already"):
        fetch_file(source(server), tmp_path)
    assert fetch_file(source(server, sha256=None), tmp_path, force=True).verified == "md5"


def test_a_cut_keeps_the_part_and_the_next_run_resumes(server, tmp_path):
    server.state["cuts"] = [2_000_000]
    with pytest.raises(DownloadError, match="are kept; run the same command"):
        fetch_file(source(server), tmp_path, attempts=1)
    part = tmp_path / ".a.h5ad.part"
    kept = part.stat().st_size
    assert 0 < kept <= 2_000_000 and part.read_bytes() == BODY[:kept] and not (tmp_path / "a.h5ad").exists()
    done = fetch_file(source(server), tmp_path)
    assert done.resumed_from == kept and server.state["ranges"] == [None, f"bytes={kept}-"]
    assert done.path.read_bytes() == BODY


def test_a_cut_is_tried_again_in_one_run(server, tmp_path):
    server.state["cuts"] = [1_000_000, 3_000_000]
    assert fetch_file(source(server), tmp_path).path.read_bytes() == BODY
    assert len(server.state["ranges"]) == 3


def test_another_version_starts_again(server, tmp_path):
    server.state["cuts"] = [2_000_000]
    with pytest.raises(DownloadError):
        fetch_file(source(server), tmp_path, attempts=1)
    server.state |= {"etag": '"two"', "body": BODY[::-1]}
    wanted = hashlib.sha256(BODY[::-1]).hexdigest()
    assert fetch_file(source(server, sha256=wanted, md5=None), tmp_path).path.read_bytes() == BODY[::-1]


@pytest.mark.parametrize(
    "wrong", [{"sha256": "0" * 64}, {"sha256": None, "md5": "0" * 32}, {"bytes": len(BODY) - 1}]
)
def test_a_wrong_checksum_or_size_is_refused_and_removed(server, tmp_path, wrong):
    with pytest.raises(DownloadError, match=r"expected .* got .* removed"):
        fetch_file(source(server, **wrong), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_small_and_full_disks(server, tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
        with pytest.raises(OutputError, match="are free"):
            fetch_file(source(server), tmp_path)
        with pytest.raises(OutputError, match="are free"):
            fetch_file(source(server, bytes=None), tmp_path)
    assert server.state["ranges"] == [None]

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OutputError, match="disk is full; the part file is kept"):
            fetch_file(source(server), tmp_path)
    assert (tmp_path / ".a.h5ad.part").exists()
    assert fetch_file(source(server), tmp_path).path.read_bytes() == BODY


def test_offline_and_missing_files_say_what_to_do(server, tmp_path):
    server.state["missing"] = True
    with pytest.raises(DownloadError, match="404"):
        fetch_file(source(server), tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="offline"):
        fetch_file(source(server), tmp_path)
    with pytest.raises(DownloadError, match="only http"):
        fetch_file(source(server).model_copy(update={"urls": ("s3://b/a",)}), tmp_path)
    with pytest.raises(OutputError, match="no folder"):
        fetch_file(source(server), tmp_path / "none")


def test_choice_and_command(server, tmp_path, capsys):
    spec = load_dataset("norman2019_subset").model_copy(update={"files": (source(server),)})
    assert chosen_file(spec).name == chosen_file(spec, "main").name == "a.h5ad"
    with pytest.raises(UsageError, match=r"no file 'b'"):
        chosen_file(spec, "b")
    with pytest.raises(UsageError, match="has a published address"):
        chosen_file(load_dataset("norman2019_subset").model_copy(update={"files": ()}))
    file = source(server)
    entry = (
        'base = "norman2019_subset"\nid = "mine"\n'
        f'[[files]]\nrole = "main"\nname = "a.h5ad"\nurls = ["{file.urls[0]}"]\nbytes = {file.bytes}\n'
        f'sha256 = "{file.sha256}"\n'
    )
    (tmp_path / "mine.toml").write_text(entry)
    run = ["data", "fetch", str(tmp_path / "mine.toml"), "-o", str(tmp_path), "--format", "json"]
    cli.main([*run, "--dry-run"], standalone_mode=False)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["n_bytes"] == len(BODY) and "licence: BSD-3-Clause" in shown.err
    assert server.state["ranges"] == []
    cli.main(run, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["verified"] == "sha256"
    assert (tmp_path / "a.h5ad").read_bytes() == BODY
