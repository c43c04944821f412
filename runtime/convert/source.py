"""Where a checkpoint and a chat template come from, as users name them."""

from __future__ import annotations

from pathlib import Path

from ..chatformats import BUILTIN
from ..errors import DownloadError, UserError
from ..library import NAME

# What a conversion reads, and no more.
WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")


def folder_of(spec: str) -> Path:
    """The folder that `spec` means; hf:org/repo is fetched with huggingface_hub. Raises UserError, DownloadError."""
    if not spec.startswith("hf:"):
        return Path(spec).expanduser()
    repository = spec[3:]
    if not (repository.count("/") == 1 and all(NAME.fullmatch(word) for word in repository.split("/"))):
        raise UserError(f"{spec!r} is not hf:org/repo")
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadError(
            f"{spec} is fetched with huggingface_hub, which is not installed", hint="pip install 'layerlift[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(WANTED)))
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(f"{spec}: {reason[:300]}", hint="check the name and the network") from error


def template_text(wanted: str) -> str:
    """The chat template of that name, or in that file. Raises UserError."""
    if wanted in BUILTIN:
        return BUILTIN[wanted]
    try:
        return Path(wanted).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError):
        hint = f"built-in ones are {', '.join(BUILTIN)}"
        raise UserError(f"--chat-template {wanted!r} is neither a built-in template nor a file", hint=hint) from None
