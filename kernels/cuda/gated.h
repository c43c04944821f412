// y = activation(norm(x) @ gate.T + bias) * (norm(x) @ up.T + bias) for a few tokens: a warp makes two outputs.
// gate and up have one format. Launch: x = ceil(rows / (ROWS_AT_ONCE / 2 * WARPS / SPLIT_W)) blocks of THREADS.
// Macros: matvec.h's, FORMAT_W, SPLIT_W.

KERNEL(THREADS)
gated(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *w_gate, GLOBAL const u8 *w_up,
      GLOBAL const float *bias_gate, GLOBAL const float *bias_up, GLOBAL float *y, int activation, int rows) {
  SHARED_FOR_MATVEC(shared);
  let_successors_start();
  constexpr int HALF = ROWS_AT_ONCE / 2, HERE = WARPS / SPLIT_W * HALF;
  int first = BLOCK_X * HERE + WARP / SPLIT_W * HALF;
  const u8 *ws[ROWS_AT_ONCE];
  i64 row[ROWS_AT_ONCE];
UNROLL
  for (int r = 0; r < HALF; r++) {
    ws[r] = w_gate;
    ws[HALF + r] = w_up;
    row[r] = row[HALF + r] = first + r < rows ? first + r : rows - 1;
  }
  products<FORMAT_W, SPLIT_W>(ws, row, (i64)rows * (COLUMNS / 32), x, norm, shared);
  for (int i = THREAD; i < HERE * TOKENS; i += THREADS) {
    int in_block = i % HERE, token = i / HERE, at_row = BLOCK_X * HERE + in_block;
    if (at_row < rows) {
      float factor = norm_factor(shared, token, eps);
      float a = outcome_of<SPLIT_W>(shared, in_block / HALF, in_block % HALF, token) * factor;
      float b = outcome_of<SPLIT_W>(shared, in_block / HALF, HALF + in_block % HALF, token) * factor;
      if (bias_gate) a += bias_gate[at_row];
      if (bias_up) b += bias_up[at_row];
      y[(i64)token * rows + at_row] = activate(activation, a) * b;
    }
  }
}
