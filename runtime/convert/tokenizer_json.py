"""Reads tokenizer.json, the file of the `tokenizers` package, for vocabularies made of byte pairs.

What the file does is found by trying it: its way of cutting words is compared with every known one on a text that
tells them all apart, and what it puts around a text by encoding one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConvertError
from ..pretokenizers import PRETOKENIZERS
from ..tokenizer import cutter
from ..vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from . import json_file
from .vocabulary import Vocabulary, in_order

if TYPE_CHECKING:
    import tokenizers

# Names that GGUF files of known models carry, before those that cut in the same way.
PREFERRED = ("llama-bpe", "qwen2", "gpt-2", "smollm", "dbrx", "tekken", "gpt-4o", "deepseek-v3", "glm4")
# Contractions, digits, scripts, white space and punctuation in the combinations in which the known ways differ.
SAMPLE = (
    "I'm you'RE WE'LL it'S naïve O'Neil's 'Tis don't they'reading 'dx\n\n"
    "  Hello,World!!  camelCaseWORD HTTPServer iPhone15Pro\r\n"
    "1 12 123  1234   12345 1234567 12345678901 3.14159 1,000,000 ¾ ² Ⅷ १२३ ٣٤٥\t\t x\t y    z \n \n\n\t\n  end   "
    "中文字符123汉字、日本語カタカナ ひらがな 한국어 텍스트 ไทยภาษา ကမြန်မာ ខ្មែរ ㄅㄆㄇ「引用」，。！？…—‘’“” ﹁﹂ "
    "Привет МИР αβγ Ωmega Straße ﬁ éclair ñandú ǅungla ʰ हिन्दी क्षि e\u0301 🚀🔥👩‍👩‍👧 ✅ ™ § №\u200b\u00a0\u3000x"
    " def f(x): return x**2 # $100 <=> ~^`| a/b//c \\n [k]={v}; a_b __init__ @x #y &z %w +1 -2 => ... !!! ?? ((()))"
    " <sentinel:12> IMGIMGABCZ /path/to\n//x !abc $def _ghi .jkl\r\r\n (s|t) ।॥ ،؟ a\u0300b n\u0303o x!\n\n y/\n/\n"
    "                    wide                                                                        wider\n"
)


def read(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.json. Raises ConvertError."""
    found, label = json_file.load(path), str(path)
    model, added = found.get("model"), found.get("added_tokens") or []
    model = model if isinstance(model, dict) else {}
    if (kind := model.get("type", "BPE")) != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ConvertError(f"{label}: a vocabulary of byte pairs (BPE) expected, found {str(kind)[:40]}")
    if not all(isinstance(a, dict) and isinstance(a.get("content"), str) for a in added):
        raise ConvertError(f"{label}: 'added_tokens' is damaged")
    ids: dict[str, int] = {**model["vocab"], **{entry["content"]: entry.get("id") for entry in added}}
    texts = in_order(ids, label)
    merges = _merges(model.get("merges"), label)
    hf = _load(path)
    special = {entry["content"]: kind_of(entry) for entry in added}
    flags = _flags(hf)
    if not _is_byte_level(found):
        kinds = [_sentencepiece_kind(text, special, model.get("unk_token"), ids) for text in texts]
        flags["add_space_prefix"] = _prepends_space(found)
        return Vocabulary("llama", "default", texts, kinds, scores=_scores(texts, merges), flags=flags)
    kinds = [special.get(text, NORMAL if text in ids else UNUSED) for text in texts]
    pre, notes = _recognise(hf, label)
    return Vocabulary("gpt2", pre, texts, kinds, merges=[" ".join(pair) for pair in merges], flags=flags, notes=notes)


def kind_of(entry: Mapping[str, Any]) -> int:
    """The kind of an added token: control tokens are never taken from a user's text, the others always are."""
    looks = re.fullmatch(r"<\|.*\|>|<｜.*｜>|<pad>|<mask>", entry["content"])
    return CONTROL if entry.get("special") or looks else USER_DEFINED


