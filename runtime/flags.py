"""The table of flags: every name, value and default of every mode. Knows nothing of what a flag brings about.

The help is made from this table (usage.py), and arguments.py reads a command line by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .gpu_kinds import ALIASES, KINDS

COMMANDS = {
    "bench": "measure tokens per second",
    "perplexity": "score a text: exp of the mean negative log likelihood",
    "tokenize": "print the tokens of a text",
    "devices": "show the devices that layers can run on",
    "pull": "fetch a model",
    "list": "show the models found on this machine",
    "convert": "make a GGUF of a Hugging Face or Meta checkpoint folder",
    "completions": "print what completes command lines in bash, zsh or fish",
    "man": "print the man page",
    "quantize": "write a model with its weights in another type",
    "imatrix": "measure on a text which weights matter, for quantize",
    "pack": "make one file of a model and what runs it",
    "unpack": "take the model out of a packed file",
    "verify": "check a model or a packed file, bit by bit",
    "repack": "give a packed file this layerlift, other flags, other wheels",
}
MODES = ("chat", "cli", "server", *COMMANDS)


@dataclass(frozen=True)
class Kind:
    """What a flag's value looks like; `convert` raises ValueError with what was expected."""

    metavar: str
    convert: Callable[[str], Any]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)  # hashed by identity: a default may be a dict
class Flag:
    """One flag. `kind` None is a switch, which stores `value`; `default` may be a dict by mode."""

    names: tuple[str, ...]
    dest: str
    help: str
    modes: tuple[str, ...]
    kind: Kind | None = None
    default: Any = None
    value: Any = True
    repeat: bool = False  # values gather in a tuple; otherwise the last one wins
    group: str = ""

    def default_for(self, mode: str) -> Any:
        return self.default.get(mode) if isinstance(self.default, dict) else self.default


# -----------------------------------------------------------------------------------------------------------
# Kinds of values


def integer(metavar: str = "N", *, low: int | None = None, thousands: bool = False) -> Kind:
    """A whole number, at least `low`; with `thousands` also 8k (8192) and 1m."""

    def convert(text: str) -> int:
        match = re.fullmatch(r"([+-]?\d{1,18})([km]?)", text.strip().lower() if thousands else text.strip())
        if not match:
            raise ValueError("a whole number" + (" such as 4096 or 8k" if thousands else ""))
        number = int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2]]
        if low is not None and number < low:
            raise ValueError(f"a whole number of at least {low}")
        return number

    return Kind(metavar, convert)


def number(metavar: str = "X") -> Kind:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("a number") from None
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError("a finite number")
        return value

    return Kind(metavar, convert)


def choice(*names: str, aliases: dict[str, str] | None = None, pattern: str = "") -> Kind:
    """One of `names`, in any case; `aliases` are other words for them, and what fits `pattern` is taken too."""

    def convert(text: str) -> str:
        word = text.strip().lower()
        word = (aliases or {}).get(word, word)
        if word not in names and not (pattern and re.fullmatch(pattern, word)):
            raise ValueError("one of " + ", ".join(names))
        return word

    return Kind("|".join(names), convert, names)


def _layers(text: str) -> int | str:
    word = text.strip().lower()
    if word in ("auto", "-1"):  # -1 is what llama.cpp's users write for "you choose"
        return "auto"
    if word in ("all", "max"):
        return ALL_LAYERS
    if not re.fullmatch(r"\d{1,9}", word):
        raise ValueError("a number of layers, 'auto' or 'all'")
    return int(word)


def _logit_bias(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"\s*(\d{1,9})\s*([+-])\s*(\d+(?:\.\d*)?|\.\d+|inf)\s*", text)
    if not match:
        raise ValueError("a token id and a bias, such as 15043+1 or 15043-1.5")
    return int(match[1]), float(match[2] + match[3])


def _repository(text: str) -> str:
    return "hf:" + text.removeprefix("hf:")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[;,\s]+", text.strip()) if word)


def listed(kind: Kind) -> Kind:
    """Several values of a kind with commas between them; a value given twice counts once."""

    def convert(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(kind.convert(part) for part in text.split(",")))

    return Kind(f"{kind.metavar},…", convert, kind.choices)


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text.strip()) or int(text) > 65535:
        raise ValueError("a port from 0 to 65535")
    return int(text)


