"""Sound GGUF files: versions, byte orders, split sets, views, typed metadata, speed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ggufs import ARRAY, BOOL, F32, F64, I8, I16, I32, I64, TEXT, U8, U16, U32, U64, Key, Raw, Tensor, small, write
from layerlift.backends.formats import BY_NAME, FORMATS
from layerlift.runtime import byteorder
from layerlift.runtime.errors import GGUFError, ModelError, UserError
from layerlift.runtime.gguf import open_gguf


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# -- tensors --


def test_tensors_read_as_the_gguf_package_wrote_them(tmp_path, rng):
    a = rng.standard_normal((3, 32)).astype(np.float32)  # [rows, columns]
    b = rng.standard_normal(5).astype(np.float16)
    with open_gguf(write(tmp_path / "m.gguf", {"a": a, "b": b})) as g:
        assert list(g.tensors) == ["a", "b"]
        assert (g.tensors["a"].fmt, g.tensors["a"].shape) == ("F32", (3, 32))
        assert (g.tensors["b"].fmt, g.tensors["b"].shape) == ("F16", (5,))
        assert g.nbytes == a.nbytes + b.nbytes
        np.testing.assert_array_equal(g.raw("a").view(np.float32).reshape(3, 32), a)
        np.testing.assert_array_equal(g.raw("b").view(np.float16), b)


@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16"])
def test_quantised_tensors_keep_their_bytes(tmp_path, rng, fmt):
    import gguf

    kind = gguf.GGMLQuantizationType[fmt]
    packed = gguf.quantize(rng.standard_normal((3, 64)).astype(np.float32), kind)
    with open_gguf(write(tmp_path / "m.gguf", {"w": (packed, fmt)})) as g:
        assert (g.tensors["w"].fmt, g.tensors["w"].shape) == (fmt, (3, 64))
        assert g.tensors["w"].nbytes == g.raw("w").size == packed.nbytes
        assert g.raw("w").tobytes() == packed.tobytes()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders_say_the_same(tmp_path, version, order):
    values = np.arange(128, dtype=order + "f4")
    raw = small(version=version, order=order, tensors=[Tensor("w", (32, 4))], data=values.tobytes())
    with open_gguf(raw.write(tmp_path / "m.gguf")) as g:
        assert (g.version, g.big_endian) == (version, order == ">")
        assert g.metadata.integer("llama.block_count") == 2
        assert g.metadata.number("llama.rope.freq_base") == 10000.0
        assert list(g.metadata.array("tokenizer.ggml.tokens")) == ["<s>", "</s>", "é", ""]
        assert g.metadata.array("tokenizer.ggml.scores").tolist() == [0, -1, -2, -3]
        assert g.raw("w").view("<f4").tolist() == list(range(128))
        assert not g.raw("w").flags.writeable


def test_a_big_endian_file_of_the_gguf_package_reads_as_its_little_endian_twin(tmp_path, rng):
    weights = rng.standard_normal((3, 32)).astype(np.float32)
    keys = {"llama.block_count": 5, "llama.words": ["a", "bc"], "llama.sizes": [1, 2, 70000]}
    little = open_gguf(write(tmp_path / "l.gguf", {"w": weights}, keys))
    big = open_gguf(write(tmp_path / "b.gguf", {"w": weights}, keys, big_endian=True))
    assert big.big_endian
    assert not little.big_endian
    assert big.raw("w").tobytes() == little.raw("w").tobytes()
    for key in keys:
        assert list(np.atleast_1d(big.metadata[key])) == list(np.atleast_1d(little.metadata[key]))


@pytest.mark.parametrize("fmt", [f.name for f in FORMATS if byteorder.can_swap(f.name)])
def test_swapping_the_bytes_of_blocks_twice_changes_nothing(rng, fmt):
    raw = rng.integers(0, 256, 3 * BY_NAME[fmt].nbytes, dtype=np.uint8)
    once = byteorder.swapped(raw, fmt)
    assert (once != raw).any() or fmt in ("I8", "MXFP4", "NVFP4")
    np.testing.assert_array_equal(byteorder.swapped(once, fmt), raw)


@pytest.mark.parametrize(("fmt", "scales"), [("Q4_0", [0]), ("Q8_0", [0]), ("Q4_K", [0, 2]), ("Q6_K", [208])])
def test_swapping_a_block_reverses_its_scales_only(rng, fmt, scales):
    raw = rng.integers(0, 256, 2 * BY_NAME[fmt].nbytes, dtype=np.uint8)
    expected = raw.reshape(2, -1).copy()
    for at in scales:
        expected[:, [at, at + 1]] = expected[:, [at + 1, at]]
    np.testing.assert_array_equal(byteorder.swapped(raw, fmt).reshape(2, -1), expected)


def test_another_alignment_is_honoured(tmp_path):
    raw = small(alignment=256)
    raw.keys.append(Key("general.alignment", U32, 256))
    with open_gguf(raw.write(tmp_path / "m.gguf")) as g:
        assert g.alignment == 256
        assert [t.offset % 256 for t in g.tensors.values()] == [0, 0, 0]
        assert g.raw("norm.weight")[:3].tolist() == [512 % 251, 513 % 251, 514 % 251]


def test_a_view_copies_nothing_and_outlives_the_file_object(tmp_path):
    big = np.full((1024, 4096), 3, np.float32)
    g = open_gguf(write(tmp_path / "m.gguf", {"w": big}))
    view = g.raw("w")
    assert not view.flags.owndata
    assert np.shares_memory(view, g.raw("w"))
    assert not view.flags.writeable
    g.release("w")
    g.close()
    g.close()
    del g
    assert view.view(np.float32)[-1] == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_release_gives_the_pages_back_and_the_bytes_stay(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with open_gguf(write(tmp_path / "m.gguf", {"w": np.ones((4096, 4096), np.float32)})) as g:
        before = g.raw("w")[::4096].sum()
        full = resident()
        g.release("w")
        assert full - resident() > 50e6
        assert g.raw("w")[::4096].sum() == before


def test_a_file_cut_while_open_is_an_error_not_a_crash(tmp_path):
    path = small().write(tmp_path / "m.gguf")
    with open_gguf(path) as g:
        os.truncate(path, 100)
        with pytest.raises(GGUFError, match=r"m\.gguf was cut to 100 bytes while in use"):
            g.raw("output.weight")


def test_a_missing_tensor_is_named(tmp_path):
    with (
        open_gguf(small().write(tmp_path / "m.gguf")) as g,
        pytest.raises(ModelError, match=r"tensor 'rope_freqs.weight' missing in .*m\.gguf"),
    ):
        g.raw("rope_freqs.weight")


# -- metadata --


def test_every_scalar_type_is_read(tmp_path):
    values = {U8: 200, I8: -3, U16: 60000, I16: -300, U32: 1 << 31, I32: -5, U64: 1 << 60, I64: -(1 << 60)}
    keys = [Key(f"k{kind}", kind, value) for kind, value in values.items()]
    keys += [Key("f32", F32, 0.5), Key("f64", F64, 0.1), Key("yes", BOOL, 1), Key("no", BOOL, 0), Key("t", TEXT, "é\n")]
    with open_gguf(Raw(keys).write(tmp_path / "m.gguf")) as g:
        meta = g.metadata
        for kind, value in values.items():
            assert meta.integer(f"k{kind}") == meta.number(f"k{kind}") == meta[f"k{kind}"] == value
        assert (meta.number("f32"), meta.number("f64")) == (0.5, 0.1)
        assert (meta.boolean("yes"), meta.boolean("no")) == (True, False)
        assert meta.text("t") == meta["t"] == "é\n"
        assert list(meta.keys()) == [str(k.name) for k in keys]
        assert "t" in meta
        assert "u" not in meta


@pytest.mark.parametrize("kind", [U8, I8, U16, I16, U32, I32, F32, U64, I64, F64])
def test_every_numeric_array_is_read(tmp_path, kind):
    with open_gguf(
        Raw([Key("a", ARRAY, [1, 2, 100], items=kind), Key("z", ARRAY, [], items=kind)]).write(tmp_path / "m.gguf")
    ) as g:
        assert g.metadata.array("a").tolist() == [1, 2, 100]
        assert g.metadata.array("a", items="number", length=3).dtype.isnative
        assert g.metadata.array("z").tolist() == []


def test_arrays_of_booleans_and_texts_are_read(tmp_path):
    keys = [Key("b", ARRAY, [1, 0, 2], items=BOOL), Key("t", ARRAY, ["a", "", "né"], items=TEXT), Key("n", ARRAY, [])]
    with open_gguf(Raw(keys).write(tmp_path / "m.gguf")) as g:
        assert g.metadata.array("b", items="boolean").tolist() == [True, False, True]
        texts = g.metadata.array("t", items="text")
        assert (list(texts), len(texts), texts[2], texts[-1], texts[:2]) == (["a", "", "né"], 3, "né", "né", ["a", ""])
        assert texts.raw(2) == "né".encode()
        with pytest.raises(IndexError):
            texts[3]


def test_bytes_that_are_not_utf8_are_replaced_in_texts_and_kept_raw(tmp_path):
    keys = [Key("t", TEXT, b"a\xff"), Key("a", ARRAY, [b"\x01\0\0\0\0\0\0\0\xfe"], items=TEXT)]
    with open_gguf(Raw(keys).write(tmp_path / "m.gguf")) as g:
        assert g.metadata.text("t") == "a\ufffd"
        assert g.metadata.array("a")[0] == next(iter(g.metadata.array("a"))) == "\ufffd"
        assert g.metadata.array("a").raw(0) == b"\xfe"


def test_defaults_stand_in_for_missing_keys_only(tmp_path):
    with open_gguf(small().write(tmp_path / "m.gguf")) as g:
        meta = g.metadata
        assert meta.integer("x", 4, low=9) == 4
        assert meta.number("x", None) is None
        assert meta.text("x", "d") == "d"
        assert meta.boolean("x", True) is True
        assert meta.array("x", None) is None
        assert meta.integer("llama.block_count", 4) == 2
        with pytest.raises(GGUFError):
            meta.integer("llama.block_count", 2, low=3)


GETTERS = [
    (lambda m: m.integer("none"), ModelError, r"^gguf: 'none' missing in \S*m\.gguf$"),
    (lambda m: m["none"], ModelError, r"^gguf: 'none' missing in \S*m\.gguf$"),
    (lambda m: m.integer("two", low=3), GGUFError, r"^gguf: 'two' is 2, wanted 3 or more, in \S* at byte \d+$"),
    (lambda m: m.integer("two", high=1), GGUFError, r"^gguf: 'two' is 2, wanted 1 or less, in \S* at byte \d+$"),
    (lambda m: m.integer("text"), GGUFError, r"^gguf: 'text' is text, wanted an integer, in \S* at byte \d+$"),
    (lambda m: m.integer("nan"), GGUFError, r"'nan' is float32, wanted an integer"),
    (lambda m: m.integer("yes"), GGUFError, r"'yes' is boolean, wanted an integer"),
    (lambda m: m.number("nan"), GGUFError, r"^gguf: 'nan' is nan in \S* at byte \d+$"),
    (lambda m: m.number("nan", 1.0), GGUFError, r"'nan' is nan"),
    (lambda m: m.number("inf"), GGUFError, r"'inf' is -inf"),
    (lambda m: m.number("two", low=2.5), GGUFError, r"'two' is 2, wanted 2\.5 or more,"),
    (lambda m: m.number("text"), GGUFError, r"'text' is text, wanted a number"),
    (lambda m: m.boolean("two"), GGUFError, r"'two' is uint32, wanted true or false"),
    (lambda m: m.text("two"), GGUFError, r"'two' is uint32, wanted a text"),
    (lambda m: m.text("ints"), GGUFError, r"'ints' is array of int32, wanted a text"),
    (lambda m: m.array("two"), GGUFError, r"'two' is uint32, wanted an array"),
    (lambda m: m.array("ints", items="text"), GGUFError, r"'ints' is array of int32, wanted an array of texts"),
    (lambda m: m.array("words", items="number"), GGUFError, r"'words' is array of text, wanted an array of numbers"),
    (lambda m: m.array("ints", length=4), GGUFError, r"'ints' has 3 values, wanted 4, in \S* at byte \d+$"),
]


@pytest.mark.parametrize(("get", "error", "message"), GETTERS, ids=[str(i) for i in range(len(GETTERS))])
def test_getters_name_key_value_file_and_place(tmp_path, get, error, message):
    keys = [
        Key("two", U32, 2),
        Key("text", TEXT, "x"),
        Key("nan", F32, float("nan")),
        Key("inf", F64, float("-inf")),
        Key("yes", BOOL, 1),
        Key("ints", ARRAY, [1, 2, 3], items=I32),
        Key("words", ARRAY, ["a"], items=TEXT),
    ]
    with open_gguf(Raw(keys).write(tmp_path / "m.gguf")) as g, pytest.raises(error, match=message):
        get(g.metadata)


def test_the_byte_in_a_message_is_where_the_value_lies(tmp_path):
    path = Raw([Key("a", U32, 1), Key("b", U32, 0xABCDEF01)]).write(tmp_path / "m.gguf")
    at = path.read_bytes().index(bytes.fromhex("01efcdab"))
    with open_gguf(path) as g, pytest.raises(GGUFError, match=rf"at byte {at}$"):
        g.metadata.integer("b", high=9)


# -- fingerprint --


def test_the_fingerprint_tells_metadata_size_and_weights_apart(tmp_path):
    def fingerprint(raw):
        with open_gguf(raw.write(tmp_path / "m.gguf")) as g:
            return g.fingerprint

    one = fingerprint(small())
    other_key, other_weights, longer = small(), small(data=bytes(1200)), small()
    other_key.keys[1].value = 3
    longer.data = bytes(i % 251 for i in range(128 * 9)) + b"rest"
    prints = [one, fingerprint(other_key), fingerprint(other_weights), fingerprint(longer)]
    assert len(set(prints)) == 4
    assert fingerprint(small()) == one
    assert len(one) == 32
    int(one, 16)


# -- files that are none --


def test_a_path_that_cannot_work_is_a_user_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path / "none@x.gguf", small().write(tmp_path / "m.gguf") / "x", ""):
        with pytest.raises(UserError, match="no such file") as e:
            open_gguf(path)
        assert e.value.exit_code == 2
        assert e.value.hint
    with pytest.raises(UserError, match="is a directory"):
        open_gguf(tmp_path)
    with pytest.raises(GGUFError, match="null"):
        open_gguf("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        open_gguf(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_line(tmp_path):
    path = small().write(tmp_path / "m.gguf")
    path.chmod(0)
    with pytest.raises(GGUFError, match="no permission to read"):
        open_gguf(path)


def test_no_permission_is_one_line_with_a_hint(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = small().write(tmp_path / "m.gguf")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(GGUFError, match=r"no permission to read .*m\.gguf") as e:
        open_gguf(path)
    assert e.value.hint


# -- speed --

MEASURE = """
import re, sys, time
from layerlift.runtime.gguf import open_gguf
start = time.process_time()  # not the clock on the wall: neighbours may keep the machine busy
g = open_gguf(sys.argv[1])
seconds = time.process_time() - start
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_vocabulary_of_128k_opens_in_a_fifth_of_a_second_and_60_megabytes(llama_vocab):
    out = subprocess.run([sys.executable, "-c", MEASURE, str(llama_vocab)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, out.stdout.split())
    assert seconds <= 0.2, f"{seconds:.3f} s"
    assert megabytes <= 60, f"{megabytes:.0f} MB resident"


def test_the_vocabulary_reads_whole_and_by_index(llama_vocab):
    with open_gguf(llama_vocab) as g:
        tokens, merges = (list(g.metadata.array(f"tokenizer.ggml.{k}", items="text")) for k in ("tokens", "merges"))
        assert (len(tokens), len(merges)) == (128256, 280147)
        assert tokens[128000] == g.metadata.array("tokenizer.ggml.tokens")[128000] == "<|begin_of_text|>"
        assert g.metadata.array("tokenizer.ggml.tokens")[-1] == tokens[-1]
