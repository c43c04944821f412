// A stage's calls, written down once and made again for every token: only what the pointers point at changes.
#pragma once

#include "api.h"

// What `p`, `count` and `eps` of a call are, by its op. All calls have `tokens`.
//   ll_call_qkv          x, norm, then matrix, bias, output of q, k and v; eps
//   ll_call_rope_append  q, k, v, cache, rows, rotation; count: heads of q
//   ll_call_attend       q, output, cache, spans, attention; count: spans
//   ll_call_matmul_add   x, matrix, bias, y
//   ll_call_gated        x, norm, gate matrix, bias, up matrix, bias, y; count: activation; eps
//   ll_call_rms_norm     x, weight, y; tokens: rows; count: width; eps
enum ll_call_op {
  ll_call_qkv,
  ll_call_rope_append,
  ll_call_attend,
  ll_call_matmul_add,
  ll_call_gated,
  ll_call_rms_norm,
};

struct ll_call {
  int32_t op, tokens, count;
  float eps;
  void* p[11];
};

// Makes the calls in order; stops at the first that finds no memory, and returns 1.
LL_API int ll_program_run(ll_context*, const ll_call*, int calls);
