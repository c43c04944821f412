// Shares the row-by-row ops out among the threads; what is too small for that stays with the caller.
#include <cstring>
#include <new>

#include "../context.h"
#include "api.h"
#include "table.h"

using layerlift::OpsTable;
using layerlift::Rotation;

namespace {

constexpr int64_t kGrain = 1 << 14;  // floats: less is done sooner than another thread hears of it

// f(begin, end) over `count` things of `size` floats each.
template <class F>
void share(ll_context* c, int64_t count, int64_t size, F&& f) {
  if (count * size <= 2 * kGrain) {
    f(int64_t(0), count);
    return;
  }
  c->pool.split(count, kGrain / size + 1, [&](int64_t begin, int64_t end, int) { f(begin, end); });
}

Rotation rotation_of(const ll_rotation& r, int64_t token) {
  const int64_t at = token * (r.n_dims / 2);
  return {r.cos + at, r.sin + at, r.n_dims, r.neox};
}

uint8_t* cell(void* cache, const ll_cache& c, int64_t row) {
  return static_cast<uint8_t*>(cache) + row * c.n_kv_heads * c.head_dim * int64_t(layerlift::storage_nbytes(c.storage));
}

}  // namespace

void ll_rope_append(ll_context* c, float* q, float* k, const float* v, int tokens, int n_heads, const ll_cache* cache,
                    const int32_t* rows, const ll_rotation* rotation) {
  const OpsTable& ops = *c->isa.ops;
  const int head_dim = cache->head_dim;
  const int64_t q_size = int64_t(n_heads) * head_dim, kv_size = int64_t(cache->n_kv_heads) * head_dim;
  share(c, tokens, q_size + 2 * kv_size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      if (rotation) {
        const Rotation r = rotation_of(*rotation, t);
        ops.rotate(q + t * q_size, n_heads, head_dim, r, q + t * q_size);
        ops.rotate(k + t * kv_size, cache->n_kv_heads, head_dim, r, k + t * kv_size);
      }
      ops.narrow(k + t * kv_size, kv_size, cache->storage, cell(cache->k, *cache, rows[t]));
      ops.narrow(v + t * kv_size, kv_size, cache->storage, cell(cache->v, *cache, rows[t]));
    }
  });
}

void ll_kv_append(ll_context* c, const float* k, const float* v, int tokens, const ll_cache* cache, const int32_t* rows) {
  const int64_t size = int64_t(cache->n_kv_heads) * cache->head_dim;
  share(c, tokens, 2 * size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      c->isa.ops->narrow(k + t * size, size, cache->storage, cell(cache->k, *cache, rows[t]));
      c->isa.ops->narrow(v + t * size, size, cache->storage, cell(cache->v, *cache, rows[t]));
    }
  });
}

int ll_kv_shift(ll_context* c, const ll_cache* cache, const int32_t* rows, int n, const ll_rotation* rotation) try {
  const int64_t size = int64_t(cache->n_kv_heads) * cache->head_dim;
  float* scratch = reinterpret_cast<float*>(c->ops.reserve(size_t(size) * c->pool.threads() * sizeof(float)));
  c->pool.split(n, kGrain / size + 1, [&](int64_t begin, int64_t end, int worker) {
    float* keys = scratch + size * worker;
    for (int64_t i = begin; i < end; i++) {
      uint8_t* row = cell(cache->k, *cache, rows[i]);
      c->isa.ops->widen(row, size, cache->storage, keys);
      c->isa.ops->rotate(keys, cache->n_kv_heads, cache->head_dim, rotation_of(*rotation, i), keys);
      c->isa.ops->narrow(keys, size, cache->storage, row);
    }
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

void ll_kv_copy(ll_context* c, const ll_cache* cache, const int32_t* source, const int32_t* target, int n) {
  const int64_t size = int64_t(cache->n_kv_heads) * cache->head_dim;
  const size_t nbytes = size_t(size) * layerlift::storage_nbytes(cache->storage);
  share(c, n, 2 * size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      std::memcpy(cell(cache->k, *cache, target[i]), cell(cache->k, *cache, source[i]), nbytes);
      std::memcpy(cell(cache->v, *cache, target[i]), cell(cache->v, *cache, source[i]), nbytes);
    }
  });
}

void ll_rope(ll_context* c, const float* x, float* y, int tokens, int heads, int head_dim, const ll_rotation* rotation) {
  const int64_t size = int64_t(heads) * head_dim;
  share(c, tokens, size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      c->isa.ops->rotate(x + t * size, heads, head_dim, rotation_of(*rotation, t), y + t * size);
  });
}

void ll_rms_norm(ll_context* c, const float* x, const float* weight, float eps, int64_t rows, int width, float* y) {
  share(c, rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) c->isa.ops->rms_norm(x + r * width, weight, eps, width, y + r * width);
  });
}

void ll_gate(ll_context* c, const float* a, const float* b, int64_t n, int activation, float* y) {
  share(c, n, 1, [&](int64_t begin, int64_t end) {
    c->isa.ops->gate(a + begin, b + begin, end - begin, activation, y + begin);
  });
}

void ll_add(ll_context* c, const float* a, const float* b, int64_t n, float* y) {
  share(c, n, 1, [&](int64_t begin, int64_t end) { c->isa.ops->add(a + begin, b + begin, end - begin, y + begin); });
}

void ll_add_row(ll_context* c, const float* a, const float* row, int64_t rows, int64_t columns, float* y) {
  share(c, rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) c->isa.ops->add(a + r * columns, row, columns, y + r * columns);
  });
}

void ll_argmax(ll_context* c, const float* x, int rows, int64_t columns, int32_t* best) {
  share(c, rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) best[r] = int32_t(c->isa.ops->argmax(x + r * columns, columns));
  });
}

int ll_top_k(ll_context* c, const float* x, int64_t n, int k, int32_t* indices) {
  c->isa.ops->top_k(x, n, k, indices);
  return int(k < n ? k : n);
}
