"""Facts about llamafiles and zips: the model in them is used, packed and unpacked; their flags and program are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from ggufs import TEXT, Key, small
from layerlift.runtime.cli import main
from layerlift.runtime.errors import UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pack import pack, repack, unpack
from layerlift.runtime.pack_manifest import ALIGNMENT
from layerlift.runtime.pack_verify import verify
from packing import ANSWER, llamafile
from zips import write_wide


@pytest.mark.parametrize("args", ["-m\nm.gguf\n-p\nhello there\n...\n", "-m /zip/m.gguf --temp 0 # note\n"])
def test_the_args_of_a_foreign_file_are_shown_and_not_used(tmp_path, content, args, capsys):
    path = llamafile(tmp_path / "m.llamafile", ("m.gguf", content.read_bytes()), (".args", args.encode()))
    report = verify(path)
    assert report.kind == "archive"
    assert report.args == args
    assert "which -m does not use" in report.text()
    with open_gguf(path) as g:
        assert len(g.tensors)


@pytest.mark.parametrize(
    "args",
    ["-m\nmodel.gguf\n-p\nhello there\n...\n", "-m /zip/model.gguf --temp '0.7' # a shell's words\n"],
)
def test_a_llamafile_by_the_formats_rules_answers_as_the_bare_model(tmp_path, tiny, capsys, args):
    members = [("model.gguf", tiny().read_bytes()), (".args", args.encode()), ("readme.txt", b"hello")]
    path = write_wide(tmp_path / "x.llamafile", members, prefix=b"MZqFpD='\n#!/bin/sh\nexit 1\n'".ljust(9000, b"\n"))
    answers = []
    for model in (tiny(), path, f"{path}@model.gguf"):
        assert main(["-m", str(model), *ANSWER]) == 0
        answers.append(capsys.readouterr().out)
    assert answers == [answers[0]] * 3
    report = verify(path)
    assert (report.kind, report.args, report.members) == ("archive", args, 3)
    assert report.parts[0].offset % ALIGNMENT == 0


def projector() -> bytes:
    raw = small()
    raw.keys[0] = Key("general.architecture", TEXT, "clip")
    return raw.pack()


def test_of_several_models_in_one_file_the_one_for_text_is_meant(tmp_path, content):
    mine, eyes = ("m.gguf", content.read_bytes()), ("mmproj.gguf", projector())
    for members in ((mine, eyes), (eyes, mine)):
        with open_gguf(llamafile(tmp_path / "m.llamafile", *members)) as g:
            assert g.path.endswith("@m.gguf")
    with pytest.raises(UserError, match=r"holds 3 \.gguf files: 'mmproj\.gguf', 'm\.gguf', 'n\.gguf'"):
        open_gguf(llamafile(tmp_path / "m.llamafile", eyes, mine, ("n.gguf", mine[1])))


def test_a_foreign_file_is_packed_and_unpacked_like_any_model(tmp_path, content):
    path = llamafile(tmp_path / "f.llamafile", ("dir/m.gguf", content.read_bytes()), (".args", b"--evil"))
    pack(path, tmp_path / "m.llm")
    assert verify(tmp_path / "m.llm").args == ""
    assert unpack(path, tmp_path / "out.gguf")[0].read_bytes() == content.read_bytes()
    with pytest.raises(UserError, match="was not packed by layerlift"):
        repack(path)


def test_a_member_cannot_choose_where_it_is_unpacked(tmp_path, content, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    path = llamafile(tmp_path / "f.llamafile", ("../../evil.gguf", content.read_bytes()))
    assert unpack(path) == [Path("evil.gguf")]
    assert (tmp_path / "in" / "evil.gguf").is_file()
