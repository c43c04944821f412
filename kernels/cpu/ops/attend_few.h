// Attention of a handful of queries over cache rows: the decoding case, as fast as the rows arrive from memory.
//
// out = softmax(scale * q k^T) v, one pass over the rows with a running maximum (online softmax: Milakov and Gimelshein
// 2018, arXiv:1805.02867). Heads of a group, and tokens of a span, use a row while it is in registers.
// f32 accumulate; error grows with sqrt(head_dim) and sqrt(rows): bound and test in backends/opcases.py.
#pragma once

#include "functions.h"
#include "sums.h"

namespace layerlift::LL_ISA {

constexpr int kFewRows = 32;   // cache rows for which scores are kept at once
constexpr int kFewGroup = 4;   // queries that share a row's loads; scores are [kFewRows, kFewGroup]
#if defined(__AVX512F__)
constexpr int kDotRows = 4;     // rows in registers at once; times kFewGroup sums
constexpr int kOutVectors = 4;  // vectors of the output in registers at once; times kFewGroup sums
#else
constexpr int kDotRows = 1;
constexpr int kOutVectors = 1;
#endif

// A query's state: scaled query [d], output [d], highest score, sum of weights; d is head_dim in whole vectors.
static size_t few_scratch(int queries, int head_dim) { return size_t(queries) * (2 * round_up(head_dim, 16) + 16); }

struct FewState {
  float *q, *out, *highest, *total;
};

static inline FewState few_state(float* scratch, int query, int d) {
  float* p = scratch + size_t(query) * (2 * d + 16);
  return {p, p + d, p + 2 * d, p + 2 * d + 1};
}

// Asks for the next tile's rows while this one is worked on, a few cache lines at a time and in the order they lie in
// memory. A head's own values are small pieces far apart, which no hardware prefetcher follows; and asked for all at
// once, they would fill the line buffers and stop everything else.
class Ahead {
 public:
  // `row_nbytes` of each of k and v at rows[0..count) * stride; `calls` of next() are to come.
  Ahead(const char* k, const char* v, const int32_t* rows, int count, size_t stride, size_t row_nbytes, int calls)
      : k_(k), v_(v), rows_(rows), left_(count), stride_(stride), row_nbytes_(row_nbytes),
        lines_(int((count * row_nbytes / 64 + calls - 1) / calls)) {}

  inline void next() {
    for (int i = 0; i < lines_ && left_ > 0; i++) {
      const size_t at = size_t(*rows_) * stride_ + offset_;
      prefetch(k_ + at);
      prefetch(v_ + at);
      offset_ += 64;
      if (offset_ >= row_nbytes_) offset_ = 0, rows_++, left_--;
    }
  }

