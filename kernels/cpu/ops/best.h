// The highest of many values. Most blocks hold none of them, and one comparison of 64 values tells.
#pragma once

#include "functions.h"

namespace layerlift::LL_ISA {

constexpr int kBestBlock = 64;

static inline float block_highest(const float* x) {
  f32x16 highest = set1(-__builtin_inff());
  for (int i = 0; i < kBestBlock; i += 16) highest = max(load(x + i), highest);  // of a NaN and a number, the second
  return hmax(highest);
}

static int64_t argmax(const float* x, int64_t n) {
  int64_t best = 0;
  float highest = -__builtin_inff();
  bool found = false;
  for (int64_t first = 0; first < n; first += kBestBlock) {
    const int64_t end = first + kBestBlock < n ? first + kBestBlock : n;
    if (found && end - first == kBestBlock && !(block_highest(x + first) > highest)) continue;
    for (int64_t i = first; i < end; i++)
      if (x[i] > highest || (!found && x[i] == highest)) highest = x[i], best = i, found = true;
  }
  return best;
}

// True when index a ranks below index b: lower value, or the same and later.
static inline bool ranks_below(const float* x, int32_t a, int32_t b) { return x[a] < x[b] || (x[a] == x[b] && a > b); }

// heap[0] is the lowest-ranking of the k kept.
static void sift_down(const float* x, int32_t* heap, int k, int at) {
  for (;;) {
    int low = at, left = 2 * at + 1, right = left + 1;
    if (left < k && ranks_below(x, heap[left], heap[low])) low = left;
    if (right < k && ranks_below(x, heap[right], heap[low])) low = right;
    if (low == at) return;
    const int32_t moved = heap[at];
    heap[at] = heap[low];
    heap[low] = moved;
    at = low;
  }
}

static void top_k(const float* x, int64_t n, int k, int32_t* heap) {
  if (k > n) k = int(n);
  for (int i = 0; i < k; i++) heap[i] = i;
  for (int i = k / 2 - 1; i >= 0; i--) sift_down(x, heap, k, i);
  for (int64_t first = k; first < n;) {
    const int64_t end = first + kBestBlock < n ? first + kBestBlock : n;
    if (end - first < kBestBlock || block_highest(x + first) > x[heap[0]])
      for (int64_t i = first; i < end; i++)
        if (x[i] > x[heap[0]]) {
          heap[0] = int32_t(i);
          sift_down(x, heap, k, 0);
        }
    first = end;
  }
  for (int left = k - 1; left > 0; left--) {  // take the lowest out, to the end, until the order is falling
    const int32_t lowest = heap[0];
    heap[0] = heap[left];
    heap[left] = lowest;
    sift_down(x, heap, left, 0);
  }
}

}  // namespace layerlift::LL_ISA
