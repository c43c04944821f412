// Takes finished sums to where they belong. Whole vectors: a cache line written at once need not be read first.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

static void finish(const float* out, int width, int64_t tokens, const Target& to) {
  float* y = to.y;
  for (int64_t t = 0; t < tokens; t++, out += width, y += to.stride) {
    for (int i = 0; i < to.n; i += kGroup) {
      int n = to.n - i < kGroup ? to.n - i : kGroup;
      f32x16 v = load(out + i);
      if (to.bias) v = add(v, load_n(to.bias + i, n));
      if (to.add) v = add(v, load_n(y + i, n));
      n == kGroup ? store(y + i, v) : store_n(y + i, v, n);
    }
  }
}

}  // namespace layerlift::LL_ISA
