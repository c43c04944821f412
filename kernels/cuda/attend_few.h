// o = softmax(scale * q @ k.T) @ v for tokens that see many rows each: flash decoding (Dao et al. 2023) in one launch.
// A block takes QUERIES heads that share their keys, one token, and one part of the rows the token sees. A key or value
// of a head lies over ROW_LANES lanes, eight dimensions each, so every load is 16 bytes and keys are read once for all
// heads of the block. The block that arrives last at a token's counter joins the parts, and sets the counter to 0 again.
//
// Launch: x = heads / QUERIES * splits, y = tokens, THREADS. How many parts are used follows on the device from the rows
// seen, at least SPLIT_ROWS each: one grid serves all lengths up to a bucket's, and blocks without a part end at once.
// step, first_at, seen_at: the step's data (backends/gpu_step.py). Macros: HEAD_DIM (a multiple of 8, 16 to 256),
// QUERIES (1 to 4), CACHE_DTYPE (0 f16, 1 bf16, 2 f32), WARPS, SPLIT_ROWS.
// parts: [tokens, heads, splits, HEAD_DIM + 2] f32; counters: [tokens, heads / QUERIES] int32, 0 before the first launch.
// Both may be null with splits = 1. next: `next_nbytes` of weights that the kernel behind this one reads first, or null:
// attention reads little of its own, so that they can be on their way.
// Numerics: f32 throughout; softmax by powers of two, its running maximum common to the rows of a turn.

#define THREADS (32 * WARPS)
#define ROW_LANES (HEAD_DIM <= 16 ? 2 : (HEAD_DIM <= 32 ? 4 : (HEAD_DIM <= 64 ? 8 : (HEAD_DIM <= 128 ? 16 : 32))))
#define WARP_ROWS (32 / ROW_LANES)
#define TURN_ROWS 4  // rows of a lane under way: their keys and values are 128 bytes
#define TURN (TURN_ROWS * WARPS * WARP_ROWS)
#define LOG2_E 1.4426950408889634f

// Eight dimensions of a row as they are stored.
struct Eight {
  uint4 quad[CACHE_DTYPE == 2 ? 2 : 1];
};

DEVICE Eight load_eight(const u8 *cache, i64 at, bool there) {
  Eight v;
UNROLL
  for (int i = 0; i < (CACHE_DTYPE == 2 ? 2 : 1); i++) {
    v.quad[i] = there ? *(const uint4 *)(cache + at * (CACHE_DTYPE == 2 ? 4 : 2) + 16 * i) : make_uint4(0, 0, 0, 0);
  }
  return v;
}

DEVICE float dimension(const Eight &v, int d) {
#if CACHE_DTYPE == 2
  return AS_FLOAT(word_of(v.quad[d / 4], d % 4));
#else
  u32 pair = word_of(v.quad[0], d / 2);
  if (CACHE_DTYPE == 1) return AS_FLOAT(d % 2 ? pair & 0xFFFF0000u : pair << 16);
  return half_to_float(d % 2 ? pair >> 16 : pair & 0xFFFF);
#endif
}

// A softmax under way for QUERIES heads: highest score (base 2), sum of weights, eight dimensions of the weighted sum.
struct Running {
  float highest[QUERIES], total[QUERIES], sums[QUERIES][8];
};

DEVICE float finite(float highest) { return highest == -INFINITY ? 0.f : highest; }

