// A block whose parts have scales of their own: integers that multiply one half-precision scale, and the lows another.
#pragma once

#include "settle.h"

namespace layerlift::LL_ISA {

// Sixteen pairs of a block's scale and unit of lows.
struct Units {
  f32x16 d, low, per_d, per_low;

  Units(f32x16 d, f32x16 low) : d(d), low(low), per_d(inverse(d)), per_low(inverse(low)) {}
};

struct Integers {
  f32x16 scale, low;
};

static inline f32x16 integer(f32x16 v, float lowest, float highest) {
  const f32x16 rounded = sub(add(v, set1(kRound)), set1(kRound));
  return min(max(rounded, set1(lowest)), set1(highest));
}

template <class Levels> static inline Pairs pairs_of(const Integers& n, const Units& u) {
  return {mul(n.scale, u.d), Levels::kAffine ? sub(zero_f32(), mul(n.low, u.low)) : zero_f32()};
}

// The integers that come closest to a wish: the scale's, and the low's that is best with it.
template <class Levels>
static inline Integers closest(const Scheme& s, const Wishes& wish, const Units& u, float weight) {
  const f32x16 scale = integer(mul(wish.at.scale, u.per_d), s.scale_lowest, s.scale_highest);
  if (!Levels::kAffine) return {scale, zero_f32()};
  const f32x16 step = sub(mul(scale, u.d), wish.at.scale), per_w = set1(1 / (weight > kTiny ? weight : kTiny));
  const f32x16 depth = sub(mul(mul(wish.level, per_w), step), wish.at.low);
  return {scale, integer(mul(depth, u.per_low), 0, s.scale_highest)};
}

// A part with the wishes of all its starts.
struct Wishing {
  Part part;
  float weight;
  int rounds, best;  // best: counted through the rounds, the start whose wish costs least
  static constexpr int kMost = Starts::kMostRounds * kLanes;
  alignas(64) float scale[kMost], low[kMost], error[kMost], level_level[kMost], level[kMost];

