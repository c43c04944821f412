"""Facts about packed files with a real model, real wheels and several Pythons. Slow: they fetch and kill a lot."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import httpx
import pytest
from layerlift.runtime.pack import pack, repack, unpack
from layerlift.runtime.pack_bundle import gather
from layerlift.runtime.pack_manifest import ALIGNMENT, PackError
from layerlift.runtime.pack_verify import verify
from packing import killed_while_packing
from serverprocess import started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = ("3.10", "3.13")
ANSWER = ("--cli", "-p", "The capital of France is", "-n", "8", "--temp", "0", "--gpu", "disable")


def python(version: str) -> str:
    """An interpreter of this version that runs, or a skip."""
    path = sys.executable if version == HERE else shutil.which(f"python{version}")
    found = "not found"
    if path:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        found = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip()
    if path is None or found != version:
        pytest.skip(f"python{version} is not on PATH ({found})")
    return path


def clean_environment() -> dict[str, str]:
    """Variables that lead to no network through a proxy and to no packages of the tests."""
    names = ("PATH", "HOME", "LANG", "SYSTEMROOT", "TMPDIR")
    return {name: os.environ[name] for name in names if name in os.environ}


def start(command, *argv: str, stdin: str = "", **env: str):
    """A finished process in a clean environment."""
    command = [str(c) for c in (command if isinstance(command, list) else [command])]
    return subprocess.run(
        [*command, *argv],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env={**clean_environment(), **env},
        timeout=300,
    )


@pytest.fixture(scope="module")
def expected(default_model) -> str:
    done = start([sys.executable, "-m", "layerlift.runtime.cli"], "-m", str(default_model), *ANSWER)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundled(default_model, tmp_path_factory) -> Path:
    """The default model with layerlift and its wheels for the Pythons that are here."""
    folder = tmp_path_factory.mktemp("bundle ✓")
    versions = [v for v in dict.fromkeys((HERE, *OTHERS)) if v == HERE or shutil.which(f"python{v}")]
    try:
        (folder / "wheels").mkdir()
        wheels = gather(folder / "wheels", versions)
    except PackError as error:
        pytest.skip(f"the wheels could not be fetched: {error}")
    path = folder / "smol lm.llm"
    pack(default_model, path, args="--temp 0  # the same answer each time\n", wheels=wheels)
    return path


@pytest.mark.parametrize("version", sorted({HERE, *OTHERS}))
def test_a_clean_environment_runs_every_mode(bundled, expected, tmp_path, version):
    real = python(version)
    subprocess.run([real, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    bin = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    env = {"LAYERLIFT_CACHE": str(tmp_path / "cache"), "PATH": str(bin) + os.pathsep + os.environ["PATH"]}
    link = tmp_path / "link to it"
    link.symlink_to(bundled)
    command = [bin / "python", link] if os.name == "nt" else [link]
    first = start(command, *ANSWER, **env)
    assert (first.returncode, first.stdout) == (0, expected), first.stderr
    again = start(command, *ANSWER, **env)
    assert (again.returncode, again.stdout) == (0, expected), again.stderr
    chat = start(command, "-n", "12", "--nologo", stdin="What is the capital of France?\n", **env)
    assert chat.returncode == 0, chat.stderr
    assert "Paris" in chat.stdout
    bench = start(command, "bench", "-p", "8", "-n", "2", "-r", "1", **env)
    assert bench.returncode == 0, bench.stderr
    assert "tg2" in bench.stdout
    with started("--port", "0", command=[str(c) for c in command], env={**clean_environment(), **env}) as server:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        asked = {"messages": question, "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{server.url()}/v1/chat/completions", json=asked, trust_env=False, timeout=60).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert server.end() == 0


def test_two_first_starts_at_once_with_real_wheels(bundled, expected, tmp_path):
    bare = [sys.executable, "-S", "-E", str(bundled), *ANSWER]
    env = {**os.environ, "LAYERLIFT_CACHE": str(tmp_path)}
    pair = [subprocess.Popen(bare, stdout=subprocess.PIPE, env=env, encoding="utf-8") for _ in range(2)]
    assert [p.communicate(timeout=200)[0] for p in pair] == [expected] * 2
    assert len([p for p in (tmp_path / "engines").iterdir() if p.is_dir()]) == 1


def test_killed_while_packing_a_real_model(default_model, tmp_path):
    assert killed_while_packing(default_model, tmp_path / "m.llm", 30, 0.5) < 30


def test_killed_while_unpacking_real_wheels(bundled, expected, tmp_path):
    bare = [sys.executable, "-S", "-E", str(bundled), "--version"]
    env = {**os.environ, "LAYERLIFT_CACHE": str(tmp_path)}
    begin = time.monotonic()
    subprocess.run(bare, env=env, check=True, capture_output=True)
    seconds = time.monotonic() - begin
    (target,) = (p for p in (tmp_path / "engines").iterdir() if p.is_dir())
    names = {p.relative_to(target): p.stat().st_size for p in target.rglob("*.py")}
    chance, whole = random.Random(11), 0
    for _ in range(20):
        shutil.rmtree(target, ignore_errors=True)
        process = subprocess.Popen(bare, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        time.sleep(chance.random() * seconds)
        process.kill()
        process.wait()
        if target.exists():
            whole += 1
            assert {p.relative_to(target): p.stat().st_size for p in target.rglob("*.py")} == names
    assert whole < 20, "no kill came in time"
    done = start([sys.executable, "-S", "-E", bundled], *ANSWER, LAYERLIFT_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert [p.name for p in (tmp_path / "engines").iterdir() if p.name.startswith(".new-")] == []


def test_a_packed_file_starts_no_slower_than_the_bare_model(default_model, tmp_path):
    path = tmp_path / "m.llm"
    pack(default_model, path)
    ask = ("--cli", "-p", "a", "-n", "1", "--gpu", "disable")

    def seconds(command) -> float:
        begin = time.perf_counter()
        assert start(command, *ask).returncode == 0
        return time.perf_counter() - begin

    plain = [sys.executable, "-m", "layerlift.runtime.cli", "-m", default_model]
    pairs = [(seconds(plain), seconds([sys.executable, path])) for _ in range(6)]
    bare, packed = (min(column) for column in zip(*pairs, strict=True))
    assert packed - bare <= 0.3, f"packed {packed:.2f} s, -m {bare:.2f} s"


# -- more than 32 bits can count --


@pytest.fixture(scope="module")
def big(tiny, tmp_path_factory):
    """The tiny model packed with a hole behind its tensors, so that the zip lies beyond 5 GiB."""
    folder = tmp_path_factory.mktemp("big")
    model, path = folder / "big.gguf", folder / "big.llm"
    shutil.copyfile(tiny(), model)
    os.truncate(model, 5 << 30)
    if held(model) > 1 << 30:
        pytest.skip("this file system has no sparse files")
    pack(model, path)
    assert path.stat().st_size > ALIGNMENT + (5 << 30)
    return path


def held(path: Path) -> int:
    """Bytes on the disk."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("version", sorted({HERE, *OTHERS}))
