"""What `--gpu` means, as a table."""

from __future__ import annotations

import pytest
from layerlift.backends.base import DeviceInfo, Probe
from layerlift.backends.errors import BackendUnavailable
from layerlift.runtime.devices import choose_devices, without
from layerlift.runtime.errors import UserError


def device(backend: str, index: int, vendor: str, is_gpu: bool = True) -> DeviceInfo:
    return DeviceInfo(backend, index, f"{vendor} card", vendor, is_gpu)


CPU = Probe("cpu", (device("cpu", 0, "cpu", False),))
CUDA = Probe("cuda", (device("cuda", 0, "nvidia"), device("cuda", 1, "nvidia")))
NO_CUDA = Probe("cuda", reason="cupy is not installed (pip install 'layerlift[cuda13]')")
NO_OPENCL = Probe("opencl", reason="no platform")
POCL = Probe("opencl", (device("opencl", 0, "cpu", False), device("opencl", 1, "cpu", False)))
AMD = Probe("opencl", (device("opencl", 0, "cpu", False), device("opencl", 1, "amd")))
NVIDIA = Probe("opencl", (device("opencl", 0, "nvidia"), device("opencl", 1, "amd")))
THIRD = Probe("vulkan", (device("vulkan", 0, "intel"),))


@pytest.mark.parametrize(
    ("gpu", "probes", "expected"),
    [
        ("auto", [CUDA, NO_OPENCL, CPU], ["cuda:0", "cuda:1"]),
        ("auto", [CUDA, NVIDIA, CPU], ["cuda:0", "cuda:1"]),  # the same card is not taken twice
        ("auto", [NO_CUDA, AMD, CPU], ["opencl:1"]),
        ("auto", [NO_CUDA, POCL, CPU], []),  # a CPU device counts only when asked for
        ("auto", [NO_CUDA, NO_OPENCL, CPU, THIRD], ["vulkan:0"]),
        ("auto", [], []),
        ("nvidia", [CUDA, NVIDIA, CPU], ["cuda:0", "cuda:1"]),
        ("nvidia", [NO_CUDA, NVIDIA, CPU], ["opencl:0"]),
        ("NVIDIA", [CUDA], ["cuda:0", "cuda:1"]),
        (" Cuda", [CUDA], ["cuda:0", "cuda:1"]),
        ("cublas", [CUDA], ["cuda:0", "cuda:1"]),
        ("amd", [CUDA, NVIDIA, CPU], ["opencl:1"]),
        ("rocm", [AMD], ["opencl:1"]),
        ("rocblas", [AMD], ["opencl:1"]),
        ("hip", [AMD], ["opencl:1"]),
        ("opencl", [CUDA, POCL, CPU], ["opencl:0", "opencl:1"]),
        ("opencl", [CUDA, AMD, CPU], ["opencl:1"]),  # a CPU only slows a GPU down
        ("opencl:0", [CUDA, AMD, CPU], ["opencl:0"]),
        ("cuda:1", [CUDA, AMD, CPU], ["cuda:1"]),
        ("vulkan", [CUDA, THIRD], ["vulkan:0"]),
        ("disable", [CUDA, AMD, CPU], []),
        ("disabled", [CUDA], []),
        ("none", [CUDA], []),
        ("cpu", [CUDA], []),
    ],
)
def test_gpu_flag_chooses(gpu, probes, expected):
    devices, notice = choose_devices(gpu, probes)
    assert [str(d) for d in devices] == expected
    assert bool(notice) == (gpu == "auto" and not expected)


@pytest.mark.parametrize(
    ("gpu", "probes", "reason"),
    [
        (
            "nvidia",
            [NO_CUDA, NO_OPENCL],
            r"--gpu nvidia cannot be used: CUDA: cupy is not installed .*; OpenCL: no platform",
        ),
        ("nvidia", [NO_CUDA, AMD], r"OpenCL: only opencl:0 cpu card, a CPU; opencl:1 amd card"),
        ("hip", [CUDA, POCL], r"--gpu hip cannot be used: OpenCL: only opencl:0 cpu card, a CPU"),
        ("opencl", [CUDA, NO_OPENCL], r"--gpu opencl cannot be used: OpenCL: no platform"),
        ("opencl:7", [CUDA, AMD], r"--gpu opencl:7 cannot be used: OpenCL: only opencl:0"),
        ("nvidia", [], "no GPU backend in this version"),
        ("nvidia", [Probe("cuda", reason="libcuda.so.1:\n  not found")], "CUDA: libcuda.so.1: not found$"),
    ],
)
def test_a_vendor_asked_for_by_name_is_never_replaced(gpu, probes, reason):
    with pytest.raises(BackendUnavailable, match=reason) as caught:
        choose_devices(gpu, probes)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gpu", ["", "apple", "metal:0", "banana"])
def test_an_unknown_kind_is_a_usage_error(gpu):
    with pytest.raises(UserError, match="is unknown") as caught:
        choose_devices(gpu, [CUDA])
    assert "auto, nvidia, amd, opencl, disable" in caught.value.hint


def test_the_notice_of_auto_is_one_short_line():
    _, notice = choose_devices("auto", [Probe("cuda", reason="libcuda.so.1:\n  not found"), POCL, CPU])
    assert notice == "no GPU in use, all layers on the CPU (`layerlift devices` says why)"


def test_a_device_that_could_not_be_opened_is_passed_over_and_named():
    line = "cuda:0: cannot be opened: busy"
    probes = without([CUDA, AMD, CPU], CUDA.devices[0], line)
    assert choose_devices("auto", probes) == ([CUDA.devices[1]], f"not used: {line}")
    probes = without(probes, CUDA.devices[1], "cuda:1: gone")
    assert choose_devices("auto", probes) == ([AMD.devices[1]], f"not used: {line}; not used: cuda:1: gone")
    assert choose_devices("opencl", probes) == ([AMD.devices[1]], "")
    with pytest.raises(BackendUnavailable, match="CUDA: cuda:0: cannot be opened: busy; cuda:1: gone"):
        choose_devices("cuda", probes)


@pytest.mark.parametrize("name", ["cpu:0", "numpy", "numpy:0"])
def test_a_host_device_is_no_gpu(name):
    with pytest.raises(UserError, match="is no GPU"):
        choose_devices(name, [Probe("cpu", (DeviceInfo("cpu", 0, "CPU", "cpu", False),))])
