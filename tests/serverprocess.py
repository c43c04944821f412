"""A `layerlift --server` as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator


class Process:
    """A server process, of layerlift or another `command`; its stderr is gathered as it comes. `more` is for Popen."""

    def __init__(self, *flags: str, command=(sys.executable, "-m", "layerlift"), **more):
        line = [*command, "--server", "--nobrowser", "--gpu", "disable", "-t", "1", *flags]
        self.child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.said += line

    def url(self, seconds: float = 60) -> str:
        """Where it listens, once it has said so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.child.poll() is None:
            found = re.search(r"listening at (http://\S+)", self.said)
            if found:
                return found[1].rstrip("/")
            time.sleep(0.02)
        raise AssertionError(f"it never listened: {self.said}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.child.wait(30)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def started(*flags: str, **more) -> Iterator[Process]:
    process = Process(*flags, **more)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
            process.child.wait()
        for pipe in (process.child.stdout, process.child.stderr):
            process._reader.join(10)
            assert pipe is not None
            pipe.close()
