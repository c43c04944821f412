"""Facts about packed files that carry their wheels: gathered for each Python, unpacked once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from layerlift.runtime import library, pack_bundle
from layerlift.runtime.errors import GGUFError
from layerlift.runtime.pack import pack, repack
from layerlift.runtime.pack_bundle import Wheels
from layerlift.runtime.pack_manifest import Bundle, PackError
from layerlift.runtime.pack_verify import verify
from layerlift.runtime.packed import unbundle

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
# An engine of a few lines: it says what it was started with, and whether all of it was there.
ENGINE = """
import os

def start(path, argv):
    here = os.path.dirname(os.path.dirname(__file__))
    print("started", os.path.basename(path), *argv, sum(name.startswith("data") for name in os.listdir(here)))
    return 0
"""


def wheel(folder: Path, name: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    """A wheel of `files` by name."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for file, text in files.items():
            z.writestr(file, text)
        lines = [f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
        z.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n\nRequires-Dist: not-this\n")
    return path


def bundle_of(folder: Path, *wheels: Path, pythons=(HERE,), platform: str = "") -> Wheels:
    digests = {w.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in wheels}
    by_python = {version: tuple(digests) for version in pythons}
    return Wheels(folder, Bundle(platform or sysconfig.get_platform(), digests, by_python))


def engine(folder: Path, n_files: int = 20) -> Path:
    files = {f"layerlift/data{i}.txt": "x" * 5000 for i in range(n_files)}
    files |= {
        "layerlift/__init__.py": "",
        "layerlift/runtime/__init__.py": "",
        "layerlift/runtime/pack_start.py": ENGINE,
    }
    return wheel(folder, "layerlift", files)


@pytest.fixture
def bundled(tmp_path, content) -> Path:
    path = tmp_path / "m.llm"
    pack(content, path, wheels=bundle_of(tmp_path, engine(tmp_path)))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def begin(path: Path, *argv: str) -> subprocess.Popen[str]:
    """A start with a Python that has no packages of its own."""
    command = [sys.executable, "-S", "-E", str(path), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start(path: Path, *argv: str) -> tuple[int | None, str, str]:
    process = begin(path, *argv)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def engines(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "engines").iterdir() if p.name != "lock")


# -- starting --


def test_it_starts_without_layerlift_and_unpacks_once(bundled, cache):
    assert start(bundled, "-p", "x y") == (0, "started m.llm -p x y 20\n", "")
    (folder,) = (cache / "engines" / name for name in engines(cache))
    assert folder.stat().st_mode & 0o777 == 0o700
    marker = folder / "layerlift" / "data_more.txt"
    marker.write_text("still here")
    assert start(bundled) == (0, "started m.llm 21\n", "")


def test_many_first_starts_at_once_are_all_well(bundled, cache):
    processes = [begin(bundled) for _ in range(6)]
    assert [p.communicate(timeout=60) for p in processes] == [("started m.llm 20\n", "")] * 6
    assert len(engines(cache)) == 1


def test_killed_while_unpacking_the_next_start_works(tmp_path, content, cache):
    path = tmp_path / "m.llm"
    pack(content, path, wheels=bundle_of(tmp_path, engine(tmp_path, 400)))
    chance, whole = random.Random(3), 0
    for _ in range(10):
        process = begin(path)
        time.sleep(0.02 + 0.15 * chance.random())
        process.kill()
        process.communicate()
        ready = (
            [name for name in engines(cache) if not name.startswith(".new-")] if (cache / "engines").exists() else []
        )
        for name in ready:
            whole += 1
            assert len(list((cache / "engines" / name / "layerlift").glob("data*"))) == 400
            os.rename(cache / "engines" / name, tmp_path / f"done{whole}")
    assert whole < 10, "no kill came in time"
    assert start(path) == (0, "started m.llm 400\n", "")
    assert [name for name in engines(cache) if name.startswith(".new-")] == []


def test_another_engine_is_another_folder(tmp_path, content, bundled, cache):
    assert start(bundled)[0] == 0
    pack(content, bundled, wheels=bundle_of(tmp_path, engine(tmp_path, 5)))
    assert start(bundled) == (0, "started m.llm 5\n", "")
    assert len(engines(cache)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pythons": ("3.99",)}, f"carries layerlift for Python 3.99; this is {HERE}"),
        ({"platform": "vax-vms"}, "carries layerlift for vax-vms; this is "),
    ],
)
def test_where_it_cannot_run_it_says_so(tmp_path, content, cache, options, message):
    path = tmp_path / "m.llm"
    pack(content, path, wheels=bundle_of(tmp_path, engine(tmp_path), **options))
    code, out, err = start(path)
    assert (code, out) == (1, "")
    assert message in err.splitlines()[0]
    assert len(err.splitlines()) == 2


