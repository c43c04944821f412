// Makes the input of products: rows of x, RMS-normed where asked, as bytes with scales or as floats, tile by tile.
//
// A block of 32 values is rounded to bytes with scale max|x| / 127; what that leaves is rounded to "fine" bytes of
// 1/256 of it. bytes and fine bytes together are x within 2^-16 of the block's maximum.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

// 1 / sqrt(mean(x²) + eps)
static inline float inverse_rms(const float* x, int64_t n, float eps) {
  f32x16 a = zero_f32(), b = zero_f32();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    f32x16 u = load(x + i), v = load(x + i + 16);
    a = fma(u, u, a);
    b = fma(v, v, b);
  }
  for (; i < n; i += 16) {
    f32x16 u = load_n(x + i, n - i < 16 ? int(n - i) : 16);
    a = fma(u, u, a);
  }
  return 1.0f / __builtin_sqrtf(hsum(add(a, b)) / float(n) + eps);
}

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

// -128 is left out: its negative is no signed byte, and signed products of AVX2 need that.
static inline i32x16 fine_bytes(f32x16 rest) {
  return round_i32(max(min(mul(rest, set1(256.0f)), set1(127.0f)), set1(-127.0f)));
}

static inline void prepare_block(const float* x, const Input& in, int64_t block, int64_t tile, int j, bool fine) {
  int width = in.width;
  int64_t at = tile * (in.padded_columns / kBlock) + block;
  f32x16 u = load(x), v = load(x + 16);
  float highest = hmax(max(abs(u), abs(v)));
  float inverse = highest > 1e-30f ? 127.0f / highest : 0.0f;
  f32x16 su = mul(u, set1(inverse)), sv = mul(v, set1(inverse));
  i32x16 qu = round_i32(su), qv = round_i32(sv);
  alignas(16) int8_t coarse[kBlock], rest[kBlock];
  store_i8(coarse, qu);
  store_i8(coarse + 16, qv);
  int32_t total_u = hsum(qu), total_v = hsum(qv);
  int8_t* to = in.bytes + at * kBlock * width + j * 4;
  for (int g = 0; g < 8; g++) __builtin_memcpy(to + g * width * 4, coarse + 4 * g, 4);
  if (fine) {
    i32x16 ru = fine_bytes(sub(su, to_f32(qu))), rv = fine_bytes(sub(sv, to_f32(qv)));
    store_i8(rest, ru);
    store_i8(rest + 16, rv);
    total_u = 256 * total_u + hsum(ru);
    total_v = 256 * total_v + hsum(rv);
    to = in.fine + at * kBlock * width + j * 4;
    for (int g = 0; g < 8; g++) __builtin_memcpy(to + g * width * 4, rest + 4 * g, 4);
  }
  // An infinity or NaN in x must come out as NaN, and only the sum is sure to carry it.
  float scale = highest / (fine ? 127.0f * 256.0f : 127.0f) + 0.0f * hsum(add(u, v));
  in.scale[at * width + j] = scale;
  // Of the rounded values, not of x: a weight is then multiplied with one and the same input in both its terms, and
  // what rounding did to a sum of quants, all positive, is taken back by the minimum.
  in.sum[at * 2 * width + j] = scale * float(total_u);
  in.sum[(at * 2 + 1) * width + j] = scale * float(total_v);
  in.sum_bytes[at * 2 * width + j] = total_u;
  in.sum_bytes[(at * 2 + 1) * width + j] = total_v;
}

// Chooses a tile's fine blocks: `noise` [blocks] is what rounding each to 8 bits would add to the mean square error of
// the products, as a share of their mean square. The worst are made fine until the rest add no more than the budget.
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

static void prepare_bytes(const PrepareArgs& args, const Input& in, int tile) {
  int64_t blocks = in.padded_columns / kBlock;
  uint8_t* is_fine = in.is_fine + tile * blocks;
  float* noise = args.noise;
  const float* rows[16];
  for (int64_t b = 0; b < blocks; b++) noise[b] = 0.0f;
  for (int j = 0; j < in.width; j++) {
    int64_t token = int64_t(tile) * in.width + j;
    rows[j] = token < in.tokens ? input_row(args, in.padded_columns, token, j) : args.zeros;
    if (args.fine || token >= in.tokens) continue;
    f32x16 squares = zero_f32();
    float* scale = in.scale + tile * blocks * in.width + j;  // as scratch: the square of each block's highest
    for (int64_t b = 0; b < blocks; b++) {
      f32x16 u = load(rows[j] + b * kBlock), v = load(rows[j] + b * kBlock + 16);
      squares = fma(u, u, fma(v, v, squares));
      float highest = hmax(max(abs(u), abs(v)));
      scale[b * in.width] = highest * highest;
    }
    // A rounding error is uniform in a step of highest / 127: its variance is the step's square / 12.
    float factor = float(kBlock) / (12.0f * 127.0f * 127.0f) / (hsum(squares) + 1e-30f) / float(in.width);
    for (int64_t b = 0; b < blocks; b++) noise[b] += factor * scale[b * in.width];
  }
  if (args.fine)
    for (int64_t b = 0; b < blocks; b++) is_fine[b] = 1;
  else
    choose_fine(noise, blocks, args.budget, is_fine);
  for (int j = 0; j < in.width; j++)
    for (int64_t b = 0; b < blocks; b++) prepare_block(rows[j] + b * kBlock, in, b, tile, j, is_fine[b]);
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
