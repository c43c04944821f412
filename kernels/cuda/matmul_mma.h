// y = factors * (x @ w.T) + bias + residual on tensor cores, for more tokens than matvec.h takes: x is what rows_half.h
// gives. A block makes TILE_TOKENS x TILE_ROWS of y and walks along the columns, 64 at a time, in two stages: while it
// multiplies one (tile_mma.h or tile_wgmma.h), the copies of the next x run, and the next weights are decoded from
// registers, whose loads started AHEAD stages before. Weights that are halves already are copied like x. Bias and residual
// may be null; y may be residual.
// Launch: x = ceil(tokens / TILE_TOKENS) * ceil(rows / TILE_ROWS), token tiles fastest, so that blocks that share weights
// run together; y = splits of the columns; THREADS; 2 * 128 * (TILE_TOKENS + TILE_ROWS) bytes of dynamic shared memory.
// With splits > 1 the block that arrives last sums the parts: parts [splits, tokens, rows] f32, counters [x] int32 zeros,
// which a launch leaves as zeros. Macros: FORMAT, TILE_TOKENS, TILE_ROWS (WARPS * 16 or more), WARPS, AHEAD, BRAIN
// (bf16 weights, from sm_80).
// Numerics: f16 and bf16 weights are exact, others are rounded to f16 once, from f32: off by 2^-11 of themselves at most,
// by 2^-25 below 2^-14. x: see rows_half.h. f32 accumulation. The result's error is a random walk of these: NMSE near
// 5e-8 with f16, near 3e-6 with bf16.

// `count` rows of halves from `from`, columns 64 at a time; zeros outside.
template <int COUNT>
DEVICE void copy_tile(u8 *tile, const u8 *from, int first, int rows, int column, int columns) {
UNROLL
  for (int i = 0; i < (COUNT * 8 + THREADS - 1) / THREADS; i++) {
    int at = i * THREADS + THREAD, row = at / 8, part = at % 8;
    bool there = first + row < rows && column + 8 * part < columns;
    const u8 *source = there ? from + ((i64)(first + row) * columns + column + 8 * part) * 2 : from;
    if (COUNT * 8 % THREADS == 0 || row < COUNT) copy_async_16(part_of(tile, row, part), source, there);
  }
}

struct Coming {
  FORMAT::Raw raw[CHUNKS_EACH > 0 ? CHUNKS_EACH : 1];
};

DEVICE bool chunk_place(int i, int first, int rows, int column, int columns, int &row, int &chunk) {
  int at = i * THREADS + THREAD;
  row = at / TILE_CHUNKS;
  chunk = at % TILE_CHUNKS;
  return first + row < rows && column + chunk * FORMAT::CHUNK < columns;
}

DEVICE void load_tile(Coming &coming, const u8 *w, int first, int rows, int column, int columns) {
UNROLL
  for (int i = 0; i < CHUNKS_EACH; i++) {
    int row, chunk;
    if (chunk_place(i, first, rows, column, columns, row, chunk)) {
      i64 at = ((i64)(first + row) * columns + column) / FORMAT::CHUNK + chunk;
      FORMAT::load(coming.raw[i], w, (i64)rows * (columns / 32), at);
    }
  }
}

