// Products of quantised weights with inputs in bytes: y[t] = sum over blocks of scale * (q - zero) . x + minimum * sum(x).
//
// Exact 32-bit sums within a block, f32 across blocks. The input is rounded: to 8 bits of each 32 values' maximum, or
// to 16 where the block is fine (error 2^-16 of the maximum, below that of a bfloat16 input); bounds in opcases.py.
#pragma once

#include "table.h"
#include "unpack.h"

namespace layerlift::LL_ISA {

template <class L> static inline i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* a) {
  return L::kSigned && kSignedProducts ? dot4_ss(acc, w, a) : dot4_us(acc, w, a);
}

template <class L, int width> static inline i32x16 half_block(const u8x64* w, int first, int count, const int8_t* a, i32x16 acc) {
  LL_UNROLL(8)
  for (int g = first; g < first + count; g++) acc = dot4<L>(acc, w[g], a + g * width * 4);
  return acc;
}

// The product of one block with one token's bytes, scaled by the weights' scales alone.
template <class L, int width>
static inline f32x16 block_product(const u8x64* w, const f32x16* scale, const int8_t* coarse, const int8_t* fine, bool is_fine,
                                   const int32_t* zeros) {
  constexpr int kVectors = 8 / L::kSubs;
  f32x16 sum = zero_f32();
  LL_UNROLL(2)
  for (int s = 0; s < L::kSubs; s++) {
    i32x16 acc = zeros ? set1_i32(zeros[s * width]) : zero_i32();
    if (is_fine) {
      i32x16 high = half_block<L, width>(w, s * kVectors, kVectors, coarse, zero_i32());
      acc = half_block<L, width>(w, s * kVectors, kVectors, fine, acc);
      acc = add(acc, shl<8>(high));
    } else {
      acc = half_block<L, width>(w, s * kVectors, kVectors, coarse, acc);
    }
    sum = s ? fma(to_f32(acc), scale[s], sum) : mul(to_f32(acc), scale[s]);
  }
  return sum;
}


// minimum * sum(x) of one token
template <class L, int width> static inline f32x16 add_minimum(f32x16 y, const f32x16* minimum, const float* sum) {
  if constexpr (L::kMin) {
    for (int s = 0; s < L::kSubs; s++) y = fma(minimum[s], set1(sum[s * width]), y);
  }
  return y;
}

// part[t]: the product of one block with token t's bytes, scaled by the weights' scales alone.
template <class L, int T>
static inline void block_products(const uint8_t* quants, const f32x16* scale, const int8_t* coarse, const int8_t* fine, bool is_fine,
                                  const int32_t* zeros, f32x16* part) {
  constexpr bool has_zero = zero_of<L>() != 0;
  u8x64 w[8];
  unpack<L>(quants, w);
  LL_UNROLL(8)
  for (int t = 0; t < T; t++)
    part[t] = block_product<L, T>(w, scale, coarse + 4 * t, fine + 4 * t, is_fine, has_zero ? zeros + t : nullptr);
}

// One group of 16 rows times T tokens, the weights read once: out [T][16].
template <class L, int T>
static void stream(const Matrix& m, const Input& in, const int32_t* zeros, int64_t group, float* out) {
  f32x16 y[T];
  for (int t = 0; t < T; t++) y[t] = zero_f32();
  const uint8_t* slab = m.group(group);
  const int8_t *coarse = in.bytes, *fine = in.fine;
  const uint8_t* is_fine = in.is_fine;
  const float *x_scale = in.scale, *x_sum = L::kSubs == 1 ? in.block_sum : in.sum;
  int64_t slabs = m.padded_columns / L::kColumns;
  for (int64_t i = 0; i < slabs; i++, slab += L::kSlab) {
    for (int b = 0; b < L::kBlocks; b++) {
      const uint8_t* quants = slab + L::kQuants + b * L::kQuantBytes;
      for (int line = 0; line < L::kQuantBytes + 63; line += 64) prefetch(quants + kAhead + line);
      f32x16 scale[L::kSubs], minimum[L::kSubs], part[T];
      scales<L>(slab, b, scale, minimum);
      block_products<L, T>(quants, scale, coarse, fine, *is_fine, zeros, part);
      LL_UNROLL(8)
      for (int t = 0; t < T; t++) {
        y[t] = fma(part[t], set1(x_scale[t]), y[t]);
        y[t] = add_minimum<L, T>(y[t], minimum, x_sum + t);
      }
      coarse += kBlock * T;
      fine += kBlock * T;
      is_fine++;
      x_scale += T;
      x_sum += L::kSubs * T;
      if (zero_of<L>()) zeros += L::kSubs * T;
    }
  }
  for (int t = 0; t < T; t++) store(out + t * kGroup, y[t]);
}

