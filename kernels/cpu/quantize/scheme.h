// The formats that weights can be quantised to, and a block of one before its bytes are laid out.
#pragma once

#include <cstdint>

namespace layerlift {

// A weight is scale * level + low, with a scale for each `sub` weights; backends/quantize_formats.py says more.
struct Scheme {
  int type, block, nbytes, sub;  // type: GGUF's id; nbytes of a block
  float lowest, highest;         // level
  bool affine;                   // otherwise low is 0
  float scale_lowest, scale_highest;  // of the integers that multiply the block's scale; both 0: there are none
  float starts[3];               // factors tried on the block's scale; 0: no more
  const float* table;            // 16 levels that are not evenly spaced, or nullptr
};

constexpr int kMostSubs = 16, kMostWeights = 256;

struct Block {
  uint8_t q[kMostWeights];  // levels, counted from the lowest
  uint16_t d, low;          // half precision: the scale, and the unit of the lows or the low itself
  int32_t scales[kMostSubs], lows[kMostSubs];
};

const Scheme* find_scheme(int type);  // nullptr: unknown
void pack(const Scheme&, const Block&, uint8_t* out);

}  // namespace layerlift
