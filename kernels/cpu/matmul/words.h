// Products of signed quants in 16-bit words, where an instruction set has no dot product of signed bytes: byte products
// would have to be widened as often as they are made, and words need no second pass for fine blocks.
//
// y[t] = sum over blocks of scale * x_scale * (w . x): weights as words, a K-quant's sub-scales multiplied in; inputs
// rounded to 1/16383 of each 32 values' maximum (bound in opcases.py). Exact 32-bit sums within a block:
// 32 * 16383 * 4096 < 2^31. f32 across blocks.
#pragma once

#include "table.h"
#include "unpack.h"

namespace layerlift::LL_ISA {

constexpr int kWordBlocks = 8;  // of a panel: 256 columns, 16 KiB of words

// Calls use(p, w) for the 16 vectors of block `b` of a slab: two columns of 16 rows, as Input::words has them, with the
// sub-scales multiplied in.
template <class L, class Use> [[gnu::always_inline]] static inline void each_words(const uint8_t* slab, int b, Use use) {
  static_assert(L::kSigned && !L::kMin && L::kSubs == 1);
  i16x32 sub;
  if constexpr (L::kSuper) sub = twice_i8(reinterpret_cast<const int8_t*>(slab) + L::kSubScales + b * kGroup);
  each_vector<L>(slab + L::kQuants + b * L::kQuantBytes, [&](int g, u8x64 w) __attribute__((always_inline)) {
    i16x32 even = even_words(w), odd = odd_words(w);
    use(2 * g, L::kSuper ? mul(even, sub) : even);
    use(2 * g + 1, L::kSuper ? mul(odd, sub) : odd);
  });
}

// One group of 16 rows times T tokens, the weights read once: out [T][16].
template <class L, int T>
static void stream_words(const Matrix& m, const Input& in, const int32_t*, int64_t group, float* out) {
  f32x16 y[T];
  for (int t = 0; t < T; t++) y[t] = zero_f32();
  const uint8_t* slab = m.group(group);
  const int16_t* x = in.words;
  const float* x_scale = in.scale;
  for (int64_t i = 0, slabs = m.padded_columns / L::kColumns; i < slabs; i++, slab += L::kSlab) {
    f32x16 scale = load_f16(reinterpret_cast<const uint16_t*>(slab));
    for (int b = 0; b < L::kBlocks; b++, x += kBlock * T, x_scale += T) {
      for (int line = 0; line < L::kQuantBytes + 63; line += 64) prefetch(slab + L::kQuants + b * L::kQuantBytes + kAhead + line);
      i32x16 acc[T];
      for (int t = 0; t < T; t++) acc[t] = zero_i32();
      each_words<L>(slab, b, [&](int p, i16x32 w) __attribute__((always_inline)) {
        LL_UNROLL(8)
        for (int t = 0; t < T; t++) acc[t] = dot2_words(acc[t], w, x + 2 * (p * T + t));
      });
      LL_UNROLL(8)
      for (int t = 0; t < T; t++) y[t] = fma(mul(to_f32(acc[t]), scale), set1(x_scale[t]), y[t]);
    }
  }
  for (int t = 0; t < T; t++) store(out + t * kGroup, y[t]);
}

// ---- many tokens ----

// Words and scales of a band's panel.
struct WordPanel {
  alignas(64) int16_t words[kWordBlocks][16][2][32];
  alignas(64) float scale[kWordBlocks][2][kGroup];
};

static_assert(sizeof(WordPanel) <= kPanelScratch, "the driver gives a panel so much");

template <class L> static void unpack_words(const Matrix& m, int64_t band, int64_t first, int blocks, WordPanel& to) {
  for (int half = 0; half < 2; half++) {
    const uint8_t* base = m.group(2 * band + half);
    for (int i = 0; i < blocks; i++) {
      const uint8_t* slab = base + (first + i) / L::kBlocks * L::kSlab;
      store(to.scale[i][half], load_f16(reinterpret_cast<const uint16_t*>(slab)));
      each_words<L>(slab, int((first + i) % L::kBlocks), [&](int p, i16x32 w) { store_i16(to.words[i][p][half], w); });
    }
  }
}

// One panel times one tile of the input: y [width][32] += .
template <int width>
static void tile_words(const WordPanel& panel, const int16_t* x, const float* x_scale, int blocks, bool is_first, float* y) {
  f32x16 total[2][width];
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) total[half][c] = is_first ? zero_f32() : load(y + c * kBand + half * kGroup);
  for (int i = 0; i < blocks; i++, x_scale += width) {
    i32x16 acc[2][width];
    for (int c = 0; c < width; c++) acc[0][c] = acc[1][c] = zero_i32();
    LL_UNROLL(1)
    for (int p = 0; p < 16; p++, x += 2 * width) {
      i16x32 w0 = load_i16(panel.words[i][p][0]), w1 = load_i16(panel.words[i][p][1]);
      LL_UNROLL(8)
      for (int c = 0; c < width; c++) {
        acc[0][c] = dot2_words(acc[0][c], w0, x + 2 * c);
        acc[1][c] = dot2_words(acc[1][c], w1, x + 2 * c);
      }
    }
    f32x16 d0 = load(panel.scale[i][0]), d1 = load(panel.scale[i][1]);
    LL_UNROLL(8)
    for (int c = 0; c < width; c++) {
      f32x16 d = set1(x_scale[c]);
      total[0][c] = fma(mul(to_f32(acc[0][c]), d0), d, total[0][c]);
      total[1][c] = fma(mul(to_f32(acc[1][c]), d1), d, total[1][c]);
    }
  }
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) store(y + c * kBand + half * kGroup, total[half][c]);
}

template <class L>
static void panel_words(const Matrix& m, const Input& in, const int32_t*, int64_t band, int tile_begin, int tile_end,
                        uint8_t* scratch, float* out) {
  WordPanel& unpacked = *reinterpret_cast<WordPanel*>(scratch);
  each_panel<kWordBlocks>(
      in, tile_begin, tile_end, out,
      [&](int64_t first, int blocks) { unpack_words<L>(m, band, first, blocks, unpacked); },
      [&](int tile, int64_t first, int blocks, float* y) {
        int64_t at = (tile * (in.padded_columns / kBlock) + first) * kTileBytes;
        tile_words<kTileBytes>(unpacked, in.words + at * kBlock, in.scale + at, blocks, first == 0, y);
      });
}

}  // namespace layerlift::LL_ISA
