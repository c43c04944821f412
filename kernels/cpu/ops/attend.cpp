// Cuts attention into pieces for the threads, and joins what was cut along the cache.
#include <algorithm>
#include <new>
#include <vector>

#include "../context.h"
#include "api.h"
#include "table.h"

namespace layerlift {
namespace {

constexpr int kFewQueries = 8;      // of one kv head: fewer read the cache in place, more share converted tiles
constexpr int kBlockQueries = 64;   // of one kv head in a block
constexpr int kLeastRows = 256;     // of the cache in a part: fewer are not worth a record to join
constexpr int kPiecesPerThread = 4; // so that a thread held up by another process keeps nobody waiting for long

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// All pieces of one call, and where the outputs that are cut along the cache must be joined.
class Plan {
 public:
  Plan(const Attention& a, const ll_span* spans, int count, int threads) : a_(a), group_(a.n_heads / a.n_kv_heads) {
    const int wanted = threads * kPiecesPerThread;
    int blocks = 0;
    for (int i = 0; i < count; i++)
      blocks += is_few(spans[i]) ? 1 : ceil_div(spans[i].length, block_tokens()) * a.n_kv_heads;
    const int cuts = ceil_div(wanted, std::max(blocks, 1));
    for (int i = 0; i < count; i++) is_few(spans[i]) ? add_few(spans[i], cuts) : add_blocks(spans[i], cuts);
    // Long pieces first: what is left at the end is short.
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& x, const Piece& y) { return x.work > y.work; });
  }

  struct Piece {
    AttentionPiece p;
    size_t record;  // its first float among the partials; used when there are several parts
    bool whole, few;
    int64_t work;
  };
  struct Join {
    AttentionPiece p;
    size_t record, stride;
    int parts;
  };

  std::vector<Piece> pieces;
  std::vector<Join> joins;
  size_t partial_floats = 0;
  int max_few = 0, max_block = 0;  // queries in the largest piece of each kind

 private:
  bool is_few(const ll_span& s) const { return s.length * group_ < kFewQueries; }
  int block_tokens() const { return std::max(1, kBlockQueries / group_); }

  void add_few(const ll_span& s, int cuts) {
    AttentionPiece p = piece(s, 0, s.length);
    const int parts = std::clamp((p.end - p.begin) / kLeastRows, 1, cuts);
    // A short context is cut along the heads instead, which leaves nothing to join.
    const int head_cuts = parts > 1 ? 1 : std::min(cuts, a_.n_kv_heads);
    const int step = ceil_div(a_.n_kv_heads, head_cuts);
    for (int head = 0; head < a_.n_kv_heads; head += step) {
      p.kv_head = head;
      p.kv_heads = std::min(step, a_.n_kv_heads - head);
      add(p, parts, true);
    }
  }

  void add_blocks(const ll_span& s, int cuts) {
    for (int token = 0; token < s.length; token += block_tokens()) {
      AttentionPiece p = piece(s, token, std::min(block_tokens(), s.length - token));
      const int parts = std::clamp((p.end - p.begin) / kLeastRows, 1, cuts);
      for (int head = 0; head < a_.n_kv_heads; head++) {
        p.kv_head = head;
        p.kv_heads = 1;
        add(p, parts, false);
      }
    }
  }

  // The rows that some of the tokens can see.
  AttentionPiece piece(const ll_span& s, int token, int tokens) const {
    const int first = s.n_rows - s.length + token;
    const int begin = a_.window ? std::max(0, first - a_.window + 1) : 0;
    return {s.rows, s.n_rows, s.length, s.start, token, tokens, 0, a_.n_kv_heads, begin, first + tokens, nullptr};
  }

  void add(AttentionPiece p, int parts, bool few) {
    const int queries = p.kv_heads * p.tokens * group_;
    (few ? max_few : max_block) = std::max(few ? max_few : max_block, queries);
    const size_t floats = size_t(queries) * (a_.head_dim + 2);
    const int begin = p.begin, rows = p.end - p.begin, step = ceil_div(rows, parts);
    parts = ceil_div(rows, step);
    if (parts > 1) joins.push_back({p, partial_floats, floats, parts});
    for (int part = 0; part < parts; part++) {
      p.begin = begin + part * step;
      p.end = std::min(begin + rows, p.begin + step);
      pieces.push_back({p, partial_floats, parts == 1, few, int64_t(p.end - p.begin) * queries});
      if (parts > 1) partial_floats += floats;
    }
  }

  const Attention& a_;
  const int group_;
};

void join(const OpsTable& ops, const Attention& a, const Plan::Join& j, const float* partials) {
  const int group = a.n_heads / a.n_kv_heads, queries = j.p.kv_heads * j.p.tokens * group;
  for (int query = 0; query < queries; query++) {
    const int head = (j.p.kv_head + query / (group * j.p.tokens)) * group + query % group;
    const size_t token = size_t(j.p.start + j.p.token + query / group % j.p.tokens);
    ops.merge(partials + j.record + size_t(query) * (a.head_dim + 2), j.parts, j.stride, a.head_dim,
              a.out + (token * a.n_heads + head) * a.head_dim);
  }
}

void attend(ll_context& c, const Attention& a, const ll_span* spans, int count) {
  const OpsTable& ops = *c.isa.ops;
  const Plan plan(a, spans, count, c.pool.threads());
  const size_t scratch =
      (std::max(ops.few_scratch(plan.max_few, a.head_dim), ops.block_scratch(plan.max_block, a.head_dim)) + 15) / 16 * 16;
  float* partials = reinterpret_cast<float*>(
      c.ops.reserve((scratch * c.pool.threads() + plan.partial_floats) * sizeof(float)));
  float* work = partials;
  partials += scratch * c.pool.threads();
  c.pool.run(int(plan.pieces.size()), [&](int chunk, int worker) {
    Plan::Piece piece = plan.pieces[chunk];
    piece.p.partial = piece.whole ? nullptr : partials + piece.record;
    (piece.few ? ops.attend_few : ops.attend_block)(a, piece.p, work + scratch * worker);
  });
  for (const Plan::Join& j : plan.joins) join(ops, a, j, partials);
}

}  // namespace
}  // namespace layerlift

int ll_attend(ll_context* context, const float* q, float* out, const ll_cache* cache, const ll_span* spans, int count,
              const ll_attention* spec) try {
  layerlift::attend(*context,
                    {q, out, cache->k, cache->v, cache->storage, spec->n_heads, cache->n_kv_heads, cache->head_dim,
                     spec->scale, spec->softcap, spec->window},
                    spans, count);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
