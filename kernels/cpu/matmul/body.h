// The matrix kernels for one instruction set.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

// Tokens in a tile: twice as many sums must fit the registers beside the weights.
#if defined(__AVX512F__)
constexpr int kTileBytes = 6, kTileFloats = 12;
#elif defined(LL_MATRICES)
constexpr int kTileBytes = 4, kTileFloats = 3;
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

#ifdef LL_PAIRS
#include "pairs.h"
#include "words.h"
#else
#include "bytes.h"
#endif
#include "finish.h"
#include "floats.h"
#include "prepare.h"
#include "rows.h"

namespace layerlift::LL_ISA {

// The kernels of a quantised format.
template <class L> constexpr FormatKernels byte_kernels() {
#ifndef LL_PAIRS
  return {Kind::kBytes, L::kSub, zero_of<L>(), LL_STREAMS(stream, L), panel<L>, read_row<L>};
#else
  if constexpr (L::kSigned)
    return {Kind::kWords, 0, 0, LL_STREAMS(stream_words, L), panel_words<L>, read_row<L>};
  else
    return {Kind::kBytes, L::kSub, L::kZero, kTogether,
            {stream_pairs<L, 1>, stream_pairs<L, 2>, stream_pairs<L, 3>, stream_pairs<L, 4>}, panel_pairs<L>, read_row<L>};
#endif
}

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
