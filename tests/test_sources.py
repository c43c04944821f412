"""What a user calls a model is a file: a path, a folder, a repository of Hugging Face."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path

import pytest
from layerlift.runtime import sources
from layerlift.runtime.errors import DownloadError, UserError
from stores import hub_file, put

pytestmark = pytest.mark.usefixtures("home")


def test_a_path_is_itself(tmp_path):
    path = put(tmp_path / "some model.gguf")
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("m.gguf", b"GGUF")
    assert sources.resolve(path) == path
    assert sources.resolve(str(path)) == path
    assert sources.resolve(f"{archive}@m.gguf") == Path(f"{archive}@m.gguf")


def test_a_folder_with_one_model_is_that_model(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds no \.gguf"):
        sources.resolve(folder)
    first = put(folder / "m-00001-of-00002.gguf")
    put(folder / "m-00002-of-00002.gguf")
    put(folder / "mmproj-m.gguf")
    assert sources.resolve(folder) == first
    put(folder / "n.gguf")
    with pytest.raises(UserError, match="2 models"):
        sources.resolve(folder)


@pytest.mark.parametrize("spec", ["nothing.gguf", "no/such/model.gguf", "/no/such", "nothing", "./nothing"])
def test_what_does_not_exist_is_said(spec):
    with pytest.raises(UserError) as caught:
        sources.resolve(spec)
    assert "layerlift list" in caught.value.hint


@pytest.mark.parametrize("spec", ["x" * 5000, "~nobody-has-this-name/m.gguf", "https://[::1/x.gguf"])
def test_what_is_no_path_at_all_is_one_line(spec):
    with pytest.raises(UserError) as caught:
        sources.resolve(spec)
    assert len(str(caught.value)) < 6000
    assert "\n" not in str(caught.value)


FILES = ["README.md", "m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-F16.gguf", "imatrix.gguf"]


@pytest.mark.parametrize(
    ("files", "choice", "picked"),
    [
        (FILES[1:], "", "m-Q4_K_M.gguf"),
        (FILES[1:], "q8_0", "m-Q8_0.gguf"),
        (FILES[1:], "m-F16.gguf", "m-F16.gguf"),
        (FILES[1:], "Q4_K", None),
        (FILES[1:], "missing.gguf", None),
        (["x.gguf"], "", "x.gguf"),
        ([], "", None),
        (["F16/m-F16.gguf", "UD-Q4_K_XL/m-00001-of-00002.gguf", "UD-Q4_K_XL/m-00002-of-00002.gguf"], "",
         "UD-Q4_K_XL/m-00001-of-00002.gguf"),
    ],
)  # fmt: skip
def test_a_file_of_a_repository_is_picked_by_name_quantisation_or_preference(files, choice, picked):
    assert sources._pick(files, choice) == picked


def fake_hub(monkeypatch, tmp_path, files):
    asked = []

    def hf_hub_download(repository, file):
        asked.append(file)
        return str(put(tmp_path / "fetched" / file))

    hub = types.ModuleType("huggingface_hub")
    hub.list_repo_files = lambda repository: files  # type: ignore[attr-defined]
    hub.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_a_repository_is_fetched_through_the_hub(monkeypatch, tmp_path):
    asked = fake_hub(monkeypatch, tmp_path, FILES)
    assert sources.resolve("hf:org/repo").name == "m-Q4_K_M.gguf"
    assert sources.resolve("hf:org/repo:Q8_0").name == "m-Q8_0.gguf"
    assert asked == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    with pytest.raises(UserError, match="no file 'Q2_K'"):
        sources.resolve("hf:org/repo:Q2_K")


def test_all_parts_of_a_split_model_are_fetched(monkeypatch, tmp_path):
    parts = [f"q/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    asked = fake_hub(monkeypatch, tmp_path, parts)
    assert sources.resolve("hf:org/repo").as_posix().endswith(parts[0])
    assert asked == parts


def test_a_missing_hub_library_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="huggingface_hub is not installed") as caught:
        sources.resolve("hf:org/repo")
    assert caught.value.hint == "pip install 'layerlift[hub]'"


def test_the_hubs_errors_are_one_line(monkeypatch, tmp_path):
    fake_hub(monkeypatch, tmp_path, FILES)

    def fails(repository):
        raise RuntimeError("401 Client Error\n\nRepository Not Found")

    sys.modules["huggingface_hub"].list_repo_files = fails  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"^hf:org/repo: 401 Client Error$"):
        sources.resolve("hf:org/repo")


@pytest.mark.parametrize(
    "spec", ["hf:", "hf:org", "hf:org/", "hf:../repo", "hf:o/r/x", "hf:o/r:../../x.gguf", "hf:o/r:/x"]
)
def test_a_bad_repository_name_is_refused(spec):
    with pytest.raises(UserError, match="is not hf:org/repo"):
        sources.resolve(spec)


def test_offline_takes_only_what_is_cached(home):
    with pytest.raises(DownloadError, match="fetching is off"):
        sources.resolve("hf:org/repo", offline=True)
    path = hub_file(home / ".cache" / "huggingface" / "hub", "org/repo", "m-Q8_0.gguf")
    assert sources.resolve("hf:org/repo", offline=True) == path
    with pytest.raises(DownloadError, match="fetching is off"):
        sources.resolve("hf:org/repo:Q4_0", offline=True)
