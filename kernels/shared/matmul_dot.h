// y = x @ w.T + bias + residual for many tokens, in integers: what matmul.h computes, for formats that have codes and
// devices that multiply four bytes by four bytes in one instruction (DOT4). A unit of x, 32 columns of a token, is rounded
// to 16 bits: value = factor * (256 * high + low), two signed bytes; NMSE near 1e-9. Sums of products are exact; a run
// of RUN weights has one scale, and its minimum meets the sum of the run's x.
// Launch, tiles and threads as in matmul.h, with TILE_DEPTH / 32 units to a tile.

#define ACROSS (TILE_ROWS / THREAD_ROWS)
#define UNITS (TILE_DEPTH / 32)
#define RUNS (32 / RUN)   // of a unit
#define LARGEST 32512.f   // 256 * 127: what a value is scaled to, so that the high byte stays below 128

// A unit of x as words of high and low bytes, its factor, and the sums of its runs.
DEVICE void bytes_of(GLOBAL const float *x, int column, int columns, LOCAL u32 *high, LOCAL u32 *low,
                     LOCAL float *factor, LOCAL float *run_sums) {
  float values[32], most = 0.f;
UNROLL_UNIT
  for (int j = 0; j < 32; j++) {
    values[j] = column + j < columns ? x[column + j] : 0.f;
    most = MAX(most, values[j] < 0.f ? -values[j] : values[j]);
  }
  float step = most / LARGEST, per_step = most > 0.f ? LARGEST / most : 0.f;
  *factor = step;
UNROLL
  for (int run = 0; run < RUNS; run++) {
    int sum = 0;
UNROLL_UNIT
    for (int v = run * RUN / 4; v < (run + 1) * RUN / 4; v++) {
      u32 word_high = 0, word_low = 0;
UNROLL
      for (int i = 0; i < 4; i++) {
        int value = TO_NEAREST(values[4 * v + i] * per_step), upper = (value + 128) >> 8;
        sum += value;
        word_high |= ((u32)upper & 255) << (8 * i);
        word_low |= ((u32)(value - 256 * upper) & 255) << (8 * i);
      }
      high[v * TILE_TOKENS] = word_high;
      low[v * TILE_TOKENS] = word_low;
    }
    run_sums[run * TILE_TOKENS] = step * (float)sum;
  }
}

KERNEL(TILE_THREADS)
matmul(GLOBAL const float *x, GLOBAL const u8 *w, GLOBAL const float *bias, GLOBAL const float *residual,
       GLOBAL float *y, int tokens, int columns, int rows) {
  LOCAL_ARRAY(u32, highs, UNITS * 8 * TILE_TOKENS);
  LOCAL_ARRAY(u32, lows, UNITS * 8 * TILE_TOKENS);
  LOCAL_ARRAY(float, factors, UNITS * TILE_TOKENS);
  LOCAL_ARRAY(float, run_sums, UNITS * RUNS * TILE_TOKENS);
  LOCAL_ARRAY(u32, codes, UNITS * 8 * TILE_ROWS);
  LOCAL_ARRAY(float, scales, UNITS * RUNS * TILE_ROWS);
  LOCAL_ARRAY(float, minima, UNITS * RUNS * TILE_ROWS);
  int thread = THREAD, token_0 = BLOCK_Y * TILE_TOKENS, row_0 = BLOCK_X * TILE_ROWS;
  int own_token = thread / ACROSS * THREAD_TOKENS, own_row = thread % ACROSS;
  i64 row_units = (columns + 31) / 32, units = row_units * rows;
  int tile_row = thread % TILE_ROWS, w_row = row_0 + tile_row, w_unit = thread / TILE_ROWS;
  float sums[THREAD_TOKENS * THREAD_ROWS];
UNROLL
  for (int i = 0; i < THREAD_TOKENS * THREAD_ROWS; i++) sums[i] = 0.f;
  for (int depth = 0; depth < columns; depth += TILE_DEPTH) {
    for (int i = thread; i < TILE_TOKENS * UNITS; i += TILE_THREADS) {
      int tile_token = i % TILE_TOKENS, token = token_0 + tile_token, unit = i / TILE_TOKENS;
      // A token past the end is all columns past the end: zeros.
      bytes_of(x + (i64)(token < tokens ? token : 0) * columns, token < tokens ? depth + 32 * unit : columns, columns,
               highs + unit * 8 * TILE_TOKENS + tile_token, lows + unit * 8 * TILE_TOKENS + tile_token,
               factors + unit * TILE_TOKENS + tile_token, run_sums + unit * RUNS * TILE_TOKENS + tile_token);
    }
    u32 words[8];
    float pairs[4];  // as CODES gives them
    int unit = depth / 32 + w_unit;
    no_codes(words);
    one_scale(0.f, 0.f, pairs);
    if (w_row < rows && unit < row_units) CODES(w, units, w_row * row_units + unit, words, pairs);
UNROLL
    for (int v = 0; v < 8; v++) codes[(8 * w_unit + v) * TILE_ROWS + tile_row] = words[v];
UNROLL
    for (int run = 0; run < RUNS; run++) {
      scales[(w_unit * RUNS + run) * TILE_ROWS + tile_row] = pairs[run];
      minima[(w_unit * RUNS + run) * TILE_ROWS + tile_row] = pairs[2 + run];
    }
    BARRIER;
    for (int run = 0; run < UNITS * RUNS; run++) {
      int high[THREAD_TOKENS * THREAD_ROWS], low[THREAD_TOKENS * THREAD_ROWS];
UNROLL
      for (int i = 0; i < THREAD_TOKENS * THREAD_ROWS; i++) high[i] = low[i] = 0;
      for (int v = run * (RUN / 4); v < (run + 1) * (RUN / 4); v++) {
        int ours[THREAD_ROWS];
UNROLL
        for (int r = 0; r < THREAD_ROWS; r++) ours[r] = (int)codes[v * TILE_ROWS + own_row + r * ACROSS];
UNROLL
        for (int t = 0; t < THREAD_TOKENS; t++) {
          int upper = (int)highs[v * TILE_TOKENS + own_token + t], lower = (int)lows[v * TILE_TOKENS + own_token + t];
UNROLL
          for (int r = 0; r < THREAD_ROWS; r++) {
            high[t * THREAD_ROWS + r] = DOT4(ours[r], upper, high[t * THREAD_ROWS + r]);
            low[t * THREAD_ROWS + r] = DOT4(ours[r], lower, low[t * THREAD_ROWS + r]);
          }
        }
      }
UNROLL
      for (int r = 0; r < THREAD_ROWS; r++) {
        float scale = scales[run * TILE_ROWS + own_row + r * ACROSS];
        float minimum = minima[run * TILE_ROWS + own_row + r * ACROSS];
UNROLL
        for (int t = 0; t < THREAD_TOKENS; t++) {
          int i = t * THREAD_ROWS + r;
          float product = (float)(256 * high[i] + low[i]) * factors[run / RUNS * TILE_TOKENS + own_token + t];
          sums[i] += scale * product - minimum * run_sums[run * TILE_TOKENS + own_token + t];
        }
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
        i64 at = (i64)token * rows + row;
        float value = sums[t * THREAD_ROWS + r];
        if (bias) value += bias[row];
        y[at] = residual ? residual[at] + value : value;
      }
    }
  }
}
