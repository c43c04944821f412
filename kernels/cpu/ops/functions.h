// exp and what is made of it, and cache rows as vectors of floats.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

static inline f32x16 as_f32(i32x16 a) {
  f32x16 b;
  __builtin_memcpy(&b, &a, sizeof b);
  return b;
}

// exp(x), within 1 ulp of the true value on [-87.3, 88.3]; outside, the value at that end (1.2e-38, 2e38).
// x = n ln 2 + r; ln 2 is subtracted in two parts, and a degree-6 polynomial covers |r| <= ln 2 / 2.
static inline f32x16 exp(f32x16 x) {
  x = min(max(x, set1(-87.3f)), set1(88.3f));
  i32x16 n = round_i32(mul(x, set1(1.44269504f)));
  f32x16 whole = to_f32(n);
  f32x16 r = fma(whole, set1(-0.693145751953125f), x);
  r = fma(whole, set1(-1.42860682e-6f), r);
  f32x16 p = set1(0.0013814539415761828f);
  p = fma(p, r, set1(0.00836874544620514f));
  p = fma(p, r, set1(0.04166838899254799f));
  p = fma(p, r, set1(0.1666652113199234f));
  p = fma(p, r, set1(0.4999999403953552f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return mul(p, as_f32(shl<23>(add(n, set1_i32(127)))));
}

static inline f32x16 sigmoid(f32x16 x) {
  return div(set1(1.0f), add(set1(1.0f), exp(sub(zero_f32(), x))));
}

// Within 2e-7 absolutely.
static inline f32x16 tanh(f32x16 x) { return sub(mul(set1(2.0f), sigmoid(add(x, x))), set1(1.0f)); }

// One storage type's loads: `load` 16 values, `load_n` the first n and zeros.
template <int storage> struct Cells;

template <> struct Cells<kCellF32> {
  using type = float;
  static inline f32x16 load(const float* p) { return LL_ISA::load(p); }
  static inline f32x16 load_n(const float* p, int n) { return LL_ISA::load_n(p, n); }
};

template <> struct Cells<kCellF16> {
  using type = uint16_t;
  static inline f32x16 load(const uint16_t* p) { return load_f16(p); }
  static inline f32x16 load_n(const uint16_t* p, int n) {
    uint16_t whole[16] = {};
    for (int i = 0; i < n; i++) whole[i] = p[i];
    return load_f16(whole);
  }
};

template <> struct Cells<kCellBF16> {
  using type = uint16_t;
  static inline f32x16 load(const uint16_t* p) { return load_bf16(p); }
  static inline f32x16 load_n(const uint16_t* p, int n) {
    uint16_t whole[16] = {};
    for (int i = 0; i < n; i++) whole[i] = p[i];
    return load_bf16(whole);
  }
};

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

// What a score that must not count is set to: finite, so that no difference of two is a NaN. exp makes it 1e-38.
constexpr float kHidden = -1e30f;

static inline f32x16 soft_cap(f32x16 x, float cap) { return mul(tanh(mul(x, set1(1.0f / cap))), set1(cap)); }

}  // namespace layerlift::LL_ISA
