"""What tests of packed files share: starting one, making a foreign one, damaging one, killing who writes one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from layerlift.runtime.pack import pack
from layerlift.runtime.pack_verify import verify

ENV = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")}
ANSWER = ("--cli", "-p", "Hello", "-n", "6", "--temp", "0", "--ignore-eos", "--gpu", "disable")


def run(*command, stdin: str = "", **more):
    """A finished process with its output as text."""
    options = {"capture_output": True, "encoding": "utf-8", "env": ENV, "timeout": 100}
    return subprocess.run([str(c) for c in command], input=stdin, **(options | more))


def llamafile(path: Path, *members: tuple[str, bytes]) -> Path:
    """A program and, behind it, a zip of `members`, stored."""
    with zipfile.ZipFile(path, "w") as z:
        for name, data in members:
            z.writestr(name, data)
    path.write_bytes(b"MZqFpD='\n" + path.read_bytes())
    return path


def flipped(path: Path, at: int) -> Path:
    """The file with one bit of byte `at` turned round."""
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 0x10]))
    return path


def parts(folder: Path) -> list[str]:
    """Names of the half-written files in a folder."""
    return [p.name for p in folder.iterdir() if p.name.endswith(".part")]


PACKER = """
import sys
from pathlib import Path
from layerlift.runtime.pack import pack
print("ready", flush=True)
while True:
    pack(sys.argv[1], Path(sys.argv[2]))
"""


def killed_while_packing(model: Path, target: Path, times: int, longest: float) -> int:
    """Kills a process that packs again and again after random times; how often the file was there afterwards."""
    chance, there = random.Random(7), 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", PACKER, model, target], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * longest)
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.communicate()
        if target.exists():
            there += 1
            verify(target)
            target.unlink()
    for name in parts(target.parent):
        os.utime(target.parent / name, (1, 1))
    pack(model, target)
    verify(target)
    assert parts(target.parent) == []
    return there
