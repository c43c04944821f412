// Quantising for one instruction set.
#pragma once

#include "settle.h"

namespace layerlift::LL_ISA {

static void quantize_row(const Scheme& s, const float* x, const float* w, int64_t columns, uint8_t* out) {
  const Fans fans(s);
  Block block;
  for (int64_t at = 0; at < columns; at += s.block, out += s.nbytes) {
    if (s.scale_highest > 0)
      settle_scales(s, x + at, w + at, fans, block);
    else
      settle(s, {x + at, w + at, s.block}, fans, block);
    pack(s, block, out);
  }
}

static const QuantizeTable quantize_table = {quantize_row};

}  // namespace layerlift::LL_ISA
