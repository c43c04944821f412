// Row by row: norms, rotations, conversions, activations, sums.
#pragma once

#include "../simd/reduce.h"
#include "functions.h"

namespace layerlift::LL_ISA {

// y = x / sqrt(mean(x^2) + eps) * weight
static void rms_norm(const float* x, const float* weight, float eps, int width, float* y) {
  const f32x16 scale = set1(inverse_rms(x, width, eps));
  int i = 0;
  for (; i + 16 <= width; i += 16) store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
  if (i < width) store_n(y + i, mul(mul(load_n(x + i, width - i), scale), load_n(weight + i, width - i)), width - i);
}

static void rotate_neox(const float* x, int half, const Rotation& r, float* y) {
  for (int i = 0; i < half; i += 16) {
    const int n = half - i < 16 ? half - i : 16;
    f32x16 a = load_n(x + i, n), b = load_n(x + half + i, n), cos = load_n(r.cos + i, n), sin = load_n(r.sin + i, n);
    store_n(y + i, sub(mul(a, cos), mul(b, sin)), n);
    store_n(y + half + i, fma(a, sin, mul(b, cos)), n);
  }
}

static void rotate_norm(const float* x, int half, const Rotation& r, float* y) {
  for (int i = 0; i < half; i++) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * r.cos[i] - b * r.sin[i];
    y[2 * i + 1] = a * r.sin[i] + b * r.cos[i];
  }
}

// Every head of one token.
static void rotate(const float* x, int heads, int head_dim, const Rotation& r, float* y) {
  for (int head = 0; head < heads; head++, x += head_dim, y += head_dim) {
    (r.neox ? rotate_neox : rotate_norm)(x, r.n_dims / 2, r, y);
    if (x != y)
      for (int i = r.n_dims; i < head_dim; i++) y[i] = x[i];
  }
}

static void narrow(const float* x, int64_t n, int storage, void* y) {
  if (storage == kCellF32) {
    __builtin_memcpy(y, x, size_t(n) * 4);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(y);
  const auto put = storage == kCellF16 ? store_f16 : store_bf16;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) put(to + i, load(x + i));
  if (i < n) {
    uint16_t whole[16];
    put(whole, load_n(x + i, int(n - i)));
    __builtin_memcpy(to + i, whole, size_t(n - i) * 2);
  }
}

template <int storage> static void widen_as(const void* x, int64_t n, float* y) {
  const auto* from = static_cast<const typename Cells<storage>::type*>(x);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, Cells<storage>::load(from + i));
  if (i < n) store_n(y + i, Cells<storage>::load_n(from + i, int(n - i)), int(n - i));
}

static void widen(const void* x, int64_t n, int storage, float* y) {
  if (storage == kCellF16)
    widen_as<kCellF16>(x, n, y);
  else if (storage == kCellBF16)
    widen_as<kCellBF16>(x, n, y);
  else
    widen_as<kCellF32>(x, n, y);
}

static inline f32x16 activate(f32x16 a, int activation) {
  switch (activation) {
    case kActSilu:
      return mul(a, sigmoid(a));
    case kActGelu: {  // the tanh form: 0.5 a (1 + tanh(u)) = a sigmoid(2u)
      f32x16 u = mul(mul(set1(0.7978845608028654f), a), fma(mul(set1(0.044715f), a), a, set1(1.0f)));
      return mul(a, sigmoid(add(u, u)));
    }
    case kActGeluQuick:
      return mul(a, sigmoid(mul(set1(1.702f), a)));
    default: {
      f32x16 r = max(a, zero_f32());
      return mul(r, r);
    }
  }
}

// y = activation(a) * b; y may be a or b.
static void gate(const float* a, const float* b, int64_t n, int activation, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, mul(activate(load(a + i), activation), load(b + i)));
  const int rest = int(n - i);
  if (rest) store_n(y + i, mul(activate(load_n(a + i, rest), activation), load_n(b + i, rest)), rest);
}

static void add_rows(const float* a, const float* b, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, add(load(a + i), load(b + i)));
  for (; i < n; i++) y[i] = a[i] + b[i];
}

}  // namespace layerlift::LL_ISA
