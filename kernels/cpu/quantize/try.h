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
  alignas(64) float l[kLanes];  // of the level, its square, and its product with x
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

template <bool kAffine, class Levels>
static inline void sum_levels(const Levels& levels, const Part& p, f32x16 scale, f32x16 low, Tried& out) {
  f32x16 l = zero_f32(), ll = zero_f32(), xl = zero_f32(), inv = inverse(scale);
  for (int i = 0; i < p.n; i++) {
    f32x16 x = set1(p.x[i]), w = set1(p.w[i]);
    f32x16 level = levels.nearest(mul(kAffine ? sub(x, low) : x, inv)), weighed = mul(w, level);
    if (kAffine) l = add(l, weighed);
    ll = fma(weighed, level, ll);
    xl = fma(weighed, x, xl);
  }
  store(out.l, l);
  store(out.ll, ll);
  store(out.xl, xl);
}

template <bool kAffine, class Levels>
static inline f32x16 sum_errors(const Levels& levels, const Part& p, f32x16 scale, f32x16 low) {
  f32x16 error = zero_f32(), inv = inverse(scale), minus = sub(zero_f32(), scale);
  for (int i = 0; i < p.n; i++) {
    f32x16 x = set1(p.x[i]);
    if (kAffine) x = sub(x, low);
    f32x16 off = fma(minus, levels.nearest(mul(x, inv)), x);
    error = fma(mul(set1(p.w[i]), off), off, error);
  }
  return error;
}

// What least squares needs of the levels that each lane's scale and low choose.
static inline void try_levels(const Scheme& s, const Part& p, f32x16 scale, f32x16 low, Tried& out) {
  if (s.table)
    sum_levels<false>(TableLevels(s), p, scale, low, out);
  else if (s.affine)
    sum_levels<true>(EvenLevels(s), p, scale, low, out);
  else
    sum_levels<false>(EvenLevels(s), p, scale, low, out);
}

// Sums of weight * (x - scale * level - low)² for each lane.
static inline void try_errors(const Scheme& s, const Part& p, f32x16 scale, f32x16 low, float* out) {
  if (s.table)
    store(out, sum_errors<false>(TableLevels(s), p, scale, low));
  else if (s.affine)
    store(out, sum_errors<true>(EvenLevels(s), p, scale, low));
  else
    store(out, sum_errors<false>(EvenLevels(s), p, scale, low));
}

// The sums for one scale and low, in lane 0. Only for levels that are evenly spaced.
static inline void try_one(const Scheme& s, const Part& p, float scale, float low, Tried& out) {
  const EvenLevels levels(s);
  const f32x16 inv = inverse(set1(scale));
  f32x16 l = zero_f32(), ll = zero_f32(), xl = zero_f32();
  for (int i = 0; i < p.n; i += kLanes) {
    f32x16 x = load(p.x + i), level = levels.nearest(mul(sub(x, set1(low)), inv)), weighed = mul(load(p.w + i), level);
    l = add(l, weighed);
    ll = fma(weighed, level, ll);
    xl = fma(weighed, x, xl);
  }
  out.l[0] = hsum(l);
  out.ll[0] = hsum(ll);
  out.xl[0] = hsum(xl);
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
  const float least = -hmax(sub(zero_f32(), load(v)));
  for (int i = 0; i < kLanes; i++)
    if (v[i] == least) return i;
  return 0;
}

}  // namespace layerlift::LL_ISA
