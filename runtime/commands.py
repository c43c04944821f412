"""The commands beside chat and --cli: thin shells that call one module each and print what it says."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .startup import kernels_of, open_engine, read_text
from .terminal import Terminal, share

if TYPE_CHECKING:
    from .arguments import Options


def run(options: Options, terminal: Terminal) -> int:
    """Runs the command of `options.mode`; the exit code."""
    return {
        "bench": bench,
        "perplexity": perplexity,
        "tokenize": tokenize,
        "devices": devices,
        "pull": pull,
        "list": list_models,
        "convert": convert,
        "completions": completions,
        "man": man,
        "quantize": quantize,
        "imatrix": imatrix,
        "pack": pack,
        "unpack": unpack,
        "verify": verify,
        "repack": repack,
    }[options.mode](options, terminal)


def text_of(options: Options) -> str:
    """The text of -p or -f, whichever came last, or of stdin. Raises UserError."""
    given = [dest for dest in options.given if dest in ("prompt", "file")]
    if given:
        return options.prompt if given[-1] == "prompt" else read_text(options.file)
    if sys.stdin.isatty():
        raise UserError("no text", hint="-p TEXT, or -f FILE, or pipe one in")
    return read_text("-")


def bench(options: Options, terminal: Terminal) -> int:
    """Tokens per second, as a table."""
    from ..bench import machine, table

    named = [f.name for f in fields(table.Settings) if f.name not in ("shown", "kernels")]
    asked: dict[str, Any] = {name: getattr(options, name) for name in named} | {"kernels": kernels_of(options)}
    asked["models"] = asked["models"] or (None,)
    settings = table.Settings(**asked, shown=[name for name in table.SETTINGS if name in options.given])
    here, rows = machine.describe_machine(), []
    for row in table.run(settings, here, lambda line: terminal.status(f"{line}..."), terminal.say):
        rows.append(row)
        if options.output == "jsonl":
            terminal.write(json.dumps(row) + "\n")
    if options.output != "jsonl":
        terminal.write(table.render(rows, options.output, settings.shown) + "\n")
    if options.save:
        terminal.say(f"saved in {machine.save(options.save, rows, machine=here)}")
    return 0


def perplexity(options: Options, terminal: Terminal) -> int:
    """Perplexity of a text, with progress on stderr."""
    text = text_of(options)
    with open_engine(options, terminal) as engine:
        from .perplexity import perplexity as scores

        model = engine.model
        tokens = model.tokenizer.encode(text)
        score = None
        for score in scores(
            model,
            tokens,
            context=engine.context,
            batch=options.batch,
            kv_dtype=options.kv_dtype_k or options.kv_dtype_v or "f16",
            chunks=options.chunks,
        ):
            terminal.step(f"[{score.chunks}/{score.total}] {score.perplexity:.4f}")
        assert score is not None
        if options.json:
            found = {"perplexity": score.perplexity, "error": score.error, "nll": score.nll}
            counts = {"tokens": score.count, "chunks": score.chunks, "context": engine.context}
            terminal.write(json.dumps(found | counts) + "\n")
        else:
            terminal.write(f"PPL = {score.perplexity:.4f} ± {score.error:.5f}\n")
    return 0


def tokenize(options: Options, terminal: Terminal) -> int:
    """The tokens of a text, one a line: id, text."""
    text = text_of(options)
    from .gguf import open_gguf
    from .sources import resolve
    from .tokenizer import Tokenizer

    with open_gguf(resolve(options.model)) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    if tokenizer.warning:
        terminal.say(f"warning: {tokenizer.warning}")
    ids = tokenizer.encode(text, parse_special=options.parse_special, add_special=options.bos)
    if options.json:
        terminal.write(json.dumps(ids) + "\n")
        return 0
    lines = [f"{id:6d} -> {_quoted(tokenizer.piece(id))}\n" for id in ids]
    terminal.write("".join(lines))
    return 0


def _quoted(piece: bytes) -> str:
    """A token's bytes between quotes: what is no text, and what a terminal would act on, as escapes."""
    text = piece.decode("utf-8", "backslashreplace")
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"


