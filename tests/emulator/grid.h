// A CUDA grid on one CPU core: every thread a fiber with its own stack, one block after the other in any order. x86-64, GCC
// or Clang.
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
