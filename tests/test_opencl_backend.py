"""What the OpenCL backend does when things are missing, full, broken or gone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from layerlift.backends.base import AttnSpec, BackendError, DeviceOutOfMemory, UnsupportedFormat
from layerlift.backends.gpu_step import StepLayout
from layerlift.backends.opcases import matrix, normal, one_step
from layerlift.backends.opencl import OpenCLBackend
from layerlift.backends.oracle import exact_attention
from layerlift.kernels import sources
from opencl_here import opencl_device


@pytest.fixture(scope="module")
def backend():
    opened = OpenCLBackend.open(opencl_device())
    yield opened
    opened.close()


def test_without_pyopencl_the_probe_names_the_install_command(monkeypatch):
    monkeypatch.setattr("layerlift.backends.opencl.find_spec", lambda name: None)
    assert "pip install 'layerlift[opencl]'" in OpenCLBackend.probe().reason


def test_a_pyopencl_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    monkeypatch.setattr("layerlift.backends.opencl.find_spec", lambda name: object())
    probe = OpenCLBackend.probe()
    assert not probe.devices
    assert "cannot be imported" in probe.reason
    assert "\n" not in probe.reason


def test_no_platform_and_no_device_are_reasons(monkeypatch):
    cl = pytest.importorskip("pyopencl", reason="pyopencl is not installed")
    monkeypatch.setattr(cl, "get_platforms", list)
    assert "no OpenCL driver" in OpenCLBackend.probe().reason

    def fails():
        raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    monkeypatch.setattr(cl, "get_platforms", fails)
    assert "no OpenCL driver" in OpenCLBackend.probe().reason


def test_a_format_without_kernel_is_refused_at_load_with_name_and_format(backend):
    with pytest.raises(UnsupportedFormat, match=r"blk\.3\.ffn_up\.weight is IQ2_XXS"):
        backend.load(np.zeros(66, np.uint8), "IQ2_XXS", (1, 256), "blk.3.ffn_up.weight")


def test_inner_sizes_that_differ_are_refused(backend):
    w = backend.load(matrix("F32", 4, 64)[0], "F32", (4, 64), "w")
    with pytest.raises(BackendError, match="inner sizes differ"):
        backend.matmul(backend.upload(normal(1, 96)), w)


def test_rows_that_no_unit_divides(backend):
    raw, values = matrix("F32", 5, 40)
    w, x = backend.load(raw, "F32", (5, 40), "w"), normal(1, 40)
    np.testing.assert_allclose(backend.download(backend.matmul(backend.upload(x), w)), x @ values.T, atol=1e-5)
    np.testing.assert_array_equal(backend.download(backend.embed(w, np.array([3], np.int32)))[0], values[3])


def test_every_half_is_read_exactly(backend):
    halves = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 32)
    w = backend.load(halves.view(np.uint8).reshape(-1), "F16", halves.shape, "w")
    found = backend.download(backend.embed(w, np.arange(len(halves), dtype=np.int32)))
    want = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, want)  # subnormal and infinite ones too; NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(found), np.signbit(want))


def test_a_context_in_parts_gives_the_same_attention(backend, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(backend, "tuning", replace(backend.tuning, split_rows=16, units=64))
    spec, step = AttnSpec(4, 0.125), one_step([(90, 1), (3, 1)], 100)
    q, k, v = normal(2, 256), normal(100, 2, 64, seed=1), normal(100, 2, 64, seed=2)
    kv = backend.kv_alloc(100, 2, 64, "f32")
    kv.write(np.arange(100, dtype=np.int32), k, v)
    before = backend.launches
    out = backend.download(backend.attend(backend.upload(q), kv, step, spec))
    assert backend.launches - before == 2  # the parts, and their join
    np.testing.assert_allclose(out, exact_attention(q, k, v, step, spec), atol=1e-5)


def test_a_long_steps_keys_are_read_once_for_several_tokens(backend):
    spec, step = AttnSpec(4, 0.125, window=20), one_step([(0, 21), (30, 1), (5, 9)], 70)
    layout = StepLayout(step, (), 8)
    tiles = layout.words[layout.tiles_at :].reshape(layout.n_tiles, 2).tolist()
    assert tiles == [[0, 8], [8, 8], [16, 5], [21, 1], [22, 8], [30, 1]]
    q, k, v = normal(31, 256), normal(70, 2, 64, seed=1), normal(70, 2, 64, seed=2)
    kv = backend.kv_alloc(70, 2, 64, "f32")
    kv.write(np.arange(70, dtype=np.int32), k, v)
    out = backend.download(backend.attend(backend.upload(q), kv, step, spec))
    np.testing.assert_allclose(out, exact_attention(q, k, v, step, spec), atol=1e-5)


def test_steps_without_a_full_tile_have_none():
    assert StepLayout(one_step([(9, 7), (3, 1)], 30), (), 8).n_tiles == 0


def test_small_copies_go_through_memory_of_the_drivers_and_the_array_may_change_at_once(backend, monkeypatch):
    cl = pytest.importorskip("pyopencl")
    real, hosts = cl.enqueue_copy, []

    def watched(queue, target, source, **options):
        hosts.extend(x for x in (target, source) if isinstance(x, np.ndarray))
        return real(queue, target, source, **options)

    monkeypatch.setattr(cl, "enqueue_copy", watched)
    first, arrays = np.zeros(1000, np.float32), []
    for i in range(3000):  # three times around the ring
        first[:] = i
        arrays.append(backend.upload(first))
    for i in (0, 1, 1499, 2998, 2999):
        np.testing.assert_array_equal(backend.download(arrays[i]), i)
    ring = backend._staging._bytes
    assert all(np.shares_memory(host, ring) for host in hosts)


def test_large_copies_go_past_the_ring(backend):
    x = np.arange(700_000, dtype=np.float32)
    np.testing.assert_array_equal(backend.download(backend.upload(x)), x)


def test_every_failed_allocation_is_out_of_memory_with_its_size(backend, monkeypatch):
    cl = pytest.importorskip("pyopencl")

    def full(*_args):
        raise cl.MemoryError("clCreateBuffer failed: MEM_OBJECT_ALLOCATION_FAILURE")

    monkeypatch.setattr(cl, "Buffer", full)
    raw, _ = matrix("F32", 4, 64)
    with pytest.raises(DeviceOutOfMemory, match="for attn_q") as caught:
        backend.load(raw, "F32", (4, 64), "attn_q")
    assert caught.value.nbytes == raw.nbytes
    with pytest.raises(DeviceOutOfMemory):
        backend.kv_alloc(12345, 2, 64)
    with pytest.raises(DeviceOutOfMemory):
        backend.upload(normal(777, 333))
    monkeypatch.undo()
    assert len(backend.download(backend.upload(normal(3, 3)))) == 3  # the backend lives on


def test_more_than_the_device_gives_in_one_piece_is_out_of_memory(backend):
    with pytest.raises(DeviceOutOfMemory, match="in one piece"):
        backend._alloc(1 << 50)


def test_a_device_that_disappears_is_one_clear_error(backend, monkeypatch):
    cl = pytest.importorskip("pyopencl")

    class Lost:
        def __call__(self, *_args):
            raise cl.RuntimeError("clEnqueueNDRangeKernel failed: DEVICE_NOT_AVAILABLE")

    program = backend.programs.get("rows")
    lost = type(program["add"])("add", Lost(), program["add"].threads)
    monkeypatch.setitem(program, "add", lost)
    x = backend.upload(normal(2, 8))
    with pytest.raises(BackendError, match=r"opencl:0: kernel add failed: .*DEVICE_NOT_AVAILABLE") as caught:
        backend.add(x, x)
    assert "\n" not in str(caught.value)


def test_a_kernel_that_fails_to_build_names_the_first_error(backend):
    with pytest.raises(BackendError, match=r"cannot be built: .*error: .*nonsense") as caught:
        backend._compile("__kernel void k(__global int *a) { nonsense; }", {})
    assert "\n" not in str(caught.value)


def test_a_damaged_cache_entry_is_built_again(tmp_path):
    text = "__kernel void one(__global int *a) { a[get_global_id(0)] = 1; }"
    for damage in (None, b"not a program", "binary"):
        opened = OpenCLBackend.open(opencl_device(), cache_folder=tmp_path)
        key = opened.cache.key((*opened.identity, text))
        if damage == "binary":
            opened.cache.write(key, b"whole, but not a program")  # the driver refuses it
        elif damage:
            (tmp_path / key).write_bytes(damage)
        kernel = opened._compile(text, {"one": ("pointer",)})["one"]
        array = opened.empty((4,), np.int32)
        kernel(opened._queue, (4,), (4,), array.handle)
        np.testing.assert_array_equal(opened.download(array), 1)
        assert opened.cache.read(key) not in (None, b"whole, but not a program")
        opened.close()


def test_kernel_signatures_are_read_from_the_text():
    text = "KERNEL(GROUP_SIZE)\nadd(GLOBAL const float *a, GLOBAL float *y,\n    i64 size, int n, float s) {"
    assert sources.signatures(text) == {"add": ("pointer", "pointer", "i64", "int", "float")}
