// value = scale * code - minimum: 32 weights of one row (a unit), from the planes that backends/gpu_repack.py lays out.
// decode_<format>(w, units, at, out): w the matrix, units how many it has, at which one, out[8] private, four weights
// each. There if the macro USE_<FORMAT> is set: compilers take their time over what is never called, too.
// Quantised formats have codes_<format>(w, units, at, words, scales) beneath it: words[8] the codes, a byte for each
// weight in order; scales[4] the scales of the weights 0 … 15 and 16 … 31, then their minima.
// Codes of 16 weights and more lie in 16-byte loads; byte j of those holds weight j low and weight 16 + j high.

#define HALF_AT(base, i) LOAD_HALF((GLOBAL const f16 *)(base), i)
#define WORD_AT(base, i) (((GLOBAL const u32 *)(base))[i])
#define QUAD_AT(base, i) (((GLOBAL const uint4 *)(base))[i])

// Four bits of each weight.
DEVICE void codes_4(uint4 quad, u32 *words) {
  words[0] = quad.x & 0x0F0F0F0Fu, words[4] = (quad.x >> 4) & 0x0F0F0F0Fu;
  words[1] = quad.y & 0x0F0F0F0Fu, words[5] = (quad.y >> 4) & 0x0F0F0F0Fu;
  words[2] = quad.z & 0x0F0F0F0Fu, words[6] = (quad.z >> 4) & 0x0F0F0F0Fu;
  words[3] = quad.w & 0x0F0F0F0Fu, words[7] = (quad.w >> 4) & 0x0F0F0F0Fu;
}

// One more bit of each weight: bit 8 i + v of `bits` is bit `place` of weight 4 v + i.
DEVICE void code_bit(u32 bits, int place, u32 *words) {
UNROLL
  for (int v = 0; v < 8; v++) words[v] |= ((bits >> v) & 0x01010101u) << place;
}

DEVICE void no_codes(u32 *words) {
UNROLL
  for (int v = 0; v < 8; v++) words[v] = 0;
}

// Puts table values in the place of codes below 16.
DEVICE void looked_up(TABLE_AT const i8 *values, u32 *words) {
UNROLL
  for (int v = 0; v < 8; v++) {
    u32 codes = words[v], found = 0;
UNROLL
    for (int i = 0; i < 4; i++) found |= (u32)(u8)values[(codes >> (8 * i)) & 15] << (8 * i);
    words[v] = found;
  }
}

DEVICE void scales_of(float low, float high, float minimum_low, float minimum_high, float *scales) {
  scales[0] = low;
  scales[1] = high;
  scales[2] = minimum_low;
  scales[3] = minimum_high;
}

DEVICE void one_scale(float scale, float minimum, float *scales) { scales_of(scale, scale, minimum, minimum, scales); }

DEVICE void values_unsigned(const u32 *words, const float *scales, float4 *out) {
UNROLL
  for (int v = 0; v < 4; v++) {
    out[v] = scales[0] * BYTES_UNSIGNED(words[v]) - FOUR(scales[2]);
    out[4 + v] = scales[1] * BYTES_UNSIGNED(words[4 + v]) - FOUR(scales[3]);
  }
}

DEVICE void values_signed(const u32 *words, const float *scales, float4 *out) {
UNROLL
  for (int v = 0; v < 8; v++) out[v] = scales[0] * BYTES_SIGNED(words[v]);
}

// decode_<format> over codes_<format>.
#define DECODED(decode, codes, values)                                                  \
  DEVICE void decode(GLOBAL const u8 *w, i64 units, i64 at, float4 *out) {              \
    u32 words[8];                                                                       \
    float scales[4];                                                                    \
    codes(w, units, at, words, scales);                                                 \
    values(words, scales, out);                                                         \
  }

