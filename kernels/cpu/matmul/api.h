// The C ABI of the matrix products. Functions return 0, or 1 when out of memory.
#pragma once

#include "../api.h"

struct ll_matrix;  // a repacked matrix; belongs to no context

// From the rows of a GGUF tensor (its type's id; rows contiguous). NULL: no kernel for the type, or (*error = 1) no memory.
LL_API ll_matrix* ll_matrix_new(ll_context*, int gguf_type, int64_t rows, int64_t columns, const void* raw, int* error);
LL_API void ll_matrix_free(ll_matrix*);
LL_API int64_t ll_matrix_nbytes(const ll_matrix*);

// Rows `tokens` as floats: out [count, columns].
LL_API int ll_rows(ll_context*, const ll_matrix*, const int32_t* tokens, int64_t count, float* out);

// y [T, rows] = n(x) @ w.T + bias, where n is RMS norm with weight `norm` (NULL: none); x [T, columns]; bias may be NULL.
// Quantised weights meet x rounded to 8 or 16 bits (bounds: matmul/product.cpp); `exact`: to 16 bits throughout.
LL_API int ll_matmul(ll_context*, const float* x, int64_t T, const float* norm, float eps, int exact, const ll_matrix*,
                     const float* bias, float* y);

// y += x @ w.T + bias
LL_API int ll_matmul_add(ll_context*, const float* x, int64_t T, const ll_matrix*, const float* bias, float* y);

// Three products of one normed input.
LL_API int ll_matmul3(ll_context*, const float* x, int64_t T, const float* norm, float eps, const ll_matrix* w0,
                      const float* bias0, float* y0, const ll_matrix* w1, const float* bias1, float* y1,
                      const ll_matrix* w2, const float* bias2, float* y2);

// y = activation(n(x) @ gate.T + bias_gate) * (n(x) @ up.T + bias_up); activation: ops/table.h
LL_API int ll_gated(ll_context*, const float* x, int64_t T, const float* norm, float eps, const ll_matrix* gate,
                    const float* bias_gate, const ll_matrix* up, const float* bias_up, int activation, float* y);
