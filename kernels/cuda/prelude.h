// What the shared kernels need of a language, in CUDA C++. kernels/opencl/prelude.h says the same in OpenCL C.
// Needs no header: NVRTC compiles it as it is.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned short f16;

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE static __device__ __forceinline__
#define GLOBAL
#define LOCAL
#define LOCAL_ARRAY(type, name, size) __shared__ type name[size]
#define TABLE static __constant__
#define TABLE_AT

#define UNROLL _Pragma("unroll")
#if COMPACT  // loops over the 32 weights of a unit stay loops: CPUs gain nothing from more, and compile in half the time
#define UNROLL_UNIT
#else
#define UNROLL_UNIT _Pragma("unroll")
#endif

#define THREAD ((int)threadIdx.x)
#define BLOCK_X ((int)blockIdx.x)
#define BLOCK_Y ((int)blockIdx.y)
#define BARRIER __syncthreads()

DEVICE float half_to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE u16 float_to_half(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#define LOAD_HALF(p, i) half_to_float((p)[i])
#define STORE_HALF(p, i, value) ((p)[i] = float_to_half(value))
#define AS_FLOAT(bits) __uint_as_float(bits)
#define AS_UINT(value) __float_as_uint(value)

#define EXP expf
#define TANH tanhf
#define RSQRT rsqrtf
#define MAX fmaxf
#define INFINITY __int_as_float(0x7f800000)
