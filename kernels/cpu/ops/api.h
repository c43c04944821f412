// The C ABI of ops/: everything in a layer that is not a product with a weight.
//
// storage: 0 f16, 1 bf16, 2 f32. activation: 0 silu, 1 gelu, 2 gelu_quick, 3 relu2. A cache is two arrays
// [capacity, n_kv_heads, head_dim]. Functions that need scratch memory return 0, or 1 when there is none.
#pragma once

#include "../api.h"

struct ll_cache {
  void *k, *v;
  int32_t storage, n_kv_heads, head_dim;
};

// One sequence's part of a step (Span in backends/base.py).
struct ll_span {
  const int32_t* rows;
  int32_t start, length, n_rows, unused;
};

// cos and sin [tokens, n_dims/2].
struct ll_rotation {
  const float *cos, *sin;
  int32_t n_dims, neox;
};

struct ll_attention {
  int32_t n_heads, window;
  float scale, softcap;
};

LL_API int ll_attend(ll_context*, const float* q, float* out, const ll_cache*, const ll_span*, int spans,
                     const ll_attention*);

// Rotates q [tokens, n_heads, head_dim] and k in place, then writes k and v to the cache's `rows`; rotation may be null.
LL_API void ll_rope_append(ll_context*, float* q, float* k, const float* v, int tokens, int n_heads, const ll_cache*,
                           const int32_t* rows, const ll_rotation*);
LL_API void ll_kv_append(ll_context*, const float* k, const float* v, int tokens, const ll_cache*, const int32_t* rows);
LL_API int ll_kv_shift(ll_context*, const ll_cache*, const int32_t* rows, int n, const ll_rotation*);
LL_API void ll_kv_copy(ll_context*, const ll_cache*, const int32_t* source, const int32_t* target, int n);

LL_API void ll_rope(ll_context*, const float* x, float* y, int tokens, int heads, int head_dim, const ll_rotation*);
LL_API void ll_rms_norm(ll_context*, const float* x, const float* weight, float eps, int64_t rows, int width, float* y);
LL_API void ll_gate(ll_context*, const float* a, const float* b, int64_t n, int activation, float* y);
LL_API void ll_add(ll_context*, const float* a, const float* b, int64_t n, float* y);
LL_API void ll_add_row(ll_context*, const float* a, const float* row, int64_t rows, int64_t columns, float* y);
LL_API void ll_argmax(ll_context*, const float* x, int rows, int64_t columns, int32_t* best);
LL_API int ll_top_k(ll_context*, const float* x, int64_t n, int k, int32_t* indices);  // returns how many

// The machine's limits. The first reads `nbytes`, a multiple of 1 MiB, and returns what depends on all of them; the second
// multiplies in registers, floats or (with `bytes`) 8-bit integers, and returns the operations done.
LL_API int64_t ll_probe_read(ll_context*, const void*, int64_t nbytes);
LL_API int64_t ll_probe_peak(ll_context*, int bytes, int64_t loops);

// Does nothing, whatever it is called with, and returns 0: what a call costs its caller.
LL_API int64_t ll_idle(void);