// The weights of a tile as halves.
template <class F>
DEVICE void decode_tile(u8 *tile, const Coming &coming, int first, int rows, int column, int columns) {
  if constexpr (F::CODED) {
UNROLL
    for (int i = 0; i < CHUNKS_EACH; i++) {
      int row, chunk;
      bool there = chunk_place(i, first, rows, column, columns, row, chunk);
UNROLL
      for (int part = 0; part < F::CHUNK / 8; part++) {
        float scale, minimum;
        F::scales(coming.raw[i], part * 8 / F::SHARED_SCALE, scale, minimum);
        u32 words[4];
UNROLL
        for (int v = 0; v < 2; v++) {
          u32 codes = F::codes(coming.raw[i], 2 * part + v);
          float values[4];
UNROLL
          for (int j = 0; j < 4; j++) {  // 2^23 + code, whose bits are the code's below the exponent's
            values[j] = scale * (FLOAT_BITS(BYTES(codes, 0x4B000000u, 0x7440 + j)) - 8388608.f) - minimum;
          }
          words[2 * v] = there ? pack_halves(values[0], values[1]) : 0;
          words[2 * v + 1] = there ? pack_halves(values[2], values[3]) : 0;
        }
        *(uint4 *)part_of(tile, row, chunk * (F::CHUNK / 8) + part) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

KERNEL(THREADS)
matmul_mma(GLOBAL const u8 *x, GLOBAL const float *factors, GLOBAL const u8 *w, GLOBAL const float *bias,
           GLOBAL const float *residual, GLOBAL float *y, GLOBAL float *parts, GLOBAL int *counters, int tokens,
           int columns, int rows, int splits) {
  SHARED_BYTES(tiles, TILE_ALIGNMENT);
  LOCAL_ARRAY(int, arrived, 1);
  constexpr int STAGE = ROW_BYTES * (TILE_TOKENS + TILE_ROWS), WS = ROW_BYTES * TILE_TOKENS;
  let_successors_start();
  int down = (tokens + TILE_TOKENS - 1) / TILE_TOKENS, token_0 = BLOCK_X % down * TILE_TOKENS;
  int row_0 = BLOCK_X / down * TILE_ROWS, stages = (columns + 63) / 64, each = (stages + splits - 1) / splits;
  int begin = BLOCK_Y * each, end = begin + each < stages ? begin + each : stages;
  Sums sums;
UNROLL
  for (int i = 0; i < SUMS; i++) sum_of(sums, i) = 0.f;
  Coming coming[AHEAD];
  if (FORMAT::CODED) {
UNROLL
    for (int a = 0; a < AHEAD; a++) {
      if (begin + a < end) load_tile(coming[a], w, row_0, rows, 64 * (begin + a), columns);
    }
  }
  wait_for_predecessors();
  // The turn before the first fills the first stage; later turns fill one and multiply the other.
  for (int base = begin - 1; base < end; base += AHEAD) {
UNROLL
    for (int a = 0; a < AHEAD; a++) {
      int turn = base + a, next = turn + 1;
      u8 *stage = tiles + (turn & 1) * STAGE, *other = tiles + (next & 1) * STAGE;
      if (turn >= end) break;
      copies_wait<0>();
      tile_is_there();
      BARRIER;  // this stage is there, and the other one is done with
      if (turn >= begin) begin_tile(sums, stage, stage + WS);
      if (next < end) {
        copy_tile<TILE_TOKENS>(other, x, token_0, tokens, 64 * next, columns);
        if (FORMAT::CODED) {
          decode_tile<FORMAT>(other + WS, coming[a], row_0, rows, 64 * next, columns);
          if (next + AHEAD < end) load_tile(coming[a], w, row_0, rows, 64 * (next + AHEAD), columns);
        } else {
          copy_tile<TILE_ROWS>(other + WS, w, row_0, rows, 64 * next, columns);
        }
        copies_commit();
      }
      if (turn >= begin) end_tile(sums, stage, stage + WS);
    }
  }
  if (splits > 1) {
UNROLL
    for (int i = 0; i < SUMS; i++) {
      int token, row;
      outcome_place(i, token_0, row_0, token, row);
      float *part = parts + ((i64)BLOCK_Y * tokens + token) * rows + row;
      if (token < tokens && row < rows) *part = sum_of(sums, i);
    }
    THREAD_FENCE;
    BARRIER;
    if (THREAD == 0) {
      arrived[0] = ATOMIC_ADD(counters + BLOCK_X, 1);
      if (arrived[0] == splits - 1) counters[BLOCK_X] = 0;
      THREAD_FENCE;
    }
    BARRIER;
    if (arrived[0] != splits - 1) return;
  }
UNROLL
  for (int i = 0; i < SUMS; i++) {
    int token, row;
    outcome_place(i, token_0, row_0, token, row);
    if (token < tokens && row < rows) {
      float value = sum_of(sums, i);
      i64 at = (i64)token * rows + row;
      if (splits > 1) {
        value = 0.f;
        for (int s = 0; s < splits; s++) value += load_shared_by_all(parts + (i64)s * tokens * rows + at);
      }
      value *= factors[token];
      if (bias) value += bias[row];
      y[at] = residual ? residual[at] + value : value;
    }
  }
}
