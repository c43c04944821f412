"""A GGUF used in place inside a ZIP archive or a .llamafile."""

import os
import struct
import zipfile

import pytest
from ggufs import small
from layerlift.runtime.archive import MAX_MEMBERS
from layerlift.runtime.errors import GGUFError, LayerliftError, UserError
from layerlift.runtime.gguf import open_gguf
from zips import write_wide

CONTENT = small().pack()


def make(path, members=(("m.gguf", CONTENT),), *, compression=zipfile.ZIP_STORED, zip64=False, prefix=b"", comment=b""):
    """Writes an archive; `prefix` goes in front without the offsets knowing of it."""
    with zipfile.ZipFile(path, "w", compression) as z:
        for name, content in members:
            with z.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as f:
                f.write(content)
        z.comment = comment
    if compression != zipfile.ZIP_STORED:  # open(ZipInfo) stores
        with zipfile.ZipFile(path, "w", compression) as z:
            for name, content in members:
                z.writestr(name, content)
    if prefix:
        path.write_bytes(prefix + path.read_bytes())
    return path


def make_wide(path, **options):
    """A .llamafile with the one model."""
    return write_wide(path, [("m.gguf", CONTENT)], **options)


def same(g):
    """Whether `g` is the content written above."""
    return g.metadata.integer("llama.block_count") == 2 and g.raw("norm.weight").tobytes() == bytes(
        i % 251 for i in range(512, 640)
    )


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("prefix", [b"", b"#!/usr/bin/env python3\n" * 7])
@pytest.mark.parametrize("comment", [b"", b"a note", b"PK\5\6" * 3000, b"c" * 65535])
def test_the_only_gguf_of_an_archive_is_used_in_place(tmp_path, zip64, prefix, comment):
    members = [("readme.txt", b"hello"), ("dir/m.GGUF", CONTENT), (".args", b"-m\nm.gguf\n")]
    path = make(tmp_path / "a.zip", members, zip64=zip64, prefix=prefix, comment=comment)
    with open_gguf(path) as g:
        assert same(g)
        assert g.path == f"{path}@dir/m.GGUF"
        assert not g.raw("norm.weight").flags.owndata
        g.release("norm.weight")
        assert same(g)


@pytest.mark.parametrize("extra", [b"", b"UT\x05\x00\x01abcd"])
def test_a_llamafile_opens(tmp_path, extra):
    with open_gguf(make_wide(tmp_path / "m.llamafile", extra=extra)) as g:
        assert same(g)
        assert g.raw("norm.weight").ctypes.data % 32 == 0


def test_bytes_put_in_front_of_a_zip64_archive_are_found_out(tmp_path):
    path = make_wide(tmp_path / "m.zip", prefix=b"")
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with open_gguf(path) as g:
        assert same(g)


def test_a_member_beyond_four_gigabytes_opens(tmp_path):
    path, tail = tmp_path / "big.llamafile", make_wide(tmp_path / "t", alignment=64, shift=5 << 30).read_bytes()
    with open(path, "wb") as f:
        f.seek(5 << 30)  # a hole, which takes no space
        f.write(tail)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    end = path.stat().st_size - 22 - 20
    with open(path, "r+b") as f:  # directory and ZIP64 record, as a writer that knew of the hole has them
        f.seek(end - 56 + 48)
        at = struct.unpack("<Q", f.read(8))[0]
        f.seek(end - 56 + 48)
        f.write(struct.pack("<Q", at + (5 << 30)))
        f.seek(end + 8)
        f.write(struct.pack("<Q", end - 56))
    with open_gguf(path) as g:
        assert same(g)


def test_a_member_is_chosen_by_name(tmp_path):
    other = small()
    other.keys[1].value = 9
    path = make(tmp_path / "a@b.zip", [("m.gguf", CONTENT), ("sub/o.gguf", other.pack())])
    for g in (open_gguf(f"{path}@sub/o.gguf"), open_gguf(path, member="sub/o.gguf")):
        assert g.metadata.integer("llama.block_count") == 9
    assert same(open_gguf(path, member="m.gguf"))
    with pytest.raises(UserError, match=r"holds 2 \.gguf files: 'm\.gguf', 'sub/o\.gguf'") as e:
        open_gguf(path)
    assert "FILE@MEMBER" in e.value.hint
    with pytest.raises(UserError, match=r"no member 'n\.gguf' in .*a@b\.zip") as e:
        open_gguf(f"{path}@n.gguf")
    assert "'m.gguf', 'sub/o.gguf'" in e.value.hint


def test_a_file_whose_name_has_an_at_sign_opens(tmp_path):
    path = tmp_path / "m@v1.gguf"
    path.write_bytes(CONTENT)
    assert same(open_gguf(path))


