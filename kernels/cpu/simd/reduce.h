// Reductions over lanes: sixteen at once, which cost a third of sixteen alone (y[i] = op over the lanes of x[i]), and rows.
#pragma once

#include "simd.h"

namespace layerlift::LL_ISA {

struct Sum {
  static inline f32x16 of(f32x16 a, f32x16 b) { return add(a, b); }
  static inline float of(f32x16 a) { return hsum(a); }
#if defined(__AVX2__)
  static inline __m256 of(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
#endif
};
struct Max {
  static inline f32x16 of(f32x16 a, f32x16 b) { return max(a, b); }
  static inline float of(f32x16 a) { return hmax(a); }
#if defined(__AVX2__)
  static inline __m256 of(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
#endif
};

#if defined(__AVX512F__)

// Each step folds two vectors into one that holds both, and leaves them in the order that the next step wants.
template <class Op> static inline f32x16 reduce16(const f32x16* x) {
  f32x16 q[4];
  for (int i = 0; i < 4; i++) {
    __m512 half[2];
    for (int j = 0; j < 2; j++) {
      __m512 a = x[8 * j + i].v, b = x[8 * j + 4 + i].v;
      half[j] = Op::of({_mm512_shuffle_f32x4(a, b, 0x44)}, {_mm512_shuffle_f32x4(a, b, 0xee)}).v;
    }
    q[i] = Op::of({_mm512_shuffle_f32x4(half[0], half[1], 0x88)}, {_mm512_shuffle_f32x4(half[0], half[1], 0xdd)});
  }
  __m512 pair[2];
  for (int i = 0; i < 2; i++) {
    __m512 a = q[2 * i].v, b = q[2 * i + 1].v;
    pair[i] = Op::of({_mm512_shuffle_ps(a, b, 0x44)}, {_mm512_shuffle_ps(a, b, 0xee)}).v;
  }
  return Op::of({_mm512_shuffle_ps(pair[0], pair[1], 0x88)}, {_mm512_shuffle_ps(pair[0], pair[1], 0xdd)});
}

#elif defined(__AVX2__)

template <class Op> static inline __m256 reduce8(const f32x16* x) {
  __m256 quad[2];
  for (int i = 0; i < 2; i++) {
    __m256 pair[2];
    for (int j = 0; j < 2; j++) {
      const f32x16 *a = x + 4 * i + 2 * j, *b = a + 1;
      __m256 y = Op::of(a->lo, a->hi), z = Op::of(b->lo, b->hi);
      pair[j] = Op::of(_mm256_shuffle_ps(y, z, 0x44), _mm256_shuffle_ps(y, z, 0xee));
    }
    quad[i] = Op::of(_mm256_shuffle_ps(pair[0], pair[1], 0x88), _mm256_shuffle_ps(pair[0], pair[1], 0xdd));
  }
  return Op::of(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
}
template <class Op> static inline f32x16 reduce16(const f32x16* x) { return {reduce8<Op>(x), reduce8<Op>(x + 8)}; }

#else

template <class Op> static inline f32x16 reduce16(const f32x16* x) {
  float y[16];
  for (int i = 0; i < 16; i++) y[i] = Op::of(x[i]);
  return load(y);
}

#endif

// 1 / sqrt(mean(x²) + eps). Thirty-two partial sums in f32: relative error near 1e-7.
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

}  // namespace layerlift::LL_ISA
