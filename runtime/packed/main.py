"""Starts a packed file. Any Python 3 can read this; what needs a newer one is said in one line."""

import os
import sys

OLDEST = (3, 10)


def fail(message, hint):
    sys.stderr.write("error: " + message + "\n" + "hint: " + hint + "\n")
    return 1


def start(path):
    here = ".".join(str(number) for number in sys.version_info[:2])
    if sys.version_info[:2] < OLDEST:
        oldest = ".".join(str(number) for number in OLDEST)
        return fail(
            path + " needs Python " + oldest + " or newer; this is " + here,
            "python" + oldest + " " + path + ", or any newer one",
        )
    try:
        import layerlift_unbundle
    except ImportError:
        layerlift_unbundle = None  # the file carries no wheels: layerlift is installed, or is not
    if layerlift_unbundle is not None:
        try:
            sys.path.insert(0, layerlift_unbundle.folder(path))
        except layerlift_unbundle.Refused as error:
            return fail(str(error), error.hint)
    python = sys.executable or "python3"
    try:
        import layerlift
    except ImportError:
        return fail("layerlift is not installed for " + python, python + " -m pip install 'layerlift[server]'")
    try:
        from layerlift.runtime.pack_start import start as run
    except ImportError as error:
        if error.name is not None and not error.name.startswith("layerlift"):
            raise
        where = os.path.dirname(str(layerlift.__file__))
        return fail("layerlift in " + where + " is too old for " + path, python + " -m pip install --upgrade layerlift")
    return run(path, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start(os.path.dirname(os.path.abspath(__file__))))