#ifdef USE_F32
DEVICE void decode_f32(GLOBAL const u8 *w, i64 units, i64 at, float4 *out) {
  GLOBAL const float4 *values = (GLOBAL const float4 *)w + 8 * at;
UNROLL
  for (int v = 0; v < 8; v++) out[v] = values[v];
}
#endif

#ifdef USE_F16
DEVICE void decode_f16(GLOBAL const u8 *w, i64 units, i64 at, float4 *out) {
  GLOBAL const f16 *values = (GLOBAL const f16 *)w + 32 * at;
UNROLL
  for (int v = 0; v < 8; v++) {
    out[v] = FOUR_OF(LOAD_HALF(values, 4 * v), LOAD_HALF(values, 4 * v + 1), LOAD_HALF(values, 4 * v + 2),
                     LOAD_HALF(values, 4 * v + 3));
  }
}
#endif

#ifdef USE_BF16
DEVICE void decode_bf16(GLOBAL const u8 *w, i64 units, i64 at, float4 *out) {
  GLOBAL const u32 *pairs = (GLOBAL const u32 *)w + 16 * at;
UNROLL
  for (int v = 0; v < 8; v++) {
    u32 first = pairs[2 * v], second = pairs[2 * v + 1];
    out[v] = FOUR_OF(AS_FLOAT(first << 16), AS_FLOAT(first & 0xFFFF0000u), AS_FLOAT(second << 16),
                     AS_FLOAT(second & 0xFFFF0000u));
  }
}
#endif

#ifdef USE_Q8_0
DEVICE void codes_q8_0(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  uint4 first = QUAD_AT(w, 2 * at), second = QUAD_AT(w, 2 * at + 1);
  words[0] = first.x, words[1] = first.y, words[2] = first.z, words[3] = first.w;
  words[4] = second.x, words[5] = second.y, words[6] = second.z, words[7] = second.w;
  one_scale(HALF_AT(w + 32 * units, at), 0.f, scales);
}
DECODED(decode_q8_0, codes_q8_0, values_signed)
#endif

#ifdef USE_Q4_0
DEVICE void codes_q4_0(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  float scale = HALF_AT(w + 16 * units, at);
  one_scale(scale, 8.f * scale, scales);
}
DECODED(decode_q4_0, codes_q4_0, values_unsigned)
#endif

#ifdef USE_Q4_1
DEVICE void codes_q4_1(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  one_scale(HALF_AT(w + 16 * units, 2 * at), -HALF_AT(w + 16 * units, 2 * at + 1), scales);
}
DECODED(decode_q4_1, codes_q4_1, values_unsigned)
#endif

#ifdef USE_Q5_0
DEVICE void codes_q5_0(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  code_bit(WORD_AT(w + 16 * units, at), 4, words);
  float scale = HALF_AT(w + 20 * units, at);
  one_scale(scale, 16.f * scale, scales);
}
DECODED(decode_q5_0, codes_q5_0, values_unsigned)
#endif

#ifdef USE_Q5_1
DEVICE void codes_q5_1(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  code_bit(WORD_AT(w + 16 * units, at), 4, words);
  one_scale(HALF_AT(w + 20 * units, 2 * at), -HALF_AT(w + 20 * units, 2 * at + 1), scales);
}
DECODED(decode_q5_1, codes_q5_1, values_unsigned)
#endif

#if defined(USE_IQ4_NL) || defined(USE_IQ4_XS)
TABLE i8 iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#endif

#ifdef USE_IQ4_NL
DEVICE void codes_iq4_nl(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  looked_up(iq4_values, words);
  one_scale(HALF_AT(w + 16 * units, at), 0.f, scales);
}
DECODED(decode_iq4_nl, codes_iq4_nl, values_signed)
#endif

#ifdef USE_IQ4_XS
DEVICE void codes_iq4_xs(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  looked_up(iq4_values, words);
  one_scale(HALF_AT(w + 16 * units, at / 8) * (float)(i8)w[16 * units + units / 4 + at], 0.f, scales);
}
DECODED(decode_iq4_xs, codes_iq4_xs, values_signed)
#endif

