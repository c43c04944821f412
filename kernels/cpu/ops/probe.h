// What this machine can do at most, in the kernels' own terms: bytes read, and products in registers.
#pragma once

#include "../simd/simd.h"

namespace layerlift::LL_ISA {

// Reads n bytes, a multiple of 256; the result depends on all of them.
static int32_t probe_read(const void* p, int64_t n) {
  const int32_t* x = static_cast<const int32_t*>(p);
  i32x16 a = zero_i32(), b = zero_i32(), c = zero_i32(), d = zero_i32();
  for (int64_t i = 0; i < n / 4; i += 64) {
    a = add(a, load_i32(x + i));
    b = add(b, load_i32(x + i + 16));
    c = add(c, load_i32(x + i + 32));
    d = add(d, load_i32(x + i + 48));
  }
  return hsum(add(add(a, b), add(c, d)));
}

#if defined(__AVX512F__)
constexpr int kProbeSums = 12;
#else
constexpr int kProbeSums = 6;
#endif

// `loops` times kProbeSums fused multiply-adds of 16 floats: the operations done.
static int64_t probe_floats(int64_t loops, float* out) {
  f32x16 sums[kProbeSums];
  for (int i = 0; i < kProbeSums; i++) sums[i] = set1(float(i));
  const f32x16 x = load(out), y = load(out + 16);
  for (int64_t n = 0; n < loops; n++)
    for (int i = 0; i < kProbeSums; i++) sums[i] = fma(sums[i], x, y);
  for (int i = 1; i < kProbeSums; i++) sums[0] = add(sums[0], sums[i]);
  store(out, sums[0]);
  return loops * kProbeSums * 32;
}

// The same with products of four bytes in each of 16 lanes.
static int64_t probe_bytes(int64_t loops, float* out) {
  i32x16 sums[kProbeSums];
  for (int i = 0; i < kProbeSums; i++) sums[i] = zero_i32();
  uint8_t w[64];
  int8_t a[64];
  for (int i = 0; i < 64; i++) w[i] = uint8_t(out[i % 16]), a[i] = int8_t(i);
  const u8x64 weights = load_u8(w);
  for (int64_t n = 0; n < loops; n++)
    for (int i = 0; i < kProbeSums; i++) sums[i] = dot4_us(sums[i], weights, a + 4 * i);
  for (int i = 1; i < kProbeSums; i++) sums[0] = add(sums[0], sums[i]);
  store(out, to_f32(sums[0]));
  return loops * kProbeSums * 128;
}

}  // namespace layerlift::LL_ISA
