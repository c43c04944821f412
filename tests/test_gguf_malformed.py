"""Malformed GGUF files: each is one line that names file, byte, key or tensor and reason, fast and in little memory."""

import re
import struct
import subprocess
import sys
import time

import pytest
from ggufs import ARRAY, BOOL, F32, I8, I32, TEXT, U8, U32, U64, Key, Raw, Tensor, small
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from layerlift.runtime.errors import GGUFError, LayerliftError
from layerlift.runtime.gguf import MAX_KEYS, MAX_TENSORS, open_gguf

SOUND = small().pack()
HUGE, ALL = 1 << 40, (1 << 64) - 1


def keys(*entries):
    return Raw(list(entries)).pack()


def tensors(*entries, **changes):
    return small(tensors=list(entries), **changes).pack()


def patched(at, code, value):
    """The sound file with a number of its own put at `at`."""
    data = bytearray(SOUND)
    struct.pack_into(code, data, at, value)
    return bytes(data)


def without_end(marker, more=0):
    """The sound file, cut behind `marker` and `more` bytes."""
    return SOUND[: SOUND.index(marker) + len(marker) + more]


HEADERS = {
    "empty": (b"", "no GGUF magic in .* at byte 0: the file is empty"),
    "one byte": (b"G", "no GGUF magic in .* at byte 0: it starts with b'G'"),
    "magic only": (b"GGUF", "the header is cut off: its version needs 4 bytes, 0 left"),
    "other magic": (b"GGUG" + SOUND[4:], "no GGUF magic .* b'GGUG'"),
    "magic backwards": (b"FUGG" + SOUND[4:], "no GGUF magic"),
    "ggml": (b"lmgg" + bytes(60), "a GGML file from before GGUF"),
    "ggjt": (b"tjgg" + bytes(60), "a GGJT file from before GGUF"),
    "web page": (b"<!DOCTYPE html>" + bytes(60), "a web page, not a model"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
    "half a llamafile": (b"MZqFpD='" + bytes(90000), r"a program; as a \.llamafile it is damaged"),
    "end record alone": (b"PK\5\6" + bytes(18), "a ZIP archive, damaged or without"),
    "version cut": (SOUND[:6], "its version needs 4 bytes, 2 left"),
    "version 0": (patched(4, "<I", 0), "says GGUF version 0"),
    "version 1": (patched(4, "<I", 1), "GGUF version 1, which was in use in August 2023 only"),
    "version 4": (patched(4, "<I", 4), "says GGUF version 4; 2 and 3 can be read"),
    "version 0x30001": (patched(4, "<I", 0x30001), "says GGUF version 196609"),
    "big-endian version 1": (patched(4, ">I", 1), "GGUF version 1,"),
    "big-endian version 9": (patched(4, ">I", 9), "says GGUF version 9"),
    "big-endian mark on a little-endian file": (patched(4, ">I", 3), r"says \d+ tensors, but"),
    "counts cut": (Raw().pack()[:20], "its number of keys needs 8 bytes, 4 left"),
    "tensor count cut": (SOUND[:9], "its number of tensors needs 8 bytes, 1 left"),
    "2^40 tensors": (patched(8, "<Q", HUGE), f"says {HUGE} tensors, but .* bytes are left in .* at byte 8"),
    "2^63 tensors": (patched(8, "<Q", 1 << 63), f"says {1 << 63} tensors"),
    "2^40 keys": (patched(16, "<Q", HUGE), f"says {HUGE} keys, but .* bytes are left in .* at byte 16"),
    "2^63 keys": (patched(16, "<Q", 1 << 63), f"says {1 << 63} keys"),
    "more keys than there are": (patched(16, "<Q", 7), "key 7 of 7|tensor 1 of 3"),
    "fewer keys than there are": (patched(16, "<Q", 5), "tensor 1 of 3|tensor 'tokenizer"),
    "more tensors than there are": (patched(8, "<Q", 4), "tensor 4 of 4"),
    "70000 keys": (small(n_keys=70000).header() + bytes(1 << 20), f"says 70000 keys, but the limit is {MAX_KEYS}"),
    "70000 tensors": (small(n_tensors=70000).header() + bytes(1 << 21), f"but the limit is {MAX_TENSORS}"),
}
KEYS = {
    "no keys": (SOUND[:24], "says 3 tensors, but 8 bytes|says 6 keys, but 0 bytes|3 tensors, but"),
    "key length cut": (Raw(n_keys=1).pack() + bytes(3) + bytes(0), "1 keys, but 3 bytes are left"),
    "key name cut": (keys(Key("a" * 20, U32, 1))[:-9], "key 1 of 1 is cut off: its name needs 20 bytes, 19 left"),
    "key name past the end": (keys(Key("k", U32, 1, name_length=999)), "key 1 of 1 is cut off: its name needs 999"),
    "key name of 2^40": (keys(Key("k", U32, 1, name_length=HUGE)), f"its name needs {HUGE} bytes, 9 left"),
    "key name of 2^64-1": (keys(Key("k", U32, 1, name_length=ALL)), f"its name needs {ALL} bytes"),
    "key name of 70000": (keys(Key("k" * 70000, U32, 1)), "key 1 of 1 has a name of 70000 bytes; 1 to 65535"),
    "empty key name": (keys(Key("", U32, 1), Key("b", U32, 1)), "key 1 of 2 has a name of 0 bytes"),
    "key name not UTF-8": (keys(Key(b"a\xffb", U32, 1)), "key 1 of 1 has a name that is not UTF-8 in .* at byte 33"),
    "key name with an escape": (
        keys(Key("\x1b[2J\nx", U32, 1), Key("\x1b[2J\nx", U32, 1)),
        r"'\\x1b\[2J\\nx' is",
    ),
    "key twice": (keys(Key("a.b", U32, 1), Key("a.b", TEXT, "x")), r"'a\.b' is there twice, in .* at byte 43"),
    "type cut": (keys(Key("k" * 20, U32, 1))[:-6], "'k{20}' is cut off: its type needs 4 bytes, 2 left"),
    "type 13": (keys(Key("k", 13, 1)), "'k' has type 13; known are 0 to 12, in .* at byte 33"),
    "type 2^32-1": (keys(Key("k", (1 << 32) - 1, 1)), "'k' has type 4294967295"),
    "number cut": (keys(Key("k", U64, 1))[:-2], "'k' is cut off: its uint64 value needs 8 bytes, 6 left"),
    "boolean 2": (keys(Key("k", BOOL, 2)), "'k' is boolean 2, wanted 0 or 1, in .* at byte 37"),
    "text past the end": (keys(Key("k", TEXT, "abc", length=4)), "'k' is cut off: its text needs 4 bytes, 3 left"),
    "text of 2^40": (keys(Key("k", TEXT, "abc", length=HUGE)), f"'k' is cut off: its text needs {HUGE} bytes"),
    "text of 2^64-1": (keys(Key("k", TEXT, "abc", length=ALL)), f"its text needs {ALL} bytes"),
    "text length cut": (keys(Key("k", TEXT, ""))[:-3], "'k' is cut off: its length needs 8 bytes, 5 left"),
    "array of arrays": (keys(Key("k", ARRAY, [0] * 20, items=ARRAY)), "'k' is an array of arrays"),
    "array of type 77": (keys(Key("k", ARRAY, [0] * 20, items=77)), "'k' has type 77"),
    "array type cut": (keys(Key("k", ARRAY, []))[:-10], "'k' is cut off: its type needs 4 bytes"),
    "array length cut": (keys(Key("k", ARRAY, []))[:-4], "'k' is cut off: its length needs 8 bytes, 4 left"),
    "array of 2^40 numbers": (
        keys(Key("k", ARRAY, [1], length=HUGE)),
        f"'k' has {HUGE} values of 4 bytes or more",
    ),
    "array of 2^63 bytes": (keys(Key("k", ARRAY, [1], items=U8, length=1 << 63)), f"'k' has {1 << 63} values of 1"),
    "array of 2^62 doubles": (keys(Key("k", ARRAY, [1], items=U64, length=1 << 62)), f"'k' has {1 << 62} values of 8"),
    "array one too long": (
        keys(Key("k", ARRAY, [1, 2], items=I32, length=3)),
        "'k' has 3 values of 4 bytes or more, 8",
    ),
    "array of 2^40 texts": (keys(Key("k", ARRAY, ["a"], items=TEXT, length=HUGE)), f"'k' has {HUGE} values of 8"),
    "array of 2^63 texts": (keys(Key("k", ARRAY, ["a"], items=TEXT, length=1 << 63)), f"'k' has {1 << 63} values"),
    "text in an array past the end": (
        keys(Key("k", ARRAY, ["ab", struct.pack("<Q", 9) + b"abcdefgh"], items=TEXT)),
        "'k' is cut off: text 1 of 2 runs past the end of the file in .* at byte 59",
    ),
    "first text in an array of 2^63": (
        keys(Key("k", ARRAY, [struct.pack("<Q", 1 << 63), bytes(16)], items=TEXT)),
        "'k' is cut off: text 0 of 2 runs past",
    ),
    "text in an array of 2^64-1": (
        keys(Key("k", ARRAY, [struct.pack("<Q", ALL), bytes(64)], items=TEXT, length=3)),
        "'k' is cut off: text 0 of 3 runs past",
    ),
    "text's length in an array cut": (
        keys(Key("k", ARRAY, ["a" * 20], items=TEXT, length=2)),
        "'k' is cut off: text 1 of 2 runs past",
    ),
    "five million texts": (
        keys(Key("k", ARRAY, [bytes(8 * 5_000_000)], items=TEXT, length=5_000_000)),
        "'k' brings the texts in arrays above the limit",
    ),
}
ALIGNMENTS = {
    f"alignment {value}": (
        keys(Key("general.alignment", kind, value)),
        rf"'general\.alignment' is {shown}.* in .* at byte \d+",
    )
    for value, kind, shown in (
        (0, U32, "0, wanted 8 or more"),
        (4, U32, "4, wanted 8 or more"),
        (24, U32, "24, which is not a power of two"),
        (1 << 31, U32, "2147483648, wanted 1048576 or less"),
        (-32, I8, "-32, wanted 8 or more"),
        (32.0, F32, "float32, wanted an integer"),
    )
}
TENSORS = {
    "tensor names cut": (without_end(b"token_embd.w"), "says 3 tensors|tensor 1 of 3 is cut off: its name needs 17"),
    "tensor dims cut": (
        without_end(b"output.weight", 10),
        "'output.weight' is cut off: its shape needs 8 bytes, 6",
    ),
    "tensor type cut": (
        without_end(b"output.weight", 22),
        "'output.weight' is cut off: its type needs 4 bytes, 2 left",
    ),
    "tensor offset cut": (without_end(b"output.weight", 31), "'output.weight' is cut off: its offset needs 8 bytes, 7"),
    "data gone": (
        small().header(),
        r"'token_embd\.weight' \(F32 \[4, 32\] needs bytes \d+ to \d+\) ends past the file",
    ),
    "data one byte short": (SOUND[:-1], r"'output\.weight' \(F32 \[4, 32\] .* ends past the file of"),
    "tensor name of 2^40": (tensors(Tensor("t", name_length=HUGE)), f"tensor 1 of 1 is cut off: its name needs {HUGE}"),
    "tensor name of 65": (tensors(Tensor("t" * 65)), "tensor 1 of 1 has a name of 65 bytes; 1 to 64 allowed"),
    "tensor name empty": (tensors(Tensor("")), "tensor 1 of 1 has a name of 0 bytes"),
    "tensor name not UTF-8": (tensors(Tensor(b"\xc3")), "tensor 1 of 1 has a name that is not UTF-8"),
    "tensor twice": (tensors(Tensor("t"), Tensor("t")), "tensor 't' is there twice, in .* at byte"),
    "0 dimensions": (tensors(Tensor("t", n_dims=0)), "tensor 't' has 0 dimensions; 1 to 4 allowed"),
    "5 dimensions": (tensors(Tensor("t", (2, 2, 2, 2, 2))), "tensor 't' has 5 dimensions"),
    "2^32-1 dimensions": (tensors(Tensor("t", n_dims=(1 << 32) - 1)), "tensor 't' has 4294967295 dimensions"),
    "empty dimension": (tensors(Tensor("t", (32, 0), nbytes=0)), r"tensor 't' has shape \[0, 32\], which is empty"),
    "empty row": (tensors(Tensor("t", (0, 2), nbytes=0)), r"tensor 't' has shape \[2, 0\], which is empty"),
    "dimension of 2^40": (tensors(Tensor("t", (HUGE, 1), nbytes=32)), r"tensor 't' \(F32 .* ends past the file of"),
    "dimension of 2^63": (tensors(Tensor("t", (1 << 63,), nbytes=32)), "ends past the file of"),
    "dimensions that wrap to nothing": (tensors(Tensor("t", (1 << 32, 1 << 32), nbytes=32)), "ends past the file of"),
    "bytes that wrap to nothing": (tensors(Tensor("t", (1 << 62,), nbytes=32)), f"F32 .{1 << 62}. .* ends past"),
    "four dimensions of 2^64-1": (tensors(Tensor("t", (ALL,) * 4, nbytes=32)), "ends past the file of"),
    "type 4": (tensors(Tensor("t", kind=4)), r"tensor 't' has the unknown type 4 \(Q4_2, retired\)"),
    "type 31": (tensors(Tensor("t", kind=31)), r"the unknown type 31 \(Q4_0_4_4, retired\)"),
    "type 999": (tensors(Tensor("t", kind=999)), "tensor 't' has the unknown type 999 in .* at byte"),
    "type 2^32-1": (tensors(Tensor("t", kind=(1 << 32) - 1)), "the unknown type 4294967295"),
    "half a block": (
        tensors(Tensor("t", (48, 2), kind=2)),
        "tensor 't' has rows of 48, not a multiple of Q4_0's",
    ),
    "row below a block": (tensors(Tensor("t", (32, 8), kind=14)), "rows of 32, not a multiple of Q6_K's block of 256"),
    "offset not aligned": (
        tensors(Tensor("t", offset=16)),
        "'t' has offset 16, which is not a multiple of 32, in",
    ),
    "offset past the end": (tensors(Tensor("t", offset=1 << 20)), "tensor 't' .* ends past the file of"),
    "offset of 2^63": (tensors(Tensor("t", offset=1 << 63)), "tensor 't' .* ends past the file of"),
    "offset that wraps": (tensors(Tensor("t", offset=(1 << 64) - 32)), "tensor 't' .* ends past the file of"),
    "same place": (tensors(Tensor("a"), Tensor("b", offset=0)), "tensor 'b' overlaps 'a', which ends at byte"),
    "overlap by a row": (tensors(Tensor("a"), Tensor("b", offset=128), Tensor("c")), "tensor 'b' overlaps 'a'"),
    "inside another": (tensors(Tensor("a", (64, 4)), Tensor("b", (8,), offset=512)), "tensor 'b' overlaps 'a'"),
    "out of order and over": (tensors(Tensor("a", offset=128), Tensor("b", offset=0)), "tensor 'a' overlaps 'b'"),
    "big-endian IQ2_XXS": (
        small(order=">", tensors=[Tensor("t", (256,), kind=16, nbytes=66)]).pack(),
        "tensor 't' is IQ2_XXS, whose big-endian form is not supported",
    ),
}
CASES = {**HEADERS, **KEYS, **ALIGNMENTS, **TENSORS}


def test_there_are_more_than_sixty_cases():
    assert len(CASES) > 60


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file_is_one_line_at_once(tmp_path, case):
    content, message = CASES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    start = time.process_time()  # not the clock on the wall: neighbours may keep the machine busy
    with pytest.raises(GGUFError, match=message) as e:
        open_gguf(path)
    assert time.process_time() - start < 0.5
    line = str(e.value)
    assert line.startswith("gguf: ")
    assert str(path) in line
    assert line.isprintable()
    assert e.value.exit_code == 1
    at = re.search(r"at byte (\d+)", line)
    assert at
    assert int(at[1]) <= max(len(content), 1)


def test_an_unknown_type_lists_the_known_ones_in_the_hint(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(tensors(Tensor("t", kind=99)))
    with pytest.raises(GGUFError) as e:
        open_gguf(path)
    assert "0 F32" in e.value.hint
    assert "14 Q6_K" in e.value.hint


def test_every_truncation_of_a_sound_file_is_refused(tmp_path):
    path = tmp_path / "cut.gguf"
    for length in range(len(SOUND)):
        path.unlink(missing_ok=True)
        path.write_bytes(SOUND[:length])
        with pytest.raises(GGUFError, match=r"cut\.gguf"):
            open_gguf(path)


def test_a_huge_text_is_refused_when_read_not_decoded(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(Raw([Key("k", TEXT, b"", length=1 << 30)]).pack())
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size + (1 << 30))
    with (
        open_gguf(path) as g,
        pytest.raises(GGUFError, match="'k' is a text of 1073741824 bytes; the limit"),
    ):
        g.metadata.text("k")


MEASURE = """
import re, sys
from pathlib import Path
from layerlift.runtime.errors import GGUFError
from layerlift.runtime.gguf import open_gguf
def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
start, refused = kib("VmRSS"), 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_gguf(path)
    except GGUFError:
        refused += 1
print(refused, (kib("VmHWM") - start) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_all_malformed_files_together_take_less_than_64_megabytes(tmp_path):
    for i, (content, _) in enumerate(CASES.values()):
        (tmp_path / f"{i}.gguf").write_bytes(content)
    out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    refused, megabytes = map(int, out.stdout.split())
    assert refused == len(CASES)
    assert megabytes < 64


# -- mutations --

PIECES = [struct.pack("<Q", n) for n in (0, 1, 4, 8, 32, 0xFFFF, 1 << 31, HUGE, 1 << 63, ALL)]
PIECES += [struct.pack("<I", n) for n in (0, 1, 2, 8, 9, 13, 31, 1 << 31, (1 << 32) - 1)] + [b"\0", b"\xff", b"\x80"]
CHANGE = st.tuples(st.integers(0, len(SOUND) - 1), st.sampled_from(PIECES), st.sampled_from(["put", "insert", "cut"]))


def mutate(data, changes):
    for at, piece, how in changes:
        at = min(at, len(data))
        if how == "put":
            data = data[:at] + piece + data[at + len(piece) :]
        elif how == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + data[at + len(piece) :]
    return data


def opens(path, content):
    """Whether a file of `content` opens; whatever it holds must then be readable, or refused by a LayerliftError."""
    path.unlink(missing_ok=True)  # a file that is overwritten may be flushed to the disk each time
    path.write_bytes(content)
    try:
        with open_gguf(path) as g:
            for key in g.metadata:
                value = g.metadata[key]
                if hasattr(value, "__len__"):
                    list(value)
            for name, info in g.tensors.items():
                assert g.raw(name).size == info.nbytes
                g.release(name)
            assert len(g.fingerprint) == 32
            return True
    except LayerliftError:
        return False


MUTATION = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@seed(20)
@settings(MUTATION, max_examples=500)
@given(changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_a_mutated_file_opens_or_is_refused(tmp_path, changes):
    opens(tmp_path / "m.gguf", mutate(SOUND, changes))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_mutations_open_or_are_refused(tmp_path):
    import random

    rng = random.Random(7)
    path = tmp_path / "m.gguf"
    header = len(small().header())
    opened = 0
    for _ in range(100_000):
        changes = [
            (rng.randrange(header), rng.choice(PIECES), rng.choice(("put", "put", "put", "insert", "cut")))
            for _ in range(rng.randint(1, 3))
        ]
        opened += opens(path, mutate(SOUND, changes))
    assert 1000 < opened < 99_000


@pytest.mark.slow
def test_every_single_byte_change_of_a_header_opens_or_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    for at in range(len(small().header())):
        for value in (0, 1, 2, 3, 8, 9, 13, 31, 0x20, 0x7F, 0x80, 0xC3, 0xFE, 0xFF):
            opens(path, SOUND[:at] + bytes([value]) + SOUND[at + 1 :])
