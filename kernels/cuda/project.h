// y = norm(x) @ w.T + bias + residual for a few tokens; norm, bias and residual may be missing (null). y may be residual.
// Launch: x = ceil(rows / (ROWS_AT_ONCE * WARPS / SPLIT_W)) blocks of THREADS. Macros: matvec.h's, FORMAT_W, SPLIT_W.

KERNEL(THREADS)
project(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *w, GLOBAL const float *bias,
        GLOBAL const float *residual, GLOBAL float *y, int rows) {
  SHARED_FOR_MATVEC(shared);
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
  for (int i = THREAD; i < WARPS / SPLIT_W * OUTCOMES; i += THREADS) {
    int in_block = i % (WARPS / SPLIT_W * ROWS_AT_ONCE), token = i / (WARPS / SPLIT_W * ROWS_AT_ONCE);
    int at_row = BLOCK_X * (WARPS / SPLIT_W * ROWS_AT_ONCE) + in_block;
    if (at_row < rows) {
      float value = outcome_of<SPLIT_W>(shared, in_block / ROWS_AT_ONCE, in_block % ROWS_AT_ONCE, token);
      i64 at = (i64)token * rows + at_row;
      if (norm) value *= norm_factor(shared, token, eps);
      if (bias) value += bias[at_row];
      y[at] = residual ? residual[at] + value : value;
    }
  }
}
