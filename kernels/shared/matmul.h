// y = x @ w.T + bias + residual for many tokens: tiles of x and of decoded w in local memory, a block of y in registers.
// Tiling after Boehm 2022 (siboehm.com/articles/22/CUDA-MMM), section 5. f32 tiles, f32 accumulate.
// A thread decodes one unit of w per tile: TILE_THREADS = TILE_ROWS * TILE_DEPTH / 32.
// Launch: x = ceil(rows / TILE_ROWS), y = ceil(tokens / TILE_TOKENS).

#define ACROSS (TILE_ROWS / THREAD_ROWS)  // threads along the rows of w
#define XS_STRIDE (TILE_TOKENS + 1)       // odd: threads that store along the depth meet different banks

KERNEL(TILE_THREADS)
matmul(GLOBAL const float *x, GLOBAL const u8 *w, GLOBAL const float *bias, GLOBAL const float *residual,
       GLOBAL float *y, int tokens, int columns, int rows) {
  LOCAL_ARRAY(float, xs, TILE_DEPTH * XS_STRIDE);
  LOCAL_ARRAY(float, ws, TILE_DEPTH * TILE_ROWS);
  int thread = THREAD, token_0 = BLOCK_Y * TILE_TOKENS, row_0 = BLOCK_X * TILE_ROWS;
  int own_token = thread / ACROSS * THREAD_TOKENS, own_row = thread % ACROSS;
  i64 row_units = (columns + 31) / 32, units = row_units * rows;
  int w_row = row_0 + thread % TILE_ROWS, w_unit = thread / TILE_ROWS;
  float sums[THREAD_TOKENS * THREAD_ROWS];
UNROLL
  for (int i = 0; i < THREAD_TOKENS * THREAD_ROWS; i++) sums[i] = 0.f;
  for (int depth = 0; depth < columns; depth += TILE_DEPTH) {
    for (int i = thread; i < TILE_TOKENS * TILE_DEPTH; i += TILE_THREADS) {
      int token = token_0 + i / TILE_DEPTH, column = depth + i % TILE_DEPTH;
      float value = token < tokens && column < columns ? x[(i64)token * columns + column] : 0.f;
      xs[i % TILE_DEPTH * XS_STRIDE + i / TILE_DEPTH] = value;
    }
    float weights[32];
    int unit = depth / 32 + w_unit;
    if (w_row < rows && unit < row_units) {
      DECODE(w, units, w_row * row_units + unit, weights);
    } else {
UNROLL_UNIT
      for (int j = 0; j < 32; j++) weights[j] = 0.f;
    }
UNROLL_UNIT
    for (int j = 0; j < 32; j++) ws[(32 * w_unit + j) * TILE_ROWS + thread % TILE_ROWS] = weights[j];
    BARRIER;
    for (int k = 0; k < TILE_DEPTH; k++) {
      float ours[THREAD_ROWS];
UNROLL
      for (int r = 0; r < THREAD_ROWS; r++) ours[r] = ws[k * TILE_ROWS + own_row + r * ACROSS];
UNROLL
      for (int t = 0; t < THREAD_TOKENS; t++) {
        float value = xs[k * XS_STRIDE + own_token + t];
UNROLL
        for (int r = 0; r < THREAD_ROWS; r++) sums[t * THREAD_ROWS + r] += value * ours[r];
      }
    }
    BARRIER;
  }
UNROLL
  for (int t = 0; t < THREAD_TOKENS; t++) {
UNROLL
    for (int r = 0; r < THREAD_ROWS; r++) {
      int token = token_0 + own_token + t, row = row_0 + own_row + r * ACROSS;
      if (token < tokens && row < rows) {
        float value = sums[t * THREAD_ROWS + r];
        i64 at = (i64)token * rows + row;
        if (bias) value += bias[row];
        y[at] = residual ? residual[at] + value : value;
      }
    }
  }
}
