// Products of F32, F16 and BF16 weights with inputs in f32: exact weights, f32 accumulation.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

// Two columns of 16 rows each: columns are taken in pairs, as BF16 stores them.
struct WeightsF32 {
  static constexpr int kPair = 128;  // bytes
  static inline void read(const uint8_t* p, f32x16& even, f32x16& odd) {
    even = load(reinterpret_cast<const float*>(p));
    odd = load(reinterpret_cast<const float*>(p) + kGroup);
  }
};
struct WeightsF16 {
  static constexpr int kPair = 64;
  static inline void read(const uint8_t* p, f32x16& even, f32x16& odd) {
    even = load_f16(reinterpret_cast<const uint16_t*>(p));
    odd = load_f16(reinterpret_cast<const uint16_t*>(p) + kGroup);
  }
};
struct WeightsBF16 {
  static constexpr int kPair = 64;
  static inline void read(const uint8_t* p, f32x16& even, f32x16& odd) { split_bf16(load_u8(p), even, odd); }
};

// One group of 16 rows times T tokens: out [T][16].
template <class W, int T> static void stream_floats(const Matrix& m, const Input& in, const int32_t*, int64_t group, float* out) {
  // One token has too few sums to keep the adders busy: it gets four of them.
  constexpr int kChains = T == 1 ? 4 : T == 2 ? 2 : 1;
  f32x16 y[kChains][2][T];
  for (int c = 0; c < kChains; c++)
    for (int t = 0; t < T; t++) y[c][0][t] = y[c][1][t] = zero_f32();
  const uint8_t* p = m.group(group);
  const float* x = in.floats;
  for (int64_t k = 0; k < m.padded_columns; k += 2 * kChains) {
    LL_UNROLL(4)
    for (int c = 0; c < kChains; c++) {
      f32x16 even, odd;
      prefetch(p + 4096);
      if (W::kPair > 64) prefetch(p + 4096 + 64);
      W::read(p, even, odd);
      LL_UNROLL(8)
      for (int t = 0; t < T; t++) {
        y[c][0][t] = fma(even, set1(x[t]), y[c][0][t]);
        y[c][1][t] = fma(odd, set1(x[T + t]), y[c][1][t]);
      }
      p += W::kPair;
      x += 2 * T;
    }
  }
  for (int t = 0; t < T; t++) {
    f32x16 total = add(y[0][0][t], y[0][1][t]);
    for (int c = 1; c < kChains; c++) total = add(total, add(y[c][0][t], y[c][1][t]));
    store(out + t * kGroup, total);
  }
}

constexpr int kPanelFloats = 256;  // columns: 32 KiB of floats

template <int width>
static void tile_floats(const float* panel, const float* x, int columns, bool is_first, float* y) {
  f32x16 total[2][width];
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) total[half][c] = is_first ? zero_f32() : load(y + c * kBand + half * kGroup);
  for (int k = 0; k < columns; k++, panel += kBand, x += width) {
    f32x16 w0 = load(panel), w1 = load(panel + kGroup);
    LL_UNROLL(16)
    for (int c = 0; c < width; c++) {
      f32x16 b = set1(x[c]);
      total[0][c] = fma(w0, b, total[0][c]);
      total[1][c] = fma(w1, b, total[1][c]);
    }
  }
  for (int c = 0; c < width; c++)
    for (int half = 0; half < 2; half++) store(y + c * kBand + half * kGroup, total[half][c]);
}

template <class W>
static void panel_floats(const Matrix& m, const Input& in, const int32_t*, int64_t band, int tile_begin, int tile_end,
                         uint8_t* scratch, float* out) {
  float* unpacked = reinterpret_cast<float*>(scratch);
  for (int64_t first = 0; first < m.padded_columns; first += kPanelFloats) {
    int columns = int(m.padded_columns - first < kPanelFloats ? m.padded_columns - first : kPanelFloats);
    for (int half = 0; half < 2; half++) {
      const uint8_t* p = m.group(2 * band + half) + first / 2 * W::kPair;
      for (int k = 0; k < columns; k += 2, p += W::kPair) {
        f32x16 even, odd;
        W::read(p, even, odd);
        store(unpacked + k * kBand + half * kGroup, even);
        store(unpacked + (k + 1) * kBand + half * kGroup, odd);
      }
    }
    for (int tile = tile_begin; tile < tile_end; tile++)
      tile_floats<kTileFloats>(unpacked, in.floats + (tile * in.padded_columns + first) * kTileFloats, columns, first == 0,
                               out + int64_t(tile - tile_begin) * kTileFloats * kBand);
  }
}

template <class W> static void read_row_floats(const Matrix& m, int64_t row, float* out) {
  const uint8_t* p = m.group(row / kGroup);
  int lane = int(row % kGroup);
  for (int64_t k = 0; k < m.columns; k += 2, p += W::kPair) {
    f32x16 pair[2];
    float lanes[kGroup];
    W::read(p, pair[0], pair[1]);
    for (int i = 0; i < 2 && k + i < m.columns; i++) {
      store(lanes, pair[i]);
      out[k + i] = lanes[lane];
    }
  }
}

template <class W> constexpr FormatKernels float_kernels() {
  return {Kind::kFloats, 0, 0, LL_STREAMS(stream_floats, W), panel_floats<W>, read_row_floats<W>};
}

}  // namespace layerlift::LL_ISA
