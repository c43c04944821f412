// What the shared kernels need of a language, in OpenCL C 1.2. kernels/cuda/prelude.h says the same in CUDA C++.
// Halves pass through vload_half and vstore_half only, which need no fp16 support.

typedef uchar u8;
typedef char i8;
typedef ushort u16;
typedef uint u32;
typedef long i64;
typedef half f16;

#define KERNEL(threads) __kernel __attribute__((reqd_work_group_size(threads, 1, 1))) void
#define DEVICE static inline
#define GLOBAL __global
#define LOCAL __local
#define LOCAL_ARRAY(type, name, size) __local type name[size]
#define TABLE __constant
#define TABLE_AT __constant

#define UNROLL _Pragma("unroll")
#if COMPACT  // loops over a unit of 32 stay loops: unrolled, PoCL turns the long product's inside out (bench/LOG.md)
#define UNROLL_UNIT
#else
#define UNROLL_UNIT _Pragma("unroll")
#endif

#define THREAD ((int)get_local_id(0))
#define BLOCK_X ((int)get_group_id(0))
#define BLOCK_Y ((int)get_group_id(1))
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)

#if COMPACT  // PoCL calls vload_half as a function
DEVICE float half_to_float(u32 bits) {
  u32 magnitude = (bits & 0x7FFFu) << 13;  // an exponent too small by 112
  float value = as_float(magnitude) * 0x1p112f;
  if (magnitude >= 0x0F800000u) value = as_float(magnitude | 0x7F800000u);  // infinite, or no number
  return as_float(as_uint(value) | (bits & 0x8000u) << 16);
}
#define LOAD_HALF(p, i) half_to_float(((GLOBAL const u16 *)(p))[i])
#else
#define LOAD_HALF(p, i) vload_half(i, p)
#endif
#define STORE_HALF(p, i, value) vstore_half_rte(value, i, p)
#define AS_FLOAT(bits) as_float(bits)
#define AS_UINT(value) as_uint(value)

// Four floats side by side; vload4 and vstore4 are calls in PoCL.
#define FOUR(value) ((float4)(value))
#define FOUR_OF(a, b, c, d) ((float4)(a, b, c, d))
#define STORE_FOUR(four, out) ((out)[0] = (four).x, (out)[1] = (four).y, (out)[2] = (four).z, (out)[3] = (four).w)

// The four bytes of a word as floats; AMD's GPUs have an instruction for each unsigned one.
#define BYTES_UNSIGNED(word) convert_float4(as_uchar4(word))
#define BYTES_SIGNED(word) convert_float4(as_char4(word))

// What the tiles of long products hold.
#if HALVES
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
typedef half tile;
typedef half4 tile4;
#define TO_TILE(value) ((half)(value))
#define FROM_TILE4(four) convert_float4(four)
#define TILE_SCALE .015625f  // a 64th: activations up to 4 million do not overflow
#else
typedef float tile;
typedef float4 tile4;
#define TO_TILE(value) (value)
#define FROM_TILE4(four) (four)
#define TILE_SCALE 1.f
#endif

// Optional, where backends/opencl_proofs.py has proved it. SUBGROUPS: 1 as Khronos has them, 2 as Intel.
#if SUBGROUPS == 1
#pragma OPENCL EXTENSION cl_khr_subgroups : enable
#elif SUBGROUPS == 2
#pragma OPENCL EXTENSION cl_intel_subgroups : enable
#endif
#define SUBGROUP_SIZE ((int)get_max_sub_group_size())
#define SUBGROUP_SUM(value) sub_group_reduce_add(value)

// sum + the products of the four signed bytes of a and b. DOT: 1 Khronos, 2 and 3 AMD's from RDNA 3 on and before.
#if DOT == 1
#pragma OPENCL EXTENSION cl_khr_integer_dot_product : enable
#define DOT4(a, b, sum) (dot_4x8packed_ss_int((uint)(a), (uint)(b)) + (sum))
#elif DOT == 2
#define DOT4(a, b, sum) __builtin_amdgcn_sudot4(true, a, true, b, sum, false)
#elif DOT == 3
#define DOT4(a, b, sum) __builtin_amdgcn_sdot4(a, b, sum, false)
#endif

#define TO_NEAREST(value) convert_int_rte(value)
#define EXP exp
#define TANH tanh
#define RSQRT rsqrt
#define MAX fmax
