// y = x @ w.T + bias + residual for many tokens: tiles of x and of decoded w in local memory, a block of y in registers.
// Tiling after Boehm 2022 (siboehm.com/articles/22/CUDA-MMM), section 5. f32 accumulate; the tiles are f32, or f16 with
// the macro HALVES: half the local memory, whose size and speed are the limit here.
// A thread decodes one unit of w per tile: TILE_THREADS = TILE_ROWS * TILE_DEPTH / 32. It owns THREAD_TOKENS tokens, and
// of every 4 * ACROSS rows of the tile four neighbours.
// Launch: x = ceil(rows / TILE_ROWS), y = ceil(tokens / TILE_TOKENS).

#define FOURS (THREAD_ROWS / 4)
#define ACROSS (TILE_ROWS / THREAD_ROWS)  // threads along the rows of w
#define XS_STRIDE (TILE_TOKENS + 1)       // odd: threads that store along the depth meet different banks

KERNEL(TILE_THREADS)
matmul(GLOBAL const float *x, GLOBAL const u8 *w, GLOBAL const float *bias, GLOBAL const float *residual,
       GLOBAL float *y, int tokens, int columns, int rows) {
  LOCAL_ARRAY(tile, xs, TILE_DEPTH * XS_STRIDE);
  LOCAL_ARRAY(tile4, ws, TILE_DEPTH * TILE_ROWS / 4);
  int thread = THREAD, token_0 = BLOCK_Y * TILE_TOKENS, row_0 = BLOCK_X * TILE_ROWS;
  int own_token = thread / ACROSS * THREAD_TOKENS, own_four = thread % ACROSS;
  i64 row_units = (columns + 31) / 32, units = row_units * rows;
  int w_row = row_0 + thread % TILE_ROWS, w_unit = thread / TILE_ROWS;
  LOCAL tile *w_column = (LOCAL tile *)ws + 32 * w_unit * TILE_ROWS + thread % TILE_ROWS;
  float4 sums[THREAD_TOKENS * FOURS];
UNROLL
  for (int i = 0; i < THREAD_TOKENS * FOURS; i++) sums[i] = FOUR(0.f);
  for (int depth = 0; depth < columns; depth += TILE_DEPTH) {
    for (int i = thread; i < TILE_TOKENS * TILE_DEPTH; i += TILE_THREADS) {
      int token = token_0 + i / TILE_DEPTH, column = depth + i % TILE_DEPTH;
      float value = token < tokens && column < columns ? x[(i64)token * columns + column] : 0.f;
      xs[i % TILE_DEPTH * XS_STRIDE + i / TILE_DEPTH] = TO_TILE(value * TILE_SCALE);
    }
    float4 weights[8];
    int unit = depth / 32 + w_unit;
    if (w_row < rows && unit < row_units) {
      DECODE(w, units, w_row * row_units + unit, weights);
    } else {
UNROLL_UNIT
      for (int v = 0; v < 8; v++) weights[v] = FOUR(0.f);
    }
UNROLL_UNIT
    for (int v = 0; v < 8; v++) {
      w_column[4 * v * TILE_ROWS] = TO_TILE(weights[v].x);
      w_column[(4 * v + 1) * TILE_ROWS] = TO_TILE(weights[v].y);
      w_column[(4 * v + 2) * TILE_ROWS] = TO_TILE(weights[v].z);
      w_column[(4 * v + 3) * TILE_ROWS] = TO_TILE(weights[v].w);
    }
    BARRIER;
    for (int k = 0; k < TILE_DEPTH; k++) {
      float4 ours[FOURS];
UNROLL
      for (int r = 0; r < FOURS; r++) ours[r] = FROM_TILE4(ws[k * (TILE_ROWS / 4) + own_four + r * ACROSS]);
UNROLL
      for (int t = 0; t < THREAD_TOKENS; t++) {
        float value = xs[k * XS_STRIDE + own_token + t];
UNROLL
        for (int r = 0; r < FOURS; r++) sums[t * FOURS + r] += value * ours[r];
      }
    }
    BARRIER;
  }
UNROLL
  for (int t = 0; t < THREAD_TOKENS; t++) {
UNROLL
    for (int r = 0; r < FOURS; r++) {
      float four[4];
      STORE_FOUR(sums[t * FOURS + r], four);
UNROLL
      for (int i = 0; i < 4; i++) {
        int token = token_0 + own_token + t, row = row_0 + 4 * (own_four + r * ACROSS) + i;
        if (token < tokens && row < rows) {
          i64 at = (i64)token * rows + row;
          float value = four[i] / TILE_SCALE;
          if (bias) value += bias[row];
          y[at] = residual ? residual[at] + value : value;
        }
      }
    }
  }
}
