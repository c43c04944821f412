// Over the four lanes with the same place in their quarter, in all four of them: a quarter is a cache row, a place a query.
#pragma once

#include "../simd/reduce.h"

namespace layerlift::LL_ISA {

template <class Op> static inline f32x16 reduce4x4(f32x16 x) {
#if defined(__AVX512F__)
  __m512 y = Op::of(x, {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)}).v;
  return Op::of({y}, {_mm512_shuffle_f32x4(y, y, 0xb1)});
#elif defined(__AVX2__)
  __m256 y = Op::of(x.lo, x.hi);
  y = Op::of(y, _mm256_permute2f128_ps(y, y, 1));
  return {y, y};
#else
  float a[32];
  store(a, x);
  store(a + 16, x);
  x = Op::of(x, load(a + 4));
  store(a, x);
  store(a + 16, x);
  return Op::of(x, load(a + 8));
#endif
}

}  // namespace layerlift::LL_ISA
