// Plain C++: arrays of 16, for the compiler to do with what it can. Right everywhere, fast nowhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"

namespace layerlift::LL_ISA {

// Calls, not inlined text: sixteen lanes written out at every use would take minutes to compile.
#define LL_LANES [[maybe_unused, gnu::noinline]] static
#define LL_UNROLL(n)

struct f32x16 { float v[16]; };
struct i32x16 { int32_t v[16]; };
struct u8x64 { uint8_t v[64]; };

template <class R, class F> static inline R each(int n, F f) {
  R r;
  for (int i = 0; i < n; i++) r.v[i] = f(i);
  return r;
}
template <class F> static inline f32x16 f32_lanes(F f) { return each<f32x16>(16, f); }
template <class F> static inline i32x16 i32_lanes(F f) { return each<i32x16>(16, f); }
template <class F> static inline u8x64 u8_lanes(F f) { return each<u8x64>(64, f); }

LL_LANES f32x16 zero_f32() { return f32_lanes([](int) { return 0.0f; }); }
LL_LANES f32x16 set1(float x) { return f32_lanes([=](int) { return x; }); }
LL_LANES f32x16 load(const float* p) { return f32_lanes([=](int i) { return p[i]; }); }
LL_LANES void store(float* p, f32x16 a) { __builtin_memcpy(p, a.v, 64); }
LL_LANES f32x16 load_n(const float* p, int n) { return f32_lanes([=](int i) { return i < n ? p[i] : 0.0f; }); }
LL_LANES void store_n(float* p, f32x16 a, int n) {
  for (int i = 0; i < n && i < 16; i++) p[i] = a.v[i];
}
LL_LANES f32x16 add(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] + b.v[i]; }); }
LL_LANES f32x16 sub(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] - b.v[i]; }); }
LL_LANES f32x16 mul(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] * b.v[i]; }); }
LL_LANES f32x16 div(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] / b.v[i]; }); }
LL_LANES f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return f32_lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
LL_LANES f32x16 max(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
LL_LANES f32x16 min(f32x16 a, f32x16 b) { return f32_lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
LL_LANES f32x16 abs(f32x16 a) { return f32_lanes([&](int i) { return __builtin_fabsf(a.v[i]); }); }
LL_LANES f32x16 step_above(f32x16 a, f32x16 edge, f32x16 step) {
  return f32_lanes([&](int i) { return a.v[i] > edge.v[i] ? step.v[i] : 0.0f; });
}
LL_LANES int lane_of(f32x16 a, float x) {
  int lane = 0;
  while (lane < 15 && a.v[lane] != x) lane++;
  return lane;
}
LL_LANES float hsum(f32x16 a) {
  float s[8];
  for (int i = 0; i < 8; i++) s[i] = a.v[i] + a.v[i + 8];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
LL_LANES float hmax(f32x16 a) {
  float m = a.v[0];
  for (int i = 1; i < 16; i++) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
LL_LANES f32x16 load_f16(const uint16_t* p) { return f32_lanes([=](int i) { return f16_to_f32(p[i]); }); }
LL_LANES void store_f16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; i++) p[i] = f32_to_f16(a.v[i]);
}
LL_LANES f32x16 load_bf16(const uint16_t* p) { return f32_lanes([=](int i) { return bf16_to_f32(p[i]); }); }
LL_LANES void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; i++) p[i] = f32_to_bf16(a.v[i]);
}

