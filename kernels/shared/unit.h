// A unit, 32 values of a row, four at a time: loaded, normed, multiplied with a unit of weights.

// Sums over a row are kept in four parts: short chains of additions, which a processor can take side by side.
DEVICE float sum_of_parts(float4 parts) {
  return (parts.x + parts.y) + (parts.z + parts.w);
}

// Adds the products of 32 values and 32 weights to the parts.
DEVICE void dot_unit(const float4 *x, const float4 *w, float4 *parts) {
UNROLL
  for (int v = 0; v < 8; v++) *parts += x[v] * w[v];
}

#if RAGGED
#define INSIDE(x, column, columns) ((column) < (columns) ? (x)[column] : 0.f)
#else
#define INSIDE(x, column, columns) ((x)[column])
#endif

// 32 of a row's values.
DEVICE void unit_of(GLOBAL const float *x, int unit, int columns, float4 *values) {
UNROLL
  for (int v = 0; v < 8; v++) {
    int column = 32 * unit + 4 * v;
    values[v] = FOUR_OF(INSIDE(x, column, columns), INSIDE(x, column + 1, columns), INSIDE(x, column + 2, columns),
                        INSIDE(x, column + 3, columns));
  }
}

// 32 values of a token's row, times the norm's weight where there is one; adds their squares to the parts then.
DEVICE void load_unit(GLOBAL const float *x, GLOBAL const float *norm, int unit, int columns, float4 *values,
                      float4 *squares) {
  unit_of(x, unit, columns, values);
  if (norm) {
    float4 factors[8];
    dot_unit(values, values, squares);
    unit_of(norm, unit, columns, factors);
UNROLL
    for (int v = 0; v < 8; v++) values[v] = values[v] * factors[v];
  }
}