def refused(path: Path) -> str:
    """The one line with which a start fails."""
    code, out, err = start(path)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 2
    return err


def test_a_damaged_wheel_is_refused_and_leaves_nothing(tmp_path, bundled, cache):
    data = bundled.read_bytes()
    at = data.index(b"layerlift/data7.txt") + 40
    bundled.write_bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
    assert "the wheels in it are damaged" in refused(bundled)
    assert engines(cache) == []
    with pytest.raises(GGUFError, match=r"'wheels/layerlift-1\.0-py3-none-any\.whl' is damaged"):
        verify(bundled)


def test_a_wheel_that_is_not_the_one_that_was_packed_is_refused(tmp_path, content, cache):
    wheels = bundle_of(tmp_path, engine(tmp_path))
    engine(tmp_path, 3)  # another one under the same name
    pack(content, tmp_path / "m.llm", wheels=wheels)
    assert "has sha256" in refused(tmp_path / "m.llm")
    assert engines(cache) == []
    with pytest.raises(GGUFError, match="is not the one that was packed"):
        verify(tmp_path / "m.llm")


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "a\\evil.py", "C:/evil.py", "a//b.py"])
def test_a_wheel_cannot_write_outside_its_folder(tmp_path, content, cache, name):
    evil = wheel(tmp_path, "evil", {name: "x"})
    pack(content, tmp_path / "m.llm", wheels=bundle_of(tmp_path, engine(tmp_path), evil))
    assert "evil" in refused(tmp_path / "m.llm")
    assert engines(cache) == []
    assert list(tmp_path.rglob("evil.py")) == []


def test_what_a_wheel_keeps_in_data_is_put_in_its_place(tmp_path, content, cache):
    more = wheel(
        tmp_path, "more", {"more-1.0.data/platlib/more/a.py": "", "more-1.0.data/scripts/run": "", "more/b.py": ""}
    )
    pack(content, tmp_path / "m.llm", wheels=bundle_of(tmp_path, engine(tmp_path), more))
    assert start(tmp_path / "m.llm")[0] == 0
    (folder,) = engines(cache)
    assert sorted(p.name for p in (cache / "engines" / folder / "more").iterdir()) == ["a.py", "b.py"]
    assert not list(cache.rglob("run"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, bundled, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path / "file" / "cache"))
    assert "set LAYERLIFT_CACHE to a folder that can be written" in refused(bundled)


@pytest.mark.skipif(os.name == "nt", reason="this system has no such modes")
def test_a_folder_that_others_can_write_is_not_trusted(bundled, cache):
    assert start(bundled)[0] == 0
    (cache / "engines" / engines(cache)[0]).chmod(0o777)
    assert "is not only yours" in refused(bundled)


