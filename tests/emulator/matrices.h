// Products of matrices by a warp and by a warp group, element by element: what ptx.h and wgmma.h define of them.

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
