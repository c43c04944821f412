// The words of a 16-byte load, and loads for the kernel to come.

DEVICE u32 word_of(uint4 quad, int i) { return i == 0 ? quad.x : (i == 1 ? quad.y : (i == 2 ? quad.z : quad.w)); }

// Each block brings its share of the next kernel's weights towards the L2 cache.
DEVICE void prefetch_share(const u8 *next, i64 nbytes) {
  if (next && THREAD == 0) {
    i64 share = (nbytes / 16 + BLOCKS_X - 1) / BLOCKS_X, first = share * BLOCK_X, end = first + share;
    if (end > nbytes / 16) end = nbytes / 16;
    if (first < end) prefetch_16s(next + 16 * first, (u32)(end - first));
  }
}