@pytest.mark.skipif(sys.platform == "win32", reason="elsewhere other variables name the place")
def test_launcher_and_library_agree_on_the_cache(monkeypatch, tmp_path):
    for name in ("LAYERLIFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert unbundle.cache_dir() == str(library.cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert unbundle.cache_dir() == str(library.cache_dir())
    monkeypatch.setenv("LAYERLIFT_CACHE", "~/mine")
    assert unbundle.cache_dir() == str(library.cache_dir())


# -- repack --


def test_repack_keeps_drops_or_replaces_the_wheels(tmp_path, bundled, cache):
    before = bundled.read_bytes()
    repack(bundled)
    assert bundled.read_bytes() == before
    repack(bundled, tmp_path / "bare.llm", wheels=False)
    assert verify(tmp_path / "bare.llm").wheels == 0
    assert "is not installed" in start(tmp_path / "bare.llm")[2]
    repack(tmp_path / "bare.llm", wheels=bundle_of(tmp_path, engine(tmp_path, 4)))
    assert start(tmp_path / "bare.llm") == (0, "started bare.llm 4\n", "")
    report = verify(bundled)
    assert (report.wheels, report.pythons) == (1, (HERE,))
    assert json.loads(json.dumps(report.facts()))["platform"] == sysconfig.get_platform()


# -- gathering --


def test_layerlifts_own_wheel_holds_what_is_running(tmp_path):
    import layerlift.kernels.cpu.native as native

    path = pack_bundle.own_wheel(tmp_path)
    with zipfile.ZipFile(path) as z:
        names = set(z.namelist())
        assert z.read("layerlift/runtime/pack_bundle.py") == Path(pack_bundle.__file__).read_bytes()
        assert b"Requires-Dist: numpy" in z.read(next(n for n in names if n.endswith("/METADATA")))
    assert {"layerlift/__init__.py", "layerlift/backends/base.py", "layerlift/runtime/packed/main.py"} <= names
    assert any(n.endswith(native.FILE_NAME) for n in names) == (native.library() is not None)
    assert not [n for n in names if "__pycache__" in n or ".git" in n]


def test_wheels_are_those_that_each_python_needs(tmp_path, monkeypatch):
    own = wheel(tmp_path, "layerlift", {}, ("one>=1", "tokenizers", 'web; extra == "server"', 'gpu; extra == "cuda13"'))
    wheel(tmp_path, "one", {}, ('old; python_version < "3.11"', "Under_Score[x]"))
    wheel(tmp_path, "tokenizers", {}, ("huggingface-hub",))
    wheel(tmp_path, "under_score", {}, ('ex; extra == "x"', 'no; extra == "y"'))
    for name in ("web", "old", "ex", "huggingface_hub", "stray"):
        wheel(tmp_path, name, {})
    asked: list[tuple[str, list[str]]] = []

    def download(folder, wanted, version):
        """As pip does under Python 3.12: it never sees `old` unless it is asked for."""
        asked.append((version, list(wanted)))
        names = ["one", "tokenizers", "under_score", "web", "ex", "huggingface_hub", "stray"]
        names += ["old"] * ("old" in wanted)
        return [folder / f"{name}-1.0-py3-none-any.whl" for name in names]

    monkeypatch.setattr(pack_bundle, "_download", download)
    monkeypatch.setattr(pack_bundle, "own_wheel", lambda folder: own)
    wheels = pack_bundle.gather(tmp_path, ("3.10", "3.12"))
    short = {v: sorted(n.partition("-")[0] for n in names) for v, names in wheels.bundle.pythons.items()}
    assert short["3.12"] == ["ex", "layerlift", "one", "tokenizers", "under_score", "web"]
    assert short["3.10"] == sorted([*short["3.12"], "old"])
    assert [version for version, _ in asked] == ["3.10", "3.10", "3.12"]
    assert wheels.bundle.wheels.keys() == {n for names in wheels.bundle.pythons.values() for n in names}


def test_a_python_without_wheels_is_left_out_unless_asked_for(tmp_path, monkeypatch):
    def download(folder, wanted, version):
        if version != HERE:
            raise PackError(f"nothing for {version}")
        return []

    monkeypatch.setattr(pack_bundle, "_download", download)
    monkeypatch.setattr(pack_bundle, "own_wheel", lambda folder: wheel(folder, "layerlift", {}))
    said: list[str] = []
    assert list(pack_bundle.gather(tmp_path, notify=said.append).bundle.pythons) == [HERE]
    assert any("not for Python 3.1" in line for line in said)
    with pytest.raises(PackError, match=r"nothing for 3\.99"):
        pack_bundle.gather(tmp_path, ("3.99",))
