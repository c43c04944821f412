"""Archives as llamafile's zipalign writes them: program first, contents stored and aligned, ZIP64 records."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

UNSET = 0xFFFFFFFF


def write_wide(
    path: Path,
    members: Iterable[tuple[str, bytes]],
    *,
    prefix: bytes = b"MZ",
    alignment: int = 65536,
    shift: int = 0,
    extra: bytes = b"",
) -> Path:
    """`shift` is added to the offsets of the directory's entries, `extra` goes before their ZIP64 field."""
    out, directory = prefix, b""
    for text, content in members:
        name, size, crc = text.encode(), len(content), zlib.crc32(content)
        wide = struct.pack("<HHQQ", 1, 16, size, size)
        start = -(-(len(out) + 30 + len(name) + len(wide)) // alignment) * alignment
        header_at = start - 30 - len(name) - len(wide)
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, UNSET, UNSET, len(name), len(wide))
        out = out.ljust(header_at, b"\0") + local + name + wide + content
        field = extra + struct.pack("<HHQQQ", 1, 24, size, size, header_at + shift)
        entry = (b"PK\1\2", 45, 45, 0, 0, 0, 0, crc, UNSET, UNSET, len(name), len(field), 0, 0, 0, 0, UNSET)
        directory += struct.pack("<4s6H3I5H2I", *entry) + name + field
    count, end_at = directory.count(b"PK\1\2"), len(out) + len(directory)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(out))
    end += struct.pack("<4sIQI", b"PK\6\7", 0, end_at, 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, UNSET, UNSET, 0)
    path.write_bytes(out + directory + end)
    return path
