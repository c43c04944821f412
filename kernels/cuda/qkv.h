// A layer's start for a few tokens: norm, q, k and v, bias, rope, append to the cache. A warp makes two pairs of outputs
// that rope rotates together; a block works on one of the three matrices.
// Launch: x = blocks_q + blocks_k + blocks_v of THREADS, blocks_m = ceil(rows_m / (ROWS_AT_ONCE * WARPS / SPLIT_M)).
// head_dim is a multiple of 4. Macros: matvec.h's, FORMAT_Q, SPLIT_Q, and the same for K and V.
// step: the step's data (backends/gpu_step.py), read after the wait: a replayed graph finds there what has changed.
// Numerics: matvec.h's, and the rounding of keys and values to the cache's type.

template <class F, int SPLIT>
DEVICE void two_pairs(int block, const u8 *w, int rows, int n_dims, int neox, int head_dim, const float *x,
                      const float *norm, const Shared &shared) {
  int pair = (block * (WARPS / SPLIT) + WARP / SPLIT) * 2;
  const u8 *ws[ROWS_AT_ONCE];
  i64 row[ROWS_AT_ONCE];
UNROLL
  for (int i = 0; i < 2; i++) {
    int a, b, angle, own = pair + i < rows / 2 ? pair + i : 0, head = own / (head_dim / 2) * head_dim;
    rope_pair(own % (head_dim / 2), n_dims, neox, &a, &b, &angle);
    row[2 * i] = head + a;
    row[2 * i + 1] = head + b;
    ws[2 * i] = ws[2 * i + 1] = w;
  }
  products<F, SPLIT>(ws, row, (i64)rows * (COLUMNS / 32), x, norm, shared);
}

KERNEL(THREADS)
qkv(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *wq, GLOBAL const u8 *wk,
    GLOBAL const u8 *wv, GLOBAL const float *bias_q, GLOBAL const float *bias_k, GLOBAL const float *bias_v,
    GLOBAL float *q, GLOBAL u8 *k_cache, GLOBAL u8 *v_cache, int dtype, GLOBAL const int *step, int rows_at, int cos_at,
    int sin_at, int n_dims, int neox, int head_dim, int rows_q, int rows_kv) {
  SHARED_FOR_MATVEC(shared);
  let_successors_start();
  constexpr int BLOCK_Q = WARPS / SPLIT_Q * ROWS_AT_ONCE, BLOCK_K = WARPS / SPLIT_K * ROWS_AT_ONCE;
  constexpr int BLOCK_V = WARPS / SPLIT_V * ROWS_AT_ONCE;
  int block = BLOCK_X, which = 0, rows = rows_q, split = SPLIT_Q;
  int blocks_q = (rows_q + BLOCK_Q - 1) / BLOCK_Q, blocks_k = (rows_kv + BLOCK_K - 1) / BLOCK_K;
  if (block < blocks_q) {
    two_pairs<FORMAT_Q, SPLIT_Q>(block, wq, rows_q, n_dims, neox, head_dim, x, norm, shared);
  } else if (block < blocks_q + blocks_k) {
    which = 1, rows = rows_kv, split = SPLIT_K, block -= blocks_q;
    two_pairs<FORMAT_K, SPLIT_K>(block, wk, rows_kv, n_dims, neox, head_dim, x, norm, shared);
  } else {
    which = 2, rows = rows_kv, split = SPLIT_V, block -= blocks_q + blocks_k;
    two_pairs<FORMAT_V, SPLIT_V>(block, wv, rows_kv, 0, neox, head_dim, x, norm, shared);
  }
  int pairs_here = WARPS / split * 2;
  for (int i = THREAD; i < pairs_here * TOKENS; i += THREADS) {
    int in_block = i % pairs_here, token = i / pairs_here, pair = block * pairs_here + in_block;
    if (pair >= rows / 2) continue;
    int a, b, angle, at = (in_block / 2 * split) * OUTCOMES + in_block % 2 * 2 * TOKENS + token;
    rope_pair(pair % (head_dim / 2), which == 2 ? 0 : n_dims, neox, &a, &b, &angle);
    a += pair / (head_dim / 2) * head_dim;
    b += pair / (head_dim / 2) * head_dim;
    float at_a = 0.f, at_b = 0.f, factor = norm_factor(shared, token, eps);
    for (int part = 0; part < split; part++) {
      at_a += shared.outcome[at + part * OUTCOMES];
      at_b += shared.outcome[at + part * OUTCOMES + TOKENS];
    }
    at_a *= factor;
    at_b *= factor;
    const float *bias = which == 0 ? bias_q : (which == 1 ? bias_k : bias_v);
    if (bias) {
      at_a += bias[a];
      at_b += bias[b];
    }
    if (angle >= 0) {
      float cosine = ((const float *)step)[cos_at + token * (n_dims / 2) + angle];
      float sine = ((const float *)step)[sin_at + token * (n_dims / 2) + angle];
      float turned = at_a * cosine - at_b * sine;
      at_b = at_a * sine + at_b * cosine;
      at_a = turned;
    }
    if (which == 0) {
      q[(i64)token * rows_q + a] = at_a;
      q[(i64)token * rows_q + b] = at_b;
    } else {
      u8 *cache = which == 1 ? k_cache : v_cache;
      i64 base = (i64)step[rows_at + token] * rows_kv;
      cache_store(cache, base + a, at_a, dtype);
      cache_store(cache, base + b, at_b, dtype);
    }
  }
}
