// Activations for tensor cores: half[t] = norm(x[t]) / factors[t] rounded to f16 (BRAIN: bf16), norm being x itself where
// there is none (null). A factor is the norm's times a power of two that brings the row's largest value between 2^13 and
// 2^14: no value overflows f16, and one that becomes subnormal there is below 2^-27 of the largest.
// Numerics: each value is off by 2^-11 of itself at most (bf16: 2^-8), half a unit in the last place.
// Launch: x = tokens, THREADS. columns is a multiple of 4. Macros: WARPS, BRAIN.

#define THREADS (32 * WARPS)

KERNEL(THREADS)
rows_half(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL u32 *half, GLOBAL float *factors,
          int columns) {
  LOCAL_ARRAY(float, found, 2 * WARPS);
  let_successors_start();
  wait_for_predecessors();
  const float4 *row = (const float4 *)(x + (i64)BLOCK_X * columns);
  float squares = 0.f, largest = 0.f;
  for (int i = THREAD; i < columns / 4; i += THREADS) {
    float4 v = row[i], w = norm ? ((const float4 *)norm)[i] : make_float4(1.f, 1.f, 1.f, 1.f);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    largest = MAX(MAX(MAX(largest, fabsf(v.x * w.x)), fabsf(v.y * w.y)), MAX(fabsf(v.z * w.z), fabsf(v.w * w.w)));
  }
UNROLL
  for (int bit = 1; bit < 32; bit *= 2) {
    squares += SHUFFLE_XOR(squares, bit);
    largest = MAX(largest, SHUFFLE_XOR(largest, bit));
  }
  if (LANE == 0) {
    found[WARP] = squares;
    found[WARPS + WARP] = largest;
  }
  BARRIER;
  squares = largest = 0.f;
UNROLL
  for (int i = 0; i < WARPS; i++) {
    squares += found[i];
    largest = MAX(largest, found[WARPS + i]);
  }
  int exponent = (int)(AS_UINT(largest) >> 23) - 127;  // of the largest value; the least for 0
  if (exponent < -100) exponent = -100;
  if (exponent > 120) exponent = 120;
  float up = AS_FLOAT((u32)(13 - exponent + 127) << 23), down = AS_FLOAT((u32)(exponent - 13 + 127) << 23);
  if (THREAD == 0) factors[BLOCK_X] = norm ? down * RSQRT(squares / (float)columns + eps) : down;
  for (int i = THREAD; i < columns / 4; i += THREADS) {
    float4 v = row[i], w = norm ? ((const float4 *)norm)[i] : make_float4(1.f, 1.f, 1.f, 1.f);
    i64 at = ((i64)BLOCK_X * columns + 4 * i) / 2;
    float values[4] = {v.x * w.x * up, v.y * w.y * up, v.z * w.z * up, v.w * w.w * up};
    if (BRAIN) {
      u32 bits[4];
UNROLL
      for (int j = 0; j < 4; j++) bits[j] = AS_UINT(values[j]) + 0x7FFFu + (AS_UINT(values[j]) >> 16 & 1u);
      half[at] = bits[0] >> 16 | (bits[1] & 0xFFFF0000u);
      half[at + 1] = bits[2] >> 16 | (bits[3] & 0xFFFF0000u);
    } else {
      half[at] = pack_halves(values[0], values[1]);
      half[at + 1] = pack_halves(values[2], values[3]);
    }
  }
}
