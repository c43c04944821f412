// The output head for a few tokens: logits = norm(x) @ w.T + bias, and the highest of each block's rows.
// Launch: x = ceil(rows / (ROWS_AT_ONCE * WARPS / SPLIT_W)) blocks of THREADS; Macros: matvec.h's, FORMAT_W, SPLIT_W.
// logits [TOKENS, rows] may be null. best_value, best_row [TOKENS, blocks]: pick_best chooses among them.

#define HEAD_ROWS (ROWS_AT_ONCE * WARPS / SPLIT_W)

KERNEL(THREADS)
head(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *w, GLOBAL const float *bias,
     GLOBAL float *logits, GLOBAL float *best_value, GLOBAL int *best_row, int rows) {
  SHARED_FOR_MATVEC(shared);
  LOCAL_ARRAY(float, values, HEAD_ROWS *TOKENS);
  let_successors_start();
  int first = (BLOCK_X * (WARPS / SPLIT_W) + WARP / SPLIT_W) * ROWS_AT_ONCE;
  const u8 *ws[ROWS_AT_ONCE];
  i64 row[ROWS_AT_ONCE];
UNROLL
  for (int r = 0; r < ROWS_AT_ONCE; r++) {
    ws[r] = w;
    row[r] = first + r < rows ? first + r : rows - 1;
  }
  products<FORMAT_W, SPLIT_W>(ws, row, (i64)rows * (COLUMNS / 32), x, norm, shared);
  for (int i = THREAD; i < HEAD_ROWS * TOKENS; i += THREADS) {
    int in_block = i % HEAD_ROWS, token = i / HEAD_ROWS, at_row = BLOCK_X * HEAD_ROWS + in_block;
    float value = -INFINITY;
    if (at_row < rows) {
      value = outcome_of<SPLIT_W>(shared, in_block / ROWS_AT_ONCE, in_block % ROWS_AT_ONCE, token);
      if (norm) value *= norm_factor(shared, token, eps);
      if (bias) value += bias[at_row];
      if (logits) logits[(i64)token * rows + at_row] = value;
    }
    values[i] = value;
  }
  BARRIER;
  if (THREAD < TOKENS) {
    int best = 0;
    for (int i = 1; i < HEAD_ROWS; i++) {
      if (values[THREAD * HEAD_ROWS + i] > values[THREAD * HEAD_ROWS + best]) best = i;
    }
    best_value[THREAD * BLOCKS_X + BLOCK_X] = values[THREAD * HEAD_ROWS + best];
    best_row[THREAD * BLOCKS_X + BLOCK_X] = BLOCK_X * HEAD_ROWS + best;
  }
}

// The row with the highest value for each token, the lower one of equals. Launch: x = tokens, THREADS.
KERNEL(THREADS)
pick_best(GLOBAL const float *best_value, GLOBAL const int *best_row, GLOBAL int *picked, int blocks) {
  LOCAL_ARRAY(float, values, THREADS);
  LOCAL_ARRAY(int, places, THREADS);
  wait_for_predecessors();
  int thread = THREAD, place = 0x7FFFFFFF;
  float highest = -INFINITY;
  for (int i = thread; i < blocks; i += THREADS) {
    float value = best_value[BLOCK_X * blocks + i];
    if (value > highest || place == 0x7FFFFFFF) {
      highest = value;
      place = best_row[BLOCK_X * blocks + i];
    }
  }
  values[thread] = highest;
  places[thread] = place;
  for (int half_of = THREADS / 2; half_of > 0; half_of /= 2) {
    BARRIER;
    if (thread < half_of) {
      float other = values[thread + half_of];
      int other_place = places[thread + half_of];
      if (other > values[thread] || (other == values[thread] && other_place < places[thread])) {
        values[thread] = other;
        places[thread] = other_place;
      }
    }
  }
  BARRIER;
  if (thread == 0) picked[BLOCK_X] = places[0];
}
