// A block that is one part: its scale and low are half-precision numbers.
#pragma once

#include "fit.h"

namespace layerlift::LL_ISA {

static inline f32x16 half(f32x16 v) {
  uint16_t bits[kLanes];
  store_f16(bits, min(max(v, set1(-65504.0f)), set1(65504.0f)));
  return load_f16(bits);
}

// The halves next to what is wished: the scale, and the low that is best with it.
template <class Levels> static inline Pairs halves(const Wishes& wish, float weight) {
  const f32x16 scale = half(wish.at.scale);
  if (!Levels::kAffine) return {scale, zero_f32()};
  const f32x16 step = sub(scale, wish.at.scale), per_w = set1(1 / (weight > kTiny ? weight : kTiny));
  return {scale, half(sub(wish.at.low, mul(mul(wish.level, per_w), step)))};
}

// Levels that just cover the weights.
template <class Levels> static inline void cover(const Scheme& s, const Levels& levels, const Part& p, Block& b) {
  const Span span = span_of<Levels>(s, p);
  const float step = Levels::kAffine ? span.step : span.step / s.lowest;
  b.d = f32_to_f16(step);
  b.low = f32_to_f16(span.low);
  put_levels(s, levels, p, f16_to_f32(b.d), f16_to_f32(b.low), b.q);
}

template <bool kWeighed, class Levels>
static inline void settle(const Scheme& s, const Levels& levels, const Starts& starts, const Part& p, Block& b) {
  const Span span = span_of<Levels>(s, p);
  const float weight = weight_of<kWeighed>(p);
  float error = __builtin_inff(), scale = 0, low = 0;
  auto keep = [&](f32x16 errors, const Pairs& at) {
    const float least = lowest_of(errors);
    if (!(least < error)) return;
    error = least;
    const int lane = lane_of(errors, least);
    float scales[kLanes], lows[kLanes];
    store(scales, at.scale);
    store(lows, at.low);
    scale = scales[lane];
    low = lows[lane];
  };
  for (int round = 0; round < starts.rounds; round++) {
    Pairs at = begin(starts.at[round], span);
    at = {half(at.scale), half(at.low)};
    for (int turn = 0; turn <= starts.polish; turn++) {
      const Tried t = try_levels<kWeighed>(levels, p, at);
      keep(t.error, at);
      const Wishes wish = wishes_of<Levels>(t, at, weight, __builtin_inff());
      at = halves<Levels>(wish, weight);
      keep(cost<Levels>(wish, at, weight), at);
    }
  }
  b.d = f32_to_f16(scale);
  b.low = f32_to_f16(low);
  put_levels(s, levels, p, scale, low, b.q);
}

}  // namespace layerlift::LL_ISA
