"""Split sets: any part opens the whole, and a part that does not belong is named."""

import numpy as np
import pytest
from ggufs import U16, Key, Raw, Tensor, write
from layerlift.runtime.errors import GGUFError, LayerliftError
from layerlift.runtime.gguf import open_gguf


def test_any_part_opens_the_whole_split_set(tmp_path):
    rng = np.random.default_rng(7)
    tensors = {f"t{i}": rng.standard_normal((2, 32)).astype(np.float32) for i in range(5)}
    write(tmp_path / "m.gguf", tensors, {"llama.block_count": 7}, split=2)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    for part in parts:
        with open_gguf(part) as g:
            assert g.parts == tuple(map(str, parts))
            assert g.path == str(parts[0])
            assert g.metadata.integer("llama.block_count") == 7
            assert [g.tensors[f"t{i}"].part for i in range(5)] == [0, 0, 1, 1, 2]
            for name, values in tensors.items():
                assert g.raw(name).tobytes() == values.tobytes()
                g.release(name)


def split_set(folder, **changes):
    """Two parts of one tensor each; `changes` replace fields of the second part's keys by name."""
    paths = []
    for i in range(2):
        values = {"no": i, "count": 2, "total": 2, "tensor": f"t{i}", "version": 3, **(changes if i else {})}
        entries = [
            ("split.no", values["no"]),
            ("split.count", values["count"]),
            ("split.tensors.count", values["total"]),
        ]
        raw = Raw(
            [Key(k, U16, v) for k, v in entries if v is not None],
            [Tensor(values["tensor"], (32,))],
            version=values["version"],
        )
        paths.append(raw.write(folder / f"m-0000{i + 1}-of-00002.gguf"))
    return paths


SPLITS = {
    "number": ({"no": 0}, r"'split\.no' is 0, but the file's name says 1 \(counted from 0\), in .*m-00002-of-00002"),
    "no number": ({"no": None}, r"'split\.no' missing in .*m-00002-of-00002\.gguf"),
    "count": ({"count": 3}, r"'split\.count' is 3, but 2 in .*m-00001"),
    "no count": ({"count": None}, r"'split\.count' missing in .*m-00002-of-00002\.gguf"),
    "tensor twice": ({"tensor": "t0"}, r"tensor 't0' is both in .*m-00001-of-00002\.gguf and in .*m-00002-of-00002"),
    "version": ({"version": 2}, "differ in version or byte order"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_part_that_does_not_belong_is_named(tmp_path, case):
    changes, message = SPLITS[case]
    first, _ = split_set(tmp_path, **changes)
    with pytest.raises(LayerliftError, match=message):
        open_gguf(first)


def test_a_missing_part_is_named(tmp_path):
    first, second = split_set(tmp_path)
    first.unlink()
    with pytest.raises(GGUFError, match=r"part 1 of 2 is missing: .*m-00001-of-00002\.gguf"):
        open_gguf(second)


def test_a_set_with_too_few_tensors_is_refused(tmp_path):
    first, _ = split_set(tmp_path)
    data = bytearray(first.read_bytes())
    at = data.index(b"split.tensors.count") + 19 + 4
    data[at] = 3
    first.write_bytes(data)
    with pytest.raises(GGUFError, match=r"'split\.tensors\.count' is 3, but the 2 parts hold 2 tensors, in .* at byte"):
        open_gguf(first)


def test_a_renamed_part_says_what_it_was(tmp_path):
    first, _ = split_set(tmp_path)
    with pytest.raises(GGUFError, match=r"part of a set of 2, but its name does not end in -of-00002\.gguf"):
        open_gguf(first.rename(tmp_path / "model.gguf"))


def test_a_damaged_part_is_named(tmp_path):
    first, second = split_set(tmp_path)
    second.write_bytes(second.read_bytes()[:50])
    with pytest.raises(GGUFError, match=r"m-00002-of-00002\.gguf at byte"):
        open_gguf(first)


@pytest.mark.parametrize("count", [1 << 15, 65535])
def test_a_huge_number_of_parts_fails_at_the_first_missing(tmp_path, count):
    raw = Raw([Key("split.no", U16, 0), Key("split.count", U16, count), Key("split.tensors.count", U16, 0)])
    with pytest.raises(GGUFError, match="part 2 of"):
        open_gguf(raw.write(tmp_path / f"m-00001-of-{count:05}.gguf"))
