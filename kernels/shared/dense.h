// y = w as plain numbers of type `dtype` as in cache_store, from row `first` on: what a BLAS takes.
// `units` are those of all of w. Launch: x = ceil(units of a row / GROUP_SIZE), y = rows.

KERNEL(GROUP_SIZE)
dense(GLOBAL const u8 *w, i64 units, int first, GLOBAL u8 *y, int row_units, int dtype) {
  int unit = BLOCK_X * GROUP_SIZE + THREAD;
  float4 weights[8];
  if (unit < row_units) {
    DECODE(w, units, (i64)(first + BLOCK_Y) * row_units + unit, weights);
    for (int v = 0; v < 8; v++) {
      float four[4];
      STORE_FOUR(weights[v], four);
      for (int i = 0; i < 4; i++) {
        cache_store(y, ((i64)BLOCK_Y * row_units + unit) * 32 + 4 * v + i, four[i], dtype);
      }
    }
  }
}
