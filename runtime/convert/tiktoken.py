"""Reads tokenizer.model as Llama 3 publishes it: a line a token, its bytes in base64 and its rank.

Two neighbours are joined if their bytes together are a token, the lowest rank first; as merges, that is every way to
cut a token in two, in the order of the ranks. Format: github.com/openai/tiktoken, `load.py`. Special tokens: Meta's
llama3 and llama-models repositories, `tokenizer.py`.
"""

from __future__ import annotations

import base64
from pathlib import Path

from ..errors import ConvertError
from ..tokenizer import CHAR_OF_BYTE
from ..vocab import CONTROL, NORMAL
from .vocabulary import Vocabulary

MAX_NBYTES = 64 << 20
MAX_TOKEN = 512  # bytes; the longest of Llama 3 has 128
N_SPECIAL = 256


def read(path: Path, *, has_tools: bool) -> Vocabulary:
    """The vocabulary with Llama 3's special tokens behind it, as 3.1 and later name them if `has_tools`."""
    ranks = _ranks(path)
    texts = ["".join(CHAR_OF_BYTE[byte] for byte in token) for token in ranks]
    special = special_tokens(has_tools=has_tools)
    ids = {text: len(texts) + i for i, text in enumerate(special)}
    return Vocabulary(
        "gpt2",
        "llama-bpe",
        texts + special,
        [NORMAL] * len(texts) + [CONTROL] * len(special),
        merges=_merges(ranks),
        # A talk ends with <|eot_id|>, which readers find by its text.
        special={"bos": ids["<|begin_of_text|>"], "eos": ids["<|end_of_text|>"]},
        flags={"add_bos_token": True},
        notes=("Meta's folder has no chat template; talk with --chat-template llama3 if it is an Instruct model",),
    )


def special_tokens(*, has_tools: bool) -> list[str]:
    """The 256 texts behind the vocabulary; those without a meaning are numbered in their order."""
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named[9] = "<|eot_id|>"
    if has_tools:
        named |= {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(N_SPECIAL))
    return [named.get(i) or next(reserved) for i in range(N_SPECIAL)]


def _ranks(path: Path) -> dict[bytes, int]:
    """Tokens by rank, which counts from 0 without a gap. Raises ConvertError naming the line."""
    ranks: dict[bytes, int] = {}
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise ConvertError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_NBYTES}")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConvertError(f"{path}: {error.strerror or error}") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if int(rank) != len(ranks) or not 0 < len(token) <= MAX_TOKEN or token in ranks:
                raise ValueError
        except ValueError:  # binascii.Error is one
            raise ConvertError(f"{path}: line {number} is not the token of rank {len(ranks)} in base64") from None
        ranks[token] = len(ranks)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ConvertError(f"{path}: no token for byte {missing[0]}; is it a tokenizer.model of Llama 3?")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[str]:
    merges = []
    for token in ranks:
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges += [" ".join("".join(CHAR_OF_BYTE[byte] for byte in part) for part in cut[2:]) for cut in known]
    return merges
