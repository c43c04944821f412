// A layer's start for a few tokens: norm, q, k and v, rope, append to the cache. A team makes the two outputs that
// rope rotates together. Launch: x = ceil(all rows / 2 / teams), y = tokens. Macros: DECODE_Q, DECODE_K, DECODE_V.
// step: int32 data of the step; rows_at, cos_at and sin_at are where cache rows and rope tables lie in it.

KERNEL(GROUP_SIZE)
qkv(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *wq, GLOBAL const u8 *wk,
    GLOBAL const u8 *wv, GLOBAL const float *bias_q, GLOBAL const float *bias_k, GLOBAL const float *bias_v,
    GLOBAL float *q, GLOBAL u8 *k_cache, GLOBAL u8 *v_cache, int dtype, GLOBAL const int *step, int rows_at, int cos_at,
    int sin_at, int n_dims, int neox, int head_dim, int columns, int rows_q, int rows_kv, int lanes) {
  LOCAL_ARRAY(float, sums, 3 * GROUP_SIZE);
  int pair = BLOCK_X * (GROUP_SIZE / lanes) + THREAD / lanes, inside = pair < rows_q / 2 + rows_kv;
  int which = pair < rows_q / 2 ? 0 : (pair < rows_q / 2 + rows_kv / 2 ? 1 : 2);
  if (which == 1) pair -= rows_q / 2;
  if (which == 2) pair -= rows_q / 2 + rows_kv / 2;
  if (!inside) pair = 0;
  int a, b, angle, head = pair / (head_dim / 2), token = BLOCK_Y;
  rope_pair(pair % (head_dim / 2), which == 2 ? 0 : n_dims, neox, &a, &b, &angle);
  i64 row_units = (columns + 31) / 32, units = row_units * (which ? rows_kv : rows_q);
  i64 first = (head * head_dim + a) * row_units, second = (head * head_dim + b) * row_units;
  float4 sum_a = FOUR(0.f), sum_b = FOUR(0.f), squares = FOUR(0.f), values[8], weights[8];
  for (int unit = THREAD % lanes; unit < row_units; unit += lanes) {
    load_unit(x + (i64)token * columns, norm, unit, columns, values, &squares);
    if (which == 0) {
      DECODE_Q(wq, units, first + unit, weights);
      dot_unit(values, weights, &sum_a);
      DECODE_Q(wq, units, second + unit, weights);
    } else if (which == 1) {
      DECODE_K(wk, units, first + unit, weights);
      dot_unit(values, weights, &sum_a);
      DECODE_K(wk, units, second + unit, weights);
    } else {
      DECODE_V(wv, units, first + unit, weights);
      dot_unit(values, weights, &sum_a);
      DECODE_V(wv, units, second + unit, weights);
    }
    dot_unit(values, weights, &sum_b);
  }
  team_sums(sums, lanes, sum_of_parts(sum_a), sum_of_parts(sum_b), sum_of_parts(squares));
  if (THREAD % lanes == 0 && inside) {
    float scale = RSQRT(sums[2 * GROUP_SIZE + THREAD] / (float)columns + eps);
    float at_a = sums[THREAD] * scale, at_b = sums[GROUP_SIZE + THREAD] * scale;
    GLOBAL const float *bias = which == 0 ? bias_q : (which == 1 ? bias_k : bias_v);
    a += head * head_dim;
    b += head * head_dim;
    if (bias) {
      at_a += bias[a];
      at_b += bias[b];
    }
    if (angle >= 0) {
      float cosine = ((GLOBAL const float *)step)[cos_at + token * (n_dims / 2) + angle];
      float sine = ((GLOBAL const float *)step)[sin_at + token * (n_dims / 2) + angle];
      float turned = at_a * cosine - at_b * sine;
      at_b = at_a * sine + at_b * cosine;
      at_a = turned;
    }
    if (which == 0) {
      q[(i64)token * rows_q + a] = at_a;
      q[(i64)token * rows_q + b] = at_b;
    } else {
      GLOBAL u8 *cache = which == 1 ? k_cache : v_cache;
      i64 base = (i64)step[rows_at + token] * rows_kv;
      cache_store(cache, base + a, at_a, dtype);
      cache_store(cache, base + b, at_b, dtype);
    }
  }
}
