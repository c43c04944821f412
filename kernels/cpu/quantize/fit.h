// The scales and lows that a part of a block wants. backends/numpy_quantize.py explains the search and is its reference.
#pragma once

#include "try.h"

namespace layerlift::LL_ISA {

// Where the search begins: scales and lows in units of what a part spans, sixteen to a round.
struct Starts {
  static constexpr int kMostRounds = 3;
  int count, rounds, polish;  // polish: how often each start moves to what its levels want
  Pairs at[kMostRounds];

  Starts(const Scheme& s, const Effort& effort) : polish(effort.polish) {
    float scale[kMostRounds * kLanes], low[kMostRounds * kLanes];
    scale[0] = s.affine ? 1 : 1 / s.lowest;  // what just covers the weights
    low[0] = 0;
    count = 1;
    for (const Line& line : s.lines)
      for (int i = 0, n = line.count * effort.density; i < n; i++, count++) {
        const float share = line.from + (line.to - line.from) * float(i) / float(n > 1 ? n - 1 : 1);
        scale[count] = s.affine ? share : share / line.pin;
        low[count] = s.affine ? line.pin * (1 - share) * s.highest : 0;
      }
    rounds = (count + kLanes - 1) / kLanes;
    for (int i = count; i < rounds * kLanes; i++) {
      scale[i] = scale[0];
      low[i] = low[0];
    }
    for (int r = 0; r < rounds; r++) at[r] = {load(scale + r * kLanes), load(low + r * kLanes)};
  }
};

// What a part spans: its lowest weight, and a step that covers it with all levels; or 0, and its largest weight.
struct Span {
  float low, step;
};

template <class Levels> static inline Span span_of(const Scheme& s, const Part& p) {
  f32x16 most = load(p.x), least = most;
  for (int i = kLanes; i < p.n; i += kLanes) {
    most = max(most, load(p.x + i));
    least = min(least, load(p.x + i));
  }
  float high = hmax(most), low = lowest_of(least);
  if (!Levels::kAffine) return {0, high > -low ? high : low};
  if (s.scale_highest > 0) {  // lows are 0 or below
    high = high > 0 ? high : 0;
    low = low < 0 ? low : 0;
  }
  return {low, (high - low) / s.highest};
}

static inline Pairs begin(const Pairs& start, const Span& span) {
  const f32x16 step = set1(span.step);
  return {mul(step, start.scale), fma(step, start.low, set1(span.low))};
}

// Where the levels of each lane want scale and low, and what they cost there and elsewhere.
struct Wishes {
  Pairs at;
  f32x16 error, level_level, level;
};

// Least squares for the levels that were tried; weight: the sum over the part; most_low: what low may not exceed.
template <class Levels>
static inline Wishes wishes_of(const Tried& t, const Pairs& at, float weight, float most_low) {
  const f32x16 zero = zero_f32(), ll = max(t.level_level, set1(kTiny));
  if (!Levels::kAffine) {
    f32x16 step = div(t.off_level, ll);
    return {{add(at.scale, step), zero}, max(sub(t.error, mul(t.off_level, step)), zero), t.level_level, zero};
  }
  const f32x16 w = set1(weight), per_w = set1(1 / (weight > kTiny ? weight : kTiny)), w_ll = mul(w, t.level_level);
  const f32x16 determinant = sub(w_ll, mul(t.level, t.level));
  const f32x16 sound = step_above(determinant, mul(w_ll, set1(1e-6f)), set1(1.0f));  // else: all levels alike
  f32x16 step = div(mul(sub(mul(w, t.off_level), mul(t.level, t.off)), sound), max(determinant, set1(kTiny)));
  f32x16 rise = min(mul(sub(t.off, mul(t.level, step)), per_w), sub(set1(most_low), at.low));
  step = max(div(sub(t.off_level, mul(t.level, rise)), ll), sub(zero, at.scale));
  const f32x16 gain = add(mul(step, t.off_level), mul(rise, t.off));
  const f32x16 cross = mul(mul(step, rise), t.level);
  const f32x16 squares = fma(mul(step, step), t.level_level, mul(mul(rise, rise), w));
  const f32x16 error = add(sub(t.error, add(gain, gain)), add(squares, add(cross, cross)));
  return {{add(at.scale, step), add(at.low, rise)}, max(error, zero), t.level_level, t.level};
}

// What the levels of each wish cost with other scales and lows; the nearest levels cost no more.
template <class Levels> static inline f32x16 cost(const Wishes& wish, const Pairs& at, float weight) {
  const f32x16 step = sub(at.scale, wish.at.scale), along = fma(mul(step, step), wish.level_level, wish.error);
  if (!Levels::kAffine) return along;
  const f32x16 rise = sub(at.low, wish.at.low), cross = mul(mul(step, rise), wish.level);
  return add(along, fma(mul(rise, rise), set1(weight), add(cross, cross)));
}

}  // namespace layerlift::LL_ISA
