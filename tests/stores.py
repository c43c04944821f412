"""Model files as layerlift's cache and other programs' stores have them, for tests of finding and fetching."""

from __future__ import annotations

import hashlib
import json

from layerlift.runtime import library

BODY = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


def put(path, data=b"GGUF"):
    """Writes a file and the folders it needs; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def hub_file(hub, repository, file, data=b"GGUF"):
    """A file of a repository in Hugging Face's cache."""
    return put(hub / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40) / file, data)


def ollama_model(store, name, tag, *, digest=None, registry="registry.ollama.ai", space="library", manifest=None):
    """A model in Ollama's store, its manifest sound unless given; the path of its blob."""
    digest = digest or "sha256:" + hashlib.sha256(f"{name}{tag}".encode()).hexdigest()
    layers = [{"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64}]
    layers.append({"mediaType": library.OLLAMA_MODEL, "digest": digest})
    text = json.dumps({"layers": layers}) if manifest is None else manifest
    put(store / "manifests" / registry / space / name / tag, text.encode())
    blob = store / "blobs" / digest.replace(":", "-")
    return put(blob) if library.DIGEST.fullmatch(digest) else blob


def leftovers(folder):
    """Names of the files in a folder but for locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))
