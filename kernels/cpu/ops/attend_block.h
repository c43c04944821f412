// Attention of many queries over cache rows: the prompt case, bound by arithmetic.
//
// A lane is a query. Scores are kept as [rows, queries] and outputs as [head_dim, queries], so that maxima and sums run
// down the lanes, nothing is transposed, and both products are one kernel: C [m, queries] = A [m, k] B [k, queries] with
// A's values broadcast. Queries of the heads of a group stand side by side and share each row's conversion to float.
// Online softmax as in attend_few.h; f32 accumulate; bound and test in backends/opcases.py.
#pragma once

#include "functions.h"

namespace layerlift::LL_ISA {

constexpr int kBlockRows = 64;  // cache rows a tile
#if defined(__AVX512F__)
constexpr int kMaxVectors = 4;  // vectors of queries in registers at once
#else
constexpr int kMaxVectors = 1;
#endif

// scaled queries [d, queries], output [d, queries], scores [rows, queries], k and v tiles [rows, d], three rows of state
static size_t block_scratch(int queries, int head_dim) {
  const size_t m = round_up(queries, 16), d = round_up(head_dim, 16);
  return m * (2 * d + kBlockRows + 3) + 2 * kBlockRows * d;
}

// C[r, 0..16N) = C * shrink (or zero, without) + sum over i < depth of A[r * row_step + i * depth_step] * B[i, ...].
template <int R, int N>
static inline void block_product(const float* a, size_t row_step, size_t depth_step, int depth, const float* b, float* c,
                                 size_t stride, const float* shrink) {
  f32x16 acc[R][N];
  for (int n = 0; n < N; n++) {
    for (int r = 0; r < R; r++)
      acc[r][n] = shrink ? mul(load(c + r * stride + 16 * n), load(shrink + 16 * n)) : zero_f32();
  }
  for (int i = 0; i < depth; i++) {
    f32x16 x[N];
    for (int n = 0; n < N; n++) x[n] = load(b + i * stride + 16 * n);
    for (int r = 0; r < R; r++) {
      f32x16 y = set1(a[r * row_step + i * depth_step]);
      for (int n = 0; n < N; n++) acc[r][n] = fma(x[n], y, acc[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(c + r * stride + 16 * n, acc[r][n]);
}

// The same for any number of rows that is a multiple of 8 and all `m` queries.
static void block_products(const float* a, size_t row_step, size_t depth_step, int rows, int depth, const float* b,
                           float* c, int m, const float* shrink) {
  for (int j = 0; j < m;) {
    const int left = (m - j) / 16;
    const int n = left < kMaxVectors ? left : kMaxVectors;
    const float* s = shrink ? shrink + j : nullptr;
    for (int r = 0; r < rows;) {
      const float* x = a + r * row_step;
      float* y = c + size_t(r) * m + j;
#if defined(__AVX512F__)
      if (n == 4) block_product<4, 4>(x, row_step, depth_step, depth, b + j, y, m, s), r += 4;
      if (n == 3) block_product<8, 3>(x, row_step, depth_step, depth, b + j, y, m, s), r += 8;
      if (n == 2) block_product<8, 2>(x, row_step, depth_step, depth, b + j, y, m, s), r += 8;
      if (n == 1) block_product<8, 1>(x, row_step, depth_step, depth, b + j, y, m, s), r += 8;
#else
      block_product<4, 1>(x, row_step, depth_step, depth, b + j, y, m, s), r += 4;
#endif
    }
    j += 16 * n;
  }
}

// Rows of the cache as floats, [count, d].
template <int storage>
static void block_tile(const Attention& a, const void* cache, const int32_t* rows, int count, int kv_head, int d,
                       float* tile) {
  using C = Cells<storage>;
  using T = typename C::type;
  const int whole = a.head_dim / 16 * 16, rest = a.head_dim - whole;
  for (int r = 0; r < count; r++) {
    const T* row = static_cast<const T*>(cache) + (size_t(rows[r]) * a.n_kv_heads + kv_head) * a.head_dim;
    float* y = tile + size_t(r) * d;
    for (int i = 0; i < whole; i += 16) store(y + i, C::load(row + i));
    if (rest) store(y + whole, C::load_n(row + whole, rest));
  }
}

static void block_load(const Attention& a, const void* cache, const int32_t* rows, int count, int kv_head, int d,
                       float* tile) {
  if (a.storage == kCellF16)
    block_tile<kCellF16>(a, cache, rows, count, kv_head, d, tile);
  else if (a.storage == kCellBF16)
    block_tile<kCellBF16>(a, cache, rows, count, kv_head, d, tile);
  else
    block_tile<kCellF32>(a, cache, rows, count, kv_head, d, tile);
}

// Scores [count, m] become weights; highest, total and shrink [m] follow.
static void block_weights(float* scores, int count, int m, float* highest, float* total, float* shrink) {
  for (int j = 0; j < m; j += 16) {
    f32x16 old = load(highest + j), best = old;
    for (int r = 0; r < count; r++) best = max(best, load(scores + size_t(r) * m + j));
    f32x16 sum = zero_f32(), factor = exp(sub(old, best));
    for (int r = 0; r < count; r++) {
      float* s = scores + size_t(r) * m + j;
      f32x16 w = exp(sub(load(s), best));
      store(s, w);
      sum = add(sum, w);
    }
    store(highest + j, best);
    store(shrink + j, factor);
    store(total + j, fma(load(total + j), factor, sum));
  }
}

static void attend_block(const Attention& a, const AttentionPiece& piece, float* scratch) {
  const int group = a.n_heads / a.n_kv_heads, queries = piece.tokens * group;
  const int m = round_up(queries, 16), d = round_up(a.head_dim, 16);
  float *q = scratch, *out = q + size_t(d) * m, *scores = out + size_t(d) * m, *k = scores + size_t(kBlockRows) * m;
  float *v = k + size_t(kBlockRows) * d, *highest = v + size_t(kBlockRows) * d, *total = highest + m;
  float* shrink = total + m;
  auto place = [&](int head, int query) {
    const size_t token = size_t(piece.start + piece.token + query / group);
    return (token * a.n_heads + size_t(head) * group + query % group) * a.head_dim;
  };
  for (int head = piece.kv_head; head < piece.kv_head + piece.kv_heads; head++) {
    for (size_t i = 0; i < size_t(d) * m; i++) q[i] = 0.0f;
    for (int query = 0; query < queries; query++) {
      const float* from = a.q + place(head, query);
      for (int i = 0; i < a.head_dim; i++) q[size_t(i) * m + query] = from[i] * a.scale;
    }
    for (size_t i = 0; i < size_t(d) * m; i++) out[i] = 0.0f;
    for (int j = 0; j < m; j++) highest[j] = kHidden, total[j] = 0.0f;

    for (int begin = piece.begin; begin < piece.end; begin += kBlockRows) {
      const int count = piece.end - begin < kBlockRows ? piece.end - begin : kBlockRows;
      const int first_last = piece.n_rows - piece.length + piece.token;  // the first query's own position
      block_load(a, a.k, piece.rows + begin, count, head, d, k);
      for (int r = count; r < round_up(count, 8); r++)
        for (int i = 0; i < d; i++) k[size_t(r) * d + i] = 0.0f;
      block_products(k, d, 1, round_up(count, 8), d, q, scores, m, nullptr);
      if (a.softcap != 0.0f)
        for (size_t i = 0; i < size_t(count) * m; i += 16) store(scores + i, soft_cap(load(scores + i), a.softcap));
      // Only a tile on the diagonal, or at the window's far edge, hides anything.
      const int low_end = a.window ? first_last + piece.tokens - 1 - a.window + 1 : 0;
      if (begin + count - 1 > first_last || begin < low_end)
        for (int query = 0; query < queries; query++) {
          const int last = first_last + query / group, low = a.window ? last - a.window + 1 : 0;
          for (int r = 0; r < count; r++)
            if (begin + r > last || begin + r < low) scores[size_t(r) * m + query] = kHidden;
        }
      block_weights(scores, count, m, highest, total, shrink);
      block_load(a, a.v, piece.rows + begin, count, head, d, v);
      block_products(v, 1, d, d, count, scores, out, m, shrink);
    }

    for (int query = 0; query < queries; query++) {
      float* to = a.out + place(head, query);
      float scale = 1.0f / total[query];
      if (piece.partial) {
        float* record = piece.partial + size_t((head - piece.kv_head) * queries + query) * (a.head_dim + 2);
        record[0] = highest[query];
        record[1] = total[query];
        to = record + 2;
        scale = 1.0f;
      }
      for (int i = 0; i < a.head_dim; i++) to[i] = out[size_t(i) * m + query] * scale;
    }
  }
}

}  // namespace layerlift::LL_ISA
