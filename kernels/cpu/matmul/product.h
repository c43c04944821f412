// One call's matrix products: the input is prepared once, then its products with up to three matrices are shared out.
#pragma once

#include "../context.h"
#include "table.h"

namespace layerlift {

struct Factor {
  const Matrix* matrix;
  const float* bias;  // [rows] or nullptr
  float* y;           // [tokens, rows]
};

enum class Finish {
  kStore,  // y = x w.T + bias
  kAdd,    // y += …
  kGate,   // factors 0 and 1: y of the first = activation(…) * (…)
};

struct Product {
  PrepareArgs input;  // `fine` and `row` are chosen here
  int64_t tokens;
  Factor factors[3];
  int count;
  Finish finish;
  int activation;  // of kGate: ops/table.h
  bool exact;      // every block of the input fine, however many tokens
};

void run(ll_context&, const Product&);  // throws std::bad_alloc

}  // namespace layerlift
