"""Facts about packed files: they open, run, are checked, taken apart and packed anew; half a file never appears."""

from __future__ import annotations

import ast
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from ggufs import TEXT, U16, Key, Raw, Tensor, small
from layerlift.runtime import pack_writer
from layerlift.runtime.cli import main
from layerlift.runtime.errors import GGUFError, LayerliftError, UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.pack import pack, repack, unpack
from layerlift.runtime.pack_manifest import ALIGNMENT, PackError
from layerlift.runtime.pack_start import command_line
from layerlift.runtime.pack_verify import verify

ENV = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")}
ANSWER = ("--cli", "-p", "Hello", "-n", "6", "--temp", "0", "--ignore-eos", "--gpu", "disable")


def run(*command, stdin: str = "", **more):
    """A finished process with its output as text."""
    options = {"capture_output": True, "encoding": "utf-8", "env": ENV, "timeout": 100}
    return subprocess.run([str(c) for c in command], input=stdin, **(options | more))


@pytest.fixture
def content(tmp_path) -> Path:
    """A small sound GGUF that no runtime runs."""
    return small().write(tmp_path / "m.gguf")


@pytest.fixture
def packed(tmp_path, content) -> Path:
    path = tmp_path / "m.llm"
    pack(content, path, args="--temp 0\n")
    return path


# -- what is in it, and where --


def test_the_weights_are_used_where_they_lie(tmp_path, content, packed):
    with open_gguf(content) as plain, open_gguf(packed) as g:
        assert g.extents == ((str(packed), "m.gguf", ALIGNMENT, content.stat().st_size),)
        assert list(g.tensors) == list(plain.tensors)
        for name in plain.tensors:
            assert not g.raw(name).flags.owndata
            assert g.raw(name).ctypes.data % g.alignment == 0
            assert g.raw(name).tobytes() == plain.raw(name).tobytes()
    assert packed.read_bytes()[ALIGNMENT : ALIGNMENT + content.stat().st_size] == content.read_bytes()
    with open_gguf(f"{packed}@m.gguf") as g:
        assert g.extents[0][2] == ALIGNMENT
    with pytest.raises(UserError, match=r"no member 'x\.gguf'"):
        open_gguf(f"{packed}@x.gguf")


def test_any_zip_tool_reads_the_small_zip(packed):
    with zipfile.ZipFile(packed) as z:
        assert z.testzip() is None
        assert {"__main__.py", "layerlift.json", ".args"} <= set(z.namelist())
        assert z.read(".args") == b"--temp 0\n"


def test_the_same_input_makes_the_same_file(tmp_path, content, packed):
    pack(content, tmp_path / "again.llm", args="--temp 0\n")
    assert (tmp_path / "again.llm").read_bytes() == packed.read_bytes()


def test_a_split_set_is_packed_whole_and_opens(tmp_path):
    for i in range(3):
        keys = [Key("split.no", U16, i), Key("split.count", U16, 3), Key("split.tensors.count", U16, 3)]
        Raw(keys, [Tensor(f"t{i}", (32,))]).write(tmp_path / f"m-0000{i + 1}-of-00003.gguf")
    pack(tmp_path / "m-00002-of-00003.gguf", tmp_path / "m.llm")
    with open_gguf(tmp_path / "m.llm") as g:
        assert list(g.tensors) == ["t0", "t1", "t2"]
        assert all(start % ALIGNMENT == 0 for _, _, start, _ in g.extents)
    assert len(verify(tmp_path / "m.llm").parts) == 3
    (tmp_path / "out").mkdir()
    names = unpack(tmp_path / "m.llm", tmp_path / "out")
    assert [n.read_bytes() for n in names] == [(tmp_path / n.name).read_bytes() for n in names]


def test_a_packed_file_is_for_its_owner_to_run(packed):
    umask = os.umask(0)
    os.umask(umask)
    assert packed.stat().st_mode & 0o777 == 0o777 & ~umask


# -- running it --


@pytest.fixture(scope="module")
def runnable(tiny, tmp_path_factory):
    """A tiny model packed without flags."""
    path = tmp_path_factory.mktemp("paths with blänks ✓") / "tiny mödel.llm"
    pack(tiny(), path)
    return path