 private:
  const char *k_, *v_;
  const int32_t* rows_;
  int left_;
  size_t stride_, row_nbytes_, offset_ = 0;
  int lines_;
};

// The products of `count` rows at k[0..] with G queries; lanes of rows and queries that there are not hold anything.
template <int storage, int G>
static void few_scores(const typename Cells<storage>::type* const* k, int count, const FewState* state, int head_dim,
                       float* scores, Ahead& ahead) {
  using C = Cells<storage>;
  const int whole = head_dim / 16 * 16, rest = head_dim - whole;
  constexpr int R = kDotRows;
  f32x16 sums[16];
  for (int i = 0; i < 16; i++) sums[i] = zero_f32();
  for (int first = 0; first < count; first += 16 / kFewGroup) {
    ahead.next();
    for (int sub = 0; sub < 16 / kFewGroup; sub += R) {
      f32x16 acc[R][G];
      const typename C::type* row[R];
      for (int r = 0; r < R; r++) {
        int at = first + sub + r;
        row[r] = k[at < count ? at : count - 1];
        for (int g = 0; g < G; g++) acc[r][g] = zero_f32();
      }
      for (int i = 0; i < whole; i += 16) {
        f32x16 q[G];
        for (int g = 0; g < G; g++) q[g] = load(state[g].q + i);
        for (int r = 0; r < R; r++) {
          f32x16 x = C::load(row[r] + i);
          for (int g = 0; g < G; g++) acc[r][g] = fma(x, q[g], acc[r][g]);
        }
      }
      if (rest)
        for (int r = 0; r < R; r++) {
          f32x16 x = C::load_n(row[r] + whole, rest);
          for (int g = 0; g < G; g++) acc[r][g] = fma(x, load(state[g].q + whole), acc[r][g]);
        }
      for (int r = 0; r < R; r++)
        for (int g = 0; g < G; g++) sums[(sub + r) * kFewGroup + g] = acc[r][g];
    }
    store(scores + first * kFewGroup, reduce16<Sum>(sums));
  }
}

// out = out * shrink + sum of weight * v over the rows.
template <int storage, int G>
static void few_output(const typename Cells<storage>::type* const* v, int count, const FewState* state, int head_dim,
                       const float* weights, const float* shrink, Ahead& ahead) {
  using C = Cells<storage>;
  const int whole = head_dim / 16 * 16, rest = head_dim - whole;
  constexpr int N = kOutVectors;
  int i = 0;
  for (; i + 16 * N <= whole; i += 16 * N) {
    f32x16 acc[G][N];
    for (int g = 0; g < G; g++)
      for (int n = 0; n < N; n++) acc[g][n] = mul(load(state[g].out + i + 16 * n), set1(shrink[g]));
    for (int r = 0; r < count; r++) {
      if (i == 0 && r % 4 == 0) ahead.next();
      f32x16 x[N];
      for (int n = 0; n < N; n++) x[n] = C::load(v[r] + i + 16 * n);
      for (int g = 0; g < G; g++) {
        f32x16 w = set1(weights[r * kFewGroup + g]);
        for (int n = 0; n < N; n++) acc[g][n] = fma(x[n], w, acc[g][n]);
      }
    }
    for (int g = 0; g < G; g++)
      for (int n = 0; n < N; n++) store(state[g].out + i + 16 * n, acc[g][n]);
  }
  for (; i < head_dim; i += 16) {
    const bool part = i == whole;
    f32x16 acc[G];
    for (int g = 0; g < G; g++) acc[g] = mul(load(state[g].out + i), set1(shrink[g]));
    for (int r = 0; r < count; r++) {
      f32x16 x = part ? C::load_n(v[r] + i, rest) : C::load(v[r] + i);
      for (int g = 0; g < G; g++) acc[g] = fma(x, set1(weights[r * kFewGroup + g]), acc[g]);
    }
    for (int g = 0; g < G; g++) store(state[g].out + i, acc[g]);
  }
}

// Scores become weights. A vector holds four rows of four queries, so one exp serves them all.
template <int G>
static void few_weights(float* scores, int count, const FewState* state, float* shrink) {
  float before[16] = {}, totals[16], highests[16];
  for (int i = 0; i < 16; i++) before[i] = i % kFewGroup < G ? *state[i % kFewGroup].highest : kHidden;
  const int size = round_up(count * kFewGroup, 16);
  const f32x16 old = load(before);
  f32x16 highest = old;
  for (int i = 0; i < size; i += 16) highest = max(highest, load(scores + i));
  highest = reduce4x4<Max>(highest);
  f32x16 total = zero_f32();
  for (int i = 0; i < size; i += 16) {
    f32x16 w = exp(sub(load(scores + i), highest));
    store(scores + i, w);
    total = add(total, w);
  }
  float factor[16];
  store(factor, exp(sub(old, highest)));
  store(totals, reduce4x4<Sum>(total));
  store(highests, highest);
  for (int g = 0; g < G; g++) {
    shrink[g] = factor[g];
    *state[g].highest = highests[g];
    *state[g].total = *state[g].total * factor[g] + totals[g];
  }
}

// Hides what query g must not see of the rows [0, count) that begin at position `begin`, and the lanes behind them.
static inline void few_hide(float* scores, int g, int count, int begin, int last, int window) {
  const int padded = round_up(count, 16 / kFewGroup);
  const int low = window ? last - window + 1 - begin : 0;
  for (int r = 0; r < low && r < count; r++) scores[r * kFewGroup + g] = kHidden;
  for (int r = last + 1 - begin < 0 ? 0 : last + 1 - begin; r < count; r++) scores[r * kFewGroup + g] = kHidden;
  for (int r = count; r < padded; r++) scores[r * kFewGroup + g] = kHidden;
}

template <int storage, int G>
static void few_group(const Attention& a, const AttentionPiece& piece, float* scratch, int first_query, int group,
                      int begin, int count, const typename Cells<storage>::type* const* k,
                      const typename Cells<storage>::type* const* v, Ahead& ahead) {
  const int d = round_up(a.head_dim, 16);
  FewState state[G];
  alignas(64) float scores[kFewGroup * kFewRows];
  float shrink[G];
  for (int g = 0; g < G; g++) state[g] = few_state(scratch, first_query + g, d);
  few_scores<storage, G>(k, count, state, a.head_dim, scores, ahead);
  if (a.softcap != 0.0f)
    for (int i = 0; i < count * kFewGroup; i += 16) store(scores + i, soft_cap(load(scores + i), a.softcap));
  for (int g = 0; g < G; g++) {
    const int token = piece.token + (first_query + g) / group % piece.tokens;
    few_hide(scores, g, count, begin, piece.n_rows - piece.length + token, a.window);
  }
  few_weights<G>(scores, count, state, shrink);
  few_output<storage, G>(v, count, state, a.head_dim, scores, shrink, ahead);
}

template <int storage>
static void few_tiles(const Attention& a, const AttentionPiece& piece, float* scratch) {
  using T = typename Cells<storage>::type;
  const int group = a.n_heads / a.n_kv_heads, per_head = group * piece.tokens;
  const size_t row_size = size_t(a.n_kv_heads) * a.head_dim;
  for (int begin = piece.begin; begin < piece.end; begin += kFewRows) {
    const int count = piece.end - begin < kFewRows ? piece.end - begin : kFewRows;
    const int left = piece.end - begin - count, coming = left < kFewRows ? left : kFewRows;
    const size_t first_column = size_t(piece.kv_head) * a.head_dim;
    Ahead ahead(reinterpret_cast<const char*>(static_cast<const T*>(a.k) + first_column),
                reinterpret_cast<const char*>(static_cast<const T*>(a.v) + first_column), piece.rows + begin + count, coming,
                row_size * sizeof(T), size_t(piece.kv_heads) * a.head_dim * sizeof(T),
                piece.kv_heads * ((per_head + 3) / 4) * (kFewRows / 2));
    for (int head = 0; head < piece.kv_heads; head++) {
      const T *k[kFewRows], *v[kFewRows];
      const size_t column = size_t(piece.kv_head + head) * a.head_dim;
      for (int r = 0; r < count; r++) {
        const size_t at = size_t(piece.rows[begin + r]) * row_size + column;
        k[r] = static_cast<const T*>(a.k) + at;
        v[r] = static_cast<const T*>(a.v) + at;
      }
      for (int done = 0; done < per_head;) {
        const int query = head * per_head + done, left = per_head - done;
        if (left >= 4) {
          few_group<storage, 4>(a, piece, scratch, query, group, begin, count, k, v, ahead), done += 4;
        } else if (left == 3) {
          few_group<storage, 3>(a, piece, scratch, query, group, begin, count, k, v, ahead), done += 3;
        } else if (left == 2) {
          few_group<storage, 2>(a, piece, scratch, query, group, begin, count, k, v, ahead), done += 2;
        } else {
          few_group<storage, 1>(a, piece, scratch, query, group, begin, count, k, v, ahead), done += 1;
        }
      }
    }
  }
}

static void attend_few(const Attention& a, const AttentionPiece& piece, float* scratch) {
  const int group = a.n_heads / a.n_kv_heads, d = round_up(a.head_dim, 16);
  const int queries = piece.kv_heads * piece.tokens * group;
  auto place = [&](int query) {  // of a query in q and out
    const int head = piece.kv_head + query / (group * piece.tokens);
    const int token = piece.start + piece.token + query / group % piece.tokens;
    return (size_t(token) * a.n_heads + size_t(head) * group + query % group) * a.head_dim;
  };
  for (int query = 0; query < queries; query++) {
    const FewState state = few_state(scratch, query, d);
    const float* q = a.q + place(query);
    for (int i = 0; i < d; i += 16) {
      store(state.q + i, mul(load_n(q + i, a.head_dim - i < 16 ? a.head_dim - i : 16), set1(a.scale)));
      store(state.out + i, zero_f32());
    }
    *state.highest = kHidden;
    *state.total = 0.0f;
  }
  if (a.storage == kCellF16)
    few_tiles<kCellF16>(a, piece, scratch);
  else if (a.storage == kCellBF16)
    few_tiles<kCellBF16>(a, piece, scratch);
  else
    few_tiles<kCellF32>(a, piece, scratch);
  for (int query = 0; query < queries; query++) {
    const FewState state = few_state(scratch, query, d);
    float* out = a.out + place(query);
    float scale = 1.0f / *state.total;
    if (piece.partial) {
      float* record = piece.partial + size_t(query) * (a.head_dim + 2);
      record[0] = *state.highest;
      record[1] = *state.total;
      out = record + 2;
      scale = 1.0f;
    }
    for (int i = 0; i < a.head_dim; i++) out[i] = state.out[i] * scale;
  }
}

// One query's output from the records of its parts, `stride` floats apart.
static void merge_partials(const float* partial, int parts, size_t stride, int head_dim, float* out) {
  float highest = kHidden;
  for (int p = 0; p < parts; p++)
    if (partial[p * stride] > highest) highest = partial[p * stride];
  float total = 0.0f;
  for (int i = 0; i < head_dim; i++) out[i] = 0.0f;
  for (int p = 0; p < parts; p++) {
    const float* record = partial + p * stride;
    float weight[16];
    store(weight, exp(set1(record[0] - highest)));
    total += record[1] * weight[0];
    for (int i = 0; i < head_dim; i++) out[i] += record[2 + i] * weight[0];
  }
  const float scale = 1.0f / total;
  for (int i = 0; i < head_dim; i++) out[i] *= scale;
}

}  // namespace layerlift::LL_ISA