def devices(options: Options, terminal: Terminal) -> int:
    """What every backend found, or why it found nothing."""
    from dataclasses import asdict

    from ..backends.registry import backend_class, probe_all

    probes = probe_all()
    choices = {d: backend_class(d.backend).choices(d) for probe in probes for d in probe.devices}
    if options.json:
        found = [{**asdict(d), "choices": lines} for d, lines in choices.items()]
        missing = [{"backend": p.backend, "reason": reason} for p in probes for reason in _unavailable(p)]
        terminal.write(json.dumps({"devices": found, "unavailable": missing}, indent=2) + "\n")
        return _check(probes, terminal) if options.check else 0
    lines = []
    for probe in probes:
        for d in probe.devices:
            memory = f", {d.free / (1 << 30):.1f} of {d.total / (1 << 30):.1f} GiB free" if d.total else ""
            lines.append(f"{d!s:<10} {d.name}{f' ({d.detail})' if d.detail else ''}{memory}")
            lines += [f"{'':<10} {line}" for line in choices[d]]
        lines += [f"{probe.backend:<10} unavailable: {reason}" for reason in _unavailable(probe)]
    terminal.write("\n".join(lines) + "\n")
    return _check(probes, terminal) if options.check else 0


def _unavailable(probe: Any) -> tuple[str, ...]:
    """Why a backend has no device, or why some of them cannot be used."""
    return probe.closed or (() if probe.devices else (probe.reason,))


