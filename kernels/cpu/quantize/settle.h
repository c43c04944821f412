// Scales and lows as a block can hold them: half-precision numbers, and integers that multiply those.
#pragma once

#include "fit.h"

namespace layerlift::LL_ISA {

static inline f32x16 half(f32x16 v, uint16_t* bits) {
  store_f16(bits, min(max(v, set1(-65504.0f)), set1(65504.0f)));
  return load_f16(bits);
}

static inline uint16_t half(float v) { return f32_to_f16(v < -65504.0f ? -65504.0f : v > 65504.0f ? 65504.0f : v); }

// A block that is one part.
static inline void settle(const Scheme& s, const Part& p, const Fans& fans, Block& b) {
  const Fit fit = s.affine ? fit_affine(s, p, fans) : fit_signed(s, p, fans);
  float scales[kLanes], lows[kLanes];
  f32x16 tried = mul(set1(fit.scale), fans.settle);
  store(scales, tried);
  store(lows, s.affine ? fma(sub(set1(fit.scale), tried), set1(s.highest * 0.5f), set1(fit.low)) : zero_f32());
  if (s.affine) {  // lane 0: what just covers the weights
    float most;
    range(p, lows[0], most);
    scales[0] = (most - lows[0]) / s.highest;
  } else {
    scales[0] = largest(p) / s.lowest;
  }
  uint16_t d[kLanes], base[kLanes];
  float errors[kLanes];
  try_errors(s, p, half(load(scales), d), half(load(lows), base), errors);
  const int lane = lowest_lane(errors);
  b.d = d[lane];
  b.low = base[lane];
  put_levels(s, p, f16_to_f32(b.d), f16_to_f32(b.low), b.q);
}

// What the parts of a block have chosen under one scale d and one unit of lows.
struct Choice {
  float error;
  uint16_t d, low;
  int32_t scales[kMostSubs], lows[kMostSubs];
};

// Sums for least squares over d and the unit of lows.
struct Moved {
  float ss = 0, sm = 0, mm = 0, xs = 0, xm = 0;

  void add(float scale, float low, const Tried& t, const Sums& sums) {
    ss += scale * scale * t.ll[0];
    sm += scale * -low * t.l[0];
    mm += low * low * sums.w;
    xs += scale * t.xl[0];
    xm += -low * sums.x;
  }

  void solve(float& d, float& low) const {
    const float determinant = ss * mm - sm * sm;
    if (determinant > 1e-6f * ss * mm) {
      d = (mm * xs - sm * xm) / determinant;
      low = (ss * xm - sm * xs) / determinant;
    } else if (ss > 0) {
      d = xs / ss;
    }
    if (low < 0) low = 0;
  }
};

struct Integers {
  f32x16 scales, lows;
};

// The integers around those that come closest to what a part wants.
static inline Integers around(const Scheme& s, const Fit& fit, float d, float low) {
  const float near = d != 0 ? __builtin_rintf(fit.scale / d) : 0;
  const float near_low = low != 0 ? __builtin_rintf(-fit.low / low) : 0;
  float scales[kLanes], lows[kLanes];
  for (int i = 0; i < kLanes; i++) {
    scales[i] = near + (s.affine ? i % 4 - 1 : i - 8);
    lows[i] = s.affine ? near_low + i / 4 - 1 : 0;
  }
  const f32x16 lowest = set1(s.scale_lowest), highest = set1(s.scale_highest);
  return {min(max(load(scales), lowest), highest), min(max(load(lows), zero_f32()), highest)};
}

static inline void choose(const Scheme& s, const Part* parts, const Sums* sums, const Fit* fits, int subs, float& d,
                          float& low, Choice& c) {
  Moved moved;
  c.d = half(d);
  c.low = half(low);
  d = f16_to_f32(c.d);
  low = f16_to_f32(c.low);
  c.error = 0;
  for (int i = 0; i < subs; i++) {
    const Integers integers = around(s, fits[i], d, low);
    float scales[kLanes], lows[kLanes];
    store(scales, integers.scales);
    store(lows, integers.lows);
    float errors[kLanes];
    try_errors(s, parts[i], mul(set1(d), integers.scales), mul(set1(-low), integers.lows), errors);
    const int lane = lowest_lane(errors);
    c.error += errors[lane];
    c.scales[i] = int32_t(scales[lane]);
    c.lows[i] = int32_t(lows[lane]);
    Tried t;
    try_one(s, parts[i], d * scales[lane], -low * lows[lane], t);
    moved.add(scales[lane], lows[lane], t, sums[i]);
  }
  moved.solve(d, low);
}

// A block of scales.
static inline void settle_scales(const Scheme& s, const float* x, const float* w, const Fans& fans, Block& b) {
  constexpr int kRounds = 2;
  const int subs = s.block / s.sub;
  Part parts[kMostSubs];
  Fit fits[kMostSubs];
  float peak = 0, deepest = 0;
  Sums sums[kMostSubs];
  for (int i = 0; i < subs; i++) {
    parts[i] = {x + i * s.sub, w + i * s.sub, s.sub};
    fits[i] = s.affine ? fit_affine(s, parts[i], fans) : fit_signed(s, parts[i], fans);
    sums[i] = Sums(parts[i]);
    if (__builtin_fabsf(fits[i].scale) > __builtin_fabsf(peak)) peak = fits[i].scale;
    if (fits[i].low < deepest) deepest = fits[i].low;
  }
  Choice best, c;
  best.error = __builtin_inff();
  for (float start : s.starts) {
    if (start == 0) break;
    float d = peak / (s.affine ? s.scale_highest : s.scale_lowest) * start, low = -deepest / s.scale_highest * start;
    for (int round = 0; round < kRounds; round++) {
      choose(s, parts, sums, fits, subs, d, low, c);
      if (c.error < best.error || (round == 0 && start == s.starts[0])) best = c;
    }
  }
  b.d = best.d;
  b.low = best.low;
  for (int i = 0; i < subs; i++) {
    b.scales[i] = best.scales[i];
    b.lows[i] = best.lows[i];
    put_levels(s, parts[i], f16_to_f32(b.d) * float(b.scales[i]), -f16_to_f32(b.low) * float(b.lows[i]),
               b.q + i * s.sub);
  }
}

}  // namespace layerlift::LL_ISA
