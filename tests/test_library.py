"""Models are found in layerlift's cache and in the stores of other programs, by every name they have."""

from __future__ import annotations

import os
import zipfile

import pytest
from layerlift.runtime import library, sources
from layerlift.runtime.cli import main
from layerlift.runtime.errors import UserError
from packing import ANSWER
from stores import hub_file, ollama_model, put

pytestmark = pytest.mark.usefixtures("home")


def test_every_store_is_listed_once(home, tmp_path, monkeypatch):
    put(tmp_path / "cache" / "models" / "own.gguf")
    hub = home / ".cache" / "huggingface" / "hub"
    file = hub_file(hub, "org/repo", "sub/m-Q4_K_M.gguf")
    link = hub / "models--org--repo" / "snapshots" / ("1" * 40) / "sub" / "m-Q4_K_M.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(file)
    put(home / ".cache" / "llama.cpp" / "flat.gguf")
    ollama_model(home / ".ollama" / "models", "llama3.2", "latest")
    ollama_model(home / ".ollama" / "models", "llama3.2", "1b")
    ollama_model(home / ".ollama" / "models", "repo", "Q8_0", registry="hf.co", space="org")
    put(home / ".lmstudio" / "models" / "pub" / "lm" / "lm-Q6_K.gguf")
    put(home / ".lmstudio" / "models" / "pub" / "lm" / "mmproj-lm.gguf")
    assert sorted(place.name for place in library.places()) == [
        "flat",
        "hf:org/repo:sub/m-Q4_K_M.gguf",
        "lmstudio:pub/lm/lm-Q6_K",
        "ollama:hf.co/org/repo:Q8_0",
        "ollama:llama3.2",
        "ollama:llama3.2:1b",
        "own",
    ]
    for place in library.places():
        assert os.path.realpath(sources.resolve(place.name)) == os.path.realpath(place.path), place.name
    for short, name in (("llama3.2", "ollama:llama3.2"), ("lm-q6_k", "lmstudio:pub/lm/lm-Q6_K"), ("fla", "flat")):
        assert library.find(short)[0].name == name
        assert os.path.realpath(sources.resolve(short)) == os.path.realpath(library.find(short)[0].path)


def test_a_model_in_any_store_answers_by_its_name(home, tiny, capsys):
    data = tiny().read_bytes()
    ollama_model(home / ".ollama" / "models", "tiny", "latest").write_bytes(data)
    put(home / ".lmstudio" / "models" / "pub" / "model" / "lm.gguf", data)
    hub_file(home / ".cache" / "huggingface" / "hub", "org/repo", "m-F32.gguf", data)
    answers = []
    for name in (str(tiny()), "ollama:tiny", "lmstudio:pub/model/lm", "hf:org/repo", "hf:org/repo:F32"):
        assert main(["-m", name, *ANSWER]) == 0
        answers.append(capsys.readouterr().out)
    assert answers == [answers[0]] * 5
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["hf:org/repo:m-F32.gguf", "llama", "F32"], ["ollama:tiny", "llama", "F32"],
        ["lmstudio:pub/model/lm", "llama", "F32"],
    ]  # fmt: skip


def test_a_name_that_could_be_several_is_refused(tmp_path):
    for name in ("model-a", "model-b"):
        put(tmp_path / "cache" / "models" / f"{name}.gguf")
    with pytest.raises(UserError, match="model-a, model-b"):
        sources.resolve("model")
    assert sources.resolve("model-a").name == "model-a.gguf"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "x"}, "x"),
        ({"HF_HOME": "x"}, "x/hub"),
        ({"XDG_CACHE_HOME": "x"}, "x/huggingface/hub"),
        ({"HF_HOME": "y", "HF_HUB_CACHE": "x"}, "x"),
        ({"LLAMA_CACHE": "x"}, "x"),
    ],
)
def test_variables_move_the_hub(tmp_path, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    path = hub_file(tmp_path / place, "org/repo", "m.gguf")
    assert [p.path for p in library.places()] == [path]
    assert sources.resolve("hf:org/repo", offline=True) == path


def test_variables_move_the_other_stores(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "o"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "l"))
    blob, flat = ollama_model(tmp_path / "o", "m", "latest"), put(tmp_path / "l" / "f.gguf")
    assert {p.path for p in library.places()} == {blob, flat}
    monkeypatch.setenv("LAYERLIFT_CACHE", "~/elsewhere")
    assert library.cache_dir().name == "elsewhere"
    assert library.cache_dir().is_absolute()


