"""The commands `quantize` and `imatrix`: from flags to files, with progress on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..gguf import open_gguf
from ..sources import resolve
from ..terminal import Terminal, share
from . import Plan, Wishes, format_named, mix_named, plan, read_imatrix, write

if TYPE_CHECKING:
    from ..arguments import Options


def quantize(options: Options, terminal: Terminal) -> int:
    """`quantize IN OUT TYPE [THREADS]`."""
    source, target, word, threads = _words(options)
    mix = mix_named(word)
    wishes = Wishes(
        pure=options.pure,
        output=format_named(options.output_type) if options.output_type else None,
        embedding=format_named(options.embedding_type) if options.embedding_type else None,
        leave_output=options.leave_output,
    )
    imatrix = read_imatrix(options.imatrix) if options.imatrix else None
    with open_gguf(resolve(source)) as gguf:
        planned = plan(gguf, mix, wishes, imatrix=imatrix, requantize=options.requantize, keep_split=options.keep_split)
        for note in planned.notes:
            terminal.say(f"note: {note}")
        facts = _facts(planned)
        if options.dry_run:
            terminal.write(_table(planned))
            terminal.say(f"{target}: would be {facts}")
            return 0
        done = write(
            planned,
            Path(target),
            threads=threads,
            progress=lambda done, total: terminal.status(f"quantising {share(done, total)} of {total / 1e6:.0f} MB..."),
        )
    terminal.say(f"{', '.join(map(str, done))}: {mix.name}, {facts}")
    return 0


def _words(options: Options) -> tuple[str, str, str, int | None]:
    words, hint = options.words, "layerlift quantize IN.gguf OUT.gguf TYPE [THREADS]"
    if not 3 <= len(words) <= 4:
        raise UserError(f"quantize needs IN, OUT and TYPE, got {len(words)} words", hint=hint)
    if len(words) == 3:
        return words[0], words[1], words[2], options.threads
    if not (words[3].isdecimal() and 0 < int(words[3]) < 1 << 16):
        raise UserError(f"{words[3]!r} is no number of threads", hint=hint)
    return words[0], words[1], words[2], int(words[3])


def _facts(planned: Plan) -> str:
    before, after = sum(c.info.nbytes for c in planned.changes), planned.nbytes
    count = sum(_weights(c.info.shape) for c in planned.changes)
    return f"{before / 1e6:.1f} MB to {after / 1e6:.1f} MB, {8 * after / count:.2f} bits a weight"


def _weights(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _table(planned: Plan) -> str:
    rows = [(c.info.name, list(c.info.shape), c.info.fmt, c.fmt) for c in planned.changes]
    return "".join(f"{name:<32} {shape!s:<18} {old:>6} -> {new}\n" for name, shape, old, new in rows)


def imatrix(options: Options, terminal: Terminal, text: str) -> int:
    """`imatrix -m MODEL -f TEXT`."""
    from .collect import collect
    from .imatrix import write_imatrix

    target = Path(options.target or "imatrix.gguf")
    if not options.target and target.exists():
        raise UserError(f"{str(target)!r} exists already", hint="name the file with -o")
    sums, chunks, context = collect(
        resolve(options.model),
        text,
        context=options.context,
        chunks=options.chunks,
        threads=options.threads,
        progress=lambda done, total: terminal.status(f"chunk {done} of {total}..."),
    )
    source = options.file if options.file and options.file != "-" else "text"
    write_imatrix(target, sums, dataset=source, chunks=chunks, chunk_size=context)
    terminal.say(f"{target}: {len(sums)} weights, {chunks} chunks of {context} tokens")
    return 0