// ---- many tokens: a panel of a band is unpacked once, then multiplied with every tile of the input ----

// Bytes and scales of a band's panel.
template <class L> struct Unpacked {
  alignas(64) uint8_t bytes[kPanelBlocks][8][2][64];
  alignas(64) float scale[kPanelBlocks][L::kSubs][2][kGroup];
  alignas(64) float minimum[kPanelBlocks][L::kSubs][2][kGroup];
};

#ifdef LL_MATRICES
// Vectors 2i and 2i + 1 hold eight columns: of rows 0 to 7, and of rows 8 to 15.
static inline void arrange(u8x64* w) {
  for (int g = 0; g < 8; g += 2) join_columns(w[g], w[g + 1], w[g], w[g + 1]);
}
#else
static inline void arrange(u8x64*) {}
#endif

template <class L> static void unpack_panel(const Matrix& m, int64_t band, int64_t first, int blocks, Unpacked<L>& to) {
  for (int half = 0; half < 2; half++) {
    const uint8_t* base = m.group(2 * band + half);
    for (int i = 0; i < blocks; i++) {
      const uint8_t* slab = base + (first + i) / L::kBlocks * L::kSlab;
      int b = int((first + i) % L::kBlocks);
      u8x64 w[8];
      f32x16 scale[L::kSubs], minimum[L::kSubs];
      unpack<L>(slab + L::kQuants + b * L::kQuantBytes, w);
      scales<L>(slab, b, scale, minimum);
      arrange(w);
      for (int g = 0; g < 8; g++) store_u8(to.bytes[i][g][half], w[g]);
      for (int s = 0; s < L::kSubs; s++) {
        store(to.scale[i][s][half], scale[s]);
        if (L::kMin) store(to.minimum[i][s][half], minimum[s]);
      }
    }
  }
}

// acc[half][column] += bytes of `count` vectors from w on, times the input tile's.
#ifdef LL_MATRICES
template <class L, int width>
static inline void tile_dots(const uint8_t (*w)[2][64], int count, const int8_t* a, i32x16 (&acc)[2][width]) {
  for (int half = 0; half < 2; half++) {
    i32x16x2 sums[width / 2] = {};
    const int8_t* x = a;
    for (int g = 0; g < count; g += 2, x += width * 8) {
      u8x64 low = load_u8(w[g][half]), high = load_u8(w[g + 1][half]);
      for (int c = 0; c < width; c += 2) multiply(sums[c / 2], low, high, two_tokens(x + 4 * c, x + 4 * (width + c)));
    }
    for (int c = 0; c < width; c += 2) {
      acc[half][c] = add(acc[half][c], first_token(sums[c / 2]));
      acc[half][c + 1] = add(acc[half][c + 1], second_token(sums[c / 2]));
    }
  }
}
#else
// A true loop: unrolled, GCC 12 runs out of registers and moves sums through memory.
template <class L, int width>
static inline void tile_dots(const uint8_t (*w)[2][64], int count, const int8_t* a, i32x16 (&acc)[2][width]) {
  LL_UNROLL(1)
  for (int g = 0; g < count; g++, a += width * 4) {
    u8x64 w0 = load_u8(w[g][0]), w1 = load_u8(w[g][1]);
    LL_UNROLL(16)
    for (int c = 0; c < width; c++) {
      acc[0][c] = dot4<L>(acc[0][c], w0, a + c * 4);
      acc[1][c] = dot4<L>(acc[1][c], w1, a + c * 4);
    }
  }
}
#endif

