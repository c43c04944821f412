// The matrix kernels that each instruction set supplies, and what passes between them and the driver.
#pragma once

#include "layout.h"

namespace layerlift {

// How a product wants its input x [T, columns]. Columns of the product (tokens) are interleaved in tiles of `width`.
enum class Kind { kBytes, kWords, kFloats };

// The input of a product, made by `prepare`. Arrays go tile by tile; within a tile:
//   bytes   [padded_columns / 4][width][4] int8, `fine` the same
//   scale and block_sum [blocks][width], sum and sum_bytes [blocks * 2][width] (of 16 columns each)
//   words   [padded_columns / 2][width][2] int16, of each four columns first the even, then the odd ones; with `scale` alone
//   floats  [padded_columns][width]
struct Input {
  int64_t tokens, padded_columns;
  int width, tiles;
  int8_t* bytes;      // round(x / scale)
  int8_t* fine;       // what that leaves, in 1/256 of the scale
  uint8_t* is_fine;   // [tiles][blocks]: the block's fine bytes count; its scale is 1/256 of the coarse one
  float* scale;
  float *sum, *block_sum;
  int32_t* sum_bytes;  // [blocks * 2][width]: of the bytes, 256 * coarse + fine where fine
  int16_t* words;     // round(x / scale)
  float* floats;
};

struct PrepareArgs {
  const float* x;
  int64_t stride;          // floats between rows of x
  const float* norm;       // RMS norm's weight, or nullptr
  float eps;
  int64_t columns;
  bool fine;               // fine bytes for every block
  float budget;            // else: rounding may add so much to the relative mean square error of a product
  bool alone;              // each token chooses its fine blocks for itself; else those of a tile do together
  // Scratch of the calling thread: row [width][padded_columns], highest [width][blocks], noise [blocks], own_fine
  // [width][blocks]; and zeros [padded_columns].
  float *row, *highest, *noise;
  uint8_t* own_fine;
  const float* zeros;
};

// `zeros`: -zero * the sum of the bytes over each `sub` columns, laid out like `scale` with subs for blocks. Where bytes are
// multiplied in pairs, the sums of a part's even and odd pairs in the low and high 16 bits; and after these the fine bytes'.
using Stream = void (*)(const Matrix&, const Input&, const int32_t* zeros, int64_t group, float* out);
using Panel = void (*)(const Matrix&, const Input&, const int32_t* zeros, int64_t band, int tile_begin, int tile_end,
                       uint8_t* scratch, float* out);

// Where a block of results goes: y [tokens][stride], `n` rows of it.
struct Target {
  float* y;
  int64_t stride;
  int n;
  const float* bias;  // of the first of the rows; nullptr: none
  bool add;           // to what y holds
};

constexpr int kStreamTokens = 8;
constexpr int kPanelScratch = 64 << 10;  // bytes that a Panel needs

struct FormatKernels {
  Kind kind;  // of the input
  int sub, zero;
  int stream_tokens;             // so few are multiplied by `stream`, more by `panel`
  Stream stream[kStreamTokens];  // one group for 1..stream_tokens tokens: out [T][16]
  Panel panel;                   // one band for tiles of tokens: out [tiles * width][32]
  void (*read_row)(const Matrix&, int64_t row, float* out);  // out [columns]
};

struct MatmulTable {
  FormatKernels formats[kFormats];
  int width_bytes, width_floats;  // of a panel's tile; kWords' is kBytes'
  bool fine_is_free;  // while few tokens' weights come from memory there is time for 16-bit inputs
  // out [tokens][width] into y
  void (*finish)(const float* out, int width, int64_t tokens, const Target&);
  // One tile of the input; row `t` of the call is token `tile * width + j`.
  void (*prepare_bytes)(const PrepareArgs&, const Input&, int tile);
  void (*prepare_words)(const PrepareArgs&, const Input&, int tile);
  void (*prepare_floats)(const PrepareArgs&, const Input&, int tile);
  void (*prepare_zeros)(const Input&, int sub, int zero, int tile, int32_t* zeros);
};

}  // namespace layerlift
