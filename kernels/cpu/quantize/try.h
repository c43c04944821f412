// What sixteen pairs of scale and low cost a part of a block, and the levels that one pair gives.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

constexpr int kLanes = 16;
constexpr float kTiny = 1e-38f;
// Added to a number below 2^22, it leaves no room for what is behind the point: the sum is rounded to nearest even.
constexpr float kRound = 12582912.0f;

// Some weights that share a scale (n a multiple of 16), and their importance, or nullptr where all count alike.
struct Part {
  const float *x, *w;
  int n;
};

struct Pairs {
  f32x16 scale, low;
};

static inline Pairs pair_of(float scale, float low) { return {set1(scale), set1(low)}; }

// Sums over a part's weights for each lane, each term times its weight; off: x - low - scale * level.
struct Tried {
  f32x16 error, off_level, level_level, off, level;  // error: off * off
};

// 1 / scale, and 0 for 0.
static inline f32x16 inverse(f32x16 scale) { return div(scale, max(mul(scale, scale), set1(kTiny))); }

struct EvenLevels {
  i32x16 lowest, highest;
  explicit EvenLevels(const Scheme& s)
      : lowest(bits_of(set1(s.lowest + kRound))), highest(bits_of(set1(s.highest + kRound))) {}
  // As integers, numbers in float's order are in order too, and other units than the multipliers compare them.
  f32x16 nearest(f32x16 x, f32x16 inv) const {
    i32x16 rounded = bits_of(fma(x, inv, set1(kRound)));
    return sub(floats_of(min(max(rounded, lowest), highest)), set1(kRound));
  }
  f32x16 counted(f32x16 level, float origin) const { return sub(level, set1(origin)); }
};

struct SignedLevels : EvenLevels {
  static constexpr bool kAffine = false;
  using EvenLevels::EvenLevels;
};

struct AffineLevels : EvenLevels {
  static constexpr bool kAffine = true;
  using EvenLevels::EvenLevels;
};

// The level is the lowest one and every step to the next whose middle x / scale has passed; counted: the steps alone.
struct TableLevels {
  static constexpr bool kAffine = false;
  const float* table;
  explicit TableLevels(const Scheme& s) : table(s.table) {}
  f32x16 nearest(f32x16 x, f32x16 inv) const {
    f32x16 v = mul(x, inv), level = set1(table[0]);
    for (int i = 0; i < 15; i++) {
      f32x16 middle = set1((table[i] + table[i + 1]) * 0.5f);
      level = add(level, step_above(v, middle, set1(table[i + 1] - table[i])));
    }
    return level;
  }
  f32x16 counted(f32x16 level, float) const {
    f32x16 count = zero_f32();
    for (int i = 0; i < 15; i++) count = add(count, step_above(level, set1(table[i]), set1(1.0f)));
    return count;
  }
};

template <bool kWeighed> static inline f32x16 weigh(const Part& p, int i, f32x16 v) {
  return kWeighed ? mul(set1(p.w[i]), v) : v;
}

template <bool kWeighed> static inline float weight_of(const Part& p) {
  if (!kWeighed) return float(p.n);
  f32x16 sum = zero_f32();
  for (int i = 0; i < p.n; i += kLanes) sum = add(sum, load(p.w + i));
  return hsum(sum);
}

template <bool kWeighed, class Levels>
static inline Tried try_levels(const Levels& levels, const Part& p, const Pairs& at) {
  f32x16 inv = inverse(at.scale), minus = sub(zero_f32(), at.scale), zero = zero_f32();
  Tried t = {zero, zero, zero, zero, zero};
  for (int i = 0; i < p.n; i++) {
    f32x16 x = set1(p.x[i]);
    if (Levels::kAffine) x = sub(x, at.low);
    f32x16 level = levels.nearest(x, inv), off = fma(minus, level, x), weighed = weigh<kWeighed>(p, i, off);
    t.error = fma(weighed, off, t.error);
    t.off_level = fma(weighed, level, t.off_level);
    t.level_level = fma(weigh<kWeighed>(p, i, level), level, t.level_level);
    if (Levels::kAffine) {
      t.off = add(t.off, weighed);
      t.level = add(t.level, weigh<kWeighed>(p, i, level));
    }
  }
  return t;
}

// The errors alone.
template <bool kWeighed, class Levels>
static inline f32x16 try_errors(const Levels& levels, const Part& p, const Pairs& at) {
  f32x16 error = zero_f32(), inv = inverse(at.scale), minus = sub(zero_f32(), at.scale);
  for (int i = 0; i < p.n; i++) {
    f32x16 x = set1(p.x[i]);
    if (Levels::kAffine) x = sub(x, at.low);
    f32x16 off = fma(minus, levels.nearest(x, inv), x);
    error = fma(weigh<kWeighed>(p, i, off), off, error);
  }
  return error;
}

// The levels of a part as its format counts them.
template <class Levels>
static inline void put_levels(const Scheme& s, const Levels& levels, const Part& p, float scale, float low, int8_t* q) {
  f32x16 inv = inverse(set1(scale));
  for (int i = 0; i < p.n; i += kLanes) {
    f32x16 level = levels.nearest(sub(load(p.x + i), set1(low)), inv);
    store_i8(q + i, round_i32(levels.counted(level, s.origin)));
  }
}

static inline float lowest_of(f32x16 v) { return -hmax(sub(zero_f32(), v)); }

}  // namespace layerlift::LL_ISA