def _check(probes: Any, terminal: Terminal) -> int:
    """Runs the table of op cases on every device; 1 if one differs from float64 by more than its bound."""
    from ..backends.errors import BackendError, UnsupportedFormat
    from ..backends.opcases import all_cases, judge
    from ..backends.registry import open_device

    failed = 0
    for device in (d for probe in probes for d in probe.devices):
        counts = {"ok": 0, "unsupported": 0, "wrong": 0}
        backend = open_device(device)
        try:
            for case in all_cases():
                terminal.status(f"{device} {case}")
                try:
                    verdict = judge(case, backend, relaxed=device.backend != "numpy")
                    kind = "ok" if verdict.ok else "wrong"
                    if not verdict.ok:
                        size = f"NMSE {verdict.nmse:.2e}, largest error {verdict.max_error:.2e}"
                        terminal.error(f"{device} {case}: {size}; at most NMSE {verdict.bound:.0e} is right")
                except UnsupportedFormat:
                    kind = "unsupported"
                except BackendError as error:
                    kind = "wrong"
                    terminal.failure(error)
                counts[kind] += 1
        finally:
            backend.close()
        failed += counts["wrong"]
        word = "FAIL" if counts["wrong"] else "PASS"
        terminal.say(f"{device}: {word}, " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    return 1 if failed else 0


def pull(options: Options, terminal: Terminal) -> int:
    """Fetches models by name; without one, the default model. Prints where each one lies."""
    from .sources import resolve

    for name in options.words or [None]:
        terminal.write(f"{resolve(name)}\n")
    return 0


def list_models(options: Options, terminal: Terminal) -> int:
    """The models on this machine: name, architecture, format, size, and where they lie."""
    from .sources import list_models as found

    models = found()
    if options.json:
        rows = [{**vars(m), "path": str(m.path)} for m in models]
        terminal.write(json.dumps(rows, indent=2) + "\n")
        return 0
    if not models:
        terminal.say("no models found; `layerlift pull` fetches the default one")
    width = max((len(m.name) for m in models), default=0)
    for m in models:
        facts = m.problem or f"{m.architecture:<10} {m.format:<8} {m.nbytes / 1e9:7.2f} GB  {m.path}"
        terminal.write(f"{m.name:<{width}}  {facts}\n")
    return 0


def convert(options: Options, terminal: Terminal) -> int:
    """A GGUF of a checkpoint folder."""
    from . import convert as converting
    from .convert.source import folder_of

    folder = folder_of(_one_word(options, "FOLDER"))
    plan = converting.plan(
        folder, outtype=options.outtype, vocab_only=options.vocab_only, template=options.chat_template
    )
    for note in plan.checkpoint.notes:
        terminal.say(f"note: {note}")
    kind = "vocab" if options.vocab_only else plan.outtype
    target = Path(options.target or f"{plan.checkpoint.name}.{kind}.gguf")
    if not options.target and target.exists():
        raise UserError(f"{str(target)!r} exists already", hint="name the file with -o")
    facts = f"{plan.checkpoint.settings.arch}, {len(plan.tensors)} tensors, {kind}, {plan.nbytes / 1e6:.1f} MB"
    if options.dry_run:
        terminal.say(f"{target}: would be {facts}")
        return 0
    converting.write(plan, target, progress=_progress("converting", terminal))
    terminal.say(f"{target}: {facts}")
    return 0


def completions(options: Options, terminal: Terminal) -> int:
    """The script that completes command lines in a shell."""
    from .completions import SHELLS, completion

    shell = _one_word(options, " or ".join(SHELLS))
    if shell not in SHELLS:
        raise UserError(f"no completions for {shell!r}", hint=f"there are some for {', '.join(SHELLS)}")
    terminal.write(completion(shell))
    return 0


def man(options: Options, terminal: Terminal) -> int:
    """The man page."""
    from .completions import man_page

    terminal.write(man_page())
    return 0


def quantize(options: Options, terminal: Terminal) -> int:
    """A model with its weights in another type."""
    from .quantize.command import quantize as run

    return run(options, terminal)


def imatrix(options: Options, terminal: Terminal) -> int:
    """The importance matrix of a model on a text."""
    from .quantize.command import imatrix as run

    return run(options, terminal, text_of(options))


def pack(options: Options, terminal: Terminal) -> int:
    """One executable file of a model."""
    from . import pack as packing
    from .sources import resolve

    model = _one_word(options, "MODEL.gguf")
    target = Path(options.target or Path(model).name.removesuffix(".gguf") + ".llm")
    if not options.target and target.exists():
        raise UserError(f"{str(target)!r} exists already", hint="name the file with -o")
    args = _packed_args(options) or ""
    packing.check_args(args)
    source = resolve(model)
    with _wheels(options, terminal) as wheels:
        manifest = packing.pack(
            source, target, args=args, wheels=wheels or None, progress=_progress("packing", terminal)
        )
    terminal.say(f"{target}: {sum(w.nbytes for w in manifest.weights) / 1e6:.1f} MB of weights, ready to run")
    return 0


def repack(options: Options, terminal: Terminal) -> int:
    """The same weights with another engine, other flags or other wheels."""
    from . import pack as packing

    path = _one_word(options, "FILE")
    args = _packed_args(options)
    with _wheels(options, terminal) as wheels:
        kept = True if options.bundle == "keep" else wheels or False
        target = Path(options.target) if options.target else None
        packing.repack(path, target, args=args, wheels=kept, progress=_progress("repacking", terminal))
    terminal.say(f"{options.target or path}: repacked")
    return 0


def unpack(options: Options, terminal: Terminal) -> int:
    """The GGUF in a packed file or an archive; prints its path."""
    from . import pack as packing

    path, target = _one_word(options, "FILE"), Path(options.target) if options.target else None
    for file in packing.unpack(path, target, progress=_progress("unpacking", terminal)):
        terminal.write(f"{file}\n")
    return 0


def verify(options: Options, terminal: Terminal) -> int:
    """What a file holds, read to the last bit; damage is an error."""
    from . import pack_verify

    report = pack_verify.verify(_one_word(options, "FILE"), progress=_progress("reading", terminal))
    terminal.write(json.dumps(report.facts(), indent=2) + "\n" if options.json else report.text())
    return 0


def _one_word(options: Options, what: str) -> str:
    if len(options.words) != 1:
        stray = f"unexpected argument {options.words[1]!r}" if options.words else f"{options.mode} needs {what}"
        raise UserError(stray, hint=f"layerlift {options.mode} --help")
    return options.words[0]


def _packed_args(options: Options) -> str | None:
    """The text for `.args`, None if there was nothing said about it."""
    from .pack_args import quote

    if options.rest and options.args_file:
        raise UserError("--args and flags behind -- cannot both be packed")
    if options.args_file:
        return read_text(options.args_file) + "\n"
    return quote(options.rest) if options.rest else None


@contextmanager
def _wheels(options: Options, terminal: Terminal) -> Iterator[Any]:
    """The wheels to carry, in a folder that goes away; None without --bundle-deps."""
    if options.bundle is not True:
        if options.pythons:
            raise UserError("--pythons says what --bundle-deps carries, which is not among the flags")
        yield None
        return
    from .pack_bundle import gather

    with tempfile.TemporaryDirectory(prefix="layerlift-") as folder:
        yield gather(Path(folder), options.pythons, notify=terminal.step)


def _progress(verb: str, terminal: Terminal) -> Callable[[int, int], None]:
    return lambda done, total: terminal.status(f"{verb} {share(done, total)} of {total / 1e6:.0f} MB...")
