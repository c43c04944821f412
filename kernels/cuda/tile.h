// The tiles of matmul_mma.h in shared memory, which tile_mma.h and tile_wgmma.h multiply.
//
// Rows of 64 halves, 128 bytes, in eight parts of 16; part p of row r lies at p ^ (r % 8), so that eight rows' parts, which
// tensor cores read at once, are in different banks.

#define THREADS (32 * WARPS)
#define ROW_BYTES 128
#define TILE_CHUNKS (64 / FORMAT::CHUNK)                 // of a row
#define CHUNKS_EACH (TILE_ROWS * TILE_CHUNKS / THREADS)  // that a thread decodes

DEVICE u8 *part_of(u8 *tile, int row, int part) { return tile + row * ROW_BYTES + (part ^ (row & 7)) * 16; }
