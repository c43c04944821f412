"""Qwen2 and Qwen2.5: llama with biases on q, k and v, and rope over the halves of a head ("neox").

Yang et al. 2024 (arXiv:2407.10671).
"""

from __future__ import annotations

from ..gguf import GGUF
from . import config
from .config import Config
from .llama import Block

__all__ = ["Block", "read_config"]


def read_config(gguf: GGUF) -> Config:
    return config.read_config(gguf, rope_style="neox")