def _keys(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*0*([1-9]\d{0,8})\s*,\s*0*([1-9]\d{0,8})\s*", text)
    if not match:
        raise ValueError("two counts, such as 512,128")
    return int(match[1]), int(match[2])


def _shares(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in re.split(r"[,/]", text))
    except ValueError:
        values = ()
    if not values or any(not 0 <= value < float("inf") for value in values) or not sum(values):
        raise ValueError("one share for each device, such as 3,1")
    return values


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.1\d", text.strip()):
        raise ValueError("a version of Python from 3.10 on")
    return text.strip()


ALL_LAYERS = 999
TEXT = Kind("TEXT", str)
FILE = Kind("FILE", str)
LAYERS = Kind("N|auto|all", _layers)
GPU = choice(*KINDS, aliases=ALIASES, pattern=r"[a-z]+:\d{1,3}")  # the pattern: one device by name
KV_DTYPE = choice("f16", "bf16", "f32")
NAMES = Kind("A;B;…", _words)
PORT = Kind("N", _port)
COUNTS = listed(integer(low=0))
SIZES = listed(integer(low=1))
PAIR = Kind("N,N", _pair)
SHARES = Kind("A,B,…", _shares)


# -----------------------------------------------------------------------------------------------------------
# The table

TALK = ("chat", "cli")
ANSWERS = (*TALK, "server")
LOADS = (*ANSWERS, "perplexity")


def _table() -> tuple[Flag, ...]:
    """Groups in the order of the help; within a mode every name and every dest has one meaning."""
    flags: list[Flag] = []
    title, modes = "", TALK

    def flag(names: str, dest: str, help: str, kind: Kind | None = None, default: Any = None, **more: Any):
        more = {"modes": modes, "group": title, **more}
        flags.append(Flag(tuple(names.split()), dest, help, kind=kind, default=default, **more))

    # fmt: off
    title, modes = "mode", ANSWERS
    flag("--chat -cnv --conversation", "mode", "talk with the model in the terminal (the default)", value="chat")
    flag("--cli -no-cnv --no-conversation", "mode",
         "complete a prompt; the text goes to stdout and nothing else does", value="cli")
    flag("--server", "mode", "serve OpenAI's API and a web page", value="server")
    flag("-h --help", "help", "show the flags and leave", modes=MODES, default=False)
    flag("--help-all", "help", "show every flag and leave", modes=MODES, value="all")
    flag("--version", "version", "show the version and leave", modes=MODES, default=False)

    title, modes = "model", LOADS
    flag("-m --model", "model", "GGUF file or model name (default: a small model, fetched once)",
         FILE, modes=(*LOADS, "tokenize"))
    flag("-mu --model-url", "model", "address of a GGUF, fetched once", Kind("URL", str), modes=(*LOADS, "tokenize"))
    flag("-hf -hfr --hf-repo", "model", "repository of Hugging Face, as -m hf:org/repo",
         Kind("ORG/REPO", _repository), modes=(*LOADS, "tokenize"))
    flag("-hff --hf-file", "hf_file", "file in that repository", FILE, modes=(*LOADS, "tokenize"))
    flag("-c --ctx-size --ctx", "context", "tokens of context, such as 8k; 0: what the model was trained for",
         integer(low=0, thousands=True), {"chat": 8192, "cli": 8192, "server": 8192, "perplexity": 512})
    flag("-ngl --n-gpu-layers --gpu-layers", "ngl", "how many of the first layers go to the GPU",
         LAYERS, "auto")
    flag("--gpu", "gpu", "which kind of GPU to use; also one device, such as opencl:0", GPU, "auto")
    flag("-ts --tensor-split", "tensor_split", "shares of the layers for several GPUs, such as 3,1", SHARES)
    flag("-mg --main-gpu", "main_gpu", "index of the GPU to prefer", integer(low=0))
    flag("--recompile", "recompile", "build the GPU's kernels again and measure what multiplies prompts fastest",
         default=False, modes=(*LOADS, "bench"))
    flag("--tinyblas", "tinyblas", "multiply prompts with layerlift's own kernels, never the vendor's BLAS",
         default=False, modes=(*LOADS, "bench"))
    flag("--nocompile", "nocompile", "build no kernels: use those in the cache, or stop", default=False,
         modes=(*LOADS, "bench"))
    flag("-t --threads", "threads", "CPU threads (default: the physical cores)", integer(low=1))
    flag("-b --batch-size -ub --ubatch-size", "batch", "tokens in one forward pass", integer(low=1), 512)
    flag("-ctk --cache-type-k", "kv_dtype_k", "type of the cached keys (default: f16)", KV_DTYPE)
    flag("-ctv --cache-type-v", "kv_dtype_v", "type of the cached values, the same as the keys'", KV_DTYPE)
    flag("--chat-template", "chat_template", "built-in template (chatml, llama2, llama3) or a file with one",
         Kind("NAME|FILE", str), modes=("chat", "server", "convert"))

    title, modes = "prompt", TALK
    flag("-p --prompt -sys --system-prompt", "prompt", "--cli: the prompt; chat: the system prompt", TEXT)
    flag("-f --file", "file", "--cli: a file with the prompt; chat: a file to talk about", FILE)
    flag("-e --escape", "escape", "read \\n, \\t and the like in -p and -r (the default)", default=True)
    flag("--no-escape", "escape", "leave them as they are", value=False)
    flag("-n --n-predict --predict", "max_tokens", "tokens to write; -1: no limit, -2: to the end of the context",
         integer(low=-2), -1, modes=ANSWERS)
    flag("-r --reverse-prompt", "stop", "stop at this text (may be given several times)",
         TEXT, (), repeat=True)
    flag("--keep", "keep", "tokens of the prompt to keep when the context shifts; -1: all",
         integer(low=-1), 0, modes=("cli",))
    flag("--context-shift", "context_shift", "drop old text when the context is full (the default)",
         default=True, modes=("cli",))
    flag("--no-context-shift", "context_shift", "stop when the context is full", value=False, modes=("cli",))
    flag("--ignore-eos", "ignore_eos", "go on after the end of text", default=False)
    flag("--prompt-cache", "prompt_cache", "keep the evaluated prompt in this file", FILE, modes=("cli",))
    flag("--prompt-cache-all", "prompt_cache_all", "keep the answer in it too", default=False, modes=("cli",))
    flag("--prompt-cache-ro", "prompt_cache_ro", "only read it", default=False, modes=("cli",))

    title, modes = "sampling", ANSWERS
    flag("--temp --temperature", "temperature", "0 always takes the likeliest token",
         number(), {"chat": 0.0, "cli": 0.8, "server": 0.8})
    flag("--top-k", "top_k", "keep the k likeliest tokens; 0: all", integer(), 40)
    flag("--top-p", "top_p", "keep the likeliest tokens that make up this probability", number(), 0.95)
    flag("--min-p", "min_p", "drop tokens below this share of the best probability", number(), 0.05)
    flag("--typical --typical-p", "typical_p", "locally typical sampling; 1: off", number(), 1.0)
    flag("--repeat-penalty", "repeat_penalty", "divide the logits of recent tokens by this", number(), 1.0)
    flag("--repeat-last-n", "repeat_last_n", "so many tokens are recent; -1: all", integer(low=-1), 64)
    flag("--presence-penalty", "presence_penalty", "subtract this for a recent token", number(), 0.0)
    flag("--frequency-penalty", "frequency_penalty", "subtract this for each time it came", number(), 0.0)
    flag("--mirostat", "mirostat", "Mirostat version, 1 or 2; 0: off", integer(low=0), 0)
    flag("--mirostat-ent", "mirostat_tau", "Mirostat's target entropy", number(), 5.0)
    flag("--mirostat-lr", "mirostat_eta", "Mirostat's learning rate", number(), 0.1)
    flag("--min-keep", "min_keep", "tokens that every sampler leaves at least", integer(low=1), 1)
    flag("--samplers", "samplers", "samplers in their order, such as 'top_k;top_p;temperature'", NAMES)
    flag("-l --logit-bias", "logit_bias", "add to a token's logit, such as 15043+1 (may be given several times)",
         Kind("ID±BIAS", _logit_bias), (), repeat=True)
    flag("-s --seed", "seed", "seed of the random choice (default: random); -1: random", integer(low=-1))
    flag("--grammar", "grammar", "the answer follows this GBNF grammar", Kind("GBNF", str), modes=TALK)
    flag("--grammar-file", "grammar_file", "the same, from a file", FILE, modes=TALK)
    flag("-j --json-schema", "json_schema", "the answer is JSON that fits this schema", Kind("SCHEMA", str), modes=TALK)

    title, modes = "output", TALK
    flag("--no-display-prompt --silent-prompt", "display_prompt", "do not show the prompt",
         default=True, value=False)
    flag("-sp --special", "special", "show special tokens", default=False)
    flag("--color", "color", "colour also where stdout is not a terminal", default=False)
    flag("--nologo", "logo", "no logo at the start of a chat", default=True, value=False, modes=("chat",))
    flag("--ascii", "ascii", "nothing but ASCII in the logo", default=False, modes=("chat",))
    flag("--log-disable", "log_disable", "say nothing about the run, and keep no history of the chat",
         default=False, modes=ANSWERS)
    flag("--verbose", "verbose", "say more about devices and timings", default=False, modes=LOADS)

    title, modes = "server", ("server",)
    flag("--host", "host", "address to listen at", Kind("ADDRESS", str), "127.0.0.1")
    flag("--port", "port", "port to listen at (default: 8080, or the next one that is free)", PORT)
    flag("--api-key", "api_key", "a key that clients must send; several with commas", Kind("KEY,…", _keys), ())
    flag("--api-key-file", "api_key_file", "the same, one key a line", FILE)
    flag("--insecure-bind", "insecure_bind", "listen beyond this machine without a key", default=False)
    flag("--allowed-hosts", "allowed_hosts", "further names by which clients may call the server",
         Kind("NAME,…", _keys), ())
    flag("--cors-origins", "cors_origins", "origins whose web pages may use the API, such as https://a.example; *: all",
         Kind("ORIGIN,…", _keys), ())
    flag("--nobrowser", "browser", "open no browser", default=True, value=False)
    flag("--no-ui", "ui", "serve no web page", default=True, value=False)
    flag("--unsecure", "confined", "do not confine the server once its model is loaded (only servers on the CPU are)",
         default=True, value=False, modes=ANSWERS)
    flag("-np --parallel", "slots", "requests answered at once; others wait", integer(low=1), 4)
    flag("--queue", "queue", "requests that may wait; more are refused with 429", integer(low=0), 256)
    flag("--timeout", "timeout", "seconds a request may take; 0: no limit", integer(low=0), 600)
    flag("--metrics", "metrics", "serve /metrics for Prometheus", default=False)
    flag("--slots", "show_slots", "serve /slots (the default)", default=True)
    flag("--no-slots", "show_slots", "do not serve /slots", value=False)
    flag("-a --alias", "alias", "the model's name in the API", Kind("NAME", str))
    flag("--log-format", "log_format", "json: a line for each request on stderr", choice("text", "json"), "text")

    title, modes = "bench (lists are measured in every combination)", ("bench",)
    flag("-m --model", "models", "GGUF file or model name (may be given several times)", FILE, (), repeat=True)
    flag("-p --n-prompt", "n_prompt", "prompt lengths to measure", COUNTS, (512,))
    flag("-n --n-gen", "n_gen", "answer lengths to measure", COUNTS, (16,))
    flag("-pg", "pairs", "a prompt and an answer in turn (may be given several times)", PAIR, (), repeat=True)
    flag("-r --repetitions", "repetitions", "measure so many times", integer(low=1), 3)
    flag("-b --batch-size", "batch", "tokens in one forward pass", SIZES, (512,))
    flag("-ub --ubatch-size", "ubatch", "the same; the smaller counts", SIZES, (512,))
    flag("-t --threads", "threads", "CPU threads (default: the physical cores)", SIZES, (None,))
    flag("-ngl --n-gpu-layers --gpu-layers", "ngl", "how many of the first layers go to the GPU",
         listed(LAYERS), ("auto",))
    flag("--gpu", "gpu", "which kind of GPU to use; also one device, such as opencl:0", GPU, "auto")
    flag("-ctk --cache-type-k", "type_k", "type of the cached keys", listed(KV_DTYPE), ("f16",))
    flag("-ctv --cache-type-v", "type_v", "type of the cached values, the same as the keys'",
         listed(KV_DTYPE), ("f16",))
    flag("--no-warmup", "warm_up", "count the first run too", default=True, value=False)
    flag("-o --output", "output", "how to write the table", choice("md", "json", "jsonl", "csv"), "md")
    flag("--save", "save", "keep the rows, with commit and machine, as bench/results/NAME", Kind("NAME", str))
    flag("--log-disable", "log_disable", "say nothing about the run", default=False)
    flag("--verbose", "verbose", "say more about devices and timings", default=False)

    title, modes = "text", ("perplexity", "tokenize", "imatrix")
    flag("-p --prompt", "prompt", "the text", TEXT)
    flag("-f --file", "file", "a file with the text", FILE)
    flag("--chunks", "chunks", "read so many chunks at most", integer(low=1), modes=("perplexity", "imatrix"))
    flag("--json", "json", "print JSON", default=False, modes=("perplexity", "tokenize", "devices", "list", "verify"))
    flag("--no-bos", "bos", "leave out the start token", default=True, value=False, modes=("tokenize",))
    flag("--no-parse-special", "parse_special", "read the text of special tokens as plain text",
         default=True, value=False, modes=("tokenize",))

    title, modes = "devices", ("devices",)
    flag("--check", "check", "run every operation on every device and compare with float64", default=False)

    title, modes = "convert", ("convert",)
    flag("--outtype", "outtype", "type of the matrices; auto: as they are stored, exactly",
         choice("auto", "f32", "f16", "bf16", "q8_0"), "auto")
    flag("--vocab-only", "vocab_only", "write the tokenizer and the settings, no tensors", default=False)
    flag("--dry-run", "dry_run", "check everything and say what would be written", default=False,
         modes=("convert", "quantize"))

    title, modes = "imatrix", ("imatrix",)
    flag("-m --model", "model", "GGUF file or model name (default: a small model, fetched once)", FILE)
    flag("-c --ctx-size --ctx", "context", "tokens of a chunk, such as 512", integer(low=0, thousands=True), 512)
    flag("-t --threads", "threads", "CPU threads (default: the physical cores)", integer(low=1),
         modes=("quantize", "imatrix"))

    title, modes = "quantize", ("quantize",)
    flag("--imatrix", "imatrix", "an importance matrix, llama.cpp's or from layerlift imatrix", FILE)
    flag("--allow-requantize", "requantize", "take weights that are quantised already", default=False)
    flag("--pure", "pure", "one type for all weights, no mix", default=False)
    flag("--leave-output-tensor", "leave_output", "leave output.weight as it is", default=False)
    flag("--output-tensor-type", "output_type", "type of output.weight", Kind("TYPE", str))
    flag("--token-embedding-type", "embedding_type", "type of the token embeddings", Kind("TYPE", str))
    flag("--keep-split", "keep_split", "write as many files as were read", default=False)

    title, modes = "pack", ("pack", "repack")
    flag("-o --output", "target", "the file to write; a file of this name is replaced", FILE,
         modes=("pack", "unpack", "repack", "convert", "imatrix"))
    flag("--args", "args_file", "a file with the flags to pack; or the flags themselves behind --", FILE)
    flag("--bundle-deps", "bundle", "carry layerlift and its wheels for this platform",
         default={"pack": False, "repack": "keep"})
    flag("--no-bundle-deps", "bundle", "carry no wheels", value=False)
    flag("--pythons", "pythons", "Pythons to carry wheels for, such as 3.10,3.13 (default: all from 3.10 on)",
         listed(Kind("3.N", _python)), ())
    # fmt: on
    return tuple(flags)


FLAGS = _table()


def flags_of(mode: str) -> tuple[Flag, ...]:
    """The flags that a mode knows."""
    return tuple(flag for flag in FLAGS if mode in flag.modes)
