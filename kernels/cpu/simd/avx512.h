// AVX-512 with VNNI and BF16: one register for 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"

namespace layerlift::LL_ISA {

#define LL_PRAGMA(text) _Pragma(#text)
#define LL_UNROLL(n) LL_PRAGMA(GCC unroll n)

struct f32x16 { __m512 v; };
struct i32x16 { __m512i v; };
struct u8x64 { __m512i v; };

static inline __mmask16 first_lanes(int n) { return __mmask16(n >= 16 ? 0xffff : (1u << n) - 1); }

static inline f32x16 zero_f32() { return {_mm512_setzero_ps()}; }
static inline f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
static inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
static inline f32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
static inline void store_n(float* p, f32x16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
static inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
static inline f32x16 step_above(f32x16 a, f32x16 edge, f32x16 step) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, edge.v, _CMP_GT_OQ), step.v)};
}
static inline int lane_of(f32x16 a, float x) {
  return __builtin_ctz(_mm512_cmp_ps_mask(a.v, _mm512_set1_ps(x), _CMP_EQ_OQ) | 1 << 15);
}
static inline float hsum(f32x16 a) { return _mm512_reduce_add_ps(a.v); }
static inline float hmax(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
static inline f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline f32x16 load_bf16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Not vcvtneps2bf16, which flushes subnormals; the rounding is that of half.h.
static inline void store_bf16(uint16_t* p, f32x16 a) {
  __m512i u = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

static inline i32x16 zero_i32() { return {_mm512_setzero_si512()}; }
static inline i32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_i32(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
static inline i32x16 add(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline i32x16 max(i32x16 a, i32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
static inline i32x16 min(i32x16 a, i32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
static inline i32x16 bits_of(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
static inline f32x16 floats_of(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
template <int n> static inline i32x16 shl(i32x16 a) { return {_mm512_slli_epi32(a.v, n)}; }
static inline f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline i32x16 round_i32(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
static inline void store_i8(int8_t* p, i32x16 a) {  // saturating
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
static inline int32_t hsum(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }
static inline f32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline f32x16 load_u8_f32(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

static inline u8x64 load_u8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_u8(uint8_t* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
static inline u8x64 set1_u8(uint8_t x) { return {_mm512_set1_epi8(char(x))}; }
static inline u8x64 and_(u8x64 a, u8x64 b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline u8x64 or_(u8x64 a, u8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline u8x64 xor_(u8x64 a, u8x64 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int n> static inline u8x64 shr(u8x64 a) { return {_mm512_srli_epi16(a.v, n)}; }
template <int n> static inline u8x64 shl_bits(u8x64 a) { return {_mm512_slli_epi16(a.v, n)}; }
static inline u8x64 lookup16(const uint8_t* table, u8x64 index) {  // index < 16
  __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(t, index.v)};
}
// As assembly: GCC 12 keeps two copies of every sum that goes through the intrinsic, and runs out of registers.
static inline i32x16 dot4_us(i32x16 acc, u8x64 w, const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  __m512i x = _mm512_set1_epi32(four);
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x));
  return acc;
}

// (a & mask) | b
static inline u8x64 and_or(u8x64 a, u8x64 mask, u8x64 b) {
  return {_mm512_ternarylogic_epi32(a.v, mask.v, b.v, 0xea)};
}
// There is no signed product here: signed bytes are offset by 128, and the product corrected for it.
constexpr bool kSignedProducts = false;
static inline i32x16 dot4_ss(i32x16 acc, u8x64 w, const int8_t* a) { return dot4_us(acc, w, a); }

// bf16 pairs: those at even places, and those at odd ones
static inline void split_bf16(u8x64 pairs, f32x16& even, f32x16& odd) {
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs.v, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(pairs.v, _mm512_set1_epi32(int(0xffff0000))))};
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace layerlift::LL_ISA
