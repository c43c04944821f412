"""The floors of the house: imports point down only, and heavy packages are loaded by those who need them."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for folder in ("runtime", "backends", "kernels", "bench") for p in sorted((ROOT / folder).rglob("*.py"))]
FLOOR = {"kernels": 0, "backends": 1, "runtime": 2, "bench": 3}
# Packages that only these modules may import, and only inside a function.
HEAVY = {
    "cupy": ("backends/cuda_api.py",),
    "pyopencl": ("backends/opencl.py",),
    "tokenizers": ("runtime/tokenizer.py", "runtime/convert/tokenizer_json.py"),
    "minijinja": ("runtime/template_worker.py",),
    "prompt_toolkit": ("runtime/",),
    "llguidance": ("runtime/grammar.py",),
    "huggingface_hub": ("runtime/",),
    "gguf": ("backends/numpy_decode.py", "runtime/library.py", "runtime/convert/outtype.py", "bench/"),
}


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(package-absolute module, is at top level) of every import, type-checking ones left out."""
    return list(_imports(path))


def _imports(path: Path):
    tree = ast.parse(path.read_text())
    package = ["layerlift", *path.relative_to(ROOT).parts[:-1]]
    guarded = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    top = set(tree.body)
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from ..backends import registry` names a module, `from ..backends.base import Step` a thing in one.
            names = [f"{module}.{alias.name}" for alias in node.names] if module.count(".") == 1 else [module]
            yield from ((name, node in top) for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0]
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "layerlift" and len(parts) > 1:
            lazy_bench = own == "runtime" and parts[1] == "bench" and "commands" in path.name
            assert FLOOR[parts[1]] <= FLOOR[own] or lazy_bench, f"{path} imports {module} from a higher floor"
        assert parts[0] not in FLOOR, f"{path} imports {module} by its folder's name"
        if own == "runtime" and parts[:2] == ["layerlift", "backends"]:
            assert parts[2] not in ("cuda", "opencl", "cpu", "numpy_", "gpu"), f"{path}: {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_at_first_use(path):
    name = path.relative_to(ROOT).as_posix()
    for module, top in imports(path):
        package = module.split(".")[0]
        if package in HEAVY:
            assert name.startswith(HEAVY[package]), f"{name} imports {package}"
            assert not top, f"{name} imports {package} at import time"


def test_runtime_is_no_top_level_module_and_the_cli_starts_light():
    code = """
import sys, layerlift, layerlift.runtime.cli
print(sorted(set(sys.modules) & {"runtime", "backends", "kernels", "bench", "numpy", "gguf", "tokenizers"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    import layerlift

    assert layerlift.LLM.__name__ == "LLM"
    assert issubclass(layerlift.UserError, layerlift.LayerliftError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layerlift.nothing
