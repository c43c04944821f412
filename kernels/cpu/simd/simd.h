// Sixteen lanes at a time, whatever the instruction set: the types and functions the bodies are written in.
//
//   f32x16  i32x16                      values
//   u8x64                               four bytes for each of 16 lanes, lane by lane
// LL_UNROLL(n) before a loop unrolls it where that pays.
// Loads and stores need no alignment. The names below exist for every set:
//   f32x16: zero_f32 set1 load store load_n store_n (first n lanes, the rest zero / untouched) add sub mul div fma(a,b,c) =
//           a*b+c  max min hsum hmax  step_above(a,edge,step) = step where a > edge, else 0
//           lane_of(a,x): the first lane that is x; x must be there
//           load_f16 store_f16 load_bf16 store_bf16 (rounded to nearest even)
//   i32x16: zero_i32 set1_i32 load_i32 add max min shl<n> to_f32 bits_of(f32x16) floats_of(i32x16): the same bits
//   u8x64:  load_u8 store_u8 and_ or_ xor_ set1_u8 shr<n> shl_bits<n> (bits shifted in are the caller's to mask)
//           and_or(a,mask,b) lookup16
//           dot4_us(acc, w, a): acc[lane] += sum of 4 unsigned w[lane] * signed a  (a: 4 bytes, the same for all lanes)
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "neon.h"
#else
#include "generic.h"
#endif
