"""Fetches one file over HTTP so that it is whole or not there. Knows nothing of models.

The bytes go to `<name>.part`, which a later call continues, and take the file's name when they are complete and
checked. A lock file keeps a second process waiting instead of fetching the same bytes into the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DownloadError

Progress = Callable[[int, "int | None"], None]  # bytes so far, bytes in all if known

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte
FATAL = (400, 401, 403, 404, 405, 410, 451)


class ProgressLine:
    """Shows a download on one line of stderr; where that is no terminal, only its start."""

    def __init__(self, noun: str, stream: IO[str] | None = None):
        self._noun = noun
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._start: tuple[float, int] | None = None
        self._shown = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        if self._start is None:
            self._start = (now, done)
            if not self._live:
                self._write(f"fetching {self._noun}{f' ({total / 1e6:.0f} MB)' if total else ''}\n")
        if not self._live or (now - self._shown < 0.1 and not finished):
            return
        self._shown = now
        rate = (done - self._start[1]) / max(now - self._start[0], 1e-3)
        text = f"fetching {self._noun}  {done / 1e6:.1f}"
        if total:
            text += f" of {total / 1e6:.1f} MB  {min(100, 100 * done // total)} %"
            left = (total - done) / rate if rate > 0 else 0
            text += f"  {rate / 1e6:.1f} MB/s  {left:.0f} s left" if rate > 0 and not finished else ""
        else:
            text += f" MB  {rate / 1e6:.1f} MB/s"
        self._write(f"\r{text}\x1b[K" + ("\n" if finished else ""))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed stderr does not stop a download
            self._stream.write(text)
            self._stream.flush()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; waits while another process has it. The system frees it if its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        while not _try_lock(file):
            time.sleep(0.1)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    pause: float = 0.5,
) -> Path:
    """Fetches `url` to `target` and returns it; does nothing when it is there already. Raises DownloadError.

    Continues what an earlier call left, tries again after a lost connection (`pause` seconds, then twice that, …),
    and checks the size the server named and `sha256` (hexadecimal).
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{_shown(url)} is not an http or https address")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(target.name + ".lock")):
            if not target.exists():
                part = target.with_name(target.name + ".part")
                _fetch(url, part, sha256 is not None, progress, pause)
                _tag(part).unlink(missing_ok=True)
                finish(part, target, sha256)
    except OSError as error:
        raise DownloadError(f"{target}: {error.strerror or error}") from error
    return target


def finish(part: Path, target: Path, sha256: str | None) -> None:
    """Checks `part`, makes sure it is on the disk and gives it its name. A wrong file is removed."""
    if sha256 is not None and (found := file_sha256(part)) != sha256:
        part.unlink()
        raise DownloadError(
            f"{target.name}: sha256 is {found}, expected {sha256}",
            hint="the file changed at its source or on the way; fetch it again",
        )
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def file_sha256(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_space(folder: Path, nbytes: int) -> None:
    """Raises DownloadError when `folder`'s disk has less than `nbytes` free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise DownloadError(
            f"{folder}: {nbytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free",
            hint="free some space, or set LAYERLIFT_CACHE to a folder on another disk",
        )


# ---------------------------------------------------------------------------------------------------------------
# One file, over as many connections as it takes


def _fetch(url: str, part: Path, verified: bool, progress: Progress | None, pause: float) -> None:
    """Completes `part`. Without a hash to check, only bytes of the same version (its ETag) are continued."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before and not verified and not _tag(part).exists():
            before = 0
        try:
            if _attempt(url, part, before, progress):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # nothing after `before`: what is here belongs to another version
                part.unlink(missing_ok=True)
            elif error.code in FATAL:
                raise DownloadError(f"{_shown(url)}: {reason}", hint="check the address") from None
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            kept = f"; {after / 1e6:.1f} MB are kept and will be continued" if after else ""
            raise DownloadError(f"{_shown(url)}: {reason}{kept}", hint="check the network and try again")
        time.sleep(min(30.0, pause * 2 ** max(0, failures - 1)))


def _attempt(url: str, part: Path, start: int, progress: Progress | None) -> bool:
    """One connection's worth of bytes from `start` on; whether the file is complete."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "layerlift"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _tag(part).exists():
            headers["If-Range"] = _tag(part).read_text("ascii")
    with _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise DownloadError(f"{_shown(url)}: the server sent {coding!r}-coded bytes unasked")
        start, total = _extent(response, start)
        _remember_tag(part, response.headers.get("ETag"))
        if total is not None:
            check_space(part.parent, total - start)
        done = start
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            if progress:
                progress(done, total)
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            file.truncate()
    if total is not None and done > total:
        part.unlink()
        raise DownloadError(f"{_shown(url)}: the server sent {done} bytes of {total}")
    return total is None or done == total


def _chunks(response: Any) -> Iterator[bytes]:
    """The answer's bytes; what came before a lost connection is handed on before the error."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except http.client.IncompleteRead as error:
        yield error.partial
        raise


def _extent(response: Any, start: int) -> tuple[int, int | None]:
    """Where the answer's bytes begin and how long the whole file is."""
    length = response.headers.get("Content-Length")
    length = int(length) if length and length.isdecimal() else None
    if response.status != 206:  # the whole file, whatever was asked for
        return 0, length
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != start:
        raise http.client.HTTPException("the server answered with another range than asked for")
    if span[3] != "*":
        return start, int(span[3])
    return start, None if length is None else start + length


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{_shown(req.full_url)}: redirected from https to {_shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects())


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember_tag(part: Path, tag: str | None) -> None:
    """Keeps a strong ETag: it says whether a later answer continues the same bytes."""
    if tag and re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', tag):
        _tag(part).write_text(tag, "ascii")
    else:
        _tag(part).unlink(missing_ok=True)


def _shown(url: str) -> str:
    """An address without name, password and query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:200]
