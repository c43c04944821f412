// A CUDA grid on one CPU core: every thread a fiber with its own stack, one block after the other in any order. Takes the
// place of kernels/cuda/prelude.h and ptx.h. x86-64, GCC or Clang.
//
// Shared memory is NaN when a block starts. Threads that wait at different places for ever end the program. What it
// cannot show: races between blocks, the memory model, and programmatic dependent launch.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned short f16;
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct int3_ { int x, y, z; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }

// -- fibers --

extern "C" void switch_stack(void **save, void *load);
asm(R"(
.text
.globl switch_stack
switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace grid {

constexpr size_t STACK = 256 << 10;

struct Barrier {
  int waiting = 0;
  unsigned turn = 0;
};

struct AsyncCopy {
  void *to;
  uint4 value;
  int group;
};

// A multiplication of a warp group that its thread has started.
struct Product {
  float *sums;
  uint64_t a, b;
  bool brain, committed;
};

struct Fiber {
  u8 *stack = nullptr;
  void *at = nullptr;     // its stack pointer while it does not run
  void *fake = nullptr;   // AddressSanitizer's
  Barrier *barrier = nullptr;
  unsigned turn = 0;
  bool done = true;
  int thread = 0;
  std::vector<AsyncCopy> copies;
  int group = 0;
  std::vector<Product> products;
  bool shown = false, multiplies = false;  // what wgmma.h asks for before it multiplies
};

struct Warp {
  Barrier barrier;
  u32 slot[32][8];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Fiber *current;
inline Barrier block_barrier;
inline int alive, n_threads;
inline int3_ block, blocks;
inline void *scheduler_at, *scheduler_fake;
inline const void *scheduler_bottom;
inline size_t scheduler_size;
inline void (*body)();
inline std::vector<u8> dynamic_shared;

inline void yield() {
  Fiber *self = current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->fake, scheduler_bottom, scheduler_size);
#endif
  switch_stack(&self->at, scheduler_at);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake, &scheduler_bottom, &scheduler_size);
#endif
}

inline void main_of_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  for (;;) {
    body();
    current->done = true;
    alive--;
    yield();
  }
}

inline void resume(Fiber &fiber) {
  current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, fiber.stack, STACK);
#endif
  switch_stack(&scheduler_at, fiber.at);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

inline void wait(Barrier &barrier, int expected) {
  if (++barrier.waiting == expected) {
    barrier.waiting = 0;
    barrier.turn++;
    return;
  }
  current->barrier = &barrier;
  current->turn = barrier.turn;
  yield();
  current->barrier = nullptr;
}

inline void prepare(int threads) {
  n_threads = threads;
  warps.resize((threads + 31) / 32);
  while ((int)fibers.size() < threads) fibers.emplace_back();
  for (auto &fiber : fibers) {
    if (fiber.stack) continue;
    fiber.stack = (u8 *)aligned_alloc(4096, STACK);
    void **top = (void **)(fiber.stack + STACK) - 2;
    *top = (void *)main_of_fiber;  // six registers below it, and the stack as a call leaves it
    fiber.at = top - 6;
    memset(fiber.at, 0, 48);
  }
}

extern "C" u8 __start_block_shared[] __attribute__((weak)), __stop_block_shared[] __attribute__((weak));

__attribute__((no_sanitize("address"))) inline void poison_shared() {
  for (volatile u8 *p = __start_block_shared; p && p < __stop_block_shared; p++) *p = 0xFF;
  for (auto &byte : dynamic_shared) byte = 0xFF;
}

inline void run_block(u32 seed) {
  poison_shared();
  block_barrier.waiting = 0;
  for (auto &warp : warps) warp.barrier.waiting = 0;
  alive = n_threads;
  for (int i = 0; i < n_threads; i++) {
    fibers[i].done = false;
    fibers[i].thread = i;
    fibers[i].barrier = nullptr;
    fibers[i].copies.clear();
    fibers[i].group = 0;
    fibers[i].products.clear();
    fibers[i].shown = fibers[i].multiplies = false;
  }
  for (int first = seed % n_threads; alive > 0; first = (first + 7) % n_threads) {
    bool moved = false;
    for (int k = 0; k < n_threads; k++) {
      Fiber &fiber = fibers[(first + k) % n_threads];
      if (fiber.done || (fiber.barrier && fiber.barrier->turn == fiber.turn)) continue;
      resume(fiber);
      moved = true;
    }
    // Threads that have ended no longer count at a barrier of the block.
    if (alive > 0 && block_barrier.waiting >= alive) {
      block_barrier.waiting = 0;
      block_barrier.turn++;
      moved = true;
    }
    if (!moved) {
      fprintf(stderr, "block %d,%d: its threads wait for each other\n", block.x, block.y);
      abort();
    }
  }
  for (int i = 0; i < n_threads; i++) {
    if (!fibers[i].copies.empty() || !fibers[i].products.empty()) {
      fprintf(stderr, "block %d,%d: a thread ended with copies or products under way\n", block.x, block.y);
      abort();
    }
  }
}

