// What one open backend owns: the instruction set's kernels, the threads, and scratch memory that grows on demand.
#pragma once

#include <memory>

#include "api.h"
#include "isa.h"
#include "memory.h"
#include "pool.h"

struct ll_context {
  ll_context(int threads, const layerlift::Isa& chosen) : isa(chosen), pool(threads) {}

  const layerlift::Isa& isa;
  layerlift::Pool pool;
  layerlift::Scratch activations;  // one call's quantised input
  layerlift::Scratch tiles;        // one piece for each thread
  layerlift::Scratch ops;          // for ops/
};
