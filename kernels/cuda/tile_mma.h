// A tile's product by mma.sync: a warp makes WARP_TOKENS x WARP_ROWS of it.

#define WARPS_DOWN (TILE_TOKENS >= 64 ? 2 : 1)
#define WARPS_ACROSS (WARPS / WARPS_DOWN)
#define WARP_TOKENS (TILE_TOKENS / WARPS_DOWN)
#define WARP_ROWS (TILE_ROWS / WARPS_ACROSS)
#define MMA_DOWN (WARP_TOKENS / 16)
#define MMA_ACROSS (WARP_ROWS / 8)
#define SUMS (MMA_DOWN * MMA_ACROSS * 4)  // of a thread
#define TILE_ALIGNMENT 16

typedef float Sums[MMA_DOWN][MMA_ACROSS][4];

DEVICE float &sum_of(Sums &sums, int i) { return sums[i / 4 / MMA_ACROSS][i / 4 % MMA_ACROSS][i % 4]; }

DEVICE void tile_is_there() {}

DEVICE void begin_tile(Sums &, u8 *, u8 *) {}  // a warp does nothing beside its product

DEVICE void end_tile(Sums &sums, u8 *xs, u8 *ws) {
  int token = WARP / WARPS_ACROSS * WARP_TOKENS, row = WARP % WARPS_ACROSS * WARP_ROWS;
UNROLL
  for (int k = 0; k < 4; k++) {
    u32 a[MMA_DOWN][4], b[MMA_ACROSS / 2][4];
UNROLL
    for (int i = 0; i < MMA_DOWN; i++) {
      load_matrices(a[i], part_of(xs, token + 16 * i + LANE % 16, 2 * k + LANE / 16));
    }
UNROLL
    for (int i = 0; i < MMA_ACROSS / 2; i++) {
      load_matrices(b[i], part_of(ws, row + 16 * i + LANE % 8 + LANE / 16 * 8, 2 * k + LANE / 8 % 2));
    }
UNROLL
    for (int i = 0; i < MMA_DOWN; i++) {
UNROLL
      for (int j = 0; j < MMA_ACROSS; j++) {
        multiply_16x8x16<BRAIN>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// Where the i-th of a thread's sums belongs.
DEVICE void outcome_place(int i, int token_0, int row_0, int &token, int &row) {
  int down = i / 4 / MMA_ACROSS, across = i / 4 % MMA_ACROSS;
  token = token_0 + WARP / WARPS_ACROSS * WARP_TOKENS + 16 * down + LANE / 4 + i % 4 / 2 * 8;
  row = row_0 + WARP % WARPS_ACROSS * WARP_ROWS + 8 * across + LANE % 4 * 2 + i % 2;
}
