// value = scale * code - minimum: 32 weights of one row (a unit), from the planes that backends/gpu_repack.py lays out.
// decode_<format>(w, units, at, out): w the matrix, units how many it has, at which one, out[32] private. There if the
// macro USE_<FORMAT> is set: compilers take their time over what is never called, too.
// Codes of 16 weights and more lie in 16-byte loads; byte j of those holds weight j low and weight 16 + j high.

TABLE float iq4_values[16] = {-127.f, -104.f, -83.f, -65.f, -49.f, -35.f, -22.f, -10.f,
                              1.f,    13.f,   25.f,  38.f,  53.f,  69.f,  89.f,  113.f};
TABLE float fp4_values[16] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, 0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

#define HALF_AT(base, i) LOAD_HALF((GLOBAL const f16 *)(base), i)
#define WORD_AT(base, i) (((GLOBAL const u32 *)(base))[i])
#define QUAD_AT(base, i) (((GLOBAL const uint4 *)(base))[i])

// Four bits of each weight.
DEVICE void codes_4(uint4 quad, int *q) {
  u32 words[4];
  words[0] = quad.x;
  words[1] = quad.y;
  words[2] = quad.z;
  words[3] = quad.w;
UNROLL_UNIT
  for (int j = 0; j < 16; j++) {
    u32 byte = words[j / 4] >> (8 * (j % 4));
    q[j] = byte & 15;
    q[16 + j] = (byte >> 4) & 15;
  }
}

// One more bit of each weight: bit 8 i + v of `bits` is bit `place` of weight 4 v + i.
DEVICE void code_bit(u32 bits, int place, int *q) {
UNROLL_UNIT
  for (int j = 0; j < 32; j++) q[j] |= ((bits >> (j % 4 * 8 + j / 4)) & 1) << place;
}

DEVICE void scaled(const int *q, float scale, float minimum, float *out) {
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = scale * (float)q[j] - minimum;
}

// Two scales, each for 16 weights.
DEVICE void scaled_16(const int *q, float low, float high, float minimum_low, float minimum_high, float *out) {
UNROLL_UNIT
  for (int j = 0; j < 16; j++) {
    out[j] = low * (float)q[j] - minimum_low;
    out[16 + j] = high * (float)q[16 + j] - minimum_high;
  }
}

#ifdef USE_F32
DEVICE void decode_f32(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  GLOBAL const float *values = (GLOBAL const float *)w + 32 * at;
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = values[j];
}
#endif

#ifdef USE_F16
DEVICE void decode_f16(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  GLOBAL const f16 *values = (GLOBAL const f16 *)w + 32 * at;
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = LOAD_HALF(values, j);
}
#endif

#ifdef USE_BF16
DEVICE void decode_bf16(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  GLOBAL const u32 *pairs = (GLOBAL const u32 *)w + 16 * at;
UNROLL_UNIT
  for (int j = 0; j < 16; j++) {
    out[2 * j] = AS_FLOAT(pairs[j] << 16);
    out[2 * j + 1] = AS_FLOAT(pairs[j] & 0xFFFF0000u);
  }
}
#endif

#ifdef USE_Q8_0
DEVICE void decode_q8_0(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  uint4 first = QUAD_AT(w, 2 * at), second = QUAD_AT(w, 2 * at + 1);
  u32 words[8];
  words[0] = first.x, words[1] = first.y, words[2] = first.z, words[3] = first.w;
  words[4] = second.x, words[5] = second.y, words[6] = second.z, words[7] = second.w;
  float scale = HALF_AT(w + 32 * units, at);
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = scale * (float)(i8)((words[j / 4] >> (8 * (j % 4))) & 255);
}
#endif

#ifdef USE_Q4_0
DEVICE void decode_q4_0(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  float scale = HALF_AT(w + 16 * units, at);
  scaled(q, scale, 8.f * scale, out);
}
#endif

#ifdef USE_Q4_1
DEVICE void decode_q4_1(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  scaled(q, HALF_AT(w + 16 * units, 2 * at), -HALF_AT(w + 16 * units, 2 * at + 1), out);
}
#endif

#ifdef USE_Q5_0
DEVICE void decode_q5_0(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  code_bit(WORD_AT(w + 16 * units, at), 4, q);
  float scale = HALF_AT(w + 20 * units, at);
  scaled(q, scale, 16.f * scale, out);
}
#endif

