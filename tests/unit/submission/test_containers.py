"""Containers: what is written is deterministic and plain; what is read is refused with a code unless it is sound."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import zstandard
from builders import standard_h5ad
from packing_files import write_tar
from vcbench.data_specs import container_write, containers, temporary, zstd_stream
from vcbench.data_specs.container_write import write_vcc2025
from vcbench.data_specs.containers import container_issues, open_entry
from vcbench.data_specs.errors import InvalidFile, OutputError
from vcbench.data_specs.read_back import ReadBack
from vcbench.data_specs.tar_members import Member, TarProblem, read_members

MARK = ("watermark.txt", b"vcc-prep")
META = {"schema": 1, "nnz": 5, "n_obs": 2, "n_vars": 3, "contexts": ["A"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return standard_h5ad(tmp_path_factory.mktemp("plain") / "a.h5ad", cells=3, controls=4)


@pytest.fixture(scope="module")
def payload(plain):
    return zstandard.ZstdCompressor(level=3).compress(plain.read_bytes())


def codes_of(path, **options):
    with pytest.raises(InvalidFile) as caught, open_entry(path, **options):
        pass
    return [issue.code for issue in caught.value.issues]


def notes_of(path):
    with open_entry(path) as entry:
        return [issue.code for issue in entry.notes]


def test_entry_written_and_read_back(plain, tmp_path):
    facts = write_vcc2025(plain, tmp_path / "a.vcc")
    assert facts["bytes"] == (tmp_path / "a.vcc").stat().st_size
    with open_entry(tmp_path / "a.vcc") as entry:
        assert (entry.container, entry.meta, entry.notes) == ("vcc2025", {}, ())
        assert entry.h5ad.read_bytes() == plain.read_bytes()
        assert entry.h5ad.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_members_are_as_the_format_says(plain, tmp_path):
    write_vcc2025(plain, tmp_path / "a.vcc")
    with tarfile.open(tmp_path / "a.vcc", "r:") as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == ["pred.h5ad.zst", "watermark.txt"]
        for m in members:
            assert (m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) == (0o644, 0, 0, "", "", 0)
        assert archive.extractfile("watermark.txt").read() == b"vcc-prep"
        frame = archive.extractfile("pred.h5ad.zst").read()
    assert zstandard.frame_content_size(frame) == plain.stat().st_size
    assert zstandard.decompress(frame) == plain.read_bytes()


def test_equal_bytes_for_any_number_of_threads(plain, tmp_path):
    for threads in (1, 2, 4):
        write_vcc2025(plain, tmp_path / f"{threads}.vcc", threads=threads)
    assert len({(tmp_path / f"{n}.vcc").read_bytes() for n in (1, 2, 4)}) == 1


def test_h5ad_is_yielded_as_it_is(plain):
    with open_entry(plain) as entry:
        assert (entry.h5ad, entry.container, entry.notes) == (plain, "h5ad", ())
    assert plain.exists()


def test_2026_container_by_meta(payload, plain, tmp_path):
    meta = ("meta.json", json.dumps(META).encode())
    path = write_tar(tmp_path / "a.vcc", [meta, ("pred.h5ad.zst", payload)])
    with open_entry(path) as entry:
        assert (entry.container, entry.meta, entry.notes) == ("vcc2026", META, ())
        assert entry.h5ad.read_bytes() == plain.read_bytes()
        wrong_year = container_issues(entry, ("vcc2025", "h5ad"), path, "vcc2025")
    assert [(issue.code, issue.found) for issue in wrong_year] == [("E540", "vcc2026")]


@pytest.mark.parametrize(
    "meta",
    [b"{", b"[1]", b'{"schema": 2}', b"\xff", b" " * 70_000, b'{"schema": 1, "nnz": ' + b"9" * 5000 + b"}"],
)
def test_unreadable_meta_is_unknown_not_an_error(meta, payload, tmp_path):
    path = write_tar(tmp_path / "a.vcc", [("meta.json", meta), ("pred.h5ad.zst", payload)])
    with open_entry(path) as entry:
        assert (entry.container, entry.meta) == ("vcc2026", {})
        assert [issue.code for issue in entry.notes] == ["W504"]


def test_frames_of_many_kinds_are_read(plain, tmp_path):
    raw = plain.read_bytes()
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"abcde"
    unknown_size = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(raw[300_000:])
    data = skippable + zstandard.ZstdCompressor().compress(raw[:300_000]) + skippable + unknown_size
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data), MARK], format=tarfile.PAX_FORMAT)
    with open_entry(path) as entry:
        assert entry.h5ad.read_bytes() == raw


def test_long_names_and_extra_members_are_walked(payload, tmp_path):
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(
            tmp_path / f"{format}.vcc", [("x" * 200, b"abc"), ("pred.h5ad.zst", payload), MARK], format=format
        )
        assert notes_of(path) == ["W501"]


def test_both_markers_read_as_2026(payload, tmp_path):
    path = write_tar(
        tmp_path / "a.vcc", [("meta.json", json.dumps(META).encode()), ("pred.h5ad.zst", payload), MARK]
    )
    with open_entry(path) as entry:
        assert (entry.container, [issue.code for issue in entry.notes]) == ("vcc2026", ["W502"])


def test_other_order_is_noted(payload, tmp_path):
    assert notes_of(write_tar(tmp_path / "a.vcc", [MARK, ("pred.h5ad.zst", payload)])) == ["W503"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tar_is_read_and_noted(mode, payload, plain, tmp_path):
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", payload), MARK], mode=mode)
    with open_entry(path) as entry:
        assert [issue.code for issue in entry.notes] == ["W505"]
        assert entry.h5ad.read_bytes() == plain.read_bytes()
    path.write_bytes(path.read_bytes()[:-2000])
    assert codes_of(path) == ["E502"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"gene,value\n" * 100, "a file that starts with"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "a plain HDF5 file"),
    ],
)
def test_not_a_tar(content, found, tmp_path):
    path = tmp_path / "a.vcc"
    path.write_bytes(content)
    with pytest.raises(InvalidFile) as caught, open_entry(path):
        pass
    assert [issue.code for issue in caught.value.issues] == ["E501"]
    assert caught.value.issues[0].found.startswith(found)


def test_bare_zstd_stream_is_not_a_tar(payload, tmp_path):
    (tmp_path / "a.vcc").write_bytes(payload)
    assert codes_of(tmp_path / "a.vcc") == ["E501"]


@pytest.mark.parametrize("keep", [600, 3000, -9000])
def test_truncated_tar(keep, plain, tmp_path):
    write_vcc2025(plain, tmp_path / "a.vcc")
    whole = (tmp_path / "a.vcc").read_bytes()
    (tmp_path / "a.vcc").write_bytes(whole[:keep])
    assert codes_of(tmp_path / "a.vcc") == ["E502"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_damaged_second_header(payload, tmp_path):
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", payload), MARK])
    data = bytearray(path.read_bytes())
    at = data.index(b"watermark.txt")
    data[at + 3] ^= 1
    path.write_bytes(data)
    assert codes_of(path) == ["E502"]


def test_missing_members(payload, tmp_path):
    assert codes_of(write_tar(tmp_path / "a.vcc", [MARK])) == ["E503"]
    assert codes_of(write_tar(tmp_path / "b.vcc", [("pred.h5ad.zst", payload)])) == ["E504"]
    assert codes_of(write_tar(tmp_path / "c.vcc", [("sub/pred.h5ad.zst", payload), MARK])) == ["E503"]
    assert codes_of(write_tar(tmp_path / "d.vcc", [("other", b"")])) == ["E503", "E504"]


@pytest.mark.parametrize("mark", [b"", b"vcc-prep\n", b"VCC-PREP", b"vcc-pre"])
def test_wrong_watermark(mark, payload, tmp_path):
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", payload), ("watermark.txt", mark)])
    assert codes_of(path) == ["E505"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_names_that_leave_the_folder(name, payload, tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    path = write_tar(inside / "a.vcc", [(name, b"x"), ("pred.h5ad.zst", payload), MARK])
    assert codes_of(path) == ["E506"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.vcc", "in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_payload_that_is_no_file(kind, tmp_path):
    path = tmp_path / "a.vcc"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("pred.h5ad.zst")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        mark = tarfile.TarInfo(MARK[0])
        mark.size = 8
        archive.addfile(mark, io.BytesIO(MARK[1]))
    assert codes_of(path) == ["E506"]


def test_repeated_member(payload, tmp_path):
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", payload), ("pred.h5ad.zst", payload), MARK])
    assert codes_of(path) == ["E507"]


def test_huge_header_is_refused_without_reading_it(payload, tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    head = info.tobuf(format=tarfile.GNU_FORMAT)
    (tmp_path / "a.vcc").write_bytes(head + bytes(1024))
    assert codes_of(tmp_path / "a.vcc") == ["E502"]


def test_lying_member_size_is_a_truncation(tmp_path):
    info = tarfile.TarInfo("pred.h5ad.zst")
    info.size = 2**50
    (tmp_path / "a.vcc").write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    assert codes_of(tmp_path / "a.vcc") == ["E502"]


def test_too_many_members():
    header = tarfile.TarInfo("x").tobuf(format=tarfile.GNU_FORMAT)
    with pytest.raises(TarProblem, match="more than 1,000"):
        read_members(io.BytesIO(header * 1001))


def test_pax_size_above_eight_gib_is_read():
    info = tarfile.TarInfo("big")
    info.size = 9 * 2**30
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = _Endless(info.tobuf(format=format))
        assert read_members(stream)[0] == Member("big", 9 * 2**30, len(stream.head), True)


class _Endless(io.BytesIO):
    """An archive whose member data are all there, then zeros."""

    def __init__(self, head):
        super().__init__(head)
        self.head = head

    def read(self, size=-1):
        return super().read(size) or bytes(min(size, 512))


@pytest.mark.parametrize(
    "data", [b"not zstd at all", b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd" + b"\xff" * 100]
)
def test_payload_that_is_no_zstd(data, tmp_path):
    expected = "E511" if not data else "E508"
    assert codes_of(write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data), MARK])) == [expected]
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_truncated_zstd(payload, tmp_path):
    for sized in (True, False):
        raw = np.random.default_rng(0).bytes(400_000)
        data = zstandard.ZstdCompressor(write_content_size=sized).compress(raw)
        for cut in (20, len(data) // 2, len(data) - 1):
            path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data[:cut]), MARK])
            assert codes_of(path) == ["E508"]


def test_flipped_byte_is_caught_by_the_checksum(tmp_path):
    raw = np.random.default_rng(0).bytes(100_000)
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(raw))
    data[5000] ^= 1
    assert codes_of(write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", bytes(data)), MARK])) == ["E508"]


def test_content_that_is_no_hdf5(tmp_path):
    data = zstandard.compress(b"hello" * 100)
    assert codes_of(write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data), MARK])) == ["E511"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def lying_frame(declared, n_real):
    """A valid single-segment frame of zeros (RLE blocks of 128 KiB) whose header declares another size."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b10100000]) + declared.to_bytes(4, "little")
    n_blocks = n_real // 2**17
    blocks = [
        ((2**17 << 3) | (1 << 1) | (i == n_blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(n_blocks)
    ]
    return head + b"".join(blocks)


def test_bomb_that_declares_little_stops_early(tmp_path, monkeypatch):
    written = []
    decompress = containers.decompress
    monkeypatch.setattr(
        containers, "decompress", lambda *a, **k: (written.append(len(p)) or p for p in decompress(*a, **k))
    )
    data = lying_frame(2**20, 2**31)
    assert len(data) < 70_000
    codes = codes_of(write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data), MARK]))
    assert codes in (["E509"], ["E508"])
    assert sum(written) <= 2**20
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_more_data_than_declared(tmp_path, monkeypatch):
    raw = b"\x89HDF\r\n\x1a\n" + bytes(2**20)
    monkeypatch.setattr(zstandard, "frame_content_size", lambda head: 1000)
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", zstandard.compress(raw)), MARK])
    assert codes_of(path) == ["E509"]


