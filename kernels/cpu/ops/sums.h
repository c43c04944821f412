// Sums and maxima across lanes, many at once.
//
// sum16: y[i] = sum of x[i], which costs a third of sixteen sums alone. max4x4, add4x4: of the four lanes with the same
// place in their quarter, in all four of them.
#pragma once

#include "../simd/simd.h"

namespace layerlift::LL_ISA {

#if defined(__AVX512F__)

// Each step adds neighbours of two vectors and leaves their sums in one, in the order that the next step wants.
static inline __m512 add_halves(__m512 a, __m512 b) {  // 256-bit halves: a0+a1 | b0+b1
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
static inline __m512 add_quarters(__m512 a, __m512 b) {  // 128-bit quarters: a0+a1 a2+a3 b0+b1 b2+b3
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
static inline __m512 add_pairs(__m512 a, __m512 b) {  // within each quarter: a0+a2 a1+a3 b0+b2 b1+b3
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
static inline __m512 add_singles(__m512 a, __m512 b) {  // within each quarter: a0+a1 a2+a3 b0+b1 b2+b3
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
static inline f32x16 sum16(const f32x16* x) {
  __m512 q[4];
  for (int i = 0; i < 4; i++) {  // quarter j of q[i]: partial sums of x[4j + i]
    __m512 a = add_halves(x[i].v, x[4 + i].v), b = add_halves(x[8 + i].v, x[12 + i].v);
    q[i] = add_quarters(a, b);
  }
  return {add_singles(add_pairs(q[0], q[1]), add_pairs(q[2], q[3]))};
}

static inline f32x16 max4x4(f32x16 x) {
  __m512 y = _mm512_max_ps(x.v, _mm512_shuffle_f32x4(x.v, x.v, 0x4e));
  return {_mm512_max_ps(y, _mm512_shuffle_f32x4(y, y, 0xb1))};
}
static inline f32x16 add4x4(f32x16 x) {
  __m512 y = _mm512_add_ps(x.v, _mm512_shuffle_f32x4(x.v, x.v, 0x4e));
  return {_mm512_add_ps(y, _mm512_shuffle_f32x4(y, y, 0xb1))};
}

#elif defined(__AVX2__)

static inline __m256 sum8(const f32x16* x) {
  __m256 y[8];
  for (int i = 0; i < 8; i++) y[i] = _mm256_add_ps(x[i].lo, x[i].hi);
  __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(y[0], y[1]), _mm256_hadd_ps(y[2], y[3]));
  __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(y[4], y[5]), _mm256_hadd_ps(y[6], y[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
static inline f32x16 sum16(const f32x16* x) { return {sum8(x), sum8(x + 8)}; }
static inline f32x16 max4x4(f32x16 x) {
  __m256 y = _mm256_max_ps(x.lo, x.hi);
  y = _mm256_max_ps(y, _mm256_permute2f128_ps(y, y, 1));
  return {y, y};
}
static inline f32x16 add4x4(f32x16 x) {
  __m256 y = _mm256_add_ps(x.lo, x.hi);
  y = _mm256_add_ps(y, _mm256_permute2f128_ps(y, y, 1));
  return {y, y};
}

#else

static inline f32x16 sum16(const f32x16* x) {
  float y[16];
  for (int i = 0; i < 16; i++) y[i] = hsum(x[i]);
  return load(y);
}
static inline f32x16 max4x4(f32x16 x) {
  float a[16], b[16];
  store(a, x);
  for (int i = 0; i < 16; i++) {
    float y = a[i % 4];
    for (int j = 4 + i % 4; j < 16; j += 4) y = a[j] > y ? a[j] : y;
    b[i] = y;
  }
  return load(b);
}
static inline f32x16 add4x4(f32x16 x) {
  float a[16], b[16];
  store(a, x);
  for (int i = 0; i < 16; i++) b[i] = (a[i % 4] + a[4 + i % 4]) + (a[8 + i % 4] + a[12 + i % 4]);
  return load(b);
}

#endif

}  // namespace layerlift::LL_ISA
