"""PoCL as a device with fp16, subgroups and integer dot products: their functions, written in plain OpenCL C.

Subgroups are of WAVE threads. `broken` names parts whose functions give wrong numbers.
"""

from __future__ import annotations

from layerlift.backends.opencl import OpenCLBackend

WAVE = 4
EVERYTHING = frozenset({"cl_khr_fp16", "cl_khr_subgroups", "cl_khr_integer_dot_product"})

FUNCTIONS = """
static float rounded_to_half(float value) {
  ushort bits;
  vstore_half_rte(value, 0, (half *)&bits);
  return vload_half(0, (const half *)&bits);
}

static float sum_of_wave(__local float *room, float value) {
  int thread = get_local_id(0), first = thread / WAVE * WAVE;
  float sum = BROKEN_SUBGROUPS;
  barrier(CLK_LOCAL_MEM_FENCE);
  room[thread] = value;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int i = 0; i < WAVE; i++) sum += room[first + i];
  barrier(CLK_LOCAL_MEM_FENCE);
  return sum;
}

static int dot_of_bytes(uint a, uint b) {
  int4 products = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
  return products.x + products.y + products.z + products.w + BROKEN_DOT;
}

#define get_max_sub_group_size() WAVE
#define sub_group_reduce_add(value) sum_of_wave(sums, value)
#define dot_4x8packed_ss_int(a, b) dot_of_bytes(a, b)
#define __builtin_amdgcn_sudot4(sign_a, a, sign_b, b, sum, clamp) (dot_of_bytes(a, b) + (sum))
#define __builtin_amdgcn_sdot4(a, b, sum, clamp) (dot_of_bytes(a, b) + (sum))
"""
HALVES = {  # there is no name for the type that a macro could take the place of
    "typedef half tile;": "typedef float tile;",
    "typedef half4 tile4;": "typedef float4 tile4;",
    "#define TO_TILE(value) ((half)(value))": "#define TO_TILE(value) (rounded_to_half(value) + BROKEN_HALVES)",
}


class EmulatedOpenCL(OpenCLBackend):
    broken: frozenset[str] = frozenset()

    def _program(self, text):
        values = {"WAVE": WAVE, "BROKEN_DOT": "dot" in self.broken}
        values |= {f"BROKEN_{part.upper()}": f"{float(part in self.broken)}f" for part in ("halves", "subgroups")}
        for real, emulated in HALVES.items():
            text = text.replace(real, emulated)
        macros = "".join(f"#define {name} {int(v) if isinstance(v, bool) else v}\n" for name, v in values.items())
        return super()._program(macros + FUNCTIONS + text)

    def _build(self, program, text):
        return super()._build(program, "")  # in OpenCL C 1.2: this PoCL has no header for 2.0