def test_declared_size_beyond_the_free_space_writes_nothing(tmp_path):
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (2**60).to_bytes(8, "little")
    path = write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", head + b"\1\0\0"), MARK])
    assert codes_of(path) == ["E510"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_bomb_of_unknown_size_stops_at_the_reserve(tmp_path, monkeypatch):
    monkeypatch.setattr(zstd_stream.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**8}))
    data = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**28))
    assert codes_of(write_tar(tmp_path / "a.vcc", [("pred.h5ad.zst", data), MARK])) == ["E510"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_temporary_file_is_removed_when_the_reader_fails(plain, tmp_path):
    write_vcc2025(plain, tmp_path / "a.vcc")
    with pytest.raises(RuntimeError, match="reader"), open_entry(tmp_path / "a.vcc") as entry:
        assert entry.h5ad.exists()
        raise RuntimeError("reader")
    assert [p.name for p in tmp_path.iterdir()] == ["a.vcc"]


def test_leftovers_of_a_killed_run_are_removed_and_live_ones_kept(plain, tmp_path):
    write_vcc2025(plain, tmp_path / "a.vcc")
    code = (
        "import os, signal, sys\n"
        "from vcbench.data_specs.containers import open_entry\n"
        "with open_entry(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.vcc")], check=False)
    left = [p for p in tmp_path.iterdir() if p.name != "a.vcc"]
    assert len(left) == 1
    with open_entry(tmp_path / "a.vcc") as first, open_entry(tmp_path / "a.vcc") as second:
        assert not left[0].exists()
        assert first.h5ad.exists() and second.h5ad.exists() and first.h5ad != second.h5ad


