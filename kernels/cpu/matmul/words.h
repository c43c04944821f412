// Products of signed quants with many tokens in 16-bit words, where an instruction set has no dot product of signed bytes:
// byte products would have to be widened as often as they are made, and words need no second pass for fine blocks.
//
// y[t] = sum over blocks of scale * x_scale * (w . x): weights as words, a K-quant's sub-scales multiplied in; inputs
// rounded to 1/16383 of each 32 values' maximum (bound in opcases.py). Exact 32-bit sums within a block:
// 32 * 16383 * 4096 < 2^31. f32 across blocks.
#pragma once

#include "unpack.h"
#include "table.h"

namespace layerlift::LL_ISA {

constexpr int kWordBlocks = 8;  // of a panel: 256 columns, 16 KiB of words

// Words and scales of a band's panel: a vector is two neighbouring columns of 16 rows.
struct WordPanel {
  alignas(64) int16_t words[kWordBlocks][16][2][32];
  alignas(64) float scale[kWordBlocks][2][kGroup];
};

static_assert(sizeof(WordPanel) <= kPanelScratch, "the driver gives a panel so much");

template <class L> static void unpack_words(const Matrix& m, int64_t band, int64_t first, int blocks, WordPanel& to) {
  static_assert(L::kSigned && !L::kMin);
  for (int half = 0; half < 2; half++) {
    const uint8_t* base = m.group(2 * band + half);
    for (int i = 0; i < blocks; i++) {
      const uint8_t* slab = base + (first + i) / L::kBlocks * L::kSlab;
      int b = int((first + i) % L::kBlocks);
      i16x32 sub[L::kSubs];
      if constexpr (L::kSuper)
        for (int s = 0; s < L::kSubs; s++)
          sub[s] = twice_i8(reinterpret_cast<const int8_t*>(slab) + L::kSubScales + (b * L::kSubs + s) * kGroup);
      store(to.scale[i][half], load_f16(reinterpret_cast<const uint16_t*>(slab)));
      each_vector<L>(slab + L::kQuants + b * L::kQuantBytes, [&](int g, u8x64 w) {
        i16x32 pair[2];
        widen_pairs(w, pair[0], pair[1]);
        for (int j = 0; j < 2; j++) {
          if constexpr (zero_of<L>() != 0) pair[j] = sub_i16(pair[j], zero_of<L>());
          if constexpr (L::kSuper) pair[j] = mul(pair[j], sub[g * 4 / L::kSub]);
          store_i16(to.words[i][2 * g + j][half], pair[j]);
        }
      });
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
