"""Two small vocabularies, byte-level BPE and SentencePiece, as a GGUF's keys."""

from __future__ import annotations

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CHARS = [chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ċ Ġ"]
BPE_TEXTS = [*CHARS, *(m.replace(" ", "") for m in MERGES), "<s>", "<|im_end|>", "<|im_end|>x", "<tool>", "rest"]
BPE_SPECIAL = {"<s>": CONTROL, "<|im_end|>": CONTROL, "<|im_end|>x": CONTROL, "<tool>": USER_DEFINED, "rest": UNUSED}
SPM_TEXTS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "<|end|>", "▁", *"ehlowrd", "ll", "lo"]
SPM_TEXTS += ["he", "hell", "hello", "▁w", "or", "▁wor", "▁hello", "▁▁", "▁▁▁▁"]
SPM_SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|end|>": CONTROL}


def bpe_keys(**changes):
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": BPE_TEXTS,
        "tokenizer.ggml.token_type": [BPE_SPECIAL.get(t, NORMAL) for t in BPE_TEXTS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": BPE_TEXTS.index("<s>"),
        "tokenizer.ggml.eos_token_id": BPE_TEXTS.index("<|im_end|>"),
    }
    return with_changes(keys, changes)


def spm_keys(**changes):
    kinds = [SPM_SPECIAL.get(t, BYTE if t.startswith("<0x") else NORMAL) for t in SPM_TEXTS]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TEXTS,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0 if k != NORMAL else -float(i) for i, k in enumerate(kinds)],
    }
    return with_changes(keys, changes)


def with_changes(keys, changes):
    """`name=value` sets a key, short for tokenizer.ggml.name; None takes it out."""
    full = {name if "." in name else f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {name: value for name, value in (keys | full).items() if value is not None}
