"""Flags and commands that users of llama.cpp, llamafile and Ollama bring along, and what to say of each.

Some change nothing here and are taken with a note; the others are refused with what to type instead.
"""

from __future__ import annotations

from dataclasses import dataclass

SWITCH_WORDS = frozenset({"on", "off", "auto", "0", "1", "true", "false", "enabled", "disabled"})


@dataclass(frozen=True)
class Unneeded:
    """A flag that is taken and changes nothing. `value`: it takes "none", "one", or a word of SWITCH_WORDS, "maybe"."""

    value: str
    reason: str


def _table(*rows: tuple[str, str, str]) -> dict[str, Unneeded]:
    return {name: Unneeded(value, reason) for names, value, reason in rows for name in names.split()}


UNNEEDED = _table(
    ("--no-mmap --mmap -mmp", "maybe", "the file is mapped, and its pages are given back once they are loaded"),
    ("--mlock", "none", "the system decides which pages stay"),
    ("-fa --flash-attn", "maybe", "attention never writes its whole matrix out"),
    ("--jinja", "none", "the model's own chat template is always run"),
    ("--numa", "one", "threads and memory are placed by the system"),
    ("-nkvo --no-kv-offload -kvo --kv-offload", "none", "each layer's cache lies where the layer is"),
    ("-cb --cont-batching -nocb --no-cont-batching", "none", "requests share one batch"),
    ("--no-warmup --warmup", "none", "nothing is warmed up"),
    ("-tb --threads-batch", "one", "-t counts for prompts and answers alike"),
    ("-co", "none", "colour is on where stdout is a terminal; --color forces it"),
    ("--simple-io", "none", "where the terminal cannot edit lines, they are read plainly"),
    ("-mli --multiline-input", "none", '""" opens and ends a message of several lines'),
    ("--perf --no-perf --show-timings --no-show-timings", "none", "/stats and --verbose show timings"),
    ("-dt --defrag-thold", "one", "the cache hands out single rows and never fragments"),
    ("--prio --prio-batch --poll --poll-batch -C --cpu-mask -Cr --cpu-range -Cb --cpu-strict", "one",
     "threads are placed by the system"),
    ("--check-tensors", "none", "`layerlift verify` checks a file bit by bit"),
    ("--repack -nr --no-repack", "none", "weights are repacked where that is faster"),
    ("--fast --precise", "none", "the kernels are held to the same error everywhere"),
    ("--no-ppl --ppl-stride --log-colors --log-timestamps --log-prefix", "none", "the log is plain"),
    ("-fit --fit", "maybe", "-ngl auto, the default, takes as many layers as fit"),
    ("--offline", "none", "nothing is fetched that is here already"),
)  # fmt: skip

_FROM_FILE = "rotary settings are read from the model file, which `layerlift convert` writes them to"
_FRAME = "the chat template frames messages; --chat-template FILE puts another in its place"
_NO_SAMPLER = "`layerlift --help-all` lists the samplers there are"
INSTEAD = {
    **dict.fromkeys(("-i", "--interactive", "-if", "--interactive-first", "-ins", "--instruct"),
                    "leave --cli away to talk with the model"),
    **dict.fromkeys(("--in-prefix", "--in-suffix", "--in-prefix-bos", "--chat-template-kwargs"), _FRAME),
    **dict.fromkeys(("-sysf", "--system-prompt-file"), 'the system prompt is -p TEXT: -p "$(cat FILE)"'),
    **dict.fromkeys(("--verbose-prompt",), "`layerlift tokenize -p TEXT` shows a prompt's tokens"),
    **dict.fromkeys(("-v", "-lv", "--log-verbosity", "--log-verbose"), "--verbose says more"),
    **dict.fromkeys(("--log-file", "--log-enable"), "messages go to stderr: 2> FILE"),
    "--override-kv": "metadata stays as it is in the file; gguf-new-metadata of the gguf package writes a changed copy",
    **dict.fromkeys(("--rope-freq-base", "--rope-freq-scale", "--rope-scale", "--rope-scaling", "--yarn-orig-ctx",
                     "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-fast", "--yarn-beta-slow"), _FROM_FILE),
    **dict.fromkeys(("-dev", "--device"), "--gpu opencl:0 takes one device; `layerlift devices` lists them"),
    "--list-devices": "`layerlift devices` lists them",
    **dict.fromkeys(("-sm", "--split-mode"), "layers are split whole; -ts sets the shares"),
    **dict.fromkeys(("-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"),
                    "-ngl N puts the first N layers on the GPU, whole"),
    **dict.fromkeys(("--lora", "--lora-scaled", "--control-vector"), "adapters are not supported; merge them first"),
    **dict.fromkeys(("--mmproj", "-mm", "--image", "--audio"), "images and sounds are not supported"),
    **dict.fromkeys(("-md", "--model-draft", "--draft", "--draft-max"), "there is no speculative decoding"),
    **dict.fromkeys(("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"), _FROM_FILE),
    **dict.fromkeys(("--tfs", "--xtc-probability", "--xtc-threshold", "--dynatemp-range", "--dynatemp-exp",
                     "--dry-multiplier", "--dry-base", "--top-nsigma", "--top-n-sigma"), _NO_SAMPLER),
    **dict.fromkeys(("-hft", "--hf-token"), "huggingface_hub reads a token from the variable HF_TOKEN"),
    **dict.fromkeys(("--embedding", "--embeddings"), "from Python: layerlift.LLM(…).embed(texts)"),
    **dict.fromkeys(("-bf", "--binary-file", "--in-file"), "-f FILE reads a prompt from a file"),
    "--slot-save-path": "slots share one cache of prefixes; nothing has to be saved",
    "--rpc": "layers run on this machine's devices only",
    "--random-prompt": "-p TEXT is the prompt",
    "--v2": "there is one server: --server",
    "--localscore": "`layerlift bench` measures tokens per second",
    "--print-token-count": "`layerlift tokenize` prints the tokens",
}  # fmt: skip

# Ollama's commands.
COMMANDS = {
    "run": "layerlift -m ollama:NAME talks with a model that Ollama has fetched",
    "serve": "layerlift --server -m MODEL",
    "chat": "layerlift -m MODEL",
    "show": "layerlift verify FILE says what a file holds",
    "ps": "layerlift devices shows what models run on",
    "rm": "delete the file that `layerlift list` shows",
    "create": "layerlift pack MODEL -o FILE -- FLAGS keeps flags with a model",
    "download": "layerlift pull NAME",
    "ls": "layerlift list",
    "help": "layerlift --help",
}


def take(name: str, attached: str | None, rest: list[str]) -> str | None:
    """The note on a flag that changes nothing, its value taken off `rest`; None for any other flag."""
    found = UNNEEDED.get(name)
    if found is None:
        return None
    if attached is None and rest and (found.value == "one" or (found.value == "maybe" and rest[0] in SWITCH_WORDS)):
        rest.pop(0)
    return f"{name} changes nothing here: {found.reason}"