#ifdef USE_Q5_1
DEVICE void decode_q5_1(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  code_bit(WORD_AT(w + 16 * units, at), 4, q);
  scaled(q, HALF_AT(w + 20 * units, 2 * at), -HALF_AT(w + 20 * units, 2 * at + 1), out);
}
#endif

#ifdef USE_IQ4_NL
DEVICE void decode_iq4_nl(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  float scale = HALF_AT(w + 16 * units, at);
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = scale * iq4_values[q[j]];
}
#endif

#ifdef USE_IQ4_XS
DEVICE void decode_iq4_xs(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  float scale = HALF_AT(w + 16 * units, at / 8) * (float)(i8)w[16 * units + units / 4 + at];
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = scale * iq4_values[q[j]];
}
#endif

#ifdef USE_MXFP4
DEVICE void decode_mxfp4(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  u32 exponent = w[16 * units + at];
  float scale = AS_FLOAT(exponent ? exponent << 23 : 0x00400000u);  // 2^(exponent - 127)
UNROLL_UNIT
  for (int j = 0; j < 32; j++) out[j] = scale * fp4_values[q[j]];
}
#endif

// Q4_K and Q5_K: scale and minimum of 256 weights, and 6 bits of each for every 32.
DEVICE void scaled_k(GLOBAL const u8 *mains, i64 units, i64 at, const int *q, float *out) {
  GLOBAL const u8 *subs = mains + units / 2 + 2 * at;
  scaled(q, HALF_AT(mains, at / 8 * 2) * (float)subs[0], HALF_AT(mains, at / 8 * 2 + 1) * (float)subs[1], out);
}

#ifdef USE_Q4_K
DEVICE void decode_q4_k(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  scaled_k(w + 16 * units, units, at, q, out);
}
#endif

#ifdef USE_Q5_K
DEVICE void decode_q5_k(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  code_bit(WORD_AT(w + 16 * units, at), 4, q);
  scaled_k(w + 20 * units, units, at, q, out);
}
#endif

// Q3_K and Q6_K: the scale of 256 weights, and a signed one for every 16. `offset` is the code of zero.
DEVICE void scaled_signed(GLOBAL const u8 *subs, i64 units, i64 at, float offset, const int *q, float *out) {
  float scale = HALF_AT(subs + 2 * units, at / 8);
  float low = scale * (float)(i8)subs[2 * at], high = scale * (float)(i8)subs[2 * at + 1];
  scaled_16(q, low, high, low * offset, high * offset, out);
}

#ifdef USE_Q6_K
DEVICE void decode_q6_k(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
  codes_4(QUAD_AT(w, at), q);
  code_bit(WORD_AT(w + 16 * units, 2 * at), 4, q);
  code_bit(WORD_AT(w + 16 * units, 2 * at + 1), 5, q);
  scaled_signed(w + 24 * units, units, at, 32.f, q, out);
}
#endif

#ifdef USE_Q3_K
DEVICE void decode_q3_k(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
UNROLL_UNIT
  for (int j = 0; j < 32; j++) q[j] = 0;
  code_bit(WORD_AT(w, 2 * at), 0, q);
  code_bit(WORD_AT(w, 2 * at + 1), 1, q);
  code_bit(WORD_AT(w + 8 * units, at), 2, q);
  scaled_signed(w + 12 * units, units, at, 4.f, q, out);
}
#endif

// Q2_K: scale and minimum of 256 weights, and 4 bits of each for every 16.
#ifdef USE_Q2_K
DEVICE void decode_q2_k(GLOBAL const u8 *w, i64 units, i64 at, float *out) {
  int q[32];
UNROLL_UNIT
  for (int j = 0; j < 32; j++) q[j] = 0;
  code_bit(WORD_AT(w, 2 * at), 0, q);
  code_bit(WORD_AT(w, 2 * at + 1), 1, q);
  GLOBAL const u8 *mains = w + 8 * units, *subs = mains + units / 2 + 2 * at;
  float scale = HALF_AT(mains, at / 8 * 2), minimum = HALF_AT(mains, at / 8 * 2 + 1);
  scaled_16(q, scale * (float)(subs[0] & 15), scale * (float)(subs[1] & 15), minimum * (float)(subs[0] >> 4),
            minimum * (float)(subs[1] >> 4), out);
}
#endif
