"""Finds the model files that are on this machine already. Knows nothing of networks.

Looks in our own cache and in the folders of Hugging Face, llama.cpp, Ollama and LM Studio. What those folders say is
checked before it is used as a path, and a damaged file is shown with what is wrong instead of raising.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..backends.cache_folder import cache_dir
from .errors import LayerliftError

NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
SUFFIX = re.compile(r"\.(gguf|llamafile|llm)$", re.IGNORECASE)  # llm: what `layerlift pack` writes
MAX_MANIFEST = 1 << 20  # bytes
MAX_FOLDERS = 6  # folders within folders
OLLAMA_MODEL = "application/vnd.ollama.image.model"


@dataclass(frozen=True)
class Place:
    """A model file by the name that `-m` takes; not opened yet."""

    name: str
    path: Path
    where: str  # "layerlift", "huggingface", "llama.cpp", "ollama", "lmstudio"


@dataclass(frozen=True)
class FoundModel:
    """A model file with what its header says. `problem` is why the header could not be read, else ""."""

    name: str
    path: Path
    nbytes: int  # of all its parts
    format: str  # "Q4_K_M"
    architecture: str  # "llama"
    where: str
    problem: str = ""


def models_dir() -> Path:
    """Where fetched models are kept."""
    return cache_dir() / "models"


def hub_dirs() -> list[Path]:
    """Folders in Hugging Face's layout, in the order that llama.cpp looks for them."""
    env = os.environ
    home = Path.home()
    if hub := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        main = Path(hub)
    elif home_hf := env.get("HF_HOME"):
        main = Path(home_hf) / "hub"
    else:
        main = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface" / "hub"
    first = [Path(env["LLAMA_CACHE"])] if env.get("LLAMA_CACHE") else []
    return [folder.expanduser() for folder in (*first, main)]


def llama_cpp_dirs() -> list[Path]:
    """Folders where llama.cpp keeps plain files."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    chosen = os.environ.get("LLAMA_CACHE")
    return [Path(chosen).expanduser()] if chosen else [base / "llama.cpp"]


def ollama_dirs() -> list[Path]:
    """Ollama's stores: OLLAMA_MODELS, or the user's and the system service's."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def lmstudio_dirs() -> list[Path]:
    """LM Studio's folders: the one its pointer file names, today's and the older one."""
    home = Path.home()
    found = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    try:
        pointer = (home / ".lmstudio-home-pointer").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        pointer = ""
    if pointer and "\0" not in pointer:
        found.insert(0, Path(pointer) / "models")
    return found


# ---------------------------------------------------------------------------------------------------------------
# Finding


def places() -> list[Place]:
    """Every model file found, once each, by name; nothing is opened but Ollama's manifests."""
    found: dict[Path, Place] = {}
    for place in (*_own(), *_hub(), *_flat(llama_cpp_dirs(), "llama.cpp"), *_ollama(), *_lmstudio()):
        found.setdefault(Path(os.path.realpath(place.path)), place)
    return list(found.values())


def list_models() -> list[FoundModel]:
    """Every model file found, with what its header says. Never raises for a damaged file."""
    return [_opened(place) for place in places()]


def find(name: str) -> list[Place]:
    """The places that a name means: those of exactly this name, else those whose name begins with it."""
    wanted = name.lower()

    def names(place: Place) -> set[str]:
        full = place.name.lower()
        bare = full.partition(":")[2] if place.where in ("ollama", "huggingface", "lmstudio") else full
        file = place.path.name.lower() if place.where != "ollama" else bare
        return {full, bare, file, SUFFIX.sub("", file), SUFFIX.sub("", bare)}

    known = [(place, names(place)) for place in places()]
    exact = [place for place, own in known if wanted in own]
    return exact or [place for place, own in known if any(n.startswith(wanted) for n in own)]


def hub_files(org: str, repo: str) -> list[tuple[str, Path]]:
    """The GGUF files of a Hugging Face repository that are in its cache: (name in the repository, path)."""
    found: dict[str, Path] = {}
    for hub in hub_dirs():
        base = hub / f"models--{org}--{repo}" / "snapshots"
        for snapshot in _folders(base):
            for path in _ggufs(snapshot):
                found.setdefault(path.relative_to(snapshot).as_posix(), path)
    return sorted(found.items())


def ollama_path(name: str) -> Path | None:
    """The file of an Ollama model such as "llama3.2", "llama3.2:1b" or "hf.co/org/repo:Q4_K_M"."""
    bare, _, tag = name.partition(":")
    wanted = f"ollama:{bare}" + (f":{tag}" if tag and tag != "latest" else "")
    for place in _ollama():
        if place.name == wanted:
            return place.path
    return None