// The rows of one turn: scores, then the sums. row[j] < 0 is no row.
DEVICE void take_rows(const float (&q)[QUERIES][8], const Eight (&k)[TURN_ROWS], const Eight (&v)[TURN_ROWS],
                      const int (&row)[TURN_ROWS], float softcap, Running &running) {
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    float score[TURN_ROWS], higher = running.highest[n];
UNROLL
    for (int j = 0; j < TURN_ROWS; j++) {
      score[j] = 0.f;
UNROLL
      for (int d = 0; d < 8; d++) score[j] += q[n][d] * dimension(k[j], d);
UNROLL
      for (int bit = 1; bit < ROW_LANES; bit *= 2) score[j] += SHUFFLE_XOR(score[j], bit);
      if (softcap > 0.f) score[j] = softcap * TANH(score[j] / softcap);
      score[j] = row[j] < 0 ? -INFINITY : score[j] * LOG2_E;
      higher = MAX(higher, score[j]);
    }
    float base = finite(higher), fade = EXP2(running.highest[n] - base);
    running.highest[n] = higher;
    running.total[n] *= fade;
UNROLL
    for (int d = 0; d < 8; d++) running.sums[n][d] *= fade;
UNROLL
    for (int j = 0; j < TURN_ROWS; j++) {
      float weight = EXP2(score[j] - base);
      running.total[n] += weight;
UNROLL
      for (int d = 0; d < 8; d++) running.sums[n][d] += weight * dimension(v[j], d);
    }
  }
}

// Joins the lanes of a warp that have different rows: afterwards all of them have the warp's.
DEVICE void join_lanes(Running &running) {
UNROLL
  for (int n = 0; n < QUERIES; n++) {
UNROLL
    for (int bit = ROW_LANES; bit < 32; bit *= 2) {
      float higher = MAX(running.highest[n], SHUFFLE_XOR(running.highest[n], bit)), base = finite(higher);
      float fade = EXP2(running.highest[n] - base);
      running.highest[n] = higher;
      running.total[n] *= fade;
      running.total[n] += SHUFFLE_XOR(running.total[n], bit);
UNROLL
      for (int d = 0; d < 8; d++) {
        running.sums[n][d] *= fade;
        running.sums[n][d] += SHUFFLE_XOR(running.sums[n][d], bit);
      }
    }
  }
}

KERNEL(THREADS)
attend_few(GLOBAL const float *q, GLOBAL const u8 *k_cache, GLOBAL const u8 *v_cache, GLOBAL float *o,
           GLOBAL float *parts, GLOBAL int *counters, GLOBAL const int *step, int first_at, int seen_at, int heads,
           int heads_kv, float scale, int window, float softcap, int splits, GLOBAL const u8 *next, i64 next_nbytes) {
  LOCAL_ARRAY(float, warp_sums, WARPS * QUERIES * HEAD_DIM);
  LOCAL_ARRAY(float, warp_highest, WARPS * QUERIES);
  LOCAL_ARRAY(float, warp_total, WARPS * QUERIES);
  LOCAL_ARRAY(int, arrived, 1);
  let_successors_start();
  if (BLOCK_Y == 0) prefetch_share(next, next_nbytes);
  wait_for_predecessors();
  int token = BLOCK_Y, split = BLOCK_X % splits, group = BLOCK_X / splits, head = group * QUERIES;
  int head_kv = head / (heads / heads_kv), seen = step[seen_at + token];
  int begin = window > 0 && seen > window ? seen - window : 0, count = seen - begin;
  int active = (count + SPLIT_ROWS - 1) / SPLIT_ROWS;
  if (active > splits) active = splits;
  int per_split = (count + active - 1) / active;
  active = (count + per_split - 1) / per_split;
  if (split >= active) return;
  const int *rows = step + step[first_at + token];
  begin += split * per_split;
  int end = begin + per_split < seen ? begin + per_split : seen;
  int place = LANE % ROW_LANES * 8, own = begin + WARP * WARP_ROWS + LANE / ROW_LANES;
  bool inside = place < HEAD_DIM;
  float query[QUERIES][8];
  Running running;
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    running.highest[n] = -INFINITY;
    running.total[n] = 0.f;
UNROLL
    for (int d = 0; d < 8; d++) {
      running.sums[n][d] = 0.f;
      query[n][d] = inside ? q[((i64)token * heads + head + n) * HEAD_DIM + place + d] * scale : 0.f;
    }
  }
  int row[TURN_ROWS];
