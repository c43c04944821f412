// AVX2 with FMA and F16C: two registers for 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"

namespace layerlift::LL_ISA {

#define LL_PRAGMA(text) _Pragma(#text)
#define LL_UNROLL(n) LL_PRAGMA(GCC unroll n)

struct f32x16 { __m256 lo, hi; };
struct i32x16 { __m256i lo, hi; };
struct u8x64 { __m256i lo, hi; };

static inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void store256(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
static inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline f32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline f32x16 load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
static inline void store_n(float* p, f32x16 a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
static inline f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
static inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
static inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
static inline f32x16 div(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static inline f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
static inline f32x16 abs(f32x16 a) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static inline __m256 step_above(__m256 a, __m256 edge, __m256 step) {
  return _mm256_and_ps(_mm256_cmp_ps(a, edge, _CMP_GT_OQ), step);
}
static inline f32x16 step_above(f32x16 a, f32x16 edge, f32x16 step) {
  return {step_above(a.lo, edge.lo, step.lo), step_above(a.hi, edge.hi, step.hi)};
}
static inline int lane_of(f32x16 a, float x) {
  __m256 v = _mm256_set1_ps(x);
  int low = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, v, _CMP_EQ_OQ));
  int high = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, v, _CMP_EQ_OQ));
  return __builtin_ctz(low | high << 8 | 1 << 15);
}
static inline float hsum(f32x16 a) {
  __m256 s = _mm256_add_ps(a.lo, a.hi);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float hmax(f32x16 a) {
  __m256 s = _mm256_max_ps(a.lo, a.hi);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
static inline f32x16 load_f16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
static inline void store_f16(uint16_t* p, f32x16 a) {
  __m128i* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 widen_bf16(const uint16_t* p) {
  __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline f32x16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
static inline __m256i round_bf16(__m256 a) {
  __m256i u = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
  return _mm256_srli_epi32(rounded, 16);
}
static inline void store_bf16(uint16_t* p, f32x16 a) {
  __m256i packed = _mm256_packus_epi32(round_bf16(a.lo), round_bf16(a.hi));
  store256(p, _mm256_permute4x64_epi64(packed, 0xd8));
}

static inline i32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline i32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline i32x16 load_i32(const int32_t* p) { return {load256(p), load256(p + 8)}; }
static inline void store_i32(int32_t* p, i32x16 a) {
  store256(p, a.lo);
  store256(p + 8, a.hi);
}
static inline i32x16 add(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
static inline i32x16 max(i32x16 a, i32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
static inline i32x16 min(i32x16 a, i32x16 b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
static inline i32x16 bits_of(f32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
static inline f32x16 floats_of(i32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
template <int n> static inline i32x16 shl(i32x16 a) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
static inline f32x16 to_f32(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
static inline i32x16 round_i32(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
static inline void store_i8(int8_t* p, i32x16 a) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
static inline int32_t hsum(i32x16 a) {
  __m256i s = _mm256_add_epi32(a.lo, a.hi);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
static inline f32x16 load_i8(const int8_t* p) {
  __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
static inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline f32x16 u8_to_f32(__m128i b) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8)))};
}
static inline f32x16 load_u8_f32(const uint8_t* p) { return u8_to_f32(load128(p)); }

static inline u8x64 load_u8(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
static inline void store_u8(uint8_t* p, u8x64 a) {
  store256(p, a.lo);
  store256(p + 32, a.hi);
}
static inline u8x64 set1_u8(uint8_t x) { return {_mm256_set1_epi8(char(x)), _mm256_set1_epi8(char(x))}; }
static inline u8x64 and_(u8x64 a, u8x64 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
static inline u8x64 or_(u8x64 a, u8x64 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
static inline u8x64 xor_(u8x64 a, u8x64 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
template <int n> static inline u8x64 shr(u8x64 a) { return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)}; }
template <int n> static inline u8x64 shl_bits(u8x64 a) {
  return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)};
}
static inline u8x64 lookup16(const uint8_t* table, u8x64 index) {
  __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, index.lo), _mm256_shuffle_epi8(t, index.hi)};
}
// vpmaddubsw adds two products in 16 bits and saturates: exact for w up to 128, as 2 * 128 * 127 < 2^15.
static inline __m256i dot4_us(__m256i acc, __m256i w, __m256i a) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
static inline i32x16 dot4_us(i32x16 acc, u8x64 w, const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  __m256i b = _mm256_set1_epi32(four);
  return {dot4_us(acc.lo, w.lo, b), dot4_us(acc.hi, w.hi, b)};
}

// Sums of products in 16 bits, two to a lane (matmul/pairs.h), and products of 16-bit words (matmul/words.h).
#define LL_PAIRS
struct i16x32 { __m256i lo, hi; };
static inline i16x32 zero_i16() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// As assembly, which adds in place: GCC 12 copies a sum that leaves a loop at each turn of it.
static inline __m256i dot2_us(__m256i acc, __m256i w, __m256i a) {
  __m256i products;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(w), "x"(a));
  return acc;
}
static inline __m256i four_bytes(const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}
static inline i16x32 dot2_us(i16x32 acc, u8x64 w, const int8_t* a) {
  __m256i b = four_bytes(a);
  return {dot2_us(acc.lo, w.lo, b), dot2_us(acc.hi, w.hi, b)};
}
static inline i16x32 set1_pair(const int32_t* p) { return {_mm256_set1_epi32(*p), _mm256_set1_epi32(*p)}; }
static inline i16x32 mul2_us(u8x64 w, const int8_t* a) {
  __m256i b = four_bytes(a);
  return {_mm256_maddubs_epi16(w.lo, b), _mm256_maddubs_epi16(w.hi, b)};
}
static inline i32x16 add_pairs(i32x16 acc, i16x32 a) {
  __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, ones)), _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, ones))};
}

