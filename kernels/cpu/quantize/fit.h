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
  float scale = 0, gain = 0;
  Tried t;
  for (int round = 0; round < 3; round++) {
    f32x16 tried = round < 2 ? mul(set1(top / ends[round]), fans.fan) : mul(set1(scale), fans.closer);
    try_lanes(s, p, tried, zero_f32(), t);
    for (int i = 0; i < kLanes; i++) {
      float ll = t.ll[i] > kTiny ? t.ll[i] : kTiny, gained = t.xl[i] * t.xl[i] / ll;
      if (t.ll[i] > 0 && gained > gain) {
        gain = gained;
        scale = t.xl[i] / ll;
      }
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

// Scale and low that are best for the levels of one lane, and their error; `below`: low may not be above 0.
static inline float least_squares(const Tried& t, int lane, const Sums& sums, bool below, Fit& fit) {
  const float l = t.l[lane], ll = t.ll[lane], xl = t.xl[lane];
  const float determinant = sums.w * ll - l * l;
  float scale = 0, low = sums.x / (sums.w > kTiny ? sums.w : kTiny);
  if (determinant > 1e-6f * sums.w * ll) {
    scale = (sums.w * xl - sums.x * l) / determinant;
    low = (ll * sums.x - l * xl) / determinant;
  }
  if (below && low > 0) {
    scale = xl / (ll > kTiny ? ll : kTiny);
    low = 0;
  }
  if (scale < 0) scale = 0;
  fit = {scale, low};
  return sums.xx + scale * (scale * ll - 2 * xl + 2 * low * l) + low * (low * sums.w - 2 * sums.x);
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
  for (int round = 0; round < 6; round++) {
    const Fit from = round < 3 ? cover : best;
    const float pivot = pivots[round % 3];
    f32x16 tried = mul(set1(from.scale), round < 3 ? fans.fan : fans.close);
    f32x16 low = sub(set1(from.low + pivot * from.scale * s.highest), mul(set1(pivot * s.highest), tried));
    try_lanes(s, p, tried, below ? min(low, zero_f32()) : low, t);
    for (int i = 0; i < kLanes; i++) {
      Fit fit;
      float e = least_squares(t, i, sums, below, fit);
      if (e < error) {
        error = e;
        best = fit;
      }
    }
  }
  return best;
}

}  // namespace layerlift::LL_ISA
