"""Saved sessions come back whole, or are refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from fake_store import append, check_books, check_rows, make_cache, start
from layerlift.runtime import kvfile
from layerlift.runtime.errors import SessionError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "chat.session"
    cache = make_cache()
    cache.save(start(cache, range(10)), path)
    return path


def counts(cache):
    return cache.used, cache.cached, cache.free


def reseal(data: bytes) -> bytes:
    """The same file with a digest that fits."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def with_header(data: bytes, change) -> bytes:
    """The same file with another header."""
    magic, version, nbytes = kvfile.PREAMBLE.unpack(data[: kvfile.PREAMBLE.size])
    rest = data[kvfile.PREAMBLE.size :]
    header = json.loads(rest[:nbytes])
    text = change(header)
    if not isinstance(text, bytes):
        text = json.dumps(header).encode()
    return reseal(kvfile.PREAMBLE.pack(magic, version, len(text)) + text + rest[nbytes:])


# -- there and back --


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_a_loaded_sequence_equals_the_saved_one(tmp_path, dtype):
    cache, other = make_cache(dtype=dtype), make_cache(40, dtype=dtype)
    seq = start(cache, range(10))
    start(other, [50, 51])
    cache.save(seq, tmp_path / "s")
    loaded = other.load(tmp_path / "s")
    check_rows(other, loaded)
    for a, b in zip(cache.stores, other.stores, strict=True):
        for left, right in zip(a.read(seq.rows), b.read(loaded.rows), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    append(other, loaded, [10, 11])
    check_rows(other, loaded)


def test_many_groups_are_streamed_one_at_a_time(tmp_path):
    cache, other = make_cache(4096), make_cache(4096)
    tokens = (np.arange(3 * kvfile.GROUP + 5) % 97).tolist()
    cache.save(start(cache, tokens), tmp_path / "s")
    assert cache.stores[0].largest_read == kvfile.GROUP
    check_rows(other, other.load(tmp_path / "s"))


def test_an_empty_sequence_can_be_saved(tmp_path):
    cache = make_cache()
    cache.save(cache.open(), tmp_path / "s")
    assert cache.load(tmp_path / "s").length == 0


def test_a_shifted_sequence_stays_private(tmp_path):
    cache = make_cache()
    seq = start(cache, range(10))
    cache.shift(seq, 2, 5)
    cache.save(seq, tmp_path / "s")
    loaded = cache.load(tmp_path / "s")
    assert loaded.private
    check_rows(cache, loaded)
    assert loaded.shifted_at == 2


def test_loading_evicts_cached_prefixes(saved):
    cache = make_cache(12)
    cache.close(start(cache, range(50, 60)))
    check_rows(cache, cache.load(saved))
    assert cache.used == 10


# -- writing --


def test_a_failed_save_leaves_the_old_file_and_no_other(saved):
    before = saved.read_bytes()
    cache = make_cache()
    seq = start(cache, range(20))

    def fail(rows):
        raise RuntimeError("device lost")

    cache.stores[1].read = fail
    with pytest.raises(RuntimeError, match="device lost"):
        cache.save(seq, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


KILLED = """
import os, signal, sys
from fake_store import make_cache, start
cache = make_cache()
cache.stores[1].read = lambda rows: os.kill(os.getpid(), signal.SIGKILL)
cache.save(start(cache, range(20)), sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_save_killed_halfway_leaves_the_old_file(saved):
    before = saved.read_bytes()
    environ = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(saved)], env=environ)
    assert done.returncode == -signal.SIGKILL
    assert saved.read_bytes() == before
    assert make_cache().load(saved).length == 10


def test_saving_again_replaces_the_file(saved):
    cache = make_cache()
    cache.save(start(cache, range(20)), saved)
    assert cache.load(saved).length == 20
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.skipif(sys.platform == "win32", reason="file modes and links are POSIX")
def test_a_session_is_for_its_owner_only_and_a_link_stays_a_link(saved):
    link = saved.parent / "link"
    link.symlink_to(saved)
    cache = make_cache()
    cache.save(start(cache, range(20)), link)
    assert link.is_symlink()
    assert cache.load(saved).length == 20
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_a_folder_that_is_not_there_is_named(tmp_path):
    cache = make_cache()
    with pytest.raises(SessionError, match=r"nowhere.s cannot be written: No such file or directory"):
        cache.save(cache.open(), tmp_path / "nowhere" / "s")


# -- refusing --


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SessionError, match=r"session .*none cannot be read: No such file or directory"):
        make_cache().load(tmp_path / "none")


def test_a_flipped_bit_is_noticed_wherever_it_is(saved):
    data = saved.read_bytes()
    cache = make_cache()
    before = counts(cache)
    for i in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[i] ^= 1 << (i % 8)
        saved.write_bytes(damaged)
        with pytest.raises(SessionError):
            cache.load(saved)
    assert counts(cache) == before
    assert all((store.k == -1).all() for store in cache.stores), "the cache was touched"


def test_a_truncated_file_is_noticed_wherever_it_ends(saved):
    data = saved.read_bytes()
    for n in range(0, len(data), 3):
        saved.write_bytes(data[:n])
        with pytest.raises(SessionError, match=r"truncated|not a saved session"):
            make_cache().load(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d + b"x", "1 bytes too many"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "sha256 does not match"),
        (lambda d: d[:-40] + b"x" + d[-39:], "sha256 does not match"),
        (lambda d: b"GGUF" + d[4:], "is not a saved session"),
        (lambda d: b"", "truncated: 0 bytes"),
        (lambda d: d[:8] + struct.pack("<I", 2) + d[12:], "has version 2, this program reads version 1"),
        (lambda d: d[:12] + struct.pack("<I", 1 << 30) + d[16:], "a header of 1073741824 bytes"),
        (lambda d: with_header(d, lambda h: b"{"), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: b"[" * 100_000), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: b"[]"), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.pop("tokens")), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(tokens=-1)), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(tokens=1 << 62)), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(tokens=1 << 30)), "is truncated"),
        (lambda d: with_header(d, lambda h: h.update(tokens=True)), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(dtype=[])), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(dtype="q9")), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(shifted_at=10)), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(layers=[[1, 2], [1]])), "its header cannot be read"),
        (lambda d: with_header(d, lambda h: h.update(layers=[[1, 2], [2, 1]])), "2 layers of 1x2, 2x1, this"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(saved, change, reason):
    saved.write_bytes(change(saved.read_bytes()))
    cache = make_cache()
    with pytest.raises(SessionError, match=reason):
        cache.load(saved)
    assert cache.free == cache.capacity


def test_a_negative_token_is_refused(saved):
    data = bytearray(saved.read_bytes())
    first = data.index(np.arange(10, dtype="<i4").tobytes())
    data[first : first + 4] = struct.pack("<i", -5)
    saved.write_bytes(reseal(bytes(data)))
    with pytest.raises(SessionError, match="token -5"):
        make_cache().load(saved)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"fingerprint": "another"}, "is of another model: model, this one is another"),
        ({"dtype": "f16"}, "holds f32 keys and values, this cache holds f16"),
        ({"layers": 3}, r"has 2 layers of 1x2, this model has 3 layers of 1x2"),
        ({"capacity": 9}, "holds 10 tokens, 9 of 9 in the context are left"),
    ],
)
def test_a_file_that_does_not_fit_this_cache_is_refused(saved, other, reason):
    cache = make_cache(**other)
    before = counts(cache)
    with pytest.raises(SessionError, match=reason):
        cache.load(saved)
    assert counts(cache) == before


def test_a_device_failing_while_loading_leaves_no_rows_behind(saved):
    cache = make_cache()
    seq = start(cache, [50, 51])

    def fail(rows, k, v):
        raise RuntimeError("device lost")

    write, cache.stores[1].write = cache.stores[1].write, fail
    with pytest.raises(RuntimeError, match="device lost"):
        cache.load(saved)
    cache.stores[1].write = write
    check_books(cache, [seq])
    check_rows(cache, seq)
    assert cache.used == 2
