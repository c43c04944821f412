"""Facts about writing large files: whole under their name or not there, and holes stay holes."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest
from layerlift.runtime import pack_writer
from layerlift.runtime.pack import pack, repack
from layerlift.runtime.pack_manifest import PackError
from packing import killed_while_packing, parts


@pytest.mark.parametrize("inside", [True, False])
def test_copies_are_the_same_whether_the_system_makes_them_or_not(tmp_path, packed, monkeypatch, inside):
    if not inside:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif not hasattr(os, "copy_file_range"):
        pytest.skip("this system copies nothing by itself")
    repack(packed, tmp_path / "copy.llm")
    assert (tmp_path / "copy.llm").read_bytes() == packed.read_bytes()


def test_holes_stay_holes_and_nothing_beside_them_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "CRC_BLOCK", 1 << 16)
    source, size = tmp_path / "source", 60 << 16
    with open(source, "wb") as file:
        file.truncate(size)
        for at in (5, (7 << 16) - 3, 20 << 16, size - 70_000):  # across blocks, at their edges, near the end
            file.seek(at)
            file.write(b"data" * 1000)
        file.flush()
        os.fsync(file.fileno())
    whole = source.read_bytes()
    with open(source, "rb") as file:
        for start, end in ((0, size), (3, size - 9), (8 << 16, 12 << 16), (30 << 16, size)):
            copies = []
            for copy in (pack_writer.copy_checked, pack_writer.copy_range):
                with open(tmp_path / "copy", "w+b") as out:
                    out.write(b"head")
                    copies.append(copy(file.fileno(), start, end - start, out, lambda n: None))
                    out.write(b"tail")
                assert (tmp_path / "copy").read_bytes() == b"head" + whole[start:end] + b"tail"
            assert copies[0][0] == hashlib.sha256(whole[start:end]).hexdigest()
        with open(tmp_path / "copy", "wb") as out:
            pack_writer.copy_checked(file.fileno(), 0, size, out, lambda n: None)
    if source.stat().st_blocks * 512 < size:
        assert (tmp_path / "copy").stat().st_blocks * 512 < size


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, content, packed):
    def stop(done, total):
        raise KeyboardInterrupt

    before = packed.read_bytes()
    for act in (lambda: pack(content, packed, progress=stop), lambda: repack(packed, progress=stop)):
        with pytest.raises(KeyboardInterrupt):
            act()
        assert packed.read_bytes() == before
        assert parts(tmp_path) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, content, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(PackError, match=r"m\.llm: 0\.1 MB needed, 0\.0 MB free"):
        pack(content, tmp_path / "m.llm")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, content, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PackError, match=r"m\.llm: No space left on device"):
        pack(content, tmp_path / "m.llm")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path, content):
    old, young, other = (tmp_path / name for name in (".m.llm.a.part", ".m.llm.b.part", ".n.llm.c.part"))
    for path in (old, young, other):
        path.write_bytes(b"rest")
    for path in (old, other):
        os.utime(path, (1, 1))
    pack(content, tmp_path / "m.llm")
    assert sorted(parts(tmp_path)) == [young.name, other.name]


@pytest.mark.skipif(os.name == "nt", reason="locks of this kind are not used here")
def test_a_part_that_is_being_written_is_left_alone(tmp_path, content):
    import fcntl

    busy = tmp_path / ".m.llm.a.part"
    busy.write_bytes(b"mine")
    os.utime(busy, (1, 1))
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        pack(content, tmp_path / "m.llm")
        assert busy.exists()


def test_killed_at_random_points_there_is_a_whole_file_or_none(tmp_path, tiny):
    there = killed_while_packing(tiny(), tmp_path / "m.llm", 4, 0.03)
    assert there < 4, "no kill came in time"


def test_a_source_that_shrinks_is_noticed(tmp_path, content):
    with open(content, "rb") as file, pytest.raises(PackError, match=r"ends at byte \d+, 1 bytes early"):
        pack_writer.copy_checked(file.fileno(), 0, content.stat().st_size + 1, None, lambda n: None)
