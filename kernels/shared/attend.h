// o = softmax(scale * q @ k.T) @ v over the rows a token sees: flash decoding (Dao et al. 2023). A work group takes
// QUERIES heads that share their keys, one token, one of `splits` parts of the rows; each thread scores one row of a
// tile, then owns some of the head's dimensions. f32 throughout.
// Launch: x = heads / QUERIES * splits, y = tokens. step: at spans_at, three lists [tokens]: where the token's rows
// begin in the step data, how many it sees, and (unused here) its cache row.
// With splits > 1 the outcome goes to `parts` [tokens, heads, splits, HEAD_DIM + 2] and attend_join makes o of it.

#define OWN ((HEAD_DIM + GROUP_SIZE - 1) / GROUP_SIZE)

DEVICE float capped(float score, float softcap) { return softcap > 0.f ? softcap * TANH(score / softcap) : score; }

KERNEL(GROUP_SIZE)
attend(GLOBAL const float *q, GLOBAL const u8 *k_cache, GLOBAL const u8 *v_cache, GLOBAL float *o, GLOBAL float *parts,
       GLOBAL const int *step, int first_at, int seen_at, int heads, int heads_kv, float scale, int window,
       float softcap, int splits) {
  LOCAL_ARRAY(float, queries, QUERIES * HEAD_DIM);
  LOCAL_ARRAY(float, scores, QUERIES * GROUP_SIZE);
  LOCAL_ARRAY(float, tile_max, QUERIES * GROUP_SIZE);
  LOCAL_ARRAY(int, tile_rows, GROUP_SIZE);
  int thread = THREAD, token = BLOCK_Y, head = BLOCK_X / splits * QUERIES, split = BLOCK_X % splits;
  int head_kv = head / (heads / heads_kv);
  GLOBAL const int *rows = step + step[first_at + token];
  int seen = step[seen_at + token], begin = window > 0 && seen > window ? seen - window : 0;
  int per_split = (seen - begin + splits - 1) / splits;
  begin += split * per_split;
  int end = begin + per_split < seen ? begin + per_split : seen;
  float sums[QUERIES * OWN], highest[QUERIES], total[QUERIES];
  for (int i = thread; i < QUERIES * HEAD_DIM; i += GROUP_SIZE) {
    queries[i] = q[((i64)token * heads + head) * HEAD_DIM + i] * scale;
  }
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    highest[n] = -INFINITY;
    total[n] = 0.f;
UNROLL
    for (int i = 0; i < OWN; i++) sums[n * OWN + i] = 0.f;
  }
  for (int base = begin; base < end; base += GROUP_SIZE) {
    float dots[QUERIES];
    int here = base + thread < end, row = here ? rows[base + thread] : 0, count = end - base;
    if (count > GROUP_SIZE) count = GROUP_SIZE;
    BARRIER;  // the queries are there, and the tile before this one is done with
    tile_rows[thread] = row;
UNROLL
    for (int n = 0; n < QUERIES; n++) dots[n] = 0.f;
    if (here) {
      i64 key = ((i64)row * heads_kv + head_kv) * HEAD_DIM;
UNROLL_UNIT
      for (int d = 0; d < HEAD_DIM; d++) {
        float value = cache_load(k_cache, key + d, CACHE_DTYPE);
UNROLL
        for (int n = 0; n < QUERIES; n++) dots[n] += value * queries[n * HEAD_DIM + d];
      }
    }
UNROLL
    for (int n = 0; n < QUERIES; n++) {
      scores[n * GROUP_SIZE + thread] = here ? capped(dots[n], softcap) : -INFINITY;
      tile_max[n * GROUP_SIZE + thread] = scores[n * GROUP_SIZE + thread];
    }
    for (int half_of = GROUP_SIZE / 2; half_of > 0; half_of /= 2) {
      BARRIER;
      if (thread < half_of) {
UNROLL
        for (int n = 0; n < QUERIES; n++) {
          int at = n * GROUP_SIZE + thread;
          tile_max[at] = MAX(tile_max[at], tile_max[at + half_of]);
        }
      }
    }
    BARRIER;
UNROLL
    for (int n = 0; n < QUERIES; n++) {
      float higher = MAX(highest[n], tile_max[n * GROUP_SIZE]), fade = EXP(highest[n] - higher);
      highest[n] = higher;
      total[n] *= fade;
UNROLL
      for (int i = 0; i < OWN; i++) sums[n * OWN + i] *= fade;
      scores[n * GROUP_SIZE + thread] = EXP(scores[n * GROUP_SIZE + thread] - higher);
    }
    BARRIER;
    for (int i = 0; i < count; i++) {
      i64 value_at = ((i64)tile_rows[i] * heads_kv + head_kv) * HEAD_DIM;
UNROLL
      for (int j = 0; j < OWN; j++) {
        int d = thread + j * GROUP_SIZE;
        float value = d < HEAD_DIM ? cache_load(v_cache, value_at + d, CACHE_DTYPE) : 0.f;
UNROLL
        for (int n = 0; n < QUERIES; n++) sums[n * OWN + j] += scores[n * GROUP_SIZE + i] * value;
      }
UNROLL
      for (int n = 0; n < QUERIES; n++) total[n] += scores[n * GROUP_SIZE + i];
    }
  }
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    i64 at = (i64)token * heads + head + n;
UNROLL
    for (int j = 0; j < OWN; j++) {
      int d = thread + j * GROUP_SIZE;
      if (d < HEAD_DIM) {
        if (splits == 1) {
          o[at * HEAD_DIM + d] = sums[n * OWN + j] / total[n];
        } else {
          parts[(at * splits + split) * (HEAD_DIM + 2) + d] = sums[n * OWN + j];
        }
      }
    }
    if (splits > 1 && thread == 0) {
      parts[(at * splits + split) * (HEAD_DIM + 2) + HEAD_DIM] = highest[n];
      parts[(at * splits + split) * (HEAD_DIM + 2) + HEAD_DIM + 1] = total[n];
    }
  }
}

// Joins the parts of one head. Launch: x = heads, y = tokens.
KERNEL(GROUP_SIZE)
attend_join(GLOBAL const float *parts, GLOBAL float *o, int heads, int splits) {
  i64 at = (i64)BLOCK_Y * heads + BLOCK_X;
  GLOBAL const float *own = parts + at * splits * (HEAD_DIM + 2);
  float highest = -INFINITY, total = 0.f;
  for (int i = 0; i < splits; i++) highest = MAX(highest, own[i * (HEAD_DIM + 2) + HEAD_DIM]);
  for (int i = 0; i < splits; i++) {
    total += own[i * (HEAD_DIM + 2) + HEAD_DIM + 1] * EXP(own[i * (HEAD_DIM + 2) + HEAD_DIM] - highest);
  }
  for (int d = THREAD; d < HEAD_DIM; d += GROUP_SIZE) {
    float sum = 0.f;
    for (int i = 0; i < splits; i++) {
      sum += own[i * (HEAD_DIM + 2) + d] * EXP(own[i * (HEAD_DIM + 2) + HEAD_DIM] - highest);
    }
    o[at * HEAD_DIM + d] = sum / total;
  }
}
