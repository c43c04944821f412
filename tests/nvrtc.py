"""CUDA C++ to machine code without a GPU or a driver: NVIDIA's run-time compiler through ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")  # from Turing to Blackwell


class Nvrtc:
    """libnvrtc of the package nvidia-cuda-nvrtc, or of an installed CUDA toolkit."""

    def __init__(self, path: str):
        # The library opens its other half by name alone: that must be there before.
        for other in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(other), ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(path)

    def compile(self, text: str, arch: str) -> str:
        """The assembler's remarks about a text built for `arch` ("sm_90"); fails the test where it does not build."""
        return self._build(text, arch, "nvrtcGetProgramLog")

    def ptx(self, text: str, arch: str) -> str:
        """A text as PTX for `arch` ("compute_90")."""
        return self._build(text, arch, "nvrtcGetPTX")

    def _build(self, text: str, arch: str, wanted: str) -> str:
        program = ctypes.c_void_p()
        assert self.lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"text.cu", 0, None, None) == 0
        options = [f"-arch={arch}".encode(), b"-std=c++17", b"--ptxas-options=-v", b"-default-device"]
        failed = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self._get(program, "nvrtcGetProgramLog")
        assert not failed, f"{arch}: {log[:2000]}"
        found = self._get(program, wanted)
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return found

    def _get(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        assert not getattr(self.lib, f"{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        assert not getattr(self.lib, what)(program, text)
        return text.value.decode()


def nvrtc() -> Nvrtc:
    """The compiler; skips the test where it is not installed."""
    spec = find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [str(p) for folder in folders for p in folder.rglob("libnvrtc.so*")]
    path = found[0] if found else ctypes.util.find_library("nvrtc")
    if path is None:
        pytest.skip("no CUDA compiler here; pip install 'layerlift[cuda-ci]'")
    return Nvrtc(path)


def spills(log: str) -> dict[str, int]:
    """Bytes spilled by kernel, from the assembler's remarks."""
    frame = r"\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    pattern = r"Function properties for (\w+)\W+ptxas\W+" + frame
    return {name: int(stores) + int(loads) for name, stores, loads in re.findall(pattern, log)}


def registers(log: str) -> dict[str, int]:
    """Registers of a thread by kernel."""
    pattern = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
    return {name: int(n) for name, n in re.findall(pattern, log, re.DOTALL)}
