// NEON with the dot-product extension, and the matrix one where it is there: four registers for 16 lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "half.h"

namespace layerlift::LL_ISA {

#define LL_PRAGMA(text) _Pragma(#text)
#define LL_UNROLL(n) LL_PRAGMA(GCC unroll n)

struct f32x16 { float32x4_t a, b, c, d; };
struct i32x16 { int32x4_t a, b, c, d; };
struct u8x64 { uint8x16_t a, b, c, d; };

// f of each register
#define LL_EACH1(f, x) {f(x.a), f(x.b), f(x.c), f(x.d)}
#define LL_EACH2(f, x, y) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}

static inline f32x16 set1(float x) {
  float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
static inline f32x16 zero_f32() { return set1(0.0f); }
static inline f32x16 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
static inline void store(float* p, f32x16 x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
static inline f32x16 load_n(const float* p, int n) {
  if (n >= 16) return load(p);
  float whole[16] = {};
  for (int i = 0; i < n; i++) whole[i] = p[i];
  return load(whole);
}
static inline void store_n(float* p, f32x16 x, int n) {
  if (n >= 16) return store(p, x);
  float whole[16];
  store(whole, x);
  for (int i = 0; i < n; i++) p[i] = whole[i];
}
static inline f32x16 add(f32x16 x, f32x16 y) { return LL_EACH2(vaddq_f32, x, y); }
static inline f32x16 sub(f32x16 x, f32x16 y) { return LL_EACH2(vsubq_f32, x, y); }
static inline f32x16 mul(f32x16 x, f32x16 y) { return LL_EACH2(vmulq_f32, x, y); }
static inline f32x16 div(f32x16 x, f32x16 y) { return LL_EACH2(vdivq_f32, x, y); }
static inline f32x16 fma(f32x16 x, f32x16 y, f32x16 z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
// Of a number and a NaN, the number: a NaN among logits must not hide its neighbours.
static inline f32x16 max(f32x16 x, f32x16 y) { return LL_EACH2(vmaxnmq_f32, x, y); }
static inline f32x16 min(f32x16 x, f32x16 y) { return LL_EACH2(vminnmq_f32, x, y); }
static inline f32x16 abs(f32x16 x) { return LL_EACH1(vabsq_f32, x); }
static inline float32x4_t step_above(float32x4_t x, float32x4_t edge, float32x4_t step) {
  return vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(x, edge), vreinterpretq_u32_f32(step)));
}
static inline f32x16 step_above(f32x16 x, f32x16 edge, f32x16 step) {
  return {step_above(x.a, edge.a, step.a), step_above(x.b, edge.b, step.b), step_above(x.c, edge.c, step.c),
          step_above(x.d, edge.d, step.d)};
}
static inline int lane_of(f32x16 x, float value) {
  float lanes[16];
  store(lanes, x);
  int lane = 0;
  while (lane < 15 && lanes[lane] != value) lane++;
  return lane;
}
static inline float32x4_t add_quarters(f32x16 x) { return vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d)); }
static inline float32x4_t max_quarters(f32x16 x) { return vmaxnmq_f32(vmaxnmq_f32(x.a, x.c), vmaxnmq_f32(x.b, x.d)); }
static inline float hsum(f32x16 x) { return vaddvq_f32(add_quarters(x)); }
static inline float hmax(f32x16 x) { return vmaxnmvq_f32(max_quarters(x)); }

static inline float32x4_t widen_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline f32x16 load_f16(const uint16_t* p) { return {widen_f16(p), widen_f16(p + 4), widen_f16(p + 8), widen_f16(p + 12)}; }
static inline void narrow_f16(uint16_t* p, float32x4_t x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
static inline void store_f16(uint16_t* p, f32x16 x) {
  narrow_f16(p, x.a);
  narrow_f16(p + 4, x.b);
  narrow_f16(p + 8, x.c);
  narrow_f16(p + 12, x.d);
}
static inline float32x4_t widen_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline f32x16 load_bf16(const uint16_t* p) {
  return {widen_bf16(p), widen_bf16(p + 4), widen_bf16(p + 8), widen_bf16(p + 12)};
}
static inline void narrow_bf16(uint16_t* p, float32x4_t x) {
  uint32x4_t u = vreinterpretq_u32_f32(x);
  uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  uint32x4_t rounded = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
  uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
  vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16));
}
static inline void store_bf16(uint16_t* p, f32x16 x) {
  narrow_bf16(p, x.a);
  narrow_bf16(p + 4, x.b);
  narrow_bf16(p + 8, x.c);
  narrow_bf16(p + 12, x.d);
}

