"""Facts about damaged packed files: refused with the fact and the place, in one line."""

from __future__ import annotations

import os
import zipfile

import pytest
from ggufs import TEXT, Key, Raw, Tensor
from layerlift.runtime.errors import GGUFError, LayerliftError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pack import HEAD, pack, repack, unpack
from layerlift.runtime.pack_manifest import ALIGNMENT
from layerlift.runtime.pack_verify import verify
from packing import flipped


def test_a_flipped_bit_in_the_weights_is_named_with_its_place(tmp_path, content, packed):
    at = ALIGNMENT + content.stat().st_size - 5
    with pytest.raises(GGUFError, match=rf"'m\.gguf' are damaged in .*m\.llm between bytes {ALIGNMENT} and {at + 5}: "):
        verify(flipped(packed, at))
    with pytest.raises(GGUFError, match="are damaged"):
        unpack(packed, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    repack(packed)
    with pytest.raises(GGUFError, match="are damaged"):
        verify(packed)


def test_damage_is_found_to_the_block(tmp_path, monkeypatch):
    for module in ("pack_writer", "pack_manifest"):
        monkeypatch.setattr(f"layerlift.runtime.{module}.CRC_BLOCK", 4096)
    Raw([Key("general.architecture", TEXT, "llama")], [Tensor("t", (1 << 14,))]).write(tmp_path / "m.gguf")
    pack(tmp_path / "m.gguf", tmp_path / "m.llm")
    flipped(tmp_path / "m.llm", ALIGNMENT + 3 * 4096 + 7)
    with pytest.raises(GGUFError, match=f"between bytes {ALIGNMENT + 3 * 4096} and {ALIGNMENT + 4 * 4096}: "):
        verify(tmp_path / "m.llm")


def test_a_cut_file_is_refused_by_all(tmp_path, packed):
    size = packed.stat().st_size
    for left in (size - 1, size - 30, size - 1000, ALIGNMENT + 50, ALIGNMENT, 100, 1, 0):
        os.truncate(packed, left)
        for act in (verify, open_gguf, repack, lambda p: unpack(p, tmp_path / "out")):
            with pytest.raises(LayerliftError) as e:
                act(packed)
            assert "m.llm" in str(e.value)
            assert "\n" not in str(e.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (0, "has no #! line with python"),
        (16, "has no #! line with python"),
        (23, "are not the lines that start it"),
        (len(HEAD) - 1, "are not the lines that start it"),
        (len(HEAD) + 1, f"is damaged at byte {len(HEAD) + 1}"),
        (ALIGNMENT - 1, f"is damaged at byte {ALIGNMENT - 1}"),
        (ALIGNMENT, "GGUF magic"),
        (ALIGNMENT + 9, "gguf: "),
        (ALIGNMENT + 40, "gguf: |are damaged"),
    ],
)
def test_a_flipped_bit_in_a_header_is_named(packed, at, message):
    with pytest.raises(LayerliftError, match=message) as caught:
        verify(flipped(packed, at))
    assert "m.llm" in str(caught.value)


def test_every_change_behind_the_weights_is_refused_or_changes_nothing_that_counts(tmp_path, content, packed):
    data, start = packed.read_bytes(), ALIGNMENT + content.stat().st_size
    sound, refused = verify(packed).parts, []
    for at in [*range(start, len(data), 23), *range(len(data) - 300, len(data))]:
        packed.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            assert verify(packed).parts == sound
        except LayerliftError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not [line for line in refused if "\n" in line or "m.llm" not in line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'"offset": 65536', b'"offset": 65537'), "'layerlift.json' is damaged: its checksum differs"),
        ((b"#!/usr/bin/env python3", b"#!/bin/sh             "), "has no #! line with python at byte 0"),
    ],
)
def test_what_was_changed_by_hand_is_refused(packed, change, message):
    packed.write_bytes(packed.read_bytes().replace(*change))
    with pytest.raises(GGUFError, match=message):
        verify(packed)


@pytest.mark.parametrize(
    "wrong",
    [
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "layerlift": "1", "weights": []}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": "m.gguf", "offset": "65536"}]}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": 1, "offset": 0, "nbytes": 1}]}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": "m.gguf", "offset": 0, "nbytes": 4611686018427387904,'
        b' "sha256": "", "crc32": []}]}',
    ],
    ids=lambda x: x[:60].decode(),
)
def test_a_manifest_that_makes_no_sense_is_one_line(tmp_path, wrong):
    path = tmp_path / "m.llm"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("layerlift.json", wrong)
    path.write_bytes(b"#!python\n" + path.read_bytes())
    with pytest.raises(GGUFError, match=r"m\.llm") as e:
        open_gguf(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("offset", "nbytes"), [(65536, 1 << 40), (1, 100), (1 << 40, 100), (65536, 5000)])
def test_weights_that_are_not_there_are_refused(tmp_path, offset, nbytes):
    from layerlift.runtime.pack_manifest import CRC_BLOCK, Manifest, Weights

    crcs = ("0" * 8,) * -(-nbytes // CRC_BLOCK)
    path = tmp_path / "m.llm"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("layerlift.json", Manifest("1", (Weights("m.gguf", offset, nbytes, "0" * 64, crcs),)).dump())
    path.write_bytes(b"#!python\n".ljust(65536 + 4000, b"\0") + path.read_bytes())
    with pytest.raises(GGUFError, match=r"'m\.gguf' of \d+ bytes does not lie there in .* at byte \d+"):
        open_gguf(path)