def test_it_answers_as_the_bare_model_does(runnable, tiny):
    bare = run(sys.executable, "-m", "layerlift.runtime.cli", "-m", tiny(), *ANSWER)
    assert bare.returncode == 0, bare.stderr
    assert len(bare.stdout) > len("Hello")
    for command in ([sys.executable, runnable], [sys.executable, "-m", "layerlift.runtime.cli", "-m", runnable]):
        done = run(*command, *ANSWER)
        assert (done.returncode, done.stdout) == (0, bare.stdout), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="this system starts no files by their first line")
def test_it_starts_by_itself_through_a_link_from_a_read_only_folder(runnable, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(runnable)
    folder = runnable.parent
    folder.chmod(0o555)
    try:
        done = run("./link", *ANSWER, cwd=tmp_path)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello")


def test_it_talks_and_measures(runnable):
    chat = run(sys.executable, runnable, "-n", "4", "--gpu", "disable", "--nologo", stdin="hi\n")
    assert chat.returncode == 0, chat.stderr
    bench = run(sys.executable, runnable, "bench", "-p", "8", "-n", "2", "-r", "1", "-o", "json", "--gpu", "disable")
    assert bench.returncode == 0, bench.stderr
    assert "pp8" in bench.stdout or '"n_prompt": 8' in bench.stdout


def test_packed_flags_choose_the_mode_and_typed_ones_have_the_last_word(tmp_path, tiny, capsys):
    path = tmp_path / "tiny.llm"
    words = ["--", *ANSWER]
    assert main(["pack", str(tiny()), "-o", str(path), *words]) == 0
    capsys.readouterr()
    assert main(command_line(str(path), [])) == 0
    packed_alone = capsys.readouterr().out
    assert main(["-m", str(tiny()), *ANSWER]) == 0
    assert capsys.readouterr().out == packed_alone
    assert main(command_line(str(path), ["-p", "Other", "-n", "1"])) == 0
    assert capsys.readouterr().out.startswith("Other")


def test_without_layerlift_it_says_how_to_install_it(packed):
    done = run(sys.executable, "-S", "-E", packed, "--cli")
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: layerlift is not installed for {sys.executable}")
    assert "-m pip install" in hint


def test_any_python_3_can_read_the_launcher():
    import layerlift.runtime.packed.main as launcher

    ast.parse(Path(launcher.__file__).read_text("utf-8"), feature_version=(3, 4))


def test_an_old_python_is_told_what_is_needed(packed, monkeypatch, capsys):
    from layerlift.runtime.packed import main as launcher

    monkeypatch.setattr(sys, "version_info", (3, 8, 1))
    assert launcher.start("m.llm") == 1
    assert "m.llm needs Python 3.10 or newer; this is 3.8" in capsys.readouterr().err


def test_a_mistake_in_the_packed_flags_is_one_line(tmp_path, content):
    path = tmp_path / "m.llm"
    pack(content, path, args="--temp 0")
    path.write_bytes(path.read_bytes().replace(b"--temp 0", b"--temp '"))  # the checksum says so
    done = run(sys.executable, path)
    assert done.returncode == 1
    assert "'.args' is damaged" in done.stderr
    assert "Traceback" not in done.stderr


# -- the commands --


def test_pack_verify_unpack_from_the_command_line(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags").write_text("# mine\n-p 'Be brief'\n...\n")
    assert main(["pack", "m.gguf", "--args", "flags"]) == 0
    assert main(["verify", "m.llm"]) == 0
    out = capsys.readouterr().out
    assert "m.llm: packed by layerlift" in out
    assert "-p 'Be brief'" in out
    content.rename(tmp_path / "gone.gguf")
    assert main(["unpack", "m.llm"]) == 0
    assert capsys.readouterr().out == "m.gguf\n"
    assert content.read_bytes() == (tmp_path / "gone.gguf").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pack"], "pack needs MODEL.gguf"),
        (["pack", "m.gguf", "n.gguf"], "unexpected argument 'n.gguf'"),
        (["pack", "m.gguf", "-o", "m.gguf"], "'m.gguf' is the model itself"),
        (["pack", "m.gguf", "-o", "link"], "'link' is the model itself"),
        (["pack", "m.gguf"], "'m.llm' exists already"),
        (["pack", "m.gguf", "-o", "folder"], "is not a regular file"),
        (["pack", "m.gguf", "-o", "missing/m.llm"], "No such file or directory"),
        (["pack", "m.gguf", "-o", "x", "--args", "none"], "cannot read 'none'"),
        (["pack", "m.gguf", "-o", "x", "--args", "m.gguf", "--", "--cli"], "cannot both be packed"),
        (["pack", "m.gguf", "-o", "x", "--", "--tmp", "0"], "unknown flag --tmp"),
        (["pack", "m.gguf", "-o", "x", "--", "-m", "y"], "the packed file is the model itself"),
        (["pack", "m.gguf", "-o", "x", "--bundle-deps", "--pythons", "2.7"], "a version of Python from 3.10 on"),
        (["pack", "m.gguf", "-o", "x", "--pythons", "3.10"], "--pythons says what --bundle-deps carries"),
        (["unpack", "m.gguf"], "is a plain GGUF"),
        (["unpack", "m.llm"], "'m.gguf' exists already"),
        (["unpack", "m.llm", "-o", "m.llm"], "is the packed file itself"),
        (["repack", "m.gguf"], "was not packed by layerlift"),
        (["verify", "none.llm"], "cannot read 'none.llm'"),
        (["verify", "folder"], "cannot read 'folder'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_request_that_cannot_work_is_one_line(tmp_path, packed, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("m.gguf")
    (tmp_path / "folder").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert main(argv) in (1, 2)
    err = capsys.readouterr().err
    assert message in err.splitlines()[0]
    assert len(err.splitlines()) <= 2
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


# -- repack --


def test_repack_keeps_weights_and_flags_and_takes_new_ones(tmp_path, packed):
    before = packed.read_bytes()
    repack(packed)
    assert packed.read_bytes() == before
    repack(packed, tmp_path / "other.llm", args="--cli\n")
    assert packed.read_bytes() == before
    report = verify(tmp_path / "other.llm")
    assert report.args == "--cli\n"
    assert report.parts == verify(packed).parts


def test_repack_replaces_an_older_launcher(tmp_path, packed, content):
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as z:
        launcher = z.read("__main__.py")
    start = data.index(launcher)
    packed.write_bytes(data[:start] + b"#" * len(launcher) + data[start + len(launcher) :])
    with pytest.raises(GGUFError, match=r"'__main__\.py' is damaged"):
        verify(packed)
    repack(packed)
    assert packed.read_bytes() == data


@pytest.mark.parametrize("inside", [True, False])
def test_copies_are_the_same_whether_the_system_makes_them_or_not(tmp_path, packed, monkeypatch, inside):
    if not inside:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif not hasattr(os, "copy_file_range"):
        pytest.skip("this system copies nothing by itself")
    repack(packed, tmp_path / "copy.llm")
    assert (tmp_path / "copy.llm").read_bytes() == packed.read_bytes()


def test_holes_stay_holes_and_nothing_beside_them_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "CRC_BLOCK", 1 << 16)
    source, size = tmp_path / "source", 60 << 16
    with open(source, "wb") as file:
        file.truncate(size)
        for at in (5, (7 << 16) - 3, 20 << 16, size - 70_000):  # across blocks, at their edges, near the end
            file.seek(at)
            file.write(b"data" * 1000)
        file.flush()
        os.fsync(file.fileno())
    whole = source.read_bytes()
    with open(source, "rb") as file:
        for start, end in ((0, size), (3, size - 9), (8 << 16, 12 << 16), (30 << 16, size)):
            copies = []
            for copy in (pack_writer.copy_checked, pack_writer.copy_range):
                with open(tmp_path / "copy", "w+b") as out:
                    out.write(b"head")
                    copies.append(copy(file.fileno(), start, end - start, out, lambda n: None))
                    out.write(b"tail")
                assert (tmp_path / "copy").read_bytes() == b"head" + whole[start:end] + b"tail"
            assert copies[0][0] == hashlib.sha256(whole[start:end]).hexdigest()
        with open(tmp_path / "copy", "wb") as out:
            pack_writer.copy_checked(file.fileno(), 0, size, out, lambda n: None)
    if source.stat().st_blocks * 512 < size:
        assert (tmp_path / "copy").stat().st_blocks * 512 < size


# -- foreign files --


def llamafile(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, data in members:
            z.writestr(name, data)
    path.write_bytes(b"MZqFpD='\n" + path.read_bytes())
    return path


@pytest.mark.parametrize("args", ["-m\nm.gguf\n-p\nhello there\n...\n", "-m /zip/m.gguf --temp 0 # note\n"])
def test_the_args_of_a_foreign_file_are_shown_and_not_used(tmp_path, content, args, capsys):
    path = llamafile(tmp_path / "m.llamafile", ("m.gguf", content.read_bytes()), (".args", args.encode()))
    report = verify(path)
    assert report.kind == "archive"
    assert report.args == args
    assert "which -m does not use" in report.text()
    with open_gguf(path) as g:
        assert len(g.tensors)


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


# -- damage --


def flipped(path: Path, at: int) -> Path:
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 0x10]))
    return path