// One panel times one tile of the input: y [width][32] += .
template <class L, int width>
static void tile_product(const Unpacked<L>& panel, const Input& in, const int32_t* zeros, int64_t first, int blocks, int tile,
                         bool is_first, float* y) {
  constexpr bool has_zero = zero_of<L>() != 0;
  constexpr int kVectors = 8 / L::kSubs;
  int64_t all = in.padded_columns / kBlock, at = tile * all + first;
  const int8_t *coarse = in.bytes + at * kBlock * width, *fine = in.fine + at * kBlock * width;
  const float *x_scale = in.scale + at * width, *x_sum = (L::kSubs == 1 ? in.block_sum : in.sum) + at * L::kSubs * width;
  const uint8_t* is_fine = in.is_fine + at;
  const int32_t* zero = has_zero ? zeros + at * L::kSubs * width : nullptr;
  f32x16 total[2][width];
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) total[half][c] = is_first ? zero_f32() : load(y + c * kBand + half * kGroup);
  for (int i = 0; i < blocks; i++) {
    LL_UNROLL(1)
    for (int s = 0; s < L::kSubs; s++) {
      const uint8_t(*w)[2][64] = panel.bytes[i] + s * kVectors;
      const int8_t* a = coarse + s * kVectors * width * 4;
      i32x16 acc[2][width];
      LL_UNROLL(16)
      for (int c = 0; c < width; c++)
        acc[0][c] = acc[1][c] = has_zero && !is_fine[i] ? set1_i32(zero[s * width + c]) : zero_i32();
      tile_dots<L, width>(w, kVectors, a, acc);
      if (is_fine[i]) {
        LL_UNROLL(16)
        for (int c = 0; c < width; c++) {
          i32x16 z = has_zero ? set1_i32(zero[s * width + c]) : zero_i32();
          acc[0][c] = add(shl<8>(acc[0][c]), z);
          acc[1][c] = add(shl<8>(acc[1][c]), z);
        }
        tile_dots<L, width>(w, kVectors, a + (fine - coarse), acc);
      }
      f32x16 d0 = load(panel.scale[i][s][0]), d1 = load(panel.scale[i][s][1]);
      LL_UNROLL(16)
      for (int c = 0; c < width; c++) {
        f32x16 d = set1(x_scale[c]);
        total[0][c] = fma(mul(to_f32(acc[0][c]), d0), d, total[0][c]);
        total[1][c] = fma(mul(to_f32(acc[1][c]), d1), d, total[1][c]);
      }
      if constexpr (L::kMin) {
        f32x16 m0 = load(panel.minimum[i][s][0]), m1 = load(panel.minimum[i][s][1]);
        LL_UNROLL(16)
        for (int c = 0; c < width; c++) {
          f32x16 d = set1(x_sum[s * width + c]);
          total[0][c] = fma(m0, d, total[0][c]);
          total[1][c] = fma(m1, d, total[1][c]);
        }
      }
    }
    coarse += kBlock * width;
    fine += kBlock * width;
    x_scale += width;
    x_sum += L::kSubs * width;
    if (has_zero) zero += L::kSubs * width;
  }
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) store(y + c * kBand + half * kGroup, total[half][c]);
}

static_assert(sizeof(Unpacked<Q2_K>) <= kPanelScratch, "the driver gives a panel so much");

template <class L>
static void panel(const Matrix& m, const Input& in, const int32_t* zeros, int64_t band, int tile_begin, int tile_end,
                  uint8_t* scratch, float* out) {
  Unpacked<L>& unpacked = *reinterpret_cast<Unpacked<L>*>(scratch);
  each_panel<kPanelBlocks>(
      in, tile_begin, tile_end, out,
      [&](int64_t first, int blocks) { unpack_panel<L>(m, band, first, blocks, unpacked); },
      [&](int tile, int64_t first, int blocks, float* y) {
        tile_product<L, kTileBytes>(unpacked, in, zeros, first, blocks, tile, first == 0, y);
      });
}

}  // namespace layerlift::LL_ISA
