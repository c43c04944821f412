// Makes the input of products: rows of x, RMS-normed where asked, as bytes with scales or as floats, tile by tile.
//
// A block of 32 values is rounded to bytes with scale max|x| / 127; what that leaves is rounded to "fine" bytes of
// 1/256 of it. bytes and fine bytes together are x within 2^-16 of the block's maximum.
#pragma once

#include "../simd/reduce.h"
#include "table.h"

namespace layerlift::LL_ISA {

// Token `token` of the call, normed and padded with zeros: x itself, or row `place` of args.row.
static inline const float* input_row(const PrepareArgs& args, int64_t padded, int64_t token, int place) {
  const float* x = args.x + token * args.stride;
  if (!args.norm && args.columns == padded) return x;
  float* row = args.row + place * padded;
  float factor = args.norm ? inverse_rms(x, args.columns, args.eps) : 1.0f;
  for (int64_t i = 0; i < args.columns; i += 16) {
    int n = args.columns - i < 16 ? int(args.columns - i) : 16;
    f32x16 v = load_n(x + i, n);
    if (args.norm) v = mul(mul(v, set1(factor)), load_n(args.norm + i, n));
    store(row + i, v);
  }
  for (int64_t i = (args.columns + 15) / 16 * 16; i < padded; i += 16) store(row + i, zero_f32());
  return row;
}

constexpr int kMostWord = 16383;  // of a rounded input's words, words.h

constexpr int kBatch = 8;  // blocks rounded together: their 16 halves' maxima and sums are taken at once

// Up to 8 blocks of a row as 16 vectors, the rest zeros.
static inline void load_batch(const float* x, int count, f32x16* v) {
  for (int i = 0; i < 2 * kBatch; i++) v[i] = i < 2 * count ? load(x + 16 * i) : zero_f32();
}

// max|x| of each block of a row.
static inline void highest_of_blocks(const float* x, int64_t blocks, float* highest) {
  for (int64_t b = 0; b < blocks; b += kBatch) {
    int count = blocks - b < kBatch ? int(blocks - b) : kBatch;
    f32x16 v[2 * kBatch];
    load_batch(x + b * kBlock, count, v);
    for (int i = 0; i < 2 * kBatch; i++) v[i] = abs(v[i]);
    float halves[2 * kBatch];
    store(halves, reduce16<Max>(v));
    for (int i = 0; i < count; i++) highest[b + i] = halves[2 * i] > halves[2 * i + 1] ? halves[2 * i] : halves[2 * i + 1];
  }
}

// Bytes of blocks `first`.. of one token into its place in the tile.
static inline void place_bytes(const int8_t* bytes, int count, int width, int8_t* to) {
  for (int g = 0; g < count * 8; g++) __builtin_memcpy(to + int64_t(g) * width * 4, bytes + 4 * g, 4);
}

// -128 is left out: its negative is no signed byte, and signed products of AVX2 need that.
static inline i32x16 fine_bytes(f32x16 rest) {
  return round_i32(max(min(mul(rest, set1(256.0f)), set1(127.0f)), set1(-127.0f)));
}

// Rounds `count` blocks of one token, the tile's place `j`. Blocks that are fine for other tokens of the tile and not for
// this one have fine bytes of zero: what a token comes to does not depend on its neighbours.
static inline void prepare_batch(const float* x, const float* highest, const uint8_t* own_fine, const Input& in, int64_t at,
                                 int count, int j) {
  int width = in.width;
  f32x16 v[2 * kBatch], sums[2 * kBatch];
  alignas(64) int8_t coarse[kBatch * kBlock], rest[kBatch * kBlock];
  load_batch(x, count, v);
  f32x16 bad = zero_f32();  // an infinity or NaN in x must come out as NaN: times 0 it is one
  bool any_fine = false;
  for (int i = 0; i < count; i++) any_fine |= in.is_fine[at + i] != 0;
  for (int i = 0; i < 2 * kBatch; i++) {
    float most = i < 2 * count ? highest[i / 2] : 0.0f;
    f32x16 scaled = mul(v[i], set1(most > 1e-30f ? 127.0f / most : 0.0f));
    i32x16 q = round_i32(scaled);
    store_i8(coarse + 16 * i, q);
    sums[i] = to_f32(q);
    bad = fma(v[i], zero_f32(), bad);
    if (any_fine && i < 2 * count && in.is_fine[at + i / 2]) {
      i32x16 r = own_fine[i / 2] ? fine_bytes(sub(scaled, sums[i])) : zero_i32();
      store_i8(rest + 16 * i, r);
      sums[i] = fma(sums[i], set1(256.0f), to_f32(r));
    }
  }
  float totals[2 * kBatch], nothing = hsum(bad);
  store(totals, reduce16<Sum>(sums));
  place_bytes(coarse, count, width, in.bytes + at * kBlock * width + j * 4);
  if (any_fine) place_bytes(rest, count, width, in.fine + at * kBlock * width + j * 4);
  for (int i = 0; i < count; i++) {
    int64_t block = at + i;
    float scale = highest[i] * (in.is_fine[block] ? 1.0f / (127.0f * 256.0f) : 1.0f / 127.0f) + nothing;
    in.scale[block * width + j] = scale;
    // Sums of the rounded values, not of x: a weight is then multiplied with one and the same input in both its terms,
    // and what rounding did to a sum of quants, all positive, is taken back by the minimum.
    in.sum[2 * block * width + j] = scale * totals[2 * i];
    in.sum[(2 * block + 1) * width + j] = scale * totals[2 * i + 1];
    in.block_sum[block * width + j] = scale * (totals[2 * i] + totals[2 * i + 1]);
    in.sum_bytes[2 * block * width + j] = int32_t(totals[2 * i]);
    in.sum_bytes[(2 * block + 1) * width + j] = int32_t(totals[2 * i + 1]);
  }
}

// Chooses fine blocks: `noise` [blocks] is what rounding each to 8 bits would add to the mean square error of the
// products, as a share of their mean square. The worst are made fine until the rest add no more than the budget.
static void choose_fine(const float* noise, int64_t blocks, float budget, uint8_t* is_fine) {
  float total = 0.0f, highest = 0.0f;
  for (int64_t b = 0; b < blocks; b++) {
    total += noise[b];
    if (noise[b] > highest) highest = noise[b];
  }
  float low = 0.0f, high = highest;  // the cut lies between: blocks above it are fine
  for (int i = 0; i < 16 && total > budget; i++) {
    float cut = 0.5f * (low + high), rest = 0.0f;
    for (int64_t b = 0; b < blocks; b++) rest += noise[b] <= cut ? noise[b] : 0.0f;
    (rest > budget ? high : low) = cut;
  }
  float cut = total > budget ? low : highest;
  for (int64_t b = 0; b < blocks; b++) is_fine[b] = noise[b] > cut;
}

// What rounding a token's blocks to bytes would add to the relative mean square error, added to noise [blocks].
static inline void add_noise(const float* x, const float* highest, int64_t blocks, float share, float* noise) {
  f32x16 squares = zero_f32(), more = zero_f32();
  for (int64_t b = 0; b < blocks; b++) {
    f32x16 u = load(x + b * kBlock), v = load(x + b * kBlock + 16);
    squares = fma(u, u, squares);
    more = fma(v, v, more);
  }
  // A rounding error is uniform in a step of highest / 127: its variance is the step's square / 12.
  float factor = share * float(kBlock) / (12.0f * 127.0f * 127.0f) / (hsum(add(squares, more)) + 1e-30f);
  for (int64_t b = 0; b < blocks; b++) noise[b] += factor * highest[b] * highest[b];
}

static void prepare_bytes(const PrepareArgs& args, const Input& in, int tile) {
  int64_t blocks = in.padded_columns / kBlock, at = tile * blocks;
  uint8_t* is_fine = in.is_fine + at;
  const bool alone = args.alone && !args.fine;
  const float* rows[16];
  for (int64_t b = 0; b < blocks; b++) is_fine[b] = args.fine, args.noise[b] = 0.0f;
  for (int j = 0; j < in.width; j++) {
    int64_t token = int64_t(tile) * in.width + j;
    rows[j] = token < in.tokens ? input_row(args, in.padded_columns, token, j) : args.zeros;
    float* highest = args.highest + j * blocks;
    highest_of_blocks(rows[j], blocks, highest);
    if (args.fine) continue;
    if (token < in.tokens) add_noise(rows[j], highest, blocks, alone ? 1.0f : 1.0f / float(in.width), args.noise);
    if (!alone) continue;
    uint8_t* own = args.own_fine + j * blocks;
    choose_fine(args.noise, blocks, args.budget, own);
    for (int64_t b = 0; b < blocks; b++) is_fine[b] |= own[b], args.noise[b] = 0.0f;
  }
  if (!alone && !args.fine) choose_fine(args.noise, blocks, args.budget, is_fine);
  for (int j = 0; j < in.width; j++)
    for (int64_t b = 0; b < blocks; b += kBatch) {
      int count = blocks - b < kBatch ? int(blocks - b) : kBatch;
      const uint8_t* own = alone ? args.own_fine + j * blocks : is_fine;
      prepare_batch(rows[j] + b * kBlock, args.highest + j * blocks + b, own + b, in, at + b, count, j);
    }
}

// The zeros of one tile's bytes (see Stream).
#ifdef LL_PAIRS
static void prepare_zeros(const Input& in, int sub, int zero, int tile, int32_t* zeros) {
  int64_t width = in.width, parts = in.padded_columns / sub;
  for (int rest = 0; rest < 2; rest++) {
    const int8_t* from = (rest ? in.fine : in.bytes) + tile * in.padded_columns * width;
    int32_t* to = zeros + (rest * in.tiles + tile) * parts * width;
    for (int64_t part = 0; part < parts; part++, from += sub * width, to += width) {
      if (rest && !in.is_fine[tile * (in.padded_columns / kBlock) + part * sub / kBlock]) continue;
      for (int64_t j = 0; j < width; j++) {
        int even = 0, odd = 0;
        for (int64_t g = 0; g < sub / 4; g++) {
          const int8_t* four = from + (g * width + j) * 4;
          even += four[0] + four[1];
          odd += four[2] + four[3];
        }
        to[j] = int32_t(uint32_t(uint16_t(-zero * even)) | uint32_t(uint16_t(-zero * odd)) << 16);
      }
    }
  }
}
#else
static void prepare_zeros(const Input& in, int sub, int zero, int tile, int32_t* zeros) {
  int64_t blocks = in.padded_columns / kBlock, width = in.width;
  const int32_t* sums = in.sum_bytes + tile * blocks * 2 * width;
  int64_t halves = sub / 16;
  int32_t* to = zeros + tile * blocks * 2 / halves * width;
  for (int64_t i = 0; i < blocks * 2; i += halves, sums += halves * width, to += width)
    for (int64_t j = 0; j < width; j++) to[j] = -zero * (sums[j] + (halves == 2 ? sums[width + j] : 0));
}
#endif

// Words of one token in the tile's place `j`.
static inline void place_words(const float* x, const float* highest, const Input& in, int64_t tile, int j) {
  int64_t blocks = in.padded_columns / kBlock, width = in.width, at = tile * blocks;
  for (int64_t b = 0; b < blocks; b++) {
    f32x16 factor = set1(highest[b] > 1e-30f ? float(kMostWord) / highest[b] : 0.0f), bad = zero_f32();
    int16_t* to = in.words + ((at + b) * 16 * width + j) * 2;
    for (int half = 0; half < 2; half++) {
      f32x16 v = load(x + b * kBlock + 16 * half);
      bad = fma(v, zero_f32(), bad);  // an infinity or NaN in x must come out as NaN: times 0 it is one
      int32_t q[16];
      store_i32(q, round_i32(mul(v, factor)));
      for (int i = 0; i < 16; i++) to[((8 * half + i / 4 * 2 + i % 2) * width) * 2 + i / 2 % 2] = int16_t(q[i]);
    }
    in.scale[(at + b) * width + j] = highest[b] * (1.0f / float(kMostWord)) + hsum(bad);
  }
}

static void prepare_words(const PrepareArgs& args, const Input& in, int tile) {
  for (int j = 0; j < in.width; j++) {
    int64_t token = int64_t(tile) * in.width + j;
    const float* row = token < in.tokens ? input_row(args, in.padded_columns, token, 0) : args.zeros;
    highest_of_blocks(row, in.padded_columns / kBlock, args.highest);
    place_words(row, args.highest, in, tile, j);
  }
}

static void prepare_floats(const PrepareArgs& args, const Input& in, int tile) {
  float* to = in.floats + int64_t(tile) * in.padded_columns * in.width;
  for (int j = 0; j < in.width; j++) {
    int64_t token = int64_t(tile) * in.width + j;
    const float* x = token < in.tokens ? input_row(args, in.padded_columns, token, 0) : nullptr;
    for (int64_t k = 0; k < in.padded_columns; k++) to[k * in.width + j] = x ? x[k] : 0.0f;
  }
}

}  // namespace layerlift::LL_ISA