// Runs body() for each thread of x · y blocks, in an order that `seed` chooses.
inline void run(int x, int y, int threads, size_t shared, u32 seed, void (*kernel)()) {
  body = kernel;
  dynamic_shared.assign(shared, 0xFF);
  prepare(threads);
  blocks = {x, y, 1};
  std::vector<int> order(x * y);
  for (int i = 0; i < x * y; i++) order[i] = i;
  for (int i = x * y - 1; i > 0; i--) {
    seed = seed * 1664525u + 1013904223u;
    std::swap(order[i], order[(seed >> 8) % (i + 1)]);
  }
  for (int i : order) {
    block = {i % x, i / x, 0};
    run_block(seed >> 4);
  }
}

inline Warp &warp() { return warps[current->thread / 32]; }

template <class V>
V shuffle(V value, int from) {
  static_assert(sizeof(V) == 4, "shuffles move words");
  Warp &own = warp();
  memcpy(&own.slot[current->thread % 32][0], &value, 4);
  wait(own.barrier, 32);
  memcpy(&value, &own.slot[from][0], 4);
  wait(own.barrier, 32);
  return value;
}

}  // namespace grid

// -- what prelude.h defines --

#define KERNEL(threads) extern "C" void
#define DEVICE static inline
#define GLOBAL
#define LOCAL
#define LOCAL_ARRAY(type, name, size) \
  static __attribute__((section("block_shared"), aligned(16))) type name[size]
#define TABLE static const
#define TABLE_AT
#define UNROLL
#define UNROLL_UNIT
#define THREAD (grid::current->thread)
#define BLOCK_X (grid::block.x)
#define BLOCK_Y (grid::block.y)
#define BLOCKS_X (grid::blocks.x)
#define BARRIER grid::wait(grid::block_barrier, grid::alive)

DEVICE float bits_to_float(u32 bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
DEVICE u32 float_to_bits(float value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}
DEVICE float half_to_float(u16 bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
DEVICE u16 float_to_half(float value) {
  _Float16 half = (_Float16)value;
  u16 bits;
  memcpy(&bits, &half, 2);
  return bits;
}
#define LOAD_HALF(p, i) half_to_float((p)[i])
#define STORE_HALF(p, i, value) ((p)[i] = float_to_half(value))
#define AS_FLOAT(bits) bits_to_float(bits)
#define AS_UINT(value) float_to_bits(value)
#define EXP expf
#define TANH tanhf
#define RSQRT(x) (1.f / sqrtf(x))
#define MAX fmaxf

// -- what ptx.h defines --

#define SHARED_BYTES(name, alignment) u8 *name = grid::dynamic_shared.data()
#define LANE (grid::current->thread % 32)
#define WARP (grid::current->thread / 32)
#define SYNC_WARP grid::wait(grid::warp().barrier, 32)
#define SHUFFLE_XOR(value, mask) grid::shuffle(value, LANE ^ (mask))
#define SHUFFLE(value, lane) grid::shuffle(value, lane)
DEVICE void wait_for_predecessors() {}
DEVICE void let_successors_start() {}
DEVICE uint4 load_weights_16(const u8 *at) { return *(const uint4 *)at; }
DEVICE uint2 load_weights_8(const u8 *at) { return *(const uint2 *)at; }
DEVICE u32 load_weights_4(const u8 *at) { return *(const u32 *)at; }
DEVICE u32 load_weights_2(const u8 *at) { return *(const u16 *)at; }
DEVICE void prefetch_16s(const u8 *at, u32 n) {  // reads the ends, so that a wrong range is found
  if (n) (void)*(volatile const u8 *)at, (void)*(volatile const u8 *)(at + 16 * (size_t)n - 1);
}
DEVICE float load_shared_by_all(const float *at) { return *at; }
DEVICE float fma_subnormal(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE u32 BYTES(u32 a, u32 b, u32 selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; i++) {
    u32 pick = selector >> (4 * i) & 15, byte = both >> (8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}
#define FLOAT_BITS(bits) bits_to_float(bits)
DEVICE int ATOMIC_ADD(int *at, int n) {
  int old = *at;
  *at += n;
  return old;
}
#define THREAD_FENCE
#define EXP2 exp2f

// A copy lands when its thread waits for it: who reads before finds what was there.
DEVICE void copy_async_16(void *to, const void *from, bool there) {
  uint4 value = there ? *(const uint4 *)from : uint4{0, 0, 0, 0};
  grid::current->copies.push_back({to, value, grid::current->group});
}
DEVICE void copies_commit() { grid::current->group++; }
template <int N>
void copies_wait() {
  auto &copies = grid::current->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group < grid::current->group - N; done++) {
    *(uint4 *)copies[done].to = copies[done].value;
  }
  copies.erase(copies.begin(), copies.begin() + done);
}

namespace grid {

template <bool TRANSPOSED>
void load_matrices(u32 (&out)[4], const void *row) {
  Warp &own = warp();
  int lane = current->thread % 32;
  if ((uintptr_t)row % 16) fprintf(stderr, "ldmatrix: a row is not aligned\n"), abort();
  memcpy(own.slot[lane], row, 16);
  wait(own.barrier, 32);
  for (int i = 0; i < 4; i++) {
    u16 pair[2];
    for (int j = 0; j < 2; j++) {
      int r = lane / 4, c = lane % 4 * 2 + j;
      if (TRANSPOSED) std::swap(r, c);
      memcpy(&pair[j], (u8 *)own.slot[8 * i + r] + 2 * c, 2);
    }
    memcpy(&out[i], pair, 4);
  }
  wait(own.barrier, 32);
}

template <bool BF16S>
double half_of(u32 word, int which) {
  u32 bits = word >> (16 * which) & 0xFFFF, wide = bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  if (BF16S) return value;
  _Float16 half;
  u16 narrow = bits;
  memcpy(&half, &narrow, 2);
  return (double)half;
}

}  // namespace grid

DEVICE void load_matrices(u32 (&out)[4], const void *row) { grid::load_matrices<false>(out, row); }
DEVICE void load_matrices_transposed(u32 (&out)[4], const void *row) { grid::load_matrices<true>(out, row); }

// By the tables of the PTX ISA, element by element; sums in double, rounded once.
template <bool BF16S>
void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b_0, u32 b_1) {
  grid::Warp &own = grid::warp();
  int lane = LANE;
  for (int i = 0; i < 4; i++) own.slot[lane][i] = a[i];
  own.slot[lane][4] = b_0;
  own.slot[lane][5] = b_1;
  grid::wait(own.barrier, 32);
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; k++) {
      int element_a = (row >= 8 ? 2 : 0) + (k >= 8 ? 4 : 0) + k % 2;  // a0 … a7
      int element_b = (k >= 8 ? 2 : 0) + k % 2;                        // b0 … b3
      u32 word_a = own.slot[row % 8 * 4 + k % 8 / 2][element_a / 2];
      u32 word_b = own.slot[column * 4 + k % 8 / 2][4 + element_b / 2];
      sum += grid::half_of<BF16S>(word_a, element_a % 2) * grid::half_of<BF16S>(word_b, element_b % 2);
    }
    c[i] = (float)sum;
  }
  grid::wait(own.barrier, 32);
}
DEVICE u32 pack_halves(float low, float high) { return float_to_half(low) | (u32)float_to_half(high) << 16; }

