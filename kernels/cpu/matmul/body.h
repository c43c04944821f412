// The matrix kernels for one instruction set.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

// Tokens in a tile: twice as many sums must fit the registers beside the weights.
#if defined(__AVX512F__)
constexpr int kTileBytes = 6, kTileFloats = 12;
#else
constexpr int kTileBytes = 2, kTileFloats = 3;
#endif

// AVX2's byte products are too slow to be taken twice, even while weights come from memory.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kFineIsFree = false;
#else
constexpr bool kFineIsFree = true;
#endif

#define LL_STREAMS(f, L) 8, {f<L, 1>, f<L, 2>, f<L, 3>, f<L, 4>, f<L, 5>, f<L, 6>, f<L, 7>, f<L, 8>}

}  // namespace layerlift::LL_ISA

#include "bytes.h"
#include "finish.h"
#include "floats.h"
#include "prepare.h"

namespace layerlift::LL_ISA {

static const MatmulTable matmul_table = {
    {float_kernels<WeightsF32>(), float_kernels<WeightsF16>(), float_kernels<WeightsBF16>(), byte_kernels<Q4_0>(),
     byte_kernels<Q4_1>(), byte_kernels<Q5_0>(), byte_kernels<Q5_1>(), byte_kernels<Q8_0>(), byte_kernels<IQ4_NL>(),
     byte_kernels<Q2_K>(), byte_kernels<Q3_K>(), byte_kernels<Q4_K>(), byte_kernels<Q5_K>(), byte_kernels<Q6_K>(),
     byte_kernels<IQ4_XS>()},
    kTileBytes,
    kTileFloats,
    kFineIsFree,
    finish,
    prepare_bytes,
    prepare_words,
    prepare_floats,
    prepare_zeros,
};

}  // namespace layerlift::LL_ISA
