// Reads one block of a repacked matrix: the quants as bytes, scales and minima as floats. Layouts in layout.h.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

// A few rows ahead of the reader: the hardware's own prefetcher stops at each 4 KiB page.
constexpr int kAhead = 4096;
constexpr int kPanelBlocks = 16;  // 512 columns: 16 KiB of bytes, in the first-level cache with a tile of input

// Takes the columns of a product panel by panel, of up to kBlocks blocks: each is unpacked once, unpack(first block, blocks),
// and multiplied with every tile, multiply(tile, first block, blocks, its sums' place in `out`).
template <int kBlocks, class Unpack, class Multiply>
static inline void each_panel(const Input& in, int tile_begin, int tile_end, float* out, Unpack unpack, Multiply multiply) {
  int64_t all = in.padded_columns / kBlock;
  for (int64_t first = 0; first < all; first += kBlocks) {
    int blocks = int(all - first < kBlocks ? all - first : kBlocks);
    unpack(first, blocks);
    for (int tile = tile_begin; tile < tile_end; tile++)
      multiply(tile, first, blocks, out + int64_t(tile - tile_begin) * kTileBytes * kBand);
  }
}

// What is subtracted from a byte as `unpack` gives it.
template <class L> constexpr int zero_of() { return L::kSigned ? (kSignedProducts ? 0 : 128) : L::kZero; }

struct IQ4Table {
  uint8_t bytes[16];
};
static constexpr IQ4Table make_iq4_table() {
  IQ4Table t{};
  for (int i = 0; i < 16; i++) t.bytes[i] = uint8_t(kIQ4Values[i] + (kSignedProducts ? 0 : 128));
  return t;
}
static constexpr IQ4Table kIQ4Table = make_iq4_table();

// bits 2i, 2i + 1 of v and what is above them
static inline u8x64 pair_of_bits(u8x64 v, int i) {
  switch (i) {
    case 0: return v;
    case 1: return shr<2>(v);
    case 2: return shr<4>(v);
    default: return shr<6>(v);
  }
}

template <int to> static inline u8x64 single_bit(u8x64 v, int g) {
  switch (g - to) {
    case -4: return shl_bits<4>(v);
    case -3: return shl_bits<3>(v);
    case -2: return shl_bits<2>(v);
    case -1: return shl_bits<1>(v);
    case 0: return v;
    case 1: return shr<1>(v);
    case 2: return shr<2>(v);
    case 3: return shr<3>(v);
    case 4: return shr<4>(v);
    default: return shr<5>(v);
  }
}

// Calls use(g, w) for the 8 vectors of a block as bytes to multiply: offset by zero_of<L>(), or signed where dot4 takes
// them so. Vectors that share a load come one after the other.
template <class L, class Use> [[gnu::always_inline]] static inline void each_vector(const uint8_t* p, Use use) {
  if constexpr (L::kBits == 8) {
    LL_UNROLL(8)
    for (int g = 0; g < 8; g++) {
      u8x64 w = load_u8(p + 64 * g);
      use(g, kSignedProducts ? w : xor_(w, set1_u8(128)));
    }
  } else if constexpr (L::kBits == 6) {
    LL_UNROLL(2)
    for (int j = 0; j < 2; j++, p += 192) {
      u8x64 a = load_u8(p), b = load_u8(p + 64), c = load_u8(p + 128), last = and_(shr<6>(a), set1_u8(3));
      last = and_or(shr<4>(b), set1_u8(0x0c), last);
      last = and_or(shr<2>(c), set1_u8(0x30), last);
      use(4 * j, and_(a, set1_u8(63)));
      use(4 * j + 1, and_(b, set1_u8(63)));
      use(4 * j + 2, and_(c, set1_u8(63)));
      use(4 * j + 3, last);
    }
  } else if constexpr (L::kBits >= 4) {
    LL_UNROLL(4)
    for (int j = 0; j < 4; j++) {
      u8x64 v = load_u8(p + 64 * j), low = and_(v, set1_u8(15)), high = and_(shr<4>(v), set1_u8(15));
      if constexpr (L::kLookup) {
        low = lookup16(kIQ4Table.bytes, low);
        high = lookup16(kIQ4Table.bytes, high);
      } else if constexpr (L::kBits == 5) {
        u8x64 bits = load_u8(p + 256);
        low = and_or(single_bit<4>(bits, j), set1_u8(0x10), low);
        high = and_or(single_bit<4>(bits, j + 4), set1_u8(0x10), high);
      }
      use(j, low);
      use(j + 4, high);
    }
  } else {  // 2 and 3 bits
    LL_UNROLL(2)
    for (int j = 0; j < 2; j++) {
      u8x64 v = load_u8(p + 64 * j);
      LL_UNROLL(4)
      for (int i = 0; i < 4; i++) {
        u8x64 w = and_(pair_of_bits(v, i), set1_u8(3));
        if constexpr (L::kBits == 3) w = and_or(single_bit<2>(load_u8(p + 128), 2 * i + j), set1_u8(4), w);
        use(2 * i + j, w);
      }
    }
  }
}

template <class L> static inline void unpack(const uint8_t* p, u8x64* w) {
  each_vector<L>(p, [w](int g, u8x64 vector) { w[g] = vector; });
}

// Scales and minima of block `b` of a slab, for each of its kSubs parts.
template <class L> static inline void scales(const uint8_t* slab, int b, f32x16* scale, f32x16* minimum) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(slab);
  f32x16 d = load_f16(halves), m = zero_f32();
  if constexpr (L::kMin) m = load_f16(halves + kGroup);
  if constexpr (!L::kSuper) {
    scale[0] = d;
    if constexpr (L::kMin) minimum[0] = m;
  } else {
    for (int s = 0; s < L::kSubs; s++) {
      const uint8_t* p = slab + L::kSubScales + (b * L::kSubs + s) * kGroup;
      if constexpr (L::kNibbleScales) {
        uint8_t low[kGroup], high[kGroup];
        for (int i = 0; i < kGroup; i++) low[i] = p[i] & 15, high[i] = p[i] >> 4;
        scale[s] = mul(d, load_u8_f32(low));
        minimum[s] = mul(sub(zero_f32(), m), load_u8_f32(high));
      } else {
        scale[s] = mul(d, load_i8(reinterpret_cast<const int8_t*>(p)));
        if constexpr (L::kMin) minimum[s] = mul(sub(zero_f32(), m), load_u8_f32(p + L::kScaleBytes));
      }
    }
  }
}

}  // namespace layerlift::LL_ISA