UNROLL
  for (int j = 0; j < TURN_ROWS; j++) {
    int at = own + j * (WARPS * WARP_ROWS);
    row[j] = at < end ? rows[at] : -1;
  }
  for (int base = begin; base < end; base += TURN, own += TURN) {
    Eight k[TURN_ROWS], v[TURN_ROWS];
    int ahead[TURN_ROWS];
UNROLL
    for (int j = 0; j < TURN_ROWS; j++) {
      i64 at = ((i64)row[j] * heads_kv + head_kv) * HEAD_DIM + place;
      bool there = inside && row[j] >= 0;
      k[j] = load_eight(k_cache, at, there);
      v[j] = load_eight(v_cache, at, there);
    }
UNROLL
    for (int j = 0; j < TURN_ROWS; j++) {  // the next turn's rows: their loads have to know where
      int at = own + TURN + j * (WARPS * WARP_ROWS);
      ahead[j] = at < end ? rows[at] : -1;
    }
    take_rows(query, k, v, row, softcap, running);
UNROLL
    for (int j = 0; j < TURN_ROWS; j++) row[j] = ahead[j];
  }
  join_lanes(running);
UNROLL
  for (int n = 0; n < QUERIES; n++) {
    if (LANE < ROW_LANES && inside) {
UNROLL
      for (int d = 0; d < 8; d++) warp_sums[(WARP * QUERIES + n) * HEAD_DIM + place + d] = running.sums[n][d];
    }
    if (LANE == 0) {
      warp_highest[WARP * QUERIES + n] = running.highest[n];
      warp_total[WARP * QUERIES + n] = running.total[n];
    }
  }
  BARRIER;
  for (int i = THREAD; i < QUERIES * HEAD_DIM; i += THREADS) {
    int n = i / HEAD_DIM, d = i % HEAD_DIM;
    float highest = -INFINITY, total = 0.f, sum = 0.f;
UNROLL
    for (int w = 0; w < WARPS; w++) highest = MAX(highest, warp_highest[w * QUERIES + n]);
UNROLL
    for (int w = 0; w < WARPS; w++) {
      float fade = EXP2(warp_highest[w * QUERIES + n] - highest);
      total += fade * warp_total[w * QUERIES + n];
      sum += fade * warp_sums[(w * QUERIES + n) * HEAD_DIM + d];
    }
    i64 at = (i64)token * heads + head + n;
    if (active == 1) {
      o[at * HEAD_DIM + d] = sum / total;
    } else {
      float *part = parts + (at * splits + split) * (HEAD_DIM + 2);
      part[d] = sum;
      if (d == 0) {
        part[HEAD_DIM] = highest;
        part[HEAD_DIM + 1] = total;
      }
    }
  }
  if (active == 1) return;
  THREAD_FENCE;
  BARRIER;
  if (THREAD == 0) {
    arrived[0] = ATOMIC_ADD(counters + token * (heads / QUERIES) + group, 1);
    if (arrived[0] == active - 1) counters[token * (heads / QUERIES) + group] = 0;
    THREAD_FENCE;
  }
  BARRIER;
  if (arrived[0] != active - 1) return;
  for (int i = THREAD; i < QUERIES * HEAD_DIM; i += THREADS) {
    int n = i / HEAD_DIM, d = i % HEAD_DIM;
    i64 at = (i64)token * heads + head + n;
    const float *own_parts = parts + at * splits * (HEAD_DIM + 2);
    float highest = -INFINITY, total = 0.f, sum = 0.f;
    for (int s = 0; s < active; s++) {
      highest = MAX(highest, load_shared_by_all(own_parts + s * (HEAD_DIM + 2) + HEAD_DIM));
    }
    for (int s = 0; s < active; s++) {
      const float *part = own_parts + s * (HEAD_DIM + 2);
      float fade = EXP2(load_shared_by_all(part + HEAD_DIM) - highest);
      total += fade * load_shared_by_all(part + HEAD_DIM + 1);
      sum += fade * load_shared_by_all(part + d);
    }
    o[at * HEAD_DIM + d] = sum / total;
  }
}