// -- what wgmma.h defines --

namespace grid {

// A half of a matrix in shared memory, by the bits of its descriptor: start, bytes between groups of eight rows, swizzle.
inline double wgmma_element(uint64_t descriptor, int row, int k, bool brain) {
  size_t at = ((descriptor & 0x3FFF) << 4) + row / 8 * ((descriptor >> 32 & 0x3FFF) << 4) + row % 8 * 128 + 2 * k;
  at ^= (at >> 7 & 7) << 4;
  bool fits = descriptor >> 62 == 1 && !(descriptor >> 46 & 0xFFFF & ~0xC000) && at + 2 <= dynamic_shared.size();
  if (!fits) fprintf(stderr, "wgmma: descriptor %llx, row %d\n", (unsigned long long)descriptor, row), abort();
  u16 bits;
  memcpy(&bits, &dynamic_shared[at], 2);
  return brain ? half_of<true>(bits, 0) : half_of<false>(bits, 0);
}

}  // namespace grid

typedef unsigned long long u64;
// Dynamic shared memory begins at address 0.
DEVICE u32 shared_address(const void *at) { return (const u8 *)at - grid::dynamic_shared.data(); }
DEVICE void show_to_wgmma() { grid::current->shown = true; }
DEVICE void wgmma_begin() { grid::current->multiplies = true; }

// Starts nothing: what a tile holds when it is waited for counts.
template <bool BF16S>
void start_64x128x16(float (&c)[64], uint64_t a, uint64_t b) {
  grid::Fiber &self = *grid::current;
  if (!self.shown || !self.multiplies) fprintf(stderr, "wgmma: without its fences\n"), abort();
  self.products.push_back({c, a, b, BF16S, false});
}
DEVICE void wgmma_commit() {
  for (auto &product : grid::current->products) product.committed = true;
}
DEVICE void wgmma_wait(float (&c)[64]) {
  grid::Fiber &self = *grid::current;
  for (auto &p : self.products) {
    if (!p.committed || p.sums != c) fprintf(stderr, "wgmma: not what is waited for\n"), abort();
    for (int i = 0; i < 64; i++) {
      int row = WARP % 4 * 16 + LANE / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + LANE % 4 * 2 + i % 2;
      double sum = c[i];
      for (int k = 0; k < 16; k++) sum += grid::wgmma_element(p.a, row, k, p.brain) * grid::wgmma_element(p.b, column, k, p.brain);
      c[i] = (float)sum;
    }
  }
  self.products.clear();
  self.shown = self.multiplies = false;
}
