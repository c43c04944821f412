"""Facts about where `layerlift convert` finds a checkpoint: a repository of the hub, the shards of an index."""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
import types

import pytest
from checkpoints import write_hf
from layerlift.runtime import convert
from layerlift.runtime.cli import main
from layerlift.runtime.convert.source import folder_of
from layerlift.runtime.errors import ConvertError, DownloadError, UserError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, org/repo; its `fetched` folder holds what was asked for, as the library's cache does."""
    repository, fetched = write_hf(tmp_path / "published", shards=2), tmp_path / "fetched"
    (repository / "pytorch_model.bin").write_bytes(b"the same weights once more")

    def snapshot_download(name, *, allow_patterns):
        if name != "org/repo":
            raise RuntimeError(f"404 Client Error for {name}\n\nRepository Not Found")
        fetched.mkdir(exist_ok=True)
        for file in repository.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, fetched)
        return str(fetched)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return types.SimpleNamespace(repository=repository, fetched=fetched)


def test_a_repository_gives_the_file_that_its_folder_gives(hub, tmp_path):
    there, here = tmp_path / "there.gguf", tmp_path / "here.gguf"
    assert main(["convert", "hf:org/repo", "-o", str(there)]) == 0
    assert main(["convert", str(hub.fetched), "-o", str(here)]) == 0
    assert there.read_bytes() == here.read_bytes()


def test_only_what_is_read_is_fetched(hub):
    folder_of("hf:org/repo")
    assert {file.name for file in hub.fetched.iterdir()} == {
        file.name for file in hub.repository.iterdir() if file.suffix != ".bin"
    }


def test_a_repository_that_is_not_there_is_one_line(hub, capsys, tmp_path):
    assert main(["convert", "hf:org/other", "-o", str(tmp_path / "m.gguf")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("hf:org/other: 404 Client Error for org/other")
    assert len(said) == 2  # and a hint
    assert not (tmp_path / "m.gguf").exists()


def test_without_the_hubs_library_its_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="not installed") as caught:
        folder_of("hf:org/repo")
    assert caught.value.hint == "pip install 'layerlift[hub]'"


@pytest.mark.parametrize("spec", ["hf:", "hf:org", "hf:org/", "hf:../repo", "hf:org/repo/more", "hf:org/repo:x.gguf"])
def test_a_bad_repository_name_is_refused(spec):
    with pytest.raises(UserError, match="is not hf:org/repo"):
        folder_of(spec)


def changed_index(folder, change):
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    change(whole)
    index.write_text(json.dumps(whole))
    return folder


def swap(whole):
    places = whole["weight_map"]
    places["lm_head.weight"] = next(file for file in places.values() if file != places["lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, r"index\.json: model-0000\d-of-00002\.safetensors has no tensor 'lm_head.weight'"),
        (lambda whole: whole["weight_map"].pop("lm_head.weight"), "'output.weight' missing"),
        (lambda whole: whole["weight_map"].update({"lm_head.weight": 3}), "names the file '3', which is not beside it"),
        (lambda whole: whole.pop("weight_map"), "'weight_map' is missing"),
        (lambda whole: whole.update(weight_map=[]), "'weight_map' is missing"),
    ],
    ids=["another shard", "forgotten", "no name", "no map", "a list"],
)
def test_an_index_that_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(ConvertError, match=message):
        convert.plan(changed_index(write_hf(tmp_path / "hf", shards=2), change))


def test_missing_shards_are_counted(tmp_path, capsys):
    folder = write_hf(tmp_path / "hf", shards=3)
    for number in (1, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").unlink()
    assert main(["convert", str(folder), "-o", str(tmp_path / "m.gguf")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("model-00001-of-00003.safetensors is missing and 1 more")
    assert len(said) == 2


def test_one_shard_alone_without_its_index_lacks_tensors(tmp_path):
    folder = write_hf(tmp_path / "hf", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConvertError, match=r"more missing") as caught:
        convert.plan(folder)
    assert caught.value.hint == "is every file of the checkpoint there?"


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_one_line_with_a_hint(tmp_path, capsys, lost):
    folder = write_hf(tmp_path / "hf")
    (folder / lost).unlink()
    assert main(["convert", str(folder), "-o", str(tmp_path / "m.gguf")]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 2
    assert lost in "".join(said)
    assert not (tmp_path / "m.gguf").exists()
