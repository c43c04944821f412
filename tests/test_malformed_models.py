"""What users see of a file that is damaged or cannot be run: one line, a hint at most, exit 1, at once."""

from __future__ import annotations

import time

import gguf
import pytest
from layerlift.runtime.cli import main
from test_architectures import write_qwen2
from test_gguf_malformed import CASES


def stderr_of(path, capsys) -> tuple[int, list[str]]:
    started = time.process_time()
    code = main(["--cli", "-m", str(path), "-p", "x", "-n", "1", "--gpu", "disable"])
    seconds = time.process_time() - started
    out, err = capsys.readouterr()
    assert out == ""
    assert seconds < 0.5, f"{seconds:.2f} s"
    return code, err.splitlines()


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What Python loads once is not the file's doing."""
    import layerlift.runtime.llm  # noqa: F401


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_file_ends_with_one_line_and_exit_1(tmp_path, capsys, case):
    path = tmp_path / "bad.gguf"
    path.write_bytes(CASES[case][0])
    code, lines = stderr_of(path, capsys)
    assert code == 1
    assert len([line for line in lines if not line.startswith("hint:")]) == 1, lines
    assert "bad.gguf" in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "qwen2.block_count"),
        ({"block_count": 0}, "qwen2.block_count"),
        ({"embedding_length": 0}, "qwen2.embedding_length"),
        ({"attention.head_count": 0}, "qwen2.attention.head_count"),
        ({"attention.head_count": 1000}, "qwen2.attention.head_count"),
        ({"attention.head_count_kv": 0}, "qwen2.attention.head_count_kv"),
        ({"context_length": 0}, "qwen2.context_length"),
        ({"block_count": 3}, "blk.2."),
    ],
)
def test_a_model_that_cannot_be_ends_with_one_line_and_exit_1(tmp_path, capsys, changes, message):
    code, lines = stderr_of(write_qwen2(tmp_path / "model.gguf", **changes), capsys)
    assert code == 1
    assert len([line for line in lines if not line.startswith("hint:")]) == 1, lines
    assert message in lines[0]


def test_a_nan_among_the_settings_is_named(tmp_path, capsys):
    path = write_qwen2(tmp_path / "model.gguf")
    key, nan = b"rope.freq_base", b"\x00\x00\xc0\x7f"
    data = path.read_bytes()
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + nan + data[at + 4 :])
    code, lines = stderr_of(path, capsys)
    assert code == 1
    assert "qwen2.rope.freq_base" in lines[0]
    assert "nan" in lines[0]


def test_a_model_without_a_vocabulary_is_refused_in_one_line(tmp_path, capsys):
    code, lines = stderr_of(write_qwen2(tmp_path / "model.gguf"), capsys)
    assert code == 1
    assert "tokenizer.ggml.model" in lines[0]


def test_an_unknown_architecture_lists_the_known_ones(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    code, lines = stderr_of(tmp_path / "model.gguf", capsys)
    assert code == 1
    assert "model.gguf: architecture 'mamba' is not supported" in lines[0]
    assert "llama" in lines[1]