def test_a_plain_file_has_no_members(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    with pytest.raises(UserError, match=r"is not a ZIP archive, so it has no member 'x\.gguf'"):
        open_gguf(f"{path}@x.gguf")


def test_a_split_set_inside_an_archive_opens(tmp_path):
    from ggufs import U16, Key, Raw, Tensor

    parts = []
    for i in range(2):
        keys = [Key("split.no", U16, i), Key("split.count", U16, 2), Key("split.tensors.count", U16, 2)]
        parts.append((f"m-0000{i + 1}-of-00002.gguf", Raw(keys, [Tensor(f"t{i}", (32,))]).pack()))
    path = make(tmp_path / "a.zip", parts)
    with open_gguf(f"{path}@m-00002-of-00002.gguf") as g:
        assert list(g.tensors) == ["t0", "t1"]
    with pytest.raises(GGUFError, match=r"part 1 of 2 is missing: .*m-00001-of-00002\.gguf"):
        open_gguf(make(tmp_path / "b.zip", parts[1:]))


def patched(path, signature, offset, value):
    """Writes `value` at `offset` behind the last `signature`."""
    data = bytearray(path.read_bytes())
    at = data.rindex(signature) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
DAMAGED = {
    "compressed": (lambda p: make(p, compression=zipfile.ZIP_DEFLATED), r"'m\.gguf' is compressed \(deflate\)"),
    "unknown method": (lambda p: patched(make(p), CENTRAL, 10, b"\x63\0"), r"compressed \(method 99\)"),
    "encrypted": (lambda p: patched(make(p), CENTRAL, 8, b"\1"), r"'m\.gguf' is encrypted"),
    "twice": (lambda p: make(p, [("m.gguf", CONTENT), ("n.gguf", CONTENT)]), "holds 2"),
    "local header gone": (lambda p: patched(make(p), LOCAL, 0, b"XX"), r"'m\.gguf' has no local header"),
    "local name differs": (lambda p: patched(make(p), LOCAL, 30, b"x"), "differs from the directory"),
    "local method differs": (lambda p: patched(make(p), LOCAL, 8, b"\x08"), "differs from the directory"),
    "offset past the end": (lambda p: patched(make(p), CENTRAL, 42, b"\0\0\0\x70"), "no local header"),
    "size past the directory": (
        lambda p: patched(make(p), CENTRAL, 20, struct.pack("<II", 5000, 5000)),
        r"'m\.gguf' needs 5000 bytes, \d+ left",
    ),
    "long local extra": (lambda p: patched(make(p), LOCAL, 28, b"\xff\xff"), "needs .* 0 left"),
    "entry cut": (lambda p: patched(make(p), CENTRAL, 28, b"\xff\xff"), "entry 1 of 1 runs past the directory"),
    "more entries": (lambda p: patched(make(p), END, 10, b"\x09\0"), "entry 2 of 9 in the directory is damaged"),
    "no wide sizes": (lambda p: patched(make(p), CENTRAL, 42, b"\xff\xff\xff\xff"), "lacks its ZIP64 sizes"),
    "wide offset far away": (lambda p: make_wide(p, shift=1 << 62), "no local header"),
    "wide size of 2^63": (
        lambda p: patched(make_wide(p), CENTRAL, 46 + 6 + 4, struct.pack("<QQ", 1 << 63, 1 << 63)),
        f"needs {1 << 63} bytes",
    ),
    "wide count of 2^60": (
        lambda p: patched(make_wide(p), b"PK\6\6", 32, struct.pack("<Q", 1 << 60)),
        f"{1 << 60} entries; the limit is {MAX_MEMBERS}",
    ),
    "not a GGUF": (lambda p: make(p, [("m.gguf", b"hello")]), r"no GGUF magic in .*@m\.gguf at byte 0"),
    "empty member": (lambda p: make(p, [("m.gguf", b"")]), r"no GGUF magic in .*@m\.gguf at byte 0"),
    "cut member": (
        lambda p: make(p, [("m.gguf", CONTENT[:100])]),
        r"6 keys, but 76 bytes are left in .*@m\.gguf at",
    ),
    "no gguf": (lambda p: make(p, [("a.txt", b"hi")]), r"damaged or without a \.gguf file"),
    "no members": (lambda p: make(p, []), "damaged or without"),
    "end record cut": (lambda p: cut(make(p), 1), "damaged or without"),
    "half": (lambda p: cut(make(p), 400), "damaged or without"),
    "directory offset wild": (
        lambda p: patched(make(p), END, 16, b"\xff\xff\xff\x7f"),
        "damaged or without",
    ),
    "directory size wild": (
        lambda p: patched(make(p), END, 12, b"\xff\xff\xff\x7f"),
        "damaged or without",
    ),
}


def cut(path, n):
    os.truncate(path, path.stat().st_size - n)
    return path


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_archive_is_one_line(tmp_path, case):
    build, message = DAMAGED[case]
    path = build(tmp_path / "a.zip")
    with pytest.raises(LayerliftError, match=message) as e:
        open_gguf(path)
    assert "a.zip" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_name_listed_twice_is_refused(tmp_path):
    path = make(tmp_path / "a.zip", [("m.gguf", CONTENT), ("n.gguf", CONTENT)])
    path.write_bytes(path.read_bytes().replace(b"n.gguf", b"m.gguf"))
    with pytest.raises(GGUFError, match=r"'m\.gguf' is listed 2 times"):
        open_gguf(path, member="m.gguf")


@pytest.mark.parametrize("wide", [False, True])
def test_every_single_byte_change_of_the_directory_opens_or_is_refused(tmp_path, wide):
    path = make_wide(tmp_path / "a.zip", alignment=64) if wide else make(tmp_path / "a.zip")
    data = path.read_bytes()
    start = data.index(CENTRAL)
    outcomes = set()
    for at in range(start, len(data)):
        for value in (0, 1, 0x7F, 0xFF):
            path.unlink()
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                with open_gguf(path) as g:
                    outcomes.add(same(g))
            except LayerliftError:
                outcomes.add(None)
    assert {True, None} <= outcomes
