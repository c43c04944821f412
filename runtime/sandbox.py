"""Keeps the process that renders chat templates: starts it, asks it, ends a template that does not end by itself.

Knows frames and deadlines, nothing of messages. template_worker.py is the other side.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, Any, cast

from . import landlock
from .errors import TemplateError

START_SECONDS = 20.0  # wall clock, on a machine that is busy
SECONDS = 0.3  # processor time of one rendering, plus one second per MiB of input
NBYTES = 56 << 20  # memory of one rendering, plus a multiple of its input
FUEL = 5_000_000  # instructions and characters that minijinja counts, plus a multiple of the input


class Sandbox:
    """One process, started at the first rendering and again should it have ended. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, context: dict[str, Any], now: str) -> str:
        """The rendered text. Raises TemplateError in one line, also for a template that had to be stopped."""
        size = len(source) + len(json.dumps(context))
        seconds = SECONDS + size / (1 << 20)
        job = {
            "source": source,
            "context": context,
            "now": now,
            "fuel": FUEL + 20 * size,
            "seconds": seconds,
            "nbytes": NBYTES + 24 * size,
        }
        with self._lock:
            process = self._running()
            # Processor time ends it where the system has such a timer; the wall clock is the second fence.
            wall = 2.0 + 2 * seconds if os.name == "nt" else 5.0 + 5 * seconds
            answer = self._ask(process, job, wall)
        if "error" in answer:
            raise TemplateError(f"chat template: {' '.join(str(answer['error']).split())[:500]}")
        return answer["text"]

    def close(self) -> None:
        """Ends the process; a later rendering starts a new one."""
        with self._lock:
            self._end(kill=False)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            self._process = None  # after a fork it belongs to the parent
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end(kill=True)
        spec = importlib.util.find_spec(f"{__package__}.template_worker")
        program = cast(Any, spec).loader.get_source(cast(Any, spec).name)  # also from inside a zip
        rules = _no_files()
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=rules,
            )
        except OSError as error:
            raise TemplateError(f"chat template: cannot start {sys.executable!r} to render it: {error}") from None
        finally:
            for rule in rules:
                os.close(rule)
        self._owner = os.getpid()
        # An empty entry is the current directory, which is no place to import from.
        ready = self._ask(process, {"path": [p for p in sys.path if p], "rules": rules}, START_SECONDS)
        if "error" in ready:
            self._end(kill=True)
            raise TemplateError(
                f"chat template: {ready['error']}", hint="pip install minijinja, or reinstall layerlift"
            )
        return process

    def _ask(self, process: subprocess.Popen[bytes], message: dict[str, Any], seconds: float) -> dict[str, Any]:
        frame = json.dumps(message).encode()
        send, receive = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        fence = threading.Timer(seconds, process.terminate)
        fence.daemon = True
        fence.start()
        try:
            send.write(struct.pack(">I", len(frame)) + frame)
            send.flush()
            head = receive.read(4)
            data = receive.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
            if data:
                answer = json.loads(data)
                return {"error": self._verdict(answer["ended"])} if "ended" in answer else answer
        except (OSError, ValueError):
            pass  # it died, or was killed in the middle of an answer
        except BaseException:
            self._end(kill=True)  # Ctrl-C: the answer must not be taken for the next one's
            raise
        finally:
            fence.cancel()
        return {"error": self._verdict(self._end(kill=True))}

    def _verdict(self, status: int | None) -> str:
        slow = {-getattr(signal, name) for name in ("SIGPROF", "SIGXCPU") if hasattr(signal, name)}
        if status in slow:
            return "stopped, it ran for too long"
        if status is not None and -status in (getattr(signal, "SIGSEGV", 0), getattr(signal, "SIGBUS", 0)):
            return "stopped, it nests too deeply"
        if status is not None and status == -getattr(signal, "SIGABRT", 0):
            return "stopped, it nests too deeply or needs too much memory"
        return "stopped, it ran for too long or needed too much memory"

    def _end(self, *, kill: bool) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            try:
                cast("IO[bytes]", pipe).close()
            except OSError:
                pass
        if kill:
            process.kill()  # nothing happens to one that is dead already
        try:
            return process.wait(1.0)  # its stdin is closed: it leaves by itself
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _no_files() -> list[int]:
    """Landlock's rules for a process that opens no file; none where the kernel has no Landlock."""
    try:
        return [landlock.ruleset()]
    except landlock.LandlockError:
        return []


shared = Sandbox()
atexit.register(shared.close)
