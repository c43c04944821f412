"""Renders chat templates in a process of its own, which may be killed: a template comes with the model file.

Runs as a program with nothing of layerlift imported. Frames on stdin and stdout are a 4-byte length (big-endian) and
JSON. The first frame in is {"path": sys.path, "rules": open files of Landlock rules}; each later one is a job {source,
context, now, fuel, seconds, nbytes}, answered by {"text"} or {"error"}. A job that takes too much processor time or
memory, or overflows the stack, ends the process; sandbox.py reads the reason from how it ended.

Where the system has forks, jobs are done in a child, and what ended it is answered as {"ended": status}: the next child
needs no program to be started, which a confined server cannot do. SIGTERM ends the job at hand.
"""

import json
import os
import re
import signal
import struct
import sys
from datetime import datetime

MAX_OUTPUT = 4 << 20  # characters
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# Plain directives only: a width would let one directive write gigabytes.
DATE_FORMAT = re.compile(r"(?:[^%]|%[-#]?[A-Za-z%]){0,256}")


class Raised(Exception):
    """The template's own raise_exception."""


def raise_exception(message=""):
    raise Raised(str(message))


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as the transformers library writes it: no HTML escapes, keys in their order."""
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise Raised("tojson: indent must be 0 to 16")
    separators = tuple(separators) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(minijinja, now, fuel):
    def strftime_now(form):
        if not DATE_FORMAT.fullmatch(form):
            raise Raised("strftime_now: unusual format")
        return now.strftime(form)

    env = minijinja.Environment(
        fuel=fuel,
        debug=False,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda name: False,
        pycompat=True,
    )
    env.add_global("raise_exception", raise_exception)
    env.add_global("strftime_now", strftime_now)
    env.add_filter("tojson", tojson)
    return env


def plain_blocks(source):
    """{% generation %} marks what an assistant said, for training; here it is an `if` that holds."""
    return GENERATION.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", source)


def open_statm():
    """The file that tells how much memory this process has, to be read at any time; None where there is none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None


def confine(rules):
    """Opens no file and makes no connection from here on, as Landlock's rules say (landlock.py)."""
    if not rules:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which Landlock asks for
    for rule in rules:
        libc.syscall(446, rule, 0)
        os.close(rule)


def limit(statm, seconds, nbytes):
    """From here on `seconds` of processor time and `nbytes` more memory end the process (where the system can)."""
    try:
        import resource

        used = int(os.pread(statm, 64, 0).split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + nbytes, hard))
    except (ImportError, OSError, TypeError, ValueError):
        pass
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # pyright: ignore[reportAttributeAccessIssue]


def answer(minijinja, statm, job):
    limit(statm, job["seconds"], job["nbytes"])
    try:
        env = environment(minijinja, datetime.fromisoformat(job["now"]), job["fuel"])
        text = env.render_str(plain_blocks(job["source"]), "template", **job["context"])
    except Raised as error:
        return {"error": str(error)}
    except minijinja.TemplateError as error:
        return {"error": error.message}
    except MemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)  # pyright: ignore[reportAttributeAccessIssue]
    if len(text) > MAX_OUTPUT:
        return {"error": f"writes {len(text)} characters (limit {MAX_OUTPUT})"}
    return {"text": text}


def go_on_in_a_child(write):
    """Returns in a child process, and in a new one whenever a job has ended the last."""
    child = 0

    def end_job(*_):
        if child:
            os.kill(child, signal.SIGKILL)

    while True:
        signal.signal(signal.SIGTERM, end_job)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = 0
        if status == 0:
            sys.exit()  # nobody asks any more
        write({"ended": status})


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the chat
    receive, send = sys.stdin.buffer, sys.stdout.buffer

    def read():
        head = receive.read(4)
        return json.loads(receive.read(struct.unpack(">I", head)[0])) if len(head) == 4 else None

    def write(value):
        data = json.dumps(value).encode()
        send.write(struct.pack(">I", len(data)) + data)
        send.flush()

    start = read() or {}
    sys.path[:] = start["path"]
    try:
        import minijinja
    except ImportError as error:
        write({"error": str(error)})
        return
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass
    write({"ready": True})
    if hasattr(os, "fork"):
        go_on_in_a_child(write)
    statm = open_statm()
    confine(start["rules"])
    while (job := read()) is not None:
        write(answer(minijinja, statm, job))


if __name__ == "__main__":
    main()