#ifdef USE_MXFP4
TABLE i8 fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice what a code means

DEVICE void codes_mxfp4(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  looked_up(fp4_values, words);
  u32 exponent = w[16 * units + at];
  one_scale(AS_FLOAT(exponent > 1 ? (exponent - 1) << 23 : 0x00200000u << exponent), 0.f, scales);  // 2^(exponent - 128)
}
DECODED(decode_mxfp4, codes_mxfp4, values_signed)
#endif

// Q4_K and Q5_K: scale and minimum of 256 weights, and 6 bits of each for every 32.
DEVICE void scales_k(GLOBAL const u8 *mains, i64 units, i64 at, float *scales) {
  GLOBAL const u8 *subs = mains + units / 2 + 2 * at;
  one_scale(HALF_AT(mains, at / 8 * 2) * (float)subs[0], HALF_AT(mains, at / 8 * 2 + 1) * (float)subs[1], scales);
}

#ifdef USE_Q4_K
DEVICE void codes_q4_k(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  scales_k(w + 16 * units, units, at, scales);
}
DECODED(decode_q4_k, codes_q4_k, values_unsigned)
#endif

#ifdef USE_Q5_K
DEVICE void codes_q5_k(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  code_bit(WORD_AT(w + 16 * units, at), 4, words);
  scales_k(w + 20 * units, units, at, scales);
}
DECODED(decode_q5_k, codes_q5_k, values_unsigned)
#endif

// Q3_K and Q6_K: the scale of 256 weights, and a signed one for every 16. `offset` is the code of zero.
DEVICE void scales_signed(GLOBAL const u8 *subs, i64 units, i64 at, float offset, float *scales) {
  float scale = HALF_AT(subs + 2 * units, at / 8);
  float low = scale * (float)(i8)subs[2 * at], high = scale * (float)(i8)subs[2 * at + 1];
  scales_of(low, high, low * offset, high * offset, scales);
}

#ifdef USE_Q6_K
DEVICE void codes_q6_k(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  codes_4(QUAD_AT(w, at), words);
  code_bit(WORD_AT(w + 16 * units, 2 * at), 4, words);
  code_bit(WORD_AT(w + 16 * units, 2 * at + 1), 5, words);
  scales_signed(w + 24 * units, units, at, 32.f, scales);
}
DECODED(decode_q6_k, codes_q6_k, values_unsigned)
#endif

#ifdef USE_Q3_K
DEVICE void codes_q3_k(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  no_codes(words);
  code_bit(WORD_AT(w, 2 * at), 0, words);
  code_bit(WORD_AT(w, 2 * at + 1), 1, words);
  code_bit(WORD_AT(w + 8 * units, at), 2, words);
  scales_signed(w + 12 * units, units, at, 4.f, scales);
}
DECODED(decode_q3_k, codes_q3_k, values_unsigned)
#endif

// Q2_K: scale and minimum of 256 weights, and 4 bits of each for every 16.
#ifdef USE_Q2_K
DEVICE void codes_q2_k(GLOBAL const u8 *w, i64 units, i64 at, u32 *words, float *scales) {
  no_codes(words);
  code_bit(WORD_AT(w, 2 * at), 0, words);
  code_bit(WORD_AT(w, 2 * at + 1), 1, words);
  GLOBAL const u8 *mains = w + 8 * units, *subs = mains + units / 2 + 2 * at;
  float scale = HALF_AT(mains, at / 8 * 2), minimum = HALF_AT(mains, at / 8 * 2 + 1);
  scales_of(scale * (float)(subs[0] & 15), scale * (float)(subs[1] & 15), minimum * (float)(subs[0] >> 4),
            minimum * (float)(subs[1] >> 4), scales);
}
DECODED(decode_q2_k, codes_q2_k, values_unsigned)
#endif
