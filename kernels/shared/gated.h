// y = activation(norm(x) @ gate.T + bias) * (norm(x) @ up.T + bias) for a few tokens: a team makes one output.
// Launch: x = ceil(rows / teams), y = tokens. Macros: DECODE_GATE, DECODE_UP.

KERNEL(GROUP_SIZE)
gated(GLOBAL const float *x, GLOBAL const float *norm, float eps, GLOBAL const u8 *w_gate, GLOBAL const u8 *w_up,
      GLOBAL const float *bias_gate, GLOBAL const float *bias_up, GLOBAL float *y, int activation, int columns, int rows,
      int lanes) {
  LOCAL_ARRAY(float, sums, 3 * GROUP_SIZE);
  int row = BLOCK_X * (GROUP_SIZE / lanes) + THREAD / lanes;
  i64 row_units = (columns + 31) / 32, units = row_units * rows, first = (row < rows ? row : 0) * row_units;
  float4 a = FOUR(0.f), b = FOUR(0.f), squares = FOUR(0.f), values[8], weights[8];
  for (int unit = THREAD % lanes; unit < row_units; unit += lanes) {
    load_unit(x + (i64)BLOCK_Y * columns, norm, unit, columns, values, &squares);
    DECODE_GATE(w_gate, units, first + unit, weights);
    dot_unit(values, weights, &a);
    DECODE_UP(w_up, units, first + unit, weights);
    dot_unit(values, weights, &b);
  }
  team_sums(sums, lanes, sum_of_parts(a), sum_of_parts(b), sum_of_parts(squares));
  if (THREAD % lanes == 0 && row < rows) {
    float scale = RSQRT(sums[2 * GROUP_SIZE + THREAD] / (float)columns + eps);
    float gate = sums[THREAD] * scale + (bias_gate ? bias_gate[row] : 0.f);
    float up = sums[GROUP_SIZE + THREAD] * scale + (bias_up ? bias_up[row] : 0.f);
    y[(i64)BLOCK_Y * rows + row] = activate(activation, gate) * up;
  }
}
