// o = softmax(scale * q @ k.T) @ v over the rows a token sees: flash decoding (Dao et al. 2023). A work group takes TOKENS
// neighbouring tokens of a span and HEADS heads that share their keys, QUERIES in all, and one of `splits` parts of the
// rows; each thread scores one row of a tile for all of them, then owns some of the head's dimensions. f32 throughout.
// Launch: x = heads / HEADS * splits; y = tokens, or tiles of tokens where TOKENS > 1. step: int32 data of the step, with
// lists [tokens] at first_at (where the token's rows begin in the data) and seen_at (how many it sees), and at tiles_at
// for each tile its first token and how many it has.
// With splits > 1 the outcome goes to `parts` [tokens, heads, splits, HEAD_DIM + 2] and attend_join makes o of it.

#define QUERIES (TOKENS * HEADS)  // query n: token n / HEADS of the tile, head n % HEADS of the group
#define OWN ((HEAD_DIM + GROUP_SIZE - 1) / GROUP_SIZE)

DEVICE float capped(float score, float softcap) { return softcap > 0.f ? softcap * TANH(score / softcap) : score; }

// e^(value - highest), where nothing has been seen yet too.
DEVICE float share_of(float value, float highest) { return value == -INFINITY ? 0.f : EXP(value - highest); }

KERNEL(GROUP_SIZE)
attend(GLOBAL const float *q, GLOBAL const u8 *k_cache, GLOBAL const u8 *v_cache, GLOBAL float *o, GLOBAL float *parts,
       GLOBAL const int *step, int first_at, int seen_at, int tiles_at, int heads, int heads_kv, float scale, int window,
       float softcap, int splits) {
  LOCAL_ARRAY(float, queries, HEAD_DIM * QUERIES);
  LOCAL_ARRAY(float, scores, GROUP_SIZE * QUERIES);
  LOCAL_ARRAY(float, tile_max, GROUP_SIZE * QUERIES);
  LOCAL_ARRAY(int, tile_rows, GROUP_SIZE);
#if TOKENS > 1
  int token = step[tiles_at + 2 * BLOCK_Y], tokens = step[tiles_at + 2 * BLOCK_Y + 1];
#else
  int token = BLOCK_Y, tokens = 1;
#endif
  int thread = THREAD, head = BLOCK_X / splits * HEADS, split = BLOCK_X % splits, head_kv = head / (heads / heads_kv);
  GLOBAL const int *rows = step + step[first_at + token];
  int seen = step[seen_at + token], begin = window > 0 && seen > window ? seen - window : 0;  // of the first token
  int end = seen + tokens - 1, per_split = (end - begin + splits - 1) / splits;
  begin += split * per_split;
  if (begin + per_split < end) end = begin + per_split;
  float sums[OWN * QUERIES], highest[QUERIES], total[QUERIES];
  for (int i = thread; i < HEAD_DIM * QUERIES; i += GROUP_SIZE) {
    int n = i / HEAD_DIM, d = i % HEAD_DIM;
    i64 at = ((i64)(token + n / HEADS) * heads + head + n % HEADS) * HEAD_DIM + d;
    queries[d * QUERIES + n] = n / HEADS < tokens ? q[at] * scale : 0.f;
  }
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    highest[n] = -INFINITY;
    total[n] = 0.f;
UNROLL
    for (int j = 0; j < OWN; j++) sums[j * QUERIES + n] = 0.f;
  }
  for (int base = begin; base < end; base += GROUP_SIZE) {
    float dots[QUERIES];
    int place = base + thread, here = place < end, row = here ? rows[place] : 0, count = end - base;
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
        for (int n = 0; n < QUERIES; n++) dots[n] += value * queries[d * QUERIES + n];
      }
    }
UNROLL
    for (int n = 0; n < QUERIES; n++) {
      int limit = seen + n / HEADS, sees = here && place < limit && (window == 0 || place >= limit - window);
      scores[thread * QUERIES + n] = sees ? capped(dots[n], softcap) : -INFINITY;
      tile_max[thread * QUERIES + n] = scores[thread * QUERIES + n];
    }
    for (int half_of = GROUP_SIZE / 2; half_of > 0; half_of /= 2) {
      BARRIER;
      if (thread < half_of) {
UNROLL
        for (int n = 0; n < QUERIES; n++) {
          int at = thread * QUERIES + n;
          tile_max[at] = MAX(tile_max[at], tile_max[at + half_of * QUERIES]);
        }
      }
    }
    BARRIER;
UNROLL
    for (int n = 0; n < QUERIES; n++) {
      float higher = MAX(highest[n], tile_max[n]), fade = share_of(highest[n], higher);
      highest[n] = higher;
      total[n] *= fade;
UNROLL
      for (int j = 0; j < OWN; j++) sums[j * QUERIES + n] *= fade;
      scores[thread * QUERIES + n] = share_of(scores[thread * QUERIES + n], higher);
    }
    BARRIER;
    for (int i = 0; i < count; i++) {
      i64 value_at = ((i64)tile_rows[i] * heads_kv + head_kv) * HEAD_DIM;
UNROLL
      for (int j = 0; j < OWN; j++) {
        int d = thread + j * GROUP_SIZE;
        float value = d < HEAD_DIM ? cache_load(v_cache, value_at + d, CACHE_DTYPE) : 0.f;
UNROLL
        for (int n = 0; n < QUERIES; n++) sums[j * QUERIES + n] += scores[i * QUERIES + n] * value;
      }
UNROLL
      for (int n = 0; n < QUERIES; n++) total[n] += scores[i * QUERIES + n];
    }
  }
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    i64 at = (i64)(token + n / HEADS) * heads + head + n % HEADS;
    if (n / HEADS < tokens) {
UNROLL
      for (int j = 0; j < OWN; j++) {
        int d = thread + j * GROUP_SIZE;
        if (d < HEAD_DIM) {
          if (splits == 1) {
            o[at * HEAD_DIM + d] = sums[j * QUERIES + n] / total[n];
          } else {
            parts[(at * splits + split) * (HEAD_DIM + 2) + d] = sums[j * QUERIES + n];
          }
        }
      }
      if (splits > 1 && thread == 0) {
        parts[(at * splits + split) * (HEAD_DIM + 2) + HEAD_DIM] = highest[n];
        parts[(at * splits + split) * (HEAD_DIM + 2) + HEAD_DIM + 1] = total[n];
      }
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
