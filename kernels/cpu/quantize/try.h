// What sixteen pairs of scale and low cost a part of a block, and the levels that one pair gives.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

constexpr int kLanes = 16;
constexpr float kTiny = 1e-38f;

// Some weights that share a scale, and their importance.
struct Part {
  const float *x, *w;
  int n;
};

// Sums over a part's weights for each lane, each term times its weight.
struct Tried {
  alignas(64) float error[kLanes];  // of (x - scale * level - low)²
  alignas(64) float l[kLanes];      // of the level, its square, and its product with x
  alignas(64) float ll[kLanes];
  alignas(64) float xl[kLanes];
};

// 1 / scale, and 0 for 0.
static inline f32x16 inverse(f32x16 scale) { return div(scale, max(mul(scale, scale), set1(kTiny))); }

struct EvenLevels {
  f32x16 lowest, highest;
  explicit EvenLevels(const Scheme& s) : lowest(set1(s.lowest)), highest(set1(s.highest)) {}
  f32x16 nearest(f32x16 v) const { return to_f32(round_i32(min(max(v, lowest), highest))); }
};

// The level is the lowest one and every step to the next whose middle v has passed; counted: the steps alone.
struct TableLevels {
  const float* table;
  explicit TableLevels(const Scheme& s) : table(s.table) {}
  f32x16 nearest(f32x16 v) const {
    f32x16 level = set1(table[0]);
    for (int i = 0; i < 15; i++) level = fma(passed(v, i), set1(table[i + 1] - table[i]), level);
    return level;
  }
  f32x16 counted(f32x16 v) const {
    f32x16 count = zero_f32();
    for (int i = 0; i < 15; i++) count = add(count, passed(v, i));
    return count;
  }
  f32x16 passed(f32x16 v, int i) const {
    f32x16 beyond = mul(sub(v, set1((table[i] + table[i + 1]) * 0.5f)), set1(1e30f));
    return min(max(beyond, zero_f32()), set1(1.0f));
  }
};

template <class Levels>
static inline void try_levels(const Levels& levels, const Part& p, f32x16 scale, f32x16 low, Tried& out) {
  f32x16 error = zero_f32(), l = zero_f32(), ll = zero_f32(), xl = zero_f32(), inv = inverse(scale);
  for (int i = 0; i < p.n; i++) {
    f32x16 x = set1(p.x[i]), w = set1(p.w[i]);
    f32x16 level = levels.nearest(mul(sub(x, low), inv));
    f32x16 weighed = mul(w, level), off = sub(x, fma(scale, level, low));
    error = fma(mul(w, off), off, error);
    l = add(l, weighed);
    ll = fma(weighed, level, ll);
    xl = fma(weighed, x, xl);
  }
  store(out.error, error);
  store(out.l, l);
  store(out.ll, ll);
  store(out.xl, xl);
}

static inline void try_lanes(const Scheme& s, const Part& p, f32x16 scale, f32x16 low, Tried& out) {
  if (s.table)
    try_levels(TableLevels(s), p, scale, low, out);
  else
    try_levels(EvenLevels(s), p, scale, low, out);
}

// The levels of a part, counted from the lowest; its n is a multiple of 16.
static inline void put_levels(const Scheme& s, const Part& p, float scale, float low, uint8_t* q) {
  f32x16 inv = inverse(set1(scale));
  for (int i = 0; i < p.n; i += kLanes) {
    f32x16 v = mul(sub(load(p.x + i), set1(low)), inv);
    f32x16 count = s.table ? TableLevels(s).counted(v) : sub(EvenLevels(s).nearest(v), set1(s.lowest));
    int32_t counted[kLanes];
    store_i32(counted, round_i32(count));
    for (int j = 0; j < kLanes; j++) q[i + j] = uint8_t(counted[j]);
  }
}

static inline int lowest_lane(const float* v) {
  int best = 0;
  for (int i = 1; i < kLanes; i++)
    if (v[i] < v[best]) best = i;
  return best;
}

}  // namespace layerlift::LL_ISA
