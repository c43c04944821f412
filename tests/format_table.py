"""Writes the tables of docs/formats.md anew, from the tables of the code: python tests/format_table.py."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from layerlift.backends import gpu_repack
from layerlift.backends.cpu import CpuBackend, Packed
from layerlift.backends.formats import FORMATS, Format
from layerlift.backends.numpy_decode import DECODABLE
from layerlift.runtime.flags import FLAGS
from layerlift.runtime.models import known
from layerlift.runtime.weight_types import MIXES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"


def native(fmt: Format) -> bool:
    """Whether the CPU's library keeps a matrix of this format."""
    (device,) = CpuBackend.probe().devices
    backend = CpuBackend.open(device, threads=1)
    try:
        columns = max(fmt.block, 32)
        raw = np.zeros(fmt.row_nbytes(columns), np.uint8)
        return type(backend.load(raw, fmt.name, (1, columns), "w").data) is Packed
    finally:
        backend.close()


def formats() -> str:
    """One row for each format that can be read: bits a weight, who multiplies with it, and what writes it."""
    lines = ["| format | bits a weight | CPU | GPU | `quantize` | `convert` |", "|---|---:|---|---|---|---|"]
    (outtypes,) = (flag.kind.choices for flag in FLAGS if flag.dest == "outtype" and flag.kind)
    made, yes = {mix.fmt for mix in MIXES}, {True: "yes", False: ""}
    for fmt in FORMATS:
        if fmt.name in DECODABLE:
            bits = f"{fmt.bits:.4g}"
            marks = (fmt.name in gpu_repack.supported(), fmt.name in made, fmt.name.lower() in outtypes)
            cells = (fmt.name, bits, "native" if native(fmt) else "NumPy", *(yes[mark] for mark in marks))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join(lines)


def types() -> str:
    """The types that `quantize` takes, with the format that most weights then have and its bits."""
    lines = ["| type | most weights | bits of each |", "|---|---|---:|"]
    return "\n".join([*lines, *(f"| {mix.name} | {mix.fmt} | {mix.bits:.4g} |" for mix in MIXES)])


TABLES = {"formats": formats, "types": types, "architectures": lambda: ", ".join(f"`{a}`" for a in known())}


def page(text: str) -> str:
    """The page with each table between its marks, `<!-- NAME -->` and `<!-- end -->`, as the code has it now."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        new = table()
        text, count = re.subn(pattern, lambda match, new=new: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
        assert count == 1, f"{count} marks for {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
