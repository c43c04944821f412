// o = softmax(scale * q @ k.T) @ v on tensor cores for spans of many tokens: flash attention (Dao 2023, arXiv:2307.08691).
// A block takes one head and TILE_TOKENS neighbouring tokens of the step, 16 to a warp, and walks over the rows that any
// of them sees, 64 at a time; keys and values come by the span's list of rows, in two stages of asynchronous copies.
// A block's tokens may belong to several spans: it walks for each span in turn, and rows count for that span's tokens
// only. step, first_at, seen_at: the step's data (backends/gpu_step.py); tokens of one span share first_at's entry.
//
// Launch: x = ceil(tokens / TILE_TOKENS), y = heads, THREADS = 2 * TILE_TOKENS; 4 * 64 * ROW_BYTES bytes of dynamic shared
// memory. q, o: [tokens, heads, HEAD_DIM] f32; caches f16. Macros: HEAD_DIM (a multiple of 16, at most 128), WARPS.
// Numerics: q, times the scale, and the softmax's weights are rounded to f16 (2^-11 of themselves); keys and values are
// f16 already; scores, softmax and sums are f32. NMSE near 1e-7. |scale * q| must stay below 65504.

#define THREADS (32 * WARPS)
#define TILE_TOKENS (16 * WARPS)
#define ROWS_HERE 64
#define PARTS (HEAD_DIM / 8)                              // of 16 bytes, of a row
#define ROW_PARTS (PARTS <= 4 ? 4 : (PARTS <= 8 ? 8 : 16))  // with room for the swizzle
#define ROW_BYTES (16 * ROW_PARTS)
#define LOG2_E 1.4426950408889634f

// Part p of a row lies at p ^ (r % 8), or of narrow rows at p ^ (r / 2 % 4): eight rows' parts meet different banks.
DEVICE u8 *part_of(u8 *tile, int row, int part) {
  return tile + row * ROW_BYTES + (part ^ (ROW_PARTS == 4 ? row / 2 & 3 : row & 7)) * 16;
}

DEVICE void copy_rows(u8 *tile, const u8 *cache, const int *rows, int begin, int end, int heads_kv, int head_kv) {
  for (int i = THREAD; i < ROWS_HERE * PARTS; i += THREADS) {
    int row = i / PARTS, part = i % PARTS;
    bool there = begin + row < end;
    i64 at = there ? ((i64)rows[begin + row] * heads_kv + head_kv) * HEAD_DIM + 8 * part : 0;
    copy_async_16(part_of(tile, row, part), cache + 2 * at, there);
  }
}

// What a warp keeps of its 16 tokens: of tokens LANE / 4 and 8 on, this lane's dimensions of the sums.
struct Tokens {
  u32 q[HEAD_DIM / 16][4];
  float sums[HEAD_DIM / 8][4], highest[2], total[2];
};

DEVICE float finite(float highest) { return highest == -INFINITY ? 0.f : highest; }

// 64 rows, of which token i sees those in [from[i], to[i]), counted from the tile's first.
DEVICE void take_tile(Tokens &own, u8 *keys, u8 *values, const int (&from)[2], const int (&to)[2], float softcap) {
  float scores[ROWS_HERE / 8][4];
UNROLL
  for (int j = 0; j < ROWS_HERE / 8; j += 2) {
UNROLL
    for (int i = 0; i < 4; i++) scores[j][i] = scores[j + 1][i] = 0.f;
UNROLL
    for (int d = 0; d < HEAD_DIM / 16; d++) {
      u32 k[4];
      load_matrices(k, part_of(keys, 8 * j + LANE % 8 + LANE / 16 * 8, 2 * d + LANE / 8 % 2));
      multiply_16x8x16<false>(scores[j], own.q[d], k[0], k[1]);
      multiply_16x8x16<false>(scores[j + 1], own.q[d], k[2], k[3]);
    }
  }
UNROLL
  for (int t = 0; t < 2; t++) {
    float higher = own.highest[t];
UNROLL
    for (int j = 0; j < ROWS_HERE / 8; j++) {
UNROLL
      for (int i = 0; i < 2; i++) {
        float score = scores[j][2 * t + i];
        int row = 8 * j + LANE % 4 * 2 + i;
        if (softcap > 0.f) score = softcap * TANH(score / softcap);
        score = row >= from[t] && row < to[t] ? score * LOG2_E : -INFINITY;
        scores[j][2 * t + i] = score;
        higher = MAX(higher, score);
      }
    }
    higher = MAX(higher, SHUFFLE_XOR(higher, 1));  // the four lanes of a token
    higher = MAX(higher, SHUFFLE_XOR(higher, 2));
    float base = finite(higher), fade = EXP2(own.highest[t] - base), total = 0.f;
    own.highest[t] = higher;
UNROLL
    for (int j = 0; j < ROWS_HERE / 8; j++) {
UNROLL
      for (int i = 0; i < 2; i++) {
        scores[j][2 * t + i] = EXP2(scores[j][2 * t + i] - base);
        total += scores[j][2 * t + i];
      }
    }
    own.total[t] = own.total[t] * fade + total;  // of this lane's rows: the four lanes are summed at the end
UNROLL
    for (int d = 0; d < HEAD_DIM / 8; d++) {
      own.sums[d][2 * t] *= fade;
      own.sums[d][2 * t + 1] *= fade;
    }
  }
UNROLL
  for (int j = 0; j < ROWS_HERE / 16; j++) {  // the scores of 16 rows lie in lanes as the left factor wants them
    u32 weights[4];
UNROLL
    for (int i = 0; i < 4; i++) {
      weights[i] = pack_halves(scores[2 * j + i / 2][i % 2 * 2], scores[2 * j + i / 2][i % 2 * 2 + 1]);
    }
UNROLL
    for (int d = 0; d < HEAD_DIM / 16; d++) {
      u32 v[4];
      load_matrices_transposed(v, part_of(values, 16 * j + LANE % 16, 2 * d + LANE / 16));
      multiply_16x8x16<false>(own.sums[2 * d], weights, v[0], v[1]);
      multiply_16x8x16<false>(own.sums[2 * d + 1], weights, v[2], v[3]);
    }
  }
}

