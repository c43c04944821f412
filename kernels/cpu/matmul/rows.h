// One row of a repacked matrix as floats: what an embedding looks up.
#pragma once

#include "unpack.h"

namespace layerlift::LL_ISA {

template <class L> static void read_row(const Matrix& m, int64_t row, float* out) {
  const uint8_t* slab = m.group(row / kGroup);
  int lane = int(row % kGroup);
  for (int64_t k = 0; k < m.columns; slab += L::kSlab) {
    for (int b = 0; b < L::kBlocks; b++, k += kBlock) {
      u8x64 w[8];
      f32x16 scale[L::kSubs], minimum[L::kSubs];
      unpack<L>(slab + L::kQuants + b * L::kQuantBytes, w);
      scales<L>(slab, b, scale, minimum);
      float d[kGroup], low[kGroup];
      uint8_t q[64];
      for (int g = 0; g < 8; g++) {
        int s = g * 4 / L::kSub;
        store(d, scale[s]);
        store(low, L::kMin ? minimum[s] : zero_f32());
        store_u8(q, w[g]);
        for (int i = 0; i < 4; i++) {
          int byte = L::kSigned && kSignedProducts ? int8_t(q[4 * lane + i]) : q[4 * lane + i];
          out[k + 4 * g + i] = d[lane] * float(byte - zero_of<L>()) + low[lane];
        }
      }
    }
  }
}

}  // namespace layerlift::LL_ISA
