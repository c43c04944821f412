// A tile's product by wgmma, whose left side are the weights: a warp group makes 64 rows for all 128 tokens. It reads the
// tiles by descriptors while the next ones are decoded.

#define SUMS 64  // of a thread
#define TILE_ALIGNMENT 1024  // of what the swizzle repeats

static_assert(TILE_TOKENS == 128 && TILE_ROWS == 16 * WARPS, "64 rows for each warp group");

typedef float Sums[SUMS];

DEVICE float &sum_of(Sums &sums, int i) { return sums[i]; }

// Columns k … k + 15 of a tile's rows from `row`, a multiple of 8, on: K-major, the parts of rows swizzled over 128 bytes
// as part_of() has them, groups of eight rows 1024 bytes apart (PTX ISA, "Matrix descriptor").
DEVICE u64 descriptor_of(const u8 *tile, int row, int k) {
  u32 at = shared_address(tile) + row * ROW_BYTES + 2 * k;
  return (u64)(at >> 4 & 0x3FFF) | (u64)1 << 16 | (u64)(8 * ROW_BYTES >> 4) << 32 | (u64)1 << 62;
}

DEVICE void tile_is_there() { show_to_wgmma(); }

DEVICE void begin_tile(Sums &sums, u8 *xs, u8 *ws) {
  wgmma_begin();
UNROLL
  for (int k = 0; k < 64; k += 16) {
    start_64x128x16<BRAIN>(sums, descriptor_of(ws, WARP / 4 * 64, k), descriptor_of(xs, 0, k));
  }
  wgmma_commit();
}

DEVICE void end_tile(Sums &sums, u8 *, u8 *) { wgmma_wait(sums); }

// Where the i-th of a thread's sums belongs.
DEVICE void outcome_place(int i, int token_0, int row_0, int &token, int &row) {
  token = token_0 + i / 4 * 8 + LANE % 4 * 2 + i % 2;
  row = row_0 + WARP * 16 + LANE / 4 + i % 4 / 2 * 8;
}
