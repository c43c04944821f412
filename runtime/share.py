"""Writes the man page and what completes command lines: `python -m runtime.share FOLDER`, in the source tree.

The build runs it before there is a package of layerlift's name, so it gives that name to the tree.
"""

import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    tree = sys.modules["layerlift"] = ModuleType("layerlift")
    tree.__path__ = [str(Path(__file__).resolve().parents[1])]
    from layerlift.runtime.completions import write

    write(Path(sys.argv[1]))
