// The scale and low that a part of a block wants. The search is that of backends/numpy_quantize.py, which explains it.
#pragma once

#include "try.h"

namespace layerlift::LL_ISA {

// Factors on a scale, one a lane: a fan around the scale that just covers a part's weights, and closer ones.
struct Fans {
  f32x16 fan, close, closer, settle;

  explicit Fans(const Scheme& s) {
    double steps = (double(s.highest) - s.lowest + 1) / 2, reach = 3 / steps < 0.4 ? 3 / steps : 0.4;
    fan = factors(reach, 12, 12);
    close = factors(4 * reach, 8, 96);
    closer = factors(reach, 8, 96);
    settle = factors(reach / 4, 8, 96);
  }

  static f32x16 factors(double reach, int one, int steps) {
    float f[kLanes];
    for (int i = 0; i < kLanes; i++) f[i] = float(1 + reach * (i - one) / steps);
    return load(f);
  }
};

struct Fit {
  float scale, low;
};

static inline float largest(const Part& p) {
  float top = p.x[0];
  for (int i = 1; i < p.n; i++)
    if (__builtin_fabsf(p.x[i]) > __builtin_fabsf(top)) top = p.x[i];
  return top;
}

static inline Fit fit_signed(const Scheme& s, const Part& p, const Fans& fans) {
  const float top = largest(p), ends[] = {s.lowest, s.highest};
  const int rounds = s.highest > 16 && !s.table ? 1 : 3;  // where there are many levels the fan is close enough
  float scale = 0, lost = 0;                              // lost: the error less that of zeros
  Tried t;
  for (int round = 0; round < rounds; round++) {
    f32x16 tried = round < 2 ? mul(set1(top / ends[round]), fans.fan) : mul(set1(scale), fans.closer);
    try_levels(s, p, tried, zero_f32(), t);
    float losses[kLanes];
    f32x16 xl = load(t.xl), wanted = div(xl, max(load(t.ll), set1(kTiny)));
    store(losses, sub(zero_f32(), mul(xl, wanted)));
    const int lane = lowest_lane(losses);
    if (losses[lane] < lost) {
      lost = losses[lane];
      scale = t.xl[lane] / (t.ll[lane] > kTiny ? t.ll[lane] : kTiny);
    }
  }
  return {scale, 0};
}

// Sums over a part.
struct Sums {
  float w = 0, x = 0, xx = 0;

  Sums() = default;
  explicit Sums(const Part& p) {
    for (int i = 0; i < p.n; i++) {
      float weighed = p.w[i] * p.x[i];
      w += p.w[i];
      x += weighed;
      xx += weighed * p.x[i];
    }
  }
};

struct Solved {
  alignas(64) float scale[kLanes], low[kLanes], error[kLanes];
};

// Scale and low that are best for the levels of each lane, and their error; `below`: low may not be above 0.
static inline void least_squares(const Tried& t, const Sums& sums, bool below, Solved& out) {
  const float w = sums.w, x = sums.x, mean = x / (w > kTiny ? w : kTiny), most = below ? 0.0f : __builtin_inff();
  for (int i = 0; i < kLanes; i++) {
    const float l = t.l[i], ll = t.ll[i], xl = t.xl[i], determinant = w * ll - l * l;
    const bool sound = determinant > 1e-6f * w * ll;
    const float one = 1 / (sound ? determinant : 1.0f), alone = xl / (ll > kTiny ? ll : kTiny);
    float scale = sound ? (w * xl - x * l) * one : 0.0f;
    float low = sound ? (ll * x - l * xl) * one : mean;
    scale = low > most ? alone : scale;
    low = low > most ? most : low;
    scale = scale > 0 ? scale : 0.0f;
    out.scale[i] = scale;
    out.low[i] = low;
    out.error[i] = sums.xx + scale * (scale * ll - 2 * xl + 2 * low * l) + low * (low * w - 2 * x);
  }
}

static inline void range(const Part& p, float& least, float& most) {
  least = most = p.x[0];
  for (int i = 1; i < p.n; i++) {
    if (p.x[i] < least) least = p.x[i];
    if (p.x[i] > most) most = p.x[i];
  }
}

static inline Fit fit_affine(const Scheme& s, const Part& p, const Fans& fans) {
  static const float pivots[] = {0.5f, 0, 1};
  const bool below = s.scale_highest > 0;
  float least, most;
  range(p, least, most);
  if (below) {
    least = least < 0 ? least : 0;
    most = most > 0 ? most : 0;
  }
  const Sums sums(p);
  const Fit cover = {(most - least) / s.highest, least};
  Fit best = cover;
  float error = __builtin_inff();
  Tried t;
  Solved solved;
  for (int round = 0; round < 6; round++) {
    const Fit from = round < 3 ? cover : best;
    const float pivot = pivots[round % 3];
    f32x16 tried = mul(set1(from.scale), round < 3 ? fans.fan : fans.close);
    f32x16 low = sub(set1(from.low + pivot * from.scale * s.highest), mul(set1(pivot * s.highest), tried));
    try_levels(s, p, tried, below ? min(low, zero_f32()) : low, t);
    least_squares(t, sums, below, solved);
    const int lane = lowest_lane(solved.error);
    if (solved.error[lane] < error) {
      error = solved.error[lane];
      best = {solved.scale[lane], solved.low[lane]};
    }
  }
  return best;
}

}  // namespace layerlift::LL_ISA
