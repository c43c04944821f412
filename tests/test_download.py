"""Files come whole through a server that misbehaves, or not at all."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
import types

import pytest
from layerlift.runtime import download as dl
from layerlift.runtime import sources
from layerlift.runtime.errors import DownloadError
from stores import BODY, DIGEST, leftovers, put

pytestmark = pytest.mark.usefixtures("home")


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
