// Products of unsigned quants with bytes where an instruction multiplies bytes and adds two products in 16 bits (AVX2).
//
// Inputs are rounded as in bytes.h, and a block's sum is as exact. The sums stay in 16 bits for as many vectors as cannot
// overflow: each starts at -zero times the sum of its inputs, so that only (q - zero) * x counts, and may wrap on its way.
// A K-quant's sub-scales are multiplied in as pairs are widened.
#pragma once

#include "table.h"
#include "unpack.h"

namespace layerlift::LL_ISA {

// Vectors whose products are added in 16 bits, two of each to a sum.
template <class L> constexpr int run_of() {
  constexpr int above = (1 << L::kBits) - 1 - L::kZero, most = above > L::kZero ? above : L::kZero;
  int run = 1;
  while (2 * run * most * 127 * 2 < 32768 && 2 * run <= 8 / L::kSubs) run *= 2;
  static_assert(L::kZero == 0 || most * 127 * 2 * (8 / L::kSubs) < 32768, "a sum starts at a whole part's zeros");
  return run;
}

// The sub-scales of part `s` of block `b` of 16 rows, as words, each for both of a row's pairs.
template <class L> static inline i16x32 sub_words(const uint8_t* slab, int b, int s) {
  const uint8_t* p = slab + L::kSubScales + (b * L::kSubs + s) * kGroup;
  return L::kNibbleScales ? twice_low_nibbles(p) : twice_i8(reinterpret_cast<const int8_t*>(p));
}

// The minima of part `s` of block `b`: `minimum` is the slab's.
template <class L> static inline f32x16 part_minimum(const uint8_t* slab, int b, int s, f32x16 minimum) {
  if constexpr (!L::kSuper) return minimum;
  const uint8_t* p = slab + L::kSubScales + (b * L::kSubs + s) * kGroup;
  f32x16 part = L::kNibbleScales ? load_high_nibbles(p) : load_u8_f32(p + L::kScaleBytes);
  return mul(sub(zero_f32(), minimum), part);
}

// A token's bytes of one block, or what they leave, and their zeros.
struct Lane {
  const int8_t* bytes;
  const int32_t* zero;
};

// acc = a block's quants times each of N lanes of a tile of `width` tokens. Each vector is used as soon as it is unpacked:
// all eight would not fit the registers.
template <class L, int width, int N>
[[gnu::always_inline]] static inline void add_products(const uint8_t* quants, const i16x32* sub, const Lane (&lanes)[N], i32x16 (&acc)[N]) {
  i16x32 sum[L::kSubs][N];
  int added[2] = {0, 0};
  for (int n = 0; n < N; n++) acc[n] = zero_i32();
  each_vector<L>(quants, [&](int g, u8x64 w) __attribute__((always_inline)) {
    int s = g * 4 / L::kSub;
    LL_UNROLL(4)
    for (int n = 0; n < N; n++) {
      const int8_t* four = lanes[n].bytes + g * width * 4;
      if (added[s]) sum[s][n] = dot2_us(sum[s][n], w, four);
      else if (L::kZero) sum[s][n] = dot2_us(set1_pair(lanes[n].zero + s * width), w, four);
      else sum[s][n] = mul2_us(w, four);
    }
    if (++added[s] < run_of<L>()) return;
    LL_UNROLL(4)
    for (int n = 0; n < N; n++) acc[n] = L::kSuper ? add_pairs(acc[n], sum[s][n], sub[s]) : add_pairs(acc[n], sum[s][n]);
    added[s] = 0;
  });
}

template <class L> static inline const int32_t* fine_zeros(const Input& in, const int32_t* zeros) {
  return zeros + int64_t(in.tiles) * in.width * (in.padded_columns / L::kSub);
}

// One block of an input, at its first token.
struct BlockInput {
  const int8_t *bytes, *fine;
  const int32_t *zero, *fine_zero;