LL_LANES i32x16 zero_i32() { return i32_lanes([](int) { return 0; }); }
LL_LANES i32x16 set1_i32(int32_t x) { return i32_lanes([=](int) { return x; }); }
LL_LANES i32x16 load_i32(const int32_t* p) { return i32_lanes([=](int i) { return p[i]; }); }
LL_LANES void store_i32(int32_t* p, i32x16 a) { __builtin_memcpy(p, a.v, 64); }
LL_LANES i32x16 add(i32x16 a, i32x16 b) { return i32_lanes([&](int i) { return a.v[i] + b.v[i]; }); }
LL_LANES i32x16 max(i32x16 a, i32x16 b) { return i32_lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
LL_LANES i32x16 min(i32x16 a, i32x16 b) { return i32_lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
LL_LANES i32x16 bits_of(f32x16 a) { return i32_lanes([&](int i) { return int32_t(as_bits(a.v[i])); }); }
LL_LANES f32x16 floats_of(i32x16 a) { return f32_lanes([&](int i) { return as_float(uint32_t(a.v[i])); }); }
template <int n> LL_LANES i32x16 shl(i32x16 a) {
  return i32_lanes([&](int i) { return int32_t(uint32_t(a.v[i]) << n); });
}
LL_LANES f32x16 to_f32(i32x16 a) { return f32_lanes([&](int i) { return float(a.v[i]); }); }
LL_LANES i32x16 round_i32(f32x16 a) { return i32_lanes([&](int i) { return int32_t(__builtin_rintf(a.v[i])); }); }
LL_LANES void store_i8(int8_t* p, i32x16 a) {
  for (int i = 0; i < 16; i++) p[i] = int8_t(a.v[i] < -128 ? -128 : a.v[i] > 127 ? 127 : a.v[i]);
}
LL_LANES int32_t hsum(i32x16 a) {
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += a.v[i];
  return s;
}
LL_LANES f32x16 load_i8(const int8_t* p) { return f32_lanes([=](int i) { return float(p[i]); }); }
LL_LANES f32x16 load_u8_f32(const uint8_t* p) { return f32_lanes([=](int i) { return float(p[i]); }); }

LL_LANES u8x64 load_u8(const uint8_t* p) { return u8_lanes([=](int i) { return p[i]; }); }
LL_LANES void store_u8(uint8_t* p, u8x64 a) { __builtin_memcpy(p, a.v, 64); }
LL_LANES u8x64 set1_u8(uint8_t x) { return u8_lanes([=](int) { return x; }); }
LL_LANES u8x64 and_(u8x64 a, u8x64 b) { return u8_lanes([&](int i) { return uint8_t(a.v[i] & b.v[i]); }); }
LL_LANES u8x64 or_(u8x64 a, u8x64 b) { return u8_lanes([&](int i) { return uint8_t(a.v[i] | b.v[i]); }); }
LL_LANES u8x64 xor_(u8x64 a, u8x64 b) { return u8_lanes([&](int i) { return uint8_t(a.v[i] ^ b.v[i]); }); }
template <int n> LL_LANES u8x64 shr(u8x64 a) { return u8_lanes([&](int i) { return uint8_t(a.v[i] >> n); }); }
template <int n> LL_LANES u8x64 shl_bits(u8x64 a) { return u8_lanes([&](int i) { return uint8_t(a.v[i] << n); }); }
LL_LANES u8x64 lookup16(const uint8_t* table, u8x64 index) {
  return u8_lanes([&](int i) { return table[index.v[i]]; });
}
LL_LANES i32x16 dot4_us(i32x16 acc, u8x64 w, const int8_t* a) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) acc.v[i] += int32_t(w.v[4 * i + j]) * a[j];
  return acc;
}

LL_LANES u8x64 and_or(u8x64 a, u8x64 mask, u8x64 b) { return or_(and_(a, mask), b); }
constexpr bool kSignedProducts = true;
LL_LANES i32x16 dot4_ss(i32x16 acc, u8x64 w, const int8_t* a) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) acc.v[i] += int32_t(int8_t(w.v[4 * i + j])) * a[j];
  return acc;
}

LL_LANES void split_bf16(u8x64 pairs, f32x16& even, f32x16& odd) {
  uint16_t h[32];
  __builtin_memcpy(h, pairs.v, 64);
  for (int i = 0; i < 16; i++) {
    even.v[i] = bf16_to_f32(h[2 * i]);
    odd.v[i] = bf16_to_f32(h[2 * i + 1]);
  }
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace layerlift::LL_ISA