def test_a_flipped_bit_in_the_weights_is_named_with_its_place(tmp_path, content, packed):
    at = ALIGNMENT + content.stat().st_size - 5
    with pytest.raises(GGUFError, match=rf"'m\.gguf' are damaged in .*m\.llm between bytes {ALIGNMENT} and {at + 5}: "):
        verify(flipped(packed, at))
    with pytest.raises(GGUFError, match="are damaged"):
        unpack(packed, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    repack(packed)
    with pytest.raises(GGUFError, match="are damaged"):
        verify(packed)


def test_damage_is_found_to_the_block(tmp_path, monkeypatch):
    for module in ("pack_writer", "pack_manifest"):
        monkeypatch.setattr(f"layerlift.runtime.{module}.CRC_BLOCK", 4096)
    Raw([Key("general.architecture", TEXT, "llama")], [Tensor("t", (1 << 14,))]).write(tmp_path / "m.gguf")
    pack(tmp_path / "m.gguf", tmp_path / "m.llm")
    flipped(tmp_path / "m.llm", ALIGNMENT + 3 * 4096 + 7)
    with pytest.raises(GGUFError, match=f"between bytes {ALIGNMENT + 3 * 4096} and {ALIGNMENT + 4 * 4096}: "):
        verify(tmp_path / "m.llm")


def test_a_cut_file_is_refused_by_all(tmp_path, packed):
    size = packed.stat().st_size
    for left in (size - 1, size - 30, size - 1000, ALIGNMENT + 50, ALIGNMENT, 100, 1, 0):
        os.truncate(packed, left)
        for act in (verify, open_gguf, repack, lambda p: unpack(p, tmp_path / "out")):
            with pytest.raises(LayerliftError) as e:
                act(packed)
            assert "m.llm" in str(e.value)
            assert "\n" not in str(e.value)
        assert not (tmp_path / "out").exists()


def test_every_change_behind_the_weights_is_refused_or_changes_nothing_that_counts(tmp_path, content, packed):
    data, start = packed.read_bytes(), ALIGNMENT + content.stat().st_size
    sound, refused = verify(packed).parts, []
    for at in [*range(start, len(data), 23), *range(len(data) - 300, len(data))]:
        packed.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            assert verify(packed).parts == sound
        except LayerliftError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not [line for line in refused if "\n" in line or "m.llm" not in line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'"offset": 65536', b'"offset": 65537'), "'layerlift.json' is damaged: its checksum differs"),
        ((b"#!/usr/bin/env python3", b"#!/bin/sh             "), "has no #! line with python at byte 0"),
    ],
)
def test_what_was_changed_by_hand_is_refused(packed, change, message):
    packed.write_bytes(packed.read_bytes().replace(*change))
    with pytest.raises(GGUFError, match=message):
        verify(packed)


