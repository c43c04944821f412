// y = norm(x) @ w.T + bias + residual for a few tokens: a team of lanes reads two rows of w, units in turn.
// The norm's factor is common to a row, so its sum of squares is taken beside the products, in one pass over x.
// Launch: x = ceil(rows / 2 / teams), teams = GROUP_SIZE / lanes; y = tokens. f32 accumulate.

KERNEL(GROUP_SIZE)
product(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *w, GLOBAL const float *bias,
        GLOBAL const float *residual, GLOBAL float *y, int columns, int rows, int lanes) {
  LOCAL_ARRAY(float, sums, 3 * GROUP_SIZE);
  int row = 2 * (BLOCK_X * (GROUP_SIZE / lanes) + THREAD / lanes);
  i64 row_units = (columns + 31) / 32, units = row_units * rows;
  i64 first = (row < rows ? row : 0) * row_units, second = (row + 1 < rows ? row + 1 : 0) * row_units;
  float4 a = FOUR(0.f), b = FOUR(0.f), squares = FOUR(0.f), values[8], weights[8];
  for (int unit = THREAD % lanes; unit < row_units; unit += lanes) {
    load_unit(x + (i64)BLOCK_Y * columns, norm, unit, columns, values, &squares);
    DECODE(w, units, first + unit, weights);
    dot_unit(values, weights, &a);
    DECODE(w, units, second + unit, weights);
    dot_unit(values, weights, &b);
  }
  team_sums(sums, lanes, sum_of_parts(a), sum_of_parts(b), sum_of_parts(squares));
  int part = THREAD % lanes;
  if (part < 2 || lanes == 1) {
    float scale = norm ? RSQRT(sums[2 * GROUP_SIZE + THREAD - part] / (float)columns + eps) : 1.f;
    for (int i = part; i < 2; i += lanes) {
      i64 at = (i64)BLOCK_Y * rows + row + i;
      if (row + i < rows) {
        float value = sums[i * GROUP_SIZE + THREAD - part] * scale;
        if (bias) value += bias[row + i];
        y[at] = residual ? residual[at] + value : value;
      }
    }
  }
}

// Rows tokens[t] of a table (0 for one below 0), or row `token` where there is no list. Launch: a thread for each unit;
// y = tokens.
KERNEL(GROUP_SIZE)
embed(GLOBAL const u8 *w, GLOBAL const int *tokens, int token, GLOBAL float *y, int columns, int rows) {
  int unit = BLOCK_X * GROUP_SIZE + THREAD, row = tokens ? tokens[BLOCK_Y] : token;
  if (row < 0) row = 0;
  i64 row_units = (columns + 31) / 32;
  float4 weights[8];
  if (unit < row_units) {
    DECODE(w, row_units * rows, row * row_units + unit, weights);
    for (int v = 0; v < 8; v++) {
      float four[4];
      STORE_FOUR(weights[v], four);
      for (int i = 0; i < 4; i++) {
        int column = 32 * unit + 4 * v + i;
        if (column < columns) y[(i64)BLOCK_Y * columns + column] = four[i];
      }
    }
  }
}
