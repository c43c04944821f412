"""Compiled programs on disk: whole or not there, whoever writes them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from layerlift.backends.program_cache import ProgramCache, default_folder


def test_what_was_written_is_read(tmp_path):
    cache = ProgramCache(tmp_path / "deep" / "folder")
    cache.write("k", b"program")
    assert cache.read("k") == b"program"
    assert [p.name for p in cache.folder.iterdir()] == ["k"]


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:10], lambda d: b"", lambda d: d[:-1] + b"\0"])
def test_a_damaged_entry_counts_as_none(tmp_path, damage):
    cache = ProgramCache(tmp_path)
    cache.write("k", b"program")
    (tmp_path / "k").write_bytes(damage((tmp_path / "k").read_bytes()))
    assert cache.read("k") is None


def test_keys_depend_on_every_part_and_on_where_parts_end():
    cache = ProgramCache(default_folder())
    assert len({cache.key(parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("a", "bc", ""))}) == 4


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ProgramCache(tmp_path / "file" / "folder")
    cache.write("k", b"program")
    assert cache.read("k") is None


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "programs"


def test_two_processes_fill_one_folder(tmp_path):
    code = """
import sys
from pathlib import Path
from layerlift.backends.program_cache import ProgramCache
cache = ProgramCache(Path(sys.argv[1]))
for i in range(300):
    cache.write("k", sys.argv[2].encode() * 5000)
    assert cache.read("k") in (b"a" * 5000, b"b" * 5000)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), letter]) for letter in "ab"]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["k"]
