// The C ABI of quantising weights.
#pragma once

#include "../api.h"

// raw [rows, columns] of a source type (GGUF ids of F32, F16, BF16) to rows of the GGUF type `type`: those three, Q4_0,
// Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and Q2_K to Q6_K; `columns` is a multiple of its block. `importance` [columns] weighs
// squared errors; NULL: all alike. Returns -1 when done, -2 when out of memory, -3 for a type it does not know, else a
// row that holds what is no number, or a number above 65504 where the type has scales of half precision.
LL_API int64_t ll_quantize(ll_context*, int source_type, const void* raw, int64_t rows, int64_t columns, int type,
                           const float* importance, void* out);