static inline i32x16 add_pairs(i32x16 acc, i16x32 a, i16x32 factors) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, factors.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, factors.hi))};
}
static inline i16x32 load_i16(const int16_t* p) { return {load256(p), load256(p + 16)}; }
static inline void store_i16(int16_t* p, i16x32 a) {
  store256(p, a.lo);
  store256(p + 16, a.hi);
}
static inline i16x32 mul(i16x32 a, i16x32 b) { return {_mm256_mullo_epi16(a.lo, b.lo), _mm256_mullo_epi16(a.hi, b.hi)}; }
// Signed bytes, four columns of 16 rows, as words: the first and third column, and the second and fourth.
static inline __m256i even_words(__m256i w) {
  // Moved by a shuffle: two shifts more would keep AMD's one unit for shifts busy for longer than the products take.
  __m256i up = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 2, -1, 4, -1, 6, -1, 8, -1, 10, -1, 12, -1, 14));
  return _mm256_srai_epi16(_mm256_shuffle_epi8(w, up), 8);
}
static inline i16x32 even_words(u8x64 w) { return {even_words(w.lo), even_words(w.hi)}; }
static inline i16x32 odd_words(u8x64 w) { return {_mm256_srai_epi16(w.lo, 8), _mm256_srai_epi16(w.hi, 8)}; }
// 16 signed bytes as words, each for both columns of its row.
static inline i16x32 twice_i8(__m128i bytes) {
  __m256i words = _mm256_cvtepi8_epi16(_mm_shuffle_epi32(bytes, 0xd8));  // in the order that unpacking two lanes wants
  return {_mm256_unpacklo_epi16(words, words), _mm256_unpackhi_epi16(words, words)};
}
static inline i16x32 twice_i8(const int8_t* p) { return twice_i8(load128(p)); }
static inline i16x32 twice_low_nibbles(const uint8_t* p) { return twice_i8(_mm_and_si128(load128(p), _mm_set1_epi8(15))); }
static inline f32x16 load_high_nibbles(const uint8_t* p) {
  return u8_to_f32(_mm_and_si128(_mm_srli_epi16(load128(p), 4), _mm_set1_epi8(15)));
}
static inline __m256i dot2_words(__m256i acc, __m256i w, __m256i x) {
  __m256i products;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(w), "x"(x));
  return acc;
}
static inline i32x16 dot2_words(i32x16 acc, i16x32 w, const int16_t* x) {
  int32_t two;
  __builtin_memcpy(&two, x, 4);
  __m256i b = _mm256_set1_epi32(two);
  return {dot2_words(acc.lo, w.lo, b), dot2_words(acc.hi, w.hi, b)};
}

static inline u8x64 and_or(u8x64 a, u8x64 mask, u8x64 b) { return or_(and_(a, mask), b); }
constexpr bool kSignedProducts = true;
static inline void split_bf16(u8x64 pairs, f32x16& even, f32x16& odd) {
  __m256i mask = _mm256_set1_epi32(int(0xffff0000));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(pairs.hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(pairs.lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(pairs.hi, mask))};
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace layerlift::LL_ISA
