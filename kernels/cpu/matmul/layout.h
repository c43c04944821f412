// How weights lie in memory once repacked, the same for every instruction set.
//
// Rows go in groups of 16, padded with zeros to whole bands of two groups; columns in blocks of 32. A group is one
// stream of slabs from the first column to the last, read front to back. A slab is one block, or eight of a K-quant:
//
//   f16 scale[16], f16 minimum[16] if there is one
//   K-quants: int8 sub-scale[8 * 32 / sub][16], then the minima likewise (Q2_K: both in the nibbles of one byte)
//   the quants of each block, in planes: low 4 (or 2) bits, then the fifth (or third)
//
// Within a block, vector g (0..7) is 4 neighbouring columns 4g..4g+3 of each of 16 rows: 64 bytes, what a dot-product
// instruction takes. Planes narrower than a byte hold several vectors in the bits of one:
//   4-bit plane: byte vector j (of 4) is vector j low, vector j + 4 high
//   2-bit plane: byte vector j (of 2) holds vector 2i + j at bits 2i
//   6 bits: byte vectors 3j..3j+2 (j of 2) hold vectors 4j..4j+2 and, in their top bits, two bits each of vector 4j+3
//   1-bit plane: bit g is vector g
// A weight is scale * (q - zero) + minimum. Bytes per weight are GGUF's, within 3 %.
//
// F32 and F16: 16 rows of one column, column after column; BF16: 16 rows of two neighbouring columns.
#pragma once

#include <cstdint>

namespace layerlift {

constexpr int kGroup = 16;  // rows
constexpr int kBand = 32;   // rows: what a tile of a product covers
constexpr int kBlock = 32;  // columns

// `bits` of a quant; `super`: scales in slabs of 256 columns; `sub` columns share a scale; `zero` is subtracted.
template <int bits, bool super, int sub, bool min, int zero, bool lookup = false, bool nibble_scales = false>
struct Quant {
  static constexpr int kBits = bits, kSub = sub, kZero = zero;
  static constexpr bool kSuper = super, kMin = min, kLookup = lookup, kNibbleScales = nibble_scales;
  static constexpr bool kSigned = bits == 8 || lookup;  // the bytes multiplied are signed, not offset

  static constexpr int kBlocks = super ? 8 : 1;     // in a slab
  static constexpr int kSubs = kBlock / sub;        // in a block
  static constexpr int kColumns = kBlocks * kBlock;  // in a slab
  static constexpr int kQuantBytes = kGroup * kBlock * bits / 8;
  static constexpr int kScaleBytes = super ? kBlocks * kSubs * kGroup : 0;
  static constexpr int kSubScales = (min ? 4 : 2) * kGroup;  // their offset in the slab
  static constexpr int kQuants = kSubScales + kScaleBytes * (min && !nibble_scales ? 2 : 1);
  static constexpr int kSlab = kQuants + kBlocks * kQuantBytes;
};

using Q4_0 = Quant<4, false, 32, false, 8>;
using Q4_1 = Quant<4, false, 32, true, 0>;
using Q5_0 = Quant<5, false, 32, false, 16>;
using Q5_1 = Quant<5, false, 32, true, 0>;
using Q8_0 = Quant<8, false, 32, false, 0>;
using IQ4_NL = Quant<4, false, 32, false, 0, true>;
using Q2_K = Quant<2, true, 16, true, 0, false, true>;
using Q3_K = Quant<3, true, 16, false, 4>;
using Q4_K = Quant<4, true, 32, true, 0>;
using Q5_K = Quant<5, true, 32, true, 0>;
using Q6_K = Quant<6, true, 16, false, 32>;
using IQ4_XS = Quant<4, true, 32, false, 0, true>;

// The formats with kernels, and their GGUF ids.
enum class Format : int { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS };
constexpr int kFormats = 15;
constexpr int kGgufId[kFormats] = {0, 1, 30, 2, 3, 6, 7, 8, 20, 10, 11, 12, 13, 14, 23};

// The values that IQ4_NL's and IQ4_XS's four bits stand for (ggml's kvalues_iq4nl).
constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A repacked matrix.
struct Matrix {
  Format format;
  int64_t rows, columns;
  int64_t padded_columns;  // whole slabs
  int64_t group_nbytes;
  int64_t groups;  // even
  uint8_t* data;
  int64_t nbytes;

  const uint8_t* group(int64_t g) const { return data + g * group_nbytes; }
};

}  // namespace layerlift
