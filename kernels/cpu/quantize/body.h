// Quantising for one instruction set.
#pragma once

#include "share.h"

namespace layerlift::LL_ISA {

template <bool kWeighed, class Levels>
static void quantize_blocks(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  const Levels levels(s);
  const Starts starts(s, kWeighed ? s.weighed : s.plain);
  Block block;
  for (int64_t at = 0; at < columns; at += s.block, out += s.nbytes) {
    const float* importance = kWeighed ? w + at : nullptr;
    if (s.scale_highest > 0)
      settle_shared<kWeighed>(s, levels, starts, x + at, importance, block);
    else
      settle<kWeighed>(s, levels, starts, {x + at, importance, s.block}, block);
    pack(s, block, out);
  }
}

template <class Levels>
static void quantize_row(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  (w ? quantize_blocks<true, Levels> : quantize_blocks<false, Levels>)(s, x, w, columns, out);
}

static void quantize_row(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  (s.table    ? quantize_row<TableLevels>
   : s.affine ? quantize_row<AffineLevels>
              : quantize_row<SignedLevels>)(s, x, w, columns, out);
}

static const QuantizeTable quantize_table = {quantize_row};

}  // namespace layerlift::LL_ISA