def test_leftovers_of_other_hosts_and_living_processes_stay(tmp_path):
    host = temporary._host()
    others = [
        f"{temporary.TEMP_PREFIX}{host}-{os.getppid()}-aa.h5ad",
        f"{temporary.TEMP_PREFIX}elsewhere-1-bb.h5ad",
    ]
    dead = tmp_path / f"{temporary.TEMP_PREFIX}{host}-{os.getpid()}-cc.pack"
    for name in others:
        (tmp_path / name).touch()
    dead.mkdir()
    (dead / "x").touch()
    assert temporary.remove_leftovers(tmp_path) == [dead]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


def test_tmp_must_be_a_folder(plain, tmp_path):
    write_vcc2025(plain, tmp_path / "a.vcc")
    other = tmp_path / "tmp"
    other.mkdir()
    with open_entry(tmp_path / "a.vcc", tmp=other) as entry:
        assert entry.h5ad.parent == other
    with pytest.raises(OutputError, match="--tmp"), open_entry(tmp_path / "a.vcc", tmp=tmp_path / "none"):
        pass


def test_full_disk_while_writing_the_container_leaves_nothing(plain, tmp_path, monkeypatch):
    def failing(size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container_write, "_header", lambda name, size: failing(size))
    with pytest.raises(OutputError, match="disk is full"):
        write_vcc2025(plain, tmp_path / "a.vcc")
    assert list(tmp_path.iterdir()) == []


def test_container_that_does_not_read_back_is_refused(plain, tmp_path, monkeypatch):
    write = ReadBack.write

    def damaged(stream, data):
        flipped = bytearray(data)
        flipped[-3] ^= 1
        return write(stream, flipped)

    monkeypatch.setattr(ReadBack, "write", damaged)
    for threads in (1, 2):
        with pytest.raises(OutputError, match="read back"):
            write_vcc2025(plain, tmp_path / "a.vcc", threads=threads)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_loses_its_payload_is_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(container_write, "_header", lambda name, size: bytes(512))
    with pytest.raises(OutputError, match="read back"):
        write_vcc2025(plain, tmp_path / "a.vcc")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_stopped_keeps_nothing(plain, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(container_write.WritingStopped):
        write_vcc2025(plain, tmp_path / "a.vcc", stop=stop)
    assert list(tmp_path.iterdir()) == []
