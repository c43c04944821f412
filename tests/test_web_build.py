"""The web page's built files: made from the sources beside them, small, and complete without a network."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from node import node

WEB = Path(__file__).resolve().parent.parent / "runtime" / "server" / "web"
DIST = WEB / "dist"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded() -> dict[str, dict[str, str]]:
    return json.loads((DIST / "build.json").read_text())


def test_dist_was_built_from_the_sources_on_disk():
    sources = [WEB / name for name in ("build.mjs", "package.json", "package-lock.json")]
    sources += [path for path in (WEB / "src").rglob("*") if path.is_file()]
    now = {path.relative_to(WEB).as_posix(): sha256(path) for path in sources}
    assert now == recorded()["sources"], "run `npm run build` in runtime/server/web and commit dist"


def test_dist_holds_what_the_build_wrote():
    assert {path.name: sha256(path) for path in DIST.iterdir() if path.name != "build.json"} == recorded()["built"]


def test_the_page_names_only_files_of_its_own():
    page = (DIST / "index.html").read_text()
    assert sorted(re.findall(r'(?:src|href)="([^"]*)"', page)) == ["app.js", "icon.svg", "style.css"]
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", page)
    assert not re.search(r"url\(|@import", (DIST / "style.css").read_text())


def test_the_script_is_small():
    script = (DIST / "app.js").read_bytes()
    assert len(script) < 250_000
    assert len(gzip.compress(script, 9)) < 90_000


def test_the_lock_file_names_no_registry():
    assert "resolved" not in (WEB / "package-lock.json").read_text()


@pytest.mark.slow
def test_building_again_gives_the_same_files(web_modules, tmp_path):
    subprocess.run([*node(), "build.mjs", str(tmp_path / "dist")], cwd=web_modules, check=True, timeout=100)
    built = {path.name: path.read_bytes() for path in (tmp_path / "dist").iterdir()}
    assert sorted(built) == sorted(path.name for path in DIST.iterdir())
    assert [name for name, content in built.items() if content != (DIST / name).read_bytes()] == []


@pytest.mark.slow
def test_the_wheel_carries_the_page_and_not_its_sources(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, "--config-settings=wheel.cmake=false", str(WEB.parents[2])], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if "/server/web/" in name}
    assert carried == {f"layerlift/runtime/server/web/dist/{path.name}" for path in DIST.iterdir()}