def _own() -> Iterator[Place]:
    for path in _ggufs(models_dir()):
        yield Place(SUFFIX.sub("", path.name), path, "layerlift")


def _hub() -> Iterator[Place]:
    for hub in hub_dirs():
        for folder in _folders(hub):
            kind, _, rest = folder.name.partition("--")
            org, _, repo = rest.partition("--")
            if kind == "models" and NAME.fullmatch(org) and NAME.fullmatch(repo):
                for file, path in hub_files(org, repo):
                    yield Place(f"hf:{org}/{repo}:{file}", path, "huggingface")


def _flat(folders: list[Path], where: str) -> Iterator[Place]:
    for folder in folders:
        try:
            paths = sorted(p for p in folder.iterdir() if _is_model(p.name) and p.is_file())
        except OSError:
            continue
        for path in paths:
            yield Place(SUFFIX.sub("", path.name), path, where)


def _lmstudio() -> Iterator[Place]:
    for folder in lmstudio_dirs():
        for path in _ggufs(folder):
            yield Place("lmstudio:" + SUFFIX.sub("", path.relative_to(folder).as_posix()), path, "lmstudio")


def _ollama() -> Iterator[Place]:
    for store in ollama_dirs():
        base = store / "manifests"
        for registry in _folders(base):
            for space in _folders(registry):
                for model in _folders(space):
                    for tag in sorted(_entries(model)):
                        if NAME.fullmatch(tag.name) and (blob := _blob(store, tag)):
                            words = [] if registry.name == "registry.ollama.ai" else [registry.name]
                            words += [] if space.name == "library" and not words else [space.name]
                            name = "/".join([*words, model.name])
                            name += "" if tag.name == "latest" else f":{tag.name}"
                            yield Place(f"ollama:{name}", blob, "ollama")


def _blob(store: Path, manifest: Path) -> Path | None:
    """The model file that a manifest names by its digest; None for a manifest that is not sound."""
    try:
        if manifest.stat().st_size > MAX_MANIFEST:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == OLLAMA_MODEL]
        match = DIGEST.fullmatch(digests[0])
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if not match:
        return None
    path = store / "blobs" / f"sha256-{match[1]}"
    return path if path.is_file() else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    """Folders in `folder` with plain names; links are not followed."""
    return sorted(p for p in _entries(folder) if NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def _ggufs(folder: Path, depth: int = MAX_FOLDERS) -> Iterator[Path]:
    for entry in sorted(_entries(folder)):
        try:
            if _is_model(entry.name) and entry.is_file():
                yield entry
            elif depth and entry.is_dir() and not entry.is_symlink():
                yield from _ggufs(entry, depth - 1)
        except OSError:
            continue


def _is_model(name: str) -> bool:
    """Whether a file name is that of a model, or of the first part of one."""
    lower = name.lower()
    if not SUFFIX.search(name) or lower.startswith("mmproj"):
        return False
    part = PART.search(name)
    return part is None or int(part[1]) == 1


# ---------------------------------------------------------------------------------------------------------------
# Reading


def parts(path: Path) -> list[Path]:
    """All files of a model whose first part this is; the file itself if it is whole."""
    match = PART.search(path.name)
    if not match:
        return [path]
    stem, count = path.name[: match.start()], match[2]
    return [path.with_name(f"{stem}-{i:05d}-of-{count}.gguf") for i in range(1, int(count) + 1)]


def _opened(place: Place) -> FoundModel:
    nbytes = 0
    for part in parts(place.path):
        try:
            nbytes += part.stat().st_size
        except OSError:
            break
    try:
        fmt, architecture = _header(place.path)
        return FoundModel(place.name, place.path, nbytes, fmt, architecture, place.where)
    except (LayerliftError, OSError, ValueError) as error:
        return FoundModel(place.name, place.path, nbytes, "", "", place.where, str(error).splitlines()[0])


def _header(path: Path) -> tuple[str, str]:
    """Format and architecture by the file's own word."""
    from .gguf import open_gguf

    with open_gguf(path) as g:
        by_format: dict[str, int] = {}
        for tensor in g.tensors.values():
            by_format[tensor.fmt] = by_format.get(tensor.fmt, 0) + tensor.nbytes
        fmt = max(by_format, key=by_format.__getitem__) if by_format else ""
        architecture = g.metadata.text("general.architecture", "")
        kind = g.metadata.integer("general.file_type", -1, low=-1, high=1 << 16)
    if fmt and kind >= 0:
        # The gguf package; the type checker takes it for the gguf.py beside this file.
        from gguf import LlamaFileType  # pyright: ignore[reportAttributeAccessIssue]

        try:
            fmt = LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:  # a newer kind: the format of most bytes stands
            pass
    return fmt, architecture