static inline i32x16 set1_i32(int32_t x) {
  int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
static inline i32x16 zero_i32() { return set1_i32(0); }
static inline i32x16 load_i32(const int32_t* p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
static inline void store_i32(int32_t* p, i32x16 x) {
  vst1q_s32(p, x.a);
  vst1q_s32(p + 4, x.b);
  vst1q_s32(p + 8, x.c);
  vst1q_s32(p + 12, x.d);
}
static inline i32x16 add(i32x16 x, i32x16 y) { return LL_EACH2(vaddq_s32, x, y); }
static inline i32x16 max(i32x16 x, i32x16 y) { return LL_EACH2(vmaxq_s32, x, y); }
static inline i32x16 min(i32x16 x, i32x16 y) { return LL_EACH2(vminq_s32, x, y); }
static inline i32x16 bits_of(f32x16 x) { return LL_EACH1(vreinterpretq_s32_f32, x); }
static inline f32x16 floats_of(i32x16 x) { return LL_EACH1(vreinterpretq_f32_s32, x); }
template <int n> static inline i32x16 shl(i32x16 x) {
  return {vshlq_n_s32(x.a, n), vshlq_n_s32(x.b, n), vshlq_n_s32(x.c, n), vshlq_n_s32(x.d, n)};
}
static inline f32x16 to_f32(i32x16 x) { return LL_EACH1(vcvtq_f32_s32, x); }
static inline i32x16 round_i32(f32x16 x) { return LL_EACH1(vcvtnq_s32_f32, x); }  // to nearest even
static inline int16x8_t narrow_i16(int32x4_t x, int32x4_t y) { return vcombine_s16(vqmovn_s32(x), vqmovn_s32(y)); }
static inline void store_i8(int8_t* p, i32x16 x) {  // saturating
  vst1q_s8(p, vcombine_s8(vqmovn_s16(narrow_i16(x.a, x.b)), vqmovn_s16(narrow_i16(x.c, x.d))));
}
static inline int32_t hsum(i32x16 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
static inline f32x16 load_i8(const int8_t* p) {
  int8x16_t bytes = vld1q_s8(p);
  int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return to_f32({vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                 vmovl_s16(vget_high_s16(high))});
}
static inline float32x4_t widen_u16(uint16x4_t x) { return vcvtq_f32_u32(vmovl_u16(x)); }
static inline f32x16 load_u8_f32(const uint8_t* p) {
  uint8x16_t bytes = vld1q_u8(p);
  uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {widen_u16(vget_low_u16(low)), widen_u16(vget_high_u16(low)), widen_u16(vget_low_u16(high)),
          widen_u16(vget_high_u16(high))};
}

static inline u8x64 load_u8(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
static inline void store_u8(uint8_t* p, u8x64 x) {
  vst1q_u8(p, x.a);
  vst1q_u8(p + 16, x.b);
  vst1q_u8(p + 32, x.c);
  vst1q_u8(p + 48, x.d);
}
static inline u8x64 set1_u8(uint8_t x) {
  uint8x16_t v = vdupq_n_u8(x);
  return {v, v, v, v};
}
static inline u8x64 and_(u8x64 x, u8x64 y) { return LL_EACH2(vandq_u8, x, y); }
static inline u8x64 or_(u8x64 x, u8x64 y) { return LL_EACH2(vorrq_u8, x, y); }
static inline u8x64 xor_(u8x64 x, u8x64 y) { return LL_EACH2(veorq_u8, x, y); }
template <int n> static inline u8x64 shr(u8x64 x) {
  return {vshrq_n_u8(x.a, n), vshrq_n_u8(x.b, n), vshrq_n_u8(x.c, n), vshrq_n_u8(x.d, n)};
}
template <int n> static inline u8x64 shl_bits(u8x64 x) {
  return {vshlq_n_u8(x.a, n), vshlq_n_u8(x.b, n), vshlq_n_u8(x.c, n), vshlq_n_u8(x.d, n)};
}
static inline u8x64 lookup16(const uint8_t* table, u8x64 index) {
  uint8x16_t t = vld1q_u8(table);
  return {vqtbl1q_u8(t, index.a), vqtbl1q_u8(t, index.b), vqtbl1q_u8(t, index.c), vqtbl1q_u8(t, index.d)};
}
static inline u8x64 and_or(u8x64 x, u8x64 mask, u8x64 y) { return or_(and_(x, mask), y); }

constexpr bool kSignedProducts = true;
static inline int32x4_t dot4(int32x4_t acc, uint8x16_t w, int8x16_t x) { return vdotq_s32(acc, vreinterpretq_s8_u8(w), x); }
static inline i32x16 dot4_ss(i32x16 acc, u8x64 w, const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
  return {dot4(acc.a, w.a, v), dot4(acc.b, w.b, v), dot4(acc.c, w.c, v), dot4(acc.d, w.d, v)};
}
// Unsigned bytes are quants of at most 6 bits here, where a signed product is the same.
static inline i32x16 dot4_us(i32x16 acc, u8x64 w, const int8_t* x) { return dot4_ss(acc, w, x); }

#ifdef __ARM_FEATURE_MATMUL_INT8
// Products of two rows with two tokens at a time (matmul/bytes.h).
#define LL_MATRICES
// Four columns of 16 rows and the next four, as eight of rows 0 to 7, and of rows 8 to 15.
static inline void join_columns(u8x64 x, u8x64 y, u8x64& low, u8x64& high) {
  auto first = [](uint8x16_t p, uint8x16_t q) {
    return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(p), vreinterpretq_u32_u8(q)));
  };
  auto last = [](uint8x16_t p, uint8x16_t q) {
    return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(p), vreinterpretq_u32_u8(q)));
  };
  low = {first(x.a, y.a), last(x.a, y.a), first(x.b, y.b), last(x.b, y.b)};
  high = {first(x.c, y.c), last(x.c, y.c), first(x.d, y.d), last(x.d, y.d)};
}
// Eight columns of two tokens: of each, four columns lie at `a` and four at `b`.
static inline int8x16_t two_tokens(const int8_t* a, const int8_t* b) {
  int32x2x2_t joined = vzip_s32(vreinterpret_s32_s8(vld1_s8(a)), vreinterpret_s32_s8(vld1_s8(b)));
  return vreinterpretq_s8_s32(vcombine_s32(joined.val[0], joined.val[1]));
}
// Sums of 16 rows with two tokens; a register has two rows of each.
struct i32x16x2 { int32x4_t r[8]; };
static inline void multiply(i32x16x2& acc, u8x64 low, u8x64 high, int8x16_t x) {
  const uint8x16_t w[8] = {low.a, low.b, low.c, low.d, high.a, high.b, high.c, high.d};
  LL_UNROLL(8)
  for (int i = 0; i < 8; i++) acc.r[i] = vmmlaq_s32(acc.r[i], vreinterpretq_s8_u8(w[i]), x);
}
static inline i32x16 first_token(const i32x16x2& x) {
  return {vuzp1q_s32(x.r[0], x.r[1]), vuzp1q_s32(x.r[2], x.r[3]), vuzp1q_s32(x.r[4], x.r[5]), vuzp1q_s32(x.r[6], x.r[7])};
}
static inline i32x16 second_token(const i32x16x2& x) {
  return {vuzp2q_s32(x.r[0], x.r[1]), vuzp2q_s32(x.r[2], x.r[3]), vuzp2q_s32(x.r[4], x.r[5]), vuzp2q_s32(x.r[6], x.r[7])};
}
#endif

static inline float32x4_t high_half(uint8x16_t pairs) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(pairs), vdupq_n_u32(0xffff0000u)));
}
static inline float32x4_t low_half(uint8x16_t pairs) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(pairs), 16));
}
static inline void split_bf16(u8x64 pairs, f32x16& even, f32x16& odd) {
  even = LL_EACH1(low_half, pairs);
  odd = LL_EACH1(high_half, pairs);
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace layerlift::LL_ISA