def _load(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ConvertError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _merges(lines: Any, label: str) -> list[tuple[str, str]]:
    """Pairs, from either form that the file knows: "a b" and ["a", "b"]."""
    pairs = [line.split(" ") if isinstance(line, str) else line for line in lines or []]
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p for p in pair)):
            raise ConvertError(f"{label}: merge {index} is not two tokens")
        if " " in pair[0] + pair[1]:
            raise ConvertError(f"{label}: merge {index} {pair!r} has a space in it, which GGUF cannot say")
    return [(a, b) for a, b in pairs]


def _flags(hf: tokenizers.Tokenizer) -> dict[str, bool]:
    """Whether the post-processor puts special tokens around a text."""
    bare, whole = hf.encode("x", add_special_tokens=False).ids, hf.encode("x").ids
    return {"add_bos_token": whole[:1] != bare[:1], "add_eos_token": whole[-1:] != bare[-1:]}


# -- byte-level vocabularies --


def _is_byte_level(found: Mapping[str, Any]) -> bool:
    def steps(part: Any) -> list[Any]:
        inner = (part or {}).get("pretokenizers") or (part or {}).get("decoders") or []
        return [(part or {}).get("type"), *(kind for each in inner for kind in steps(each))]

    return "ByteLevel" in (*steps(found.get("pre_tokenizer")), *steps(found.get("decoder")))


def _recognise(hf: tokenizers.Tokenizer, label: str) -> tuple[str, tuple[str, ...]]:
    """The name of the way in which words are cut, and notes. Raises ConvertError where none of the known ways fits."""
    notes = ()
    if hf.normalizer is not None:
        if hf.normalizer.normalize_str(_composed(SAMPLE)) != _composed(SAMPLE):
            raise ConvertError(f"{label}: its normalizer changes texts in a way that GGUF has no key for")
        if hf.normalizer.normalize_str("e\u0301") != "e\u0301":
            notes = ("the tokenizer composes Unicode (NFC), which a GGUF reader does not; most texts are composed",)
    if hf.pre_tokenizer is None:
        raise ConvertError(f"{label}: it does not say how words are cut")
    wanted = _words(hf.pre_tokenizer)
    fitting = [name for name in (*PREFERRED, *PRETOKENIZERS) if _fits(name, wanted)]
    if not fitting:
        raise ConvertError(f"{label}: it cuts words in none of the {len(set(PRETOKENIZERS))} ways that are known")
    whole = bool(getattr(hf.model, "ignore_merges", False))
    same = [name for name in fitting if PRETOKENIZERS[name].ignore_merges == whole]
    return (same or fitting)[0], notes


def _composed(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


def _words(pre_tokenizer: Any) -> list[str]:
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(SAMPLE)]


def _fits(name: str, wanted: list[str]) -> bool:
    pre = PRETOKENIZERS[name]
    return pre.byte_level and _words(cutter(pre)) == wanted


# -- SentencePiece vocabularies --


def _sentencepiece_kind(text: str, special: Mapping[str, int], unknown: Any, ids: Mapping[str, int]) -> int:
    if text == unknown:
        return UNKNOWN
    if text in special:
        return special[text]
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return BYTE
    return NORMAL if text in ids else UNUSED


def _prepends_space(found: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front: by the normalizer of old files, by Metaspace in newer ones."""

    def steps(part: Any) -> list[Any]:
        inner = (part or {}).get("normalizers") or (part or {}).get("pretokenizers") or []
        return [part or {}, *(step for each in inner for step in steps(each))]

    if any(step.get("type") == "Prepend" for step in steps(found.get("normalizer"))):
        return True
    metaspace = [step for step in steps(found.get("pre_tokenizer")) if step.get("type") == "Metaspace"]
    return any(step.get("prepend_scheme", "always") != "never" for step in metaspace)


def _scores(texts: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Scores that join pairs in the order of the merges: the token of the first merge has the highest."""
    rank: dict[str, int] = {}
    for a, b in merges:
        rank.setdefault(a + b, len(rank))
    return [-float(rank[text]) if text in rank else -1e6 for text in texts]
