// The instructions that CUDA C++ has no name for, and what depends on the architecture. tests/emulator/ says the
// same in plain C++. Loads of weights and the waits are volatile: the compiler keeps them in the order they stand in.

#ifdef BLOCKS_AT_ONCE  // blocks that a multiprocessor must hold: bounds the registers
#undef KERNEL
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, BLOCKS_AT_ONCE)
#endif
#define SHARED_BYTES(name, alignment) extern __shared__ __align__(alignment) u8 name[]
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

// -- tensor cores, and what feeds them --

DEVICE u32 shared_address(const void *at) {
  u32 address;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(at));
  return address;
}

// Starts a copy of 16 bytes to shared memory; zeros instead where `there` is false. Before sm_80 it is done at once.
DEVICE void copy_async_16(void *to, const void *from, bool there) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
#else
  *(uint4 *)to = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
#endif
}

DEVICE void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last `N` groups.
template <int N>
DEVICE void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four matrices of 8 x 8 halves: lanes 8 i … 8 i + 7 say where the rows of matrix i begin, and out[i] has of it, for this
// lane, row LANE / 4, columns LANE % 4 * 2 and the next (transposed: the same of the transposed matrix).
DEVICE void load_matrices(u32 (&out)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

DEVICE void load_matrices_transposed(u32 (&out)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// c [16, 8] += a [16, 16] @ b [16, 8], halves (BF16S: bf16) summed in f32. With g = LANE / 4 and t = LANE % 4, a lane has
// a[0], a[1]: rows g and g + 8, columns 2 t, 2 t + 1; a[2], a[3]: the same, eight columns on; b_0, b_1: rows 2 t, 2 t + 1
// and eight on, column g; c: row g, columns 2 t, 2 t + 1, then row g + 8 (PTX ISA, "Matrix fragments for mma.m16n8k16").
template <bool BF16S>
DEVICE void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b_0, u32 b_1) {
#if __CUDA_ARCH__ >= 800
  if (BF16S) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_0), "r"(b_1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_0), "r"(b_1));
  }
#else
  static_assert(!BF16S, "bf16 needs sm_80");
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b_0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b_1));
#endif
}

// Two halves in a word, the first one low.
DEVICE u32 pack_halves(float low, float high) {
  u32 both;
  asm("{ .reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }"
      : "=r"(both)
      : "f"(low), "f"(high));
  return both;
}
