// The instructions that CUDA C++ has no name for, and what depends on the architecture. tests/emulator/cuda.h says the
// same in plain C++. Loads of weights and the waits are volatile: the compiler keeps them in the order they stand in.

#ifdef BLOCKS_AT_ONCE  // blocks that a multiprocessor must hold: bounds the registers
#undef KERNEL
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, BLOCKS_AT_ONCE)
#endif
#define SHARED_BYTES(name) extern __shared__ __align__(16) u8 name[]
#define BLOCKS_X ((int)gridDim.x)
#define LANE ((int)threadIdx.x & 31)
#define WARP ((int)threadIdx.x >> 5)
#define SYNC_WARP __syncwarp()
#define SHUFFLE_XOR(value, mask) __shfl_xor_sync(0xFFFFFFFFu, value, mask)
#define SHUFFLE(value, lane) __shfl_sync(0xFFFFFFFFu, value, lane)

// -- programmatic dependent launch (from sm_90; before that a kernel starts when the one before it is done) --

// What kernels before this one wrote may be read from here on, and memory they read may be written.
DEVICE void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start as soon as there is room for it.
DEVICE void let_successors_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// -- loads --

DEVICE uint4 load_weights_16(const u8 *at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

DEVICE uint2 load_weights_8(const u8 *at) {
  uint2 v;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
  return v;
}

DEVICE u32 load_weights_4(const u8 *at) {
  u32 v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(at));
  return v;
}

DEVICE u32 load_weights_2(const u8 *at) {
  u16 v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(at));
  return v;
}

// What another block of this launch wrote: past the first cache, which may hold what was there before.
DEVICE float load_shared_by_all(const float *at) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
  return v;
}

// Brings [at, at + 16 n) towards the L2 cache; at is a multiple of 16.
DEVICE void prefetch_16s(const u8 *at, u32 n) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(16 * n) : "memory");
#else
  for (u32 i = 0; i < n; i += 8) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + 16 * i));
#endif
}

// -- arithmetic --

// Never flushes subnormal numbers to zero, whatever the compiler was told: matvec.h computes with them.
DEVICE float fma_subnormal(float a, float b, float c) {
  float d;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

#define BYTES(a, b, selector) __byte_perm(a, b, selector)
#define EXP2 exp2f
#define FLOAT_BITS(bits) __uint_as_float(bits)
#define ATOMIC_ADD(at, n) atomicAdd(at, n)
#define THREAD_FENCE __threadfence()