  Lane coarse_lane(int t) const { return {bytes + 4 * t, zero + t}; }
  Lane fine_lane(int t) const { return {fine + 4 * t, fine_zero + t}; }
};

static inline f32x16 both(i32x16 coarse, i32x16 fine) { return fma(to_f32(coarse), set1(256.0f), to_f32(fine)); }

constexpr int kTogether = 4;  // tokens whose sums fit the registers

// part[t]: the product of one block with token t's bytes, scaled by the weights' scales alone.
template <class L, int T>
static inline void coarse_parts(const uint8_t* quants, const i16x32* sub, f32x16 scale, const BlockInput& in, f32x16* part) {
  Lane lanes[T];
  i32x16 acc[T];
  for (int t = 0; t < T; t++) lanes[t] = in.coarse_lane(t);
  add_products<L, T>(quants, sub, lanes, acc);
  for (int t = 0; t < T; t++) part[t] = mul(to_f32(acc[t]), scale);
}

// The same of a fine block: bytes, and 1/256 of what they leave.
template <class L, int T>
static inline void fine_parts(const uint8_t* quants, const i16x32* sub, f32x16 scale, const BlockInput& in, f32x16* part) {
  LL_UNROLL(1)
  for (int t = 0; t < T; t++) {
    i32x16 acc[2];
    add_products<L, T>(quants, sub, {in.coarse_lane(t), in.fine_lane(t)}, acc);
    part[t] = mul(both(acc[0], acc[1]), scale);
  }
}

// One group of 16 rows times T tokens, the weights read once: out [T][16].
template <class L, int T>
static void stream_pairs(const Matrix& m, const Input& in, const int32_t* zeros, int64_t group, float* out) {
  f32x16 y[T];
  for (int t = 0; t < T; t++) y[t] = zero_f32();
  const uint8_t *slab = m.group(group), *is_fine = in.is_fine;
  const float *x_scale = in.scale, *x_sum = L::kSubs == 1 ? in.block_sum : in.sum;
  BlockInput x{in.bytes, in.fine, zeros, fine_zeros<L>(in, zeros)};
  for (int64_t i = 0, slabs = m.padded_columns / L::kColumns; i < slabs; i++, slab += L::kSlab) {
    f32x16 scale = load_f16(reinterpret_cast<const uint16_t*>(slab)), minimum = zero_f32();
    if constexpr (L::kMin) minimum = load_f16(reinterpret_cast<const uint16_t*>(slab) + kGroup);
    for (int b = 0; b < L::kBlocks; b++) {
      const uint8_t* quants = slab + L::kQuants + b * L::kQuantBytes;
      for (int line = 0; line < L::kQuantBytes + 63; line += 64) prefetch(quants + kAhead + line);
      i16x32 sub[L::kSubs];
      if constexpr (L::kSuper)
        for (int s = 0; s < L::kSubs; s++) sub[s] = sub_words<L>(slab, b, s);
      f32x16 part[T];
      *is_fine++ ? fine_parts<L, T>(quants, sub, scale, x, part) : coarse_parts<L, T>(quants, sub, scale, x, part);
      LL_UNROLL(4)
      for (int t = 0; t < T; t++) y[t] = fma(part[t], set1(x_scale[t]), y[t]);
      if constexpr (L::kMin)
        for (int s = 0; s < L::kSubs; s++) {
          f32x16 low = part_minimum<L>(slab, b, s, minimum);
          LL_UNROLL(4)
          for (int t = 0; t < T; t++) y[t] = fma(low, set1(x_sum[s * T + t]), y[t]);
        }
      x.bytes += kBlock * T;
      x.fine += kBlock * T;
      x.zero += L::kSubs * T;
      x.fine_zero += L::kSubs * T;
      x_scale += T;
      x_sum += L::kSubs * T;
    }
  }
  for (int t = 0; t < T; t++) store(out + t * kGroup, y[t]);
}

// ---- many tokens ----

// A band's panel: bytes, sub-scales as words, scales and minima.
template <class L> struct PairPanel {
  alignas(64) uint8_t bytes[kPanelBlocks][8][2][64];
  alignas(64) int16_t sub[kPanelBlocks][L::kSubs][2][32];
  alignas(64) float scale[kPanelBlocks][2][kGroup];
  alignas(64) float minimum[kPanelBlocks][L::kSubs][2][kGroup];
};

static_assert(sizeof(PairPanel<Q2_K>) <= kPanelScratch, "the driver gives a panel so much");

template <class L> static void unpack_pairs(const Matrix& m, int64_t band, int64_t first, int blocks, PairPanel<L>& to) {
  for (int half = 0; half < 2; half++) {
    const uint8_t* base = m.group(2 * band + half);
    for (int i = 0; i < blocks; i++) {
      const uint8_t* slab = base + (first + i) / L::kBlocks * L::kSlab;
      int b = int((first + i) % L::kBlocks);
      each_vector<L>(slab + L::kQuants + b * L::kQuantBytes, [&](int g, u8x64 w) { store_u8(to.bytes[i][g][half], w); });
      store(to.scale[i][half], load_f16(reinterpret_cast<const uint16_t*>(slab)));
      for (int s = 0; s < L::kSubs; s++) {
        if constexpr (L::kSuper) store_i16(to.sub[i][s][half], sub_words<L>(slab, b, s));
        if constexpr (L::kMin)
          store(to.minimum[i][s][half],
                part_minimum<L>(slab, b, s, load_f16(reinterpret_cast<const uint16_t*>(slab) + kGroup)));
      }
    }
  }
}

// acc[half][column] = one block of a panel times `width` columns of a tile of the input.
template <class L, int width>
static inline void tile_pairs(const PairPanel<L>& panel, int i, const int8_t* x, const int32_t* zero, i32x16 (&acc)[2][width]) {
  for (int c = 0; c < width; c++) acc[0][c] = acc[1][c] = zero_i32();
  LL_UNROLL(1)
  for (int run = 0; run < 8; run += run_of<L>()) {
    int s = run * 4 / L::kSub, end = run + run_of<L>();
    i16x32 sum[2][width];
    for (int c = 0; c < width; c++) sum[0][c] = sum[1][c] = L::kZero ? set1_pair(zero + s * width + c) : zero_i16();
    asm("" : "+r"(end));  // keeps the loop a loop: unrolled, GCC 12 runs out of registers and moves sums through memory
    for (int g = run; g < end; g++, x += width * 4) {
      u8x64 w0 = load_u8(panel.bytes[i][g][0]), w1 = load_u8(panel.bytes[i][g][1]);
      for (int c = 0; c < width; c++) {
        sum[0][c] = dot2_us(sum[0][c], w0, x + c * 4);
        sum[1][c] = dot2_us(sum[1][c], w1, x + c * 4);
      }
    }
    for (int half = 0; half < 2; half++)
      for (int c = 0; c < width; c++)
        acc[half][c] = L::kSuper ? add_pairs(acc[half][c], sum[half][c], load_i16(panel.sub[i][s][half]))
                                 : add_pairs(acc[half][c], sum[half][c]);
  }
}

// One panel times one tile of the input: y [width][32] += .
template <class L, int width>
static void tile_product_pairs(const PairPanel<L>& panel, const Input& in, const int32_t* zeros, int64_t first, int blocks,
                               int tile, bool is_first, float* y) {
  int64_t at = tile * (in.padded_columns / kBlock) + first;
  const int8_t *bytes = in.bytes + at * kBlock * width, *fine = in.fine + at * kBlock * width;
  const int32_t *zero = zeros + at * L::kSubs * width, *fine_zero = fine_zeros<L>(in, zeros) + at * L::kSubs * width;
  const float *x_scale = in.scale + at * width, *x_sum = (L::kSubs == 1 ? in.block_sum : in.sum) + at * L::kSubs * width;
  const uint8_t* is_fine = in.is_fine + at;
  f32x16 total[2][width];
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) total[half][c] = is_first ? zero_f32() : load(y + c * kBand + half * kGroup);
  for (int i = 0; i < blocks; i++) {
    i32x16 acc[2][width], rest[2][width];
    tile_pairs<L, width>(panel, i, bytes, zero, acc);
    if (is_fine[i]) tile_pairs<L, width>(panel, i, fine, fine_zero, rest);
    for (int half = 0; half < 2; half++) {
      f32x16 scale = load(panel.scale[i][half]);
      for (int c = 0; c < width; c++) {
        f32x16 part = is_fine[i] ? both(acc[half][c], rest[half][c]) : to_f32(acc[half][c]);
        total[half][c] = fma(mul(part, scale), set1(x_scale[c]), total[half][c]);
      }
      if constexpr (L::kMin)
        for (int s = 0; s < L::kSubs; s++) {
          f32x16 minimum = load(panel.minimum[i][s][half]);
          for (int c = 0; c < width; c++) total[half][c] = fma(minimum, set1(x_sum[s * width + c]), total[half][c]);
        }
    }
    bytes += kBlock * width;
    fine += kBlock * width;
    zero += L::kSubs * width;
    fine_zero += L::kSubs * width;
    x_scale += width;
    x_sum += L::kSubs * width;
  }
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) store(y + c * kBand + half * kGroup, total[half][c]);
}

template <class L>
static void panel_pairs(const Matrix& m, const Input& in, const int32_t* zeros, int64_t band, int tile_begin, int tile_end,
                        uint8_t* scratch, float* out) {
  PairPanel<L>& unpacked = *reinterpret_cast<PairPanel<L>*>(scratch);
  each_panel<kPanelBlocks>(
      in, tile_begin, tile_end, out,
      [&](int64_t first, int blocks) { unpack_pairs<L>(m, band, first, blocks, unpacked); },
      [&](int tile, int64_t first, int blocks, float* y) {
        tile_product_pairs<L, kTileBytes>(unpacked, in, zeros, first, blocks, tile, first == 0, y);
      });
}

}  // namespace layerlift::LL_ISA