@pytest.mark.parametrize(
    "wrong",
    [
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "layerlift": "1", "weights": []}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": "m.gguf", "offset": "65536"}]}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": 1, "offset": 0, "nbytes": 1}]}',
        b'{"format": 1, "layerlift": "1", "weights": [{"name": "m.gguf", "offset": 0, "nbytes": 4611686018427387904,'
        b' "sha256": "", "crc32": []}]}',
    ],
    ids=lambda x: x[:60].decode(),
)
def test_a_manifest_that_makes_no_sense_is_one_line(tmp_path, wrong):
    path = tmp_path / "m.llm"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("layerlift.json", wrong)
    path.write_bytes(b"#!python\n" + path.read_bytes())
    with pytest.raises(GGUFError, match=r"m\.llm") as e:
        open_gguf(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("offset", "nbytes"), [(65536, 1 << 40), (1, 100), (1 << 40, 100), (65536, 5000)])
def test_weights_that_are_not_there_are_refused(tmp_path, offset, nbytes):
    from layerlift.runtime.pack_manifest import CRC_BLOCK, Manifest, Weights

    crcs = ("0" * 8,) * -(-nbytes // CRC_BLOCK)
    path = tmp_path / "m.llm"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("layerlift.json", Manifest("1", (Weights("m.gguf", offset, nbytes, "0" * 64, crcs),)).dump())
    path.write_bytes(b"#!python\n".ljust(65536 + 4000, b"\0") + path.read_bytes())
    with pytest.raises(GGUFError, match=r"'m\.gguf' of \d+ bytes does not lie there in .* at byte \d+"):
        open_gguf(path)


# -- half a file never appears --


def parts(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.endswith(".part")]


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, content, packed):
    def stop(done, total):
        raise KeyboardInterrupt

    before = packed.read_bytes()
    for act in (lambda: pack(content, packed, progress=stop), lambda: repack(packed, progress=stop)):
        with pytest.raises(KeyboardInterrupt):
            act()
        assert packed.read_bytes() == before
        assert parts(tmp_path) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, content, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(PackError, match=r"m\.llm: 0\.1 MB needed, 0\.0 MB free"):
        pack(content, tmp_path / "m.llm")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, content, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PackError, match=r"m\.llm: No space left on device"):
        pack(content, tmp_path / "m.llm")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path, content):
    old, young, other = (tmp_path / name for name in (".m.llm.a.part", ".m.llm.b.part", ".n.llm.c.part"))
    for path in (old, young, other):
        path.write_bytes(b"rest")
    for path in (old, other):
        os.utime(path, (1, 1))
    pack(content, tmp_path / "m.llm")
    assert sorted(parts(tmp_path)) == [young.name, other.name]


