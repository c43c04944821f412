"""The GPU benchmark's logic, on devices that are none and a tiny model. What it measures there does not matter."""

from __future__ import annotations

import json

import fake_cuda
import pytest
from layerlift.bench import gpu, machine
from opencl_here import opencl_device

TINY = ["--shape", "tiny", "--formats", "Q4_1", "--contexts", "16", "--batches", "1,2",
        "--prefill", "12", "--mib", "1", "--no-check"]  # fmt: skip


def once(backend, run, **_):
    """In place of `seconds_of`: three turns, and some time."""
    for _ in range(3):
        run()
    backend.synchronize()
    return 1e-3


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.slow), "opencl"])
def backend(request, monkeypatch, tmp_path):
    """A backend's name, with a device behind it."""
    if request.param == "opencl":
        opencl_device()
        yield "opencl"
        return
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path / "programs"))
    with fake_cuda.installed():
        yield "cuda"


def test_one_table_last_and_a_file_with_commit_and_device(backend, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "seconds_of", once)
    monkeypatch.setattr(gpu, "save", lambda name, rows, **m: machine.save(name, rows, folder=tmp_path / "saved", **m))
    assert gpu.main([*TINY, "--backend", backend, "--save", "gpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("copy ")
    what = [line.split("|")[2].strip() for line in out if line.startswith("| tiny")]
    assert what[-3:] == ["decode, context 16, batch 1", "decode, context 16, batch 2", "prompt of 12"]
    assert any(line.startswith("product Q4_1 ") for line in what)
    (file,) = (tmp_path / "saved").iterdir()
    rows = json.loads(file.read_text())["rows"]
    assert rows[0]["device"]["name"]
    assert rows[0]["device"]["detail"]
    assert len(rows) == 1 + len(what)
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in rows[1:])


def test_a_wrong_answer_ends_with_1(monkeypatch, capsys):
    opencl_device()
    monkeypatch.setattr(gpu, "check", lambda backend, say: ["add[3x5]: NMSE 1e+00"])
    monkeypatch.setattr(gpu, "measure_model", lambda *a: [])
    assert gpu.main(["--backend", "opencl", *(option for option in TINY if option != "--no-check")]) == 1
    assert "wrong: add[3x5]" in capsys.readouterr().err


def test_checking_counts_what_is_right_and_names_what_is_not(monkeypatch):
    from layerlift.backends.opcases import all_cases
    from layerlift.backends.opencl import OpenCLBackend

    backend, said = OpenCLBackend.open(opencl_device()), []
    cases = [c for c in all_cases() if c.op in ("add", "rms_norm")]
    monkeypatch.setattr(gpu, "all_cases", lambda: cases)
    assert gpu.check(backend, said.append) == []
    assert said == [f"{len(cases)} cases right, 0 wrong, 0 in formats without a kernel"]
    backend.rms_norm = lambda x, norm, width=0: x
    wrong = gpu.check(backend, said.append)
    assert wrong
    assert all(line.startswith("rms_norm[") for line in wrong)
    backend.close()


def test_a_batch_without_room_is_a_line_that_says_so():
    table = gpu.table([gpu.Line("1b Q6_K", "decode, context 32768, batch 64", 0, 0, 64)])
    assert "no room" in table
    assert "inf" not in table


@pytest.mark.parametrize(
    ("options", "said"), [(["--shape", "2b"], "--shape 2b is unknown"), (["--backend", "none"], "invalid choice")]
)
def test_wrong_usage_ends_with_2(options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(options)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_device_that_is_not_there_ends_with_1_and_a_reason(capsys):
    assert gpu.main(["--backend", "opencl", "--device", "99"]) == 1
    assert "error: opencl:99: " in capsys.readouterr().err