def test_lm_studios_pointer_is_followed(home, tmp_path):
    put(home / ".lmstudio-home-pointer", f"{tmp_path / 'lms'}\n".encode())
    path = put(tmp_path / "lms" / "models" / "a" / "b" / "c.gguf")
    assert [p.path for p in library.places()] == [path]


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../secret",
        "sha256-" + "0" * 63,
        "sha256:" + "G" * 64,
        "sha256:" + "a" * 64 + "/../x",
        "../" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
    ],
)
def test_a_digest_that_is_no_digest_is_no_path(home, tmp_path, digest):
    put(home / ".ollama" / "secret")
    ollama_model(home / ".ollama" / "models", "evil", "latest", digest=digest)
    assert library.places() == []
    with pytest.raises(UserError, match="Ollama has no model"):
        sources.resolve("ollama:evil")


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"layers": 5}', '{"layers": [{}]}', '{"layers": []}', "[" * 100_000, "\xff"]
)
def test_a_damaged_manifest_is_passed_over(home, manifest):
    ollama_model(home / ".ollama" / "models", "broken", "latest", manifest=manifest)
    assert library.places() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "..", ""])
def test_a_name_does_not_leave_ollamas_store(name):
    with pytest.raises(UserError):
        sources.resolve(f"ollama:{name}")


def test_links_out_of_a_store_are_not_walked(home, tmp_path):
    put(tmp_path / "outside" / "x.gguf")
    (home / ".lmstudio" / "models").mkdir(parents=True)
    (home / ".lmstudio" / "models" / "loop").symlink_to(home / ".lmstudio" / "models")
    (home / ".lmstudio" / "models" / "out").symlink_to(tmp_path / "outside")
    assert library.places() == []


def test_a_damaged_file_is_listed_with_its_problem(tmp_path):
    put(tmp_path / "cache" / "models" / "bad.gguf", b"GGUF" + b"\xff" * 100)
    put(tmp_path / "cache" / "models" / "empty.gguf", b"")
    bad, empty = sources.list_models()
    assert (bad.name, bad.nbytes, bad.architecture) == ("bad", 104, "")
    assert bad.problem
    assert empty.problem
    assert "\n" not in bad.problem + empty.problem


def test_packed_files_and_llamafiles_are_models_by_their_names(tmp_path):
    from ggufs import small
    from layerlift.runtime.pack import pack

    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    plain = small().write(tmp_path / "m.gguf")
    pack(plain, models / "one.llm")
    with zipfile.ZipFile(models / "two.llamafile", "w") as z:
        z.write(plain, "m.gguf")
    assert [(m.name, m.architecture, m.problem) for m in sources.list_models()] == [
        ("one", "llama", ""), ("two", "llama", ""),
    ]  # fmt: skip
    assert sources.resolve("one") == sources.resolve("one.llm") == models / "one.llm"
    assert sources.resolve("two") == models / "two.llamafile"
    (models / "two.llamafile").unlink()
    assert sources.resolve(models) == models / "one.llm"


def test_a_sound_file_is_listed_with_its_header(tmp_path):
    import gguf
    import numpy as np

    for part in (1, 2):
        path = tmp_path / "cache" / "models" / f"m-0000{part}-of-00002.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_file_type(15)
        writer.add_uint16("split.no", part - 1)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"t{part}", np.zeros((2, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (found,) = sources.list_models()
    assert (found.name, found.format, found.architecture, found.problem) == (
        "m-00001-of-00002", "Q4_K_M", "llama", "",
    )  # fmt: skip
    assert found.nbytes == sum(p.stat().st_size for p in (tmp_path / "cache" / "models").iterdir())
