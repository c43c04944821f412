// What kernels/cuda/prelude.h and ptx.h define, but for the products of matrices, for the threads of grid.h.

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
