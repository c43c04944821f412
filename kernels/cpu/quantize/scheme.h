// The formats that weights can be quantised to, and a block of one before its bytes are laid out.
#pragma once

#include <cstdint>

namespace layerlift {

// Where the search for a scale begins: `count` times, evenly from one share of what a part spans to another. The pin
// stays: where low is 0, the level of the largest weight; else the place in the range, from 0, its low end, to 1.
struct Line {
  float pin, from, to;
  int count;
};

// How much is tried: `density` times the starts, each moved `polish` times to what its levels want.
struct Effort {
  int density, polish;
};

// A weight is scale * level + low, with a scale for each `sub` weights; backends/quantize_formats.py says more.
struct Scheme {
  int type, block, nbytes, sub;  // type: GGUF's id; nbytes of a block
  float lowest, highest;         // level
  float origin;                  // the level that is stored as 0
  bool affine;                   // otherwise low is 0
  float scale_lowest, scale_highest;  // of the integers that multiply the block's scale; both 0: there are none
  float least_unit, most_unit;   // factors tried on the block's scale that just covers what its parts want
  Line lines[3];                 // none: the levels just cover the weights, and nothing is searched
  Effort plain, weighed;         // without importance, and with
  bool by_size;                  // without importance, errors are weighed with the size of what is rounded
  const float* table;            // 16 levels that are not evenly spaced, or nullptr
};

constexpr int kMostSubs = 16, kMostWeights = 256;

struct Block {
  int8_t q[kMostWeights];  // levels, counted from the scheme's origin
  uint16_t d, low;          // half precision: the scale, and the unit of the lows or the low itself
  int32_t scales[kMostSubs], lows[kMostSubs];
};

const Scheme* find_scheme(int type);  // nullptr: unknown
void pack(const Scheme&, const Block&, uint8_t* out);

}  // namespace layerlift