KERNEL(THREADS)
attend_many(GLOBAL const float *q, GLOBAL const u8 *k_cache, GLOBAL const u8 *v_cache, GLOBAL float *o,
            GLOBAL const int *step, int first_at, int seen_at, int tokens, int heads, int heads_kv, float scale,
            int window, float softcap) {
  SHARED_BYTES(tiles, 16);
  constexpr int TILE = ROWS_HERE * ROW_BYTES;
  let_successors_start();
  wait_for_predecessors();
  int head = BLOCK_Y, head_kv = head / (heads / heads_kv), token_0 = BLOCK_X * TILE_TOKENS;
  int last = token_0 + TILE_TOKENS < tokens ? token_0 + TILE_TOKENS : tokens;
  Tokens own;
  int token[2], first[2], seen[2];
UNROLL
  for (int t = 0; t < 2; t++) {
    token[t] = token_0 + 16 * WARP + LANE / 4 + 8 * t;
    first[t] = token[t] < tokens ? step[first_at + token[t]] : -1;
    seen[t] = token[t] < tokens ? step[seen_at + token[t]] : 0;
    own.highest[t] = -INFINITY;
    own.total[t] = 0.f;
UNROLL
    for (int d = 0; d < HEAD_DIM / 8; d++) own.sums[d][2 * t] = own.sums[d][2 * t + 1] = 0.f;
UNROLL
    for (int d = 0; d < HEAD_DIM / 8; d++) {
      const float *from = q + ((i64)token[t] * heads + head) * HEAD_DIM + 8 * d + LANE % 4 * 2;
      float low = token[t] < tokens ? from[0] * scale : 0.f, high = token[t] < tokens ? from[1] * scale : 0.f;
      own.q[d / 2][d % 2 * 2 + t] = pack_halves(low, high);
    }
  }
  for (int at = token_0; at < last;) {  // at: the first token of a span's part in this block
    int span = step[first_at + at], next = at + 1, most = step[seen_at + at];
    for (; next < last && step[first_at + next] == span; next++) most = step[seen_at + next];
    int least = step[seen_at + at], begin = window > 0 && least > window ? least - window : 0;
    const int *rows = step + span;
    u8 *stage = tiles, *other = tiles + 2 * TILE;
    copy_rows(stage, k_cache, rows, begin, most, heads_kv, head_kv);
    copy_rows(stage + TILE, v_cache, rows, begin, most, heads_kv, head_kv);
    copies_commit();
    for (int row = begin; row < most; row += ROWS_HERE) {
      copies_wait<0>();
      BARRIER;  // this stage is there, and the other one is done with
      if (row + ROWS_HERE < most) {
        copy_rows(other, k_cache, rows, row + ROWS_HERE, most, heads_kv, head_kv);
        copy_rows(other + TILE, v_cache, rows, row + ROWS_HERE, most, heads_kv, head_kv);
        copies_commit();
      }
      int from[2], to[2];
UNROLL
      for (int t = 0; t < 2; t++) {
        to[t] = first[t] == span && token[t] >= at && token[t] < next ? seen[t] - row : 0;
        from[t] = window > 0 ? seen[t] - window - row : 0;
      }
      take_tile(own, stage, stage + TILE, from, to, softcap);
      u8 *swap = stage;
      stage = other;
      other = swap;
    }
    BARRIER;  // the next span fills the first stage again
    at = next;
  }
UNROLL
  for (int t = 0; t < 2; t++) {
    float total = own.total[t] + SHUFFLE_XOR(own.total[t], 1);
    total += SHUFFLE_XOR(total, 2);
    if (token[t] < tokens) {
      float *to = o + ((i64)token[t] * heads + head) * HEAD_DIM + LANE % 4 * 2;
UNROLL
      for (int d = 0; d < HEAD_DIM / 8; d++) {
        to[8 * d] = own.sums[d][2 * t] / total;
        to[8 * d + 1] = own.sums[d][2 * t + 1] / total;
      }
    }
  }
}
