// Rope and the key and value cache [capacity, kv_heads, head_dim].

// Rotates q into q_out, and k and v into the cache rows of the step; any of the three may be missing.
// Launch: x = pairs of all heads, y = tokens. step as in qkv.h.
KERNEL(GROUP_SIZE)
rope_append(GLOBAL const float *q, GLOBAL float *q_out, GLOBAL const float *k, GLOBAL const float *v,
            GLOBAL u8 *k_cache, GLOBAL u8 *v_cache, int dtype, GLOBAL const int *step, int rows_at, int cos_at,
            int sin_at, int n_dims, int neox, int head_dim, int heads_q, int heads_kv) {
  int pair = BLOCK_X * GROUP_SIZE + THREAD, token = BLOCK_Y, pairs = head_dim / 2;
  int head = pair / pairs, a, b, angle;
  if (head < heads_q + 2 * heads_kv) {
    int which = head < heads_q ? 0 : (head < heads_q + heads_kv ? 1 : 2);
    rope_pair(pair % pairs, which == 2 ? 0 : n_dims, neox, &a, &b, &angle);
    head -= which == 0 ? 0 : (which == 1 ? heads_q : heads_q + heads_kv);
    i64 base = ((i64)token * (which ? heads_kv : heads_q) + head) * head_dim;
    GLOBAL const float *from = which == 0 ? q : (which == 1 ? k : v);
    float at_a = from[base + a], at_b = from[base + b];
    if (angle >= 0) {
      float cosine = ((GLOBAL const float *)step)[cos_at + token * (n_dims / 2) + angle];
      float sine = ((GLOBAL const float *)step)[sin_at + token * (n_dims / 2) + angle];
      float turned = at_a * cosine - at_b * sine;
      at_b = at_a * sine + at_b * cosine;
      at_a = turned;
    }
    if (which == 0) {
      q_out[base + a] = at_a;
      q_out[base + b] = at_b;
    } else {
      GLOBAL u8 *cache = which == 1 ? k_cache : v_cache;
      base = ((i64)step[rows_at + token] * heads_kv + head) * head_dim;
      cache_store(cache, base + a, at_a, dtype);
      cache_store(cache, base + b, at_b, dtype);
    }
  }
}

// Rotates the keys of rows[i] by row i of the table of cosines, then of sines. Launch: x = pairs of all heads, y = rows.
KERNEL(GROUP_SIZE)
kv_shift(GLOBAL u8 *k_cache, int dtype, GLOBAL const int *rows, GLOBAL const float *table, int n_rows, int n_dims,
         int neox, int head_dim, int heads_kv) {
  int half_dims = n_dims / 2, pair = BLOCK_X * GROUP_SIZE + THREAD, i = BLOCK_Y, a, b, angle;
  if (pair < half_dims * heads_kv) {
    rope_pair(pair % half_dims, n_dims, neox, &a, &b, &angle);
    i64 base = ((i64)rows[i] * heads_kv + pair / half_dims) * head_dim;
    float cosine = table[i * half_dims + angle], sine = table[(n_rows + i) * half_dims + angle];
    float at_a = cache_load(k_cache, base + a, dtype), at_b = cache_load(k_cache, base + b, dtype);
    cache_store(k_cache, base + a, at_a * cosine - at_b * sine, dtype);
    cache_store(k_cache, base + b, at_a * sine + at_b * cosine, dtype);
  }
}