  Wishes round(int r) const {
    const int i = r * kLanes;
    return {{load(scale + i), load(low + i)}, load(error + i), load(level_level + i), load(level + i)};
  }
  Wishes one(int i) const {  // in every lane
    return {pair_of(scale[i], low[i]), set1(error[i]), set1(level_level[i]), set1(level[i])};
  }
  void set_round(int r, const Wishes& wish) {
    const int i = r * kLanes;
    store(scale + i, wish.at.scale);
    store(low + i, wish.at.low);
    store(error + i, wish.error);
    store(level_level + i, wish.level_level);
    store(level + i, wish.level);
  }
};

template <bool kWeighed, class Levels>
static inline void wish(const Scheme& s, const Levels& levels, const Starts& starts, Wishing& out) {
  const Span span = span_of<Levels>(s, out.part);
  out.weight = weight_of<kWeighed>(out.part);
  out.rounds = starts.rounds;
  float error = __builtin_inff();
  for (int round = 0; round < starts.rounds; round++) {
    Pairs at = begin(starts.at[round], span);
    at.low = min(at.low, zero_f32());
    Wishes wish;
    for (int turn = 0; turn <= starts.polish; turn++) {
      wish = wishes_of<Levels>(try_levels<kWeighed>(levels, out.part, at), at, out.weight, 0);
      at = wish.at;
    }
    out.set_round(round, wish);
    const float least = lowest_of(wish.error);
    if (least < error) {
      error = least;
      out.best = round * kLanes + lane_of(wish.error, least);
    }
  }
}

// What a part costs with each pair of units, when it takes the integers closest to one of its wishes.
template <class Levels> static inline f32x16 cost(const Scheme& s, const Wishing& w, const Units& u) {
  auto with = [&](int i) {
    const Wishes wish = w.one(i);
    return cost<Levels>(wish, pairs_of<Levels>(closest<Levels>(s, wish, u, w.weight), u), w.weight);
  };
  f32x16 least = with(w.best);
  const float limit = hmax(least);
  for (int i = 0; i < w.rounds * kLanes; i++)
    if (w.error[i] < limit && i != w.best) least = min(least, with(i));  // others cannot cost less
  return least;
}

// The integers of the wish that costs least with one pair of units.
template <class Levels>
static inline void choose(const Scheme& s, const Wishing& w, const Units& u, float& scale, float& low) {
  float error = __builtin_inff();
  for (int r = 0; r < w.rounds; r++) {
    const Wishes wish = w.round(r);
    const Integers n = closest<Levels>(s, wish, u, w.weight);
    const f32x16 costs = cost<Levels>(wish, pairs_of<Levels>(n, u), w.weight);
    const float least = lowest_of(costs);
    if (!(least < error)) continue;
    error = least;
    float scales[kLanes], lows[kLanes];
    store(scales, n.scale);
    store(lows, n.low);
    scale = scales[lane_of(costs, least)];
    low = lows[lane_of(costs, least)];
  }
}

// The integers around those, of which the nearest levels cost least.
template <bool kWeighed, class Levels>
static inline void refine(const Scheme& s, const Levels& levels, const Part& p, const Units& u, float& scale,
                          float& low) {
  static const float across[] = {-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2};
  static const float down[] = {-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2};
  static const float around[] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  const f32x16 scales = add(set1(scale), load(Levels::kAffine ? across : around));
  Integers n = {integer(scales, s.scale_lowest, s.scale_highest), zero_f32()};
  if (Levels::kAffine) n.low = integer(add(set1(low), load(down)), 0, s.scale_highest);
  const f32x16 errors = try_errors<kWeighed>(levels, p, pairs_of<Levels>(n, u));
  const int lane = lane_of(errors, lowest_of(errors));
  float found[kLanes];
  store(found, n.scale);
  scale = found[lane];
  store(found, n.low);
  low = found[lane];
}

template <bool kWeighed, class Levels>
static inline void settle_shared(const Scheme& s, const Levels& levels, const Starts& starts, const float* x,
                                 const float* w, Block& b) {
  const int parts = s.block / s.sub;
  Wishing wishes[kMostSubs];
  float peak = 0, deepest = 0;
  for (int i = 0; i < parts; i++) {
    wishes[i].part = {x + i * s.sub, kWeighed ? w + i * s.sub : nullptr, s.sub};
    wish<kWeighed>(s, levels, starts, wishes[i]);
    const float scale = wishes[i].scale[wishes[i].best], low = wishes[i].low[wishes[i].best];
    if (__builtin_fabsf(scale) > __builtin_fabsf(peak)) peak = scale;
    if (low < deepest) deepest = low;
  }
  const float d = peak / (s.affine ? s.scale_highest : s.scale_lowest), unit = -deepest / s.scale_highest;
  float ds[kLanes], lows[kLanes];
  for (int i = 0; i < kLanes; i++) {
    const int across = s.affine ? i % 4 : i, steps = s.affine ? 3 : 15, down = i / 4;
    ds[i] = d * (s.least_unit + (s.most_unit - s.least_unit) * float(across) / float(steps));
    lows[i] = unit * (s.least_unit + (s.most_unit - s.least_unit) * float(down) / 3);
  }
  const Units units(half(load(ds)), half(load(lows)));
  f32x16 errors = zero_f32();
  for (int i = 0; i < parts; i++) errors = add(errors, cost<Levels>(s, wishes[i], units));
  const int lane = lane_of(errors, lowest_of(errors));
  store(ds, units.d);
  store(lows, units.low);
  b.d = f32_to_f16(ds[lane]);
  b.low = f32_to_f16(lows[lane]);
  const Units chosen(set1(ds[lane]), set1(lows[lane]));
  for (int i = 0; i < parts; i++) {
    float scale = 0, low = 0;
    choose<Levels>(s, wishes[i], chosen, scale, low);
    refine<kWeighed>(s, levels, wishes[i].part, chosen, scale, low);
    b.scales[i] = int32_t(scale);
    b.lows[i] = int32_t(low);
    put_levels(s, levels, wishes[i].part, ds[lane] * scale, -lows[lane] * low, b.q + i * s.sub);
  }
}

}  // namespace layerlift::LL_ISA