@pytest.mark.skipif(os.name == "nt", reason="locks of this kind are not used here")
def test_a_part_that_is_being_written_is_left_alone(tmp_path, content):
    import fcntl

    busy = tmp_path / ".m.llm.a.part"
    busy.write_bytes(b"mine")
    os.utime(busy, (1, 1))
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        pack(content, tmp_path / "m.llm")
        assert busy.exists()


PACKER = """
import sys
from pathlib import Path
from layerlift.runtime.pack import pack
print("ready", flush=True)
while True:
    pack(sys.argv[1], Path(sys.argv[2]))
"""


def killed_while_packing(model: Path, target: Path, times: int, longest: float) -> int:
    """Kills a process that packs again and again after random times; how often the file was there afterwards."""
    chance, there = random.Random(7), 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", PACKER, model, target], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * longest)
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.communicate()
        if target.exists():
            there += 1
            verify(target)
            target.unlink()
    for name in parts(target.parent):
        os.utime(target.parent / name, (1, 1))
    pack(model, target)
    verify(target)
    assert parts(target.parent) == []
    return there


def test_killed_at_random_points_there_is_a_whole_file_or_none(tmp_path, tiny):
    there = killed_while_packing(tiny(), tmp_path / "m.llm", 10, 0.03)
    assert there < 10, "no kill came in time"


def test_a_source_that_shrinks_is_noticed(tmp_path, content):
    with open(content, "rb") as file, pytest.raises(PackError, match=r"ends at byte \d+, 1 bytes early"):
        pack_writer.copy_checked(file.fileno(), 0, content.stat().st_size + 1, None, lambda n: None)
