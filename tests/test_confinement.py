"""What a confined process cannot do any more, in every thread that was there before, and what it still can."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
from layerlift.runtime import landlock, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")

PROGRAM = """
import json, os, queue, socket, sys, threading
import numpy
from layerlift.runtime.confinement import confine

secret, folder, port = sys.argv[1:]

def outcome(work):
    try:
        work()
    except OSError as error:
        return type(error).__name__
    return "done"

def connect():
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", int(port)))

def read():
    with open(secret) as file:
        file.read()

def write():
    with open(os.path.join(folder, "new"), "w") as file:
        file.write("x")

TRIES = {
    "read": read,
    "list": lambda: os.listdir(folder),
    "write": write,
    "append": lambda: os.close(os.open(secret, os.O_WRONLY | os.O_APPEND)),
    "remove": lambda: os.unlink(secret),
    "rename": lambda: os.rename(secret, secret + "2"),
    "make a folder": lambda: os.mkdir(os.path.join(folder, "sub")),
    "change a mode": lambda: os.chmod(secret, 0o777),
    "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]),
    "spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], {}),
    "fork": lambda: os.fork() or os._exit(0),
    "connect": connect,
}

def all_outcomes():
    return {name: outcome(work) for name, work in TRIES.items()}

def library():
    import wave, xml.dom.minidom  # not loaded yet

def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()

jobs, results = queue.Queue(), queue.Queue()
threading.Thread(target=lambda: results.put(jobs.get()()), daemon=True).start()
listener = socket.create_server(("127.0.0.1", 0))
missing = confine()
jobs.put(all_outcomes)
report = {"missing": missing, "main": all_outcomes(), "thread": results.get()}
report["still"] = {name: outcome(work) for name, work in {"import": library, "thread": thread}.items()}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    folder = tmp_path_factory.mktemp("confined")
    secret = folder / "secret"
    secret.write_text("a key")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as outside:
        command = [sys.executable, "-c", PROGRAM, str(secret), str(folder), str(outside.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "a key"
    assert [path.name for path in folder.iterdir()] == ["secret"]
    return json.loads(done.stdout)


@pytest.mark.parametrize("thread", ["main", "thread"])
def test_files_programs_and_connections_are_out_of_reach(report, thread):
    assert report["missing"] == []
    assert set(report[thread].values()) == {"PermissionError"}, report[thread]


def test_modules_are_still_imported_and_threads_started(report):
    assert report["still"] == {"import": "done", "thread": "done"}


def test_what_the_kernel_has_not_got_is_said_in_a_line(monkeypatch):
    from layerlift.runtime import confinement

    def none(*_):
        raise landlock.LandlockError("this kernel has no Landlock")

    monkeypatch.setattr(landlock, "restrict", none)
    monkeypatch.setattr(seccomp, "restrict", lambda: None)
    (line,) = confinement.confine()
    assert "files are not confined" in line
    assert "no Landlock" in line


def test_only_the_program_itself_is_readable(monkeypatch, tmp_path):
    from layerlift.runtime.confinement import readable

    folders = [tmp_path / name for name in ("with_a_module", "without_one")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "a_module_of_its_own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *map(str, folders)])
    importlib.import_module("a_module_of_its_own")
    assert str(folders[0]) in readable()
    others = {"", "/", "/etc", "/home", "/root", "/proc", "/tmp", str(tmp_path), str(folders[1])}
    assert not others & set(readable())


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_every_jump_of_the_filter_stays_inside_it(machine):
    code = seccomp.program(machine)
    count = len(code) // 8
    assert count < 4096  # the kernel's limit
    for i in range(count):
        at = code[8 * i : 8 * i + 8]
        assert i + 1 + max(at[2], at[3]) < count + (at[0] == 0x06)
    assert code[-8] == 0x06  # ends with a return
