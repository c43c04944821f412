// Quantising for one instruction set.
#pragma once

#include "share.h"

namespace layerlift::LL_ISA {

// What weighs the errors of n weights: their importance, or their size.
static inline const float* weights_of(const float* x, const float* importance, int n, float* sizes) {
  if (importance) return importance;
  for (int i = 0; i < n; i++) sizes[i] = __builtin_fabsf(x[i]);
  return sizes;
}

template <bool kWeighed, class Levels>
static void quantize_blocks(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  const Levels levels(s);
  const Starts starts(s, w ? s.weighed : s.plain);
  Block block;
  float sizes[kMostWeights];
  for (int64_t at = 0; at < columns; at += s.block, out += s.nbytes) {
    const float* weights = kWeighed ? weights_of(x + at, w ? w + at : nullptr, s.block, sizes) : nullptr;
    if (s.scale_highest > 0)
      settle_shared<kWeighed>(s, levels, starts, x + at, weights, block);
    else if (starts.count == 1)
      cover(s, levels, {x + at, weights, s.block}, block);
    else
      settle<kWeighed>(s, levels, starts, {x + at, weights, s.block}, block);
    pack(s, block, out);
  }
}

template <class Levels>
static void quantize_row(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  (w || s.by_size ? quantize_blocks<true, Levels> : quantize_blocks<false, Levels>)(s, x, w, columns, out);
}

static void quantize_row(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  (s.table    ? quantize_row<TableLevels>
   : s.affine ? quantize_row<AffineLevels>
              : quantize_row<SignedLevels>)(s, x, w, columns, out);
}

static const QuantizeTable quantize_table = {quantize_row};

}  // namespace layerlift::LL_ISA