def test_five_gibibytes_start_and_answer(tiny, tmp_path, big, bundled, version):
    real = python(version)
    ask = ("--cli", "-p", "Hello", "-n", "6", "--temp", "0", "--ignore-eos", "--gpu", "disable")
    bare = start([sys.executable, "-m", "layerlift.runtime.cli"], "-m", str(tiny()), *ask)
    assert bare.returncode == 0, bare.stderr
    # The layerlift of this Python is the one that the other packed file carries.
    assert start([real, bundled], "--version", LAYERLIFT_CACHE=str(tmp_path)).returncode == 0
    (engine,) = (p for p in (tmp_path / "engines").iterdir() if p.is_dir())
    done = start([real, big], *ask, PYTHONPATH=str(engine))
    assert (done.returncode, done.stdout) == (0, bare.stdout), done.stderr


def test_five_gibibytes_stay_a_hole_through_every_command(tmp_path, big):
    again = tmp_path / "again.llm"
    repack(big, again, args="--temp 0\n")
    assert verify(again).parts[0].nbytes == 5 << 30
    (out,) = unpack(again, tmp_path / "out.gguf")
    assert out.stat().st_size == 5 << 30
    assert max(held(big), held(again), held(out)) < 1 << 30


def test_a_clean_environment_without_wheels_says_what_is_missing(default_model, tmp_path):
    path = tmp_path / "m.llm"
    pack(default_model, path)
    venv.create(tmp_path / "venv", with_pip=False)
    bin = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    done = start([bin / "python", path])
    assert done.returncode == 1
    assert "layerlift is not installed for" in done.stderr.splitlines()[0]
    assert "-m pip install" in done.stderr.splitlines()[1]
