// What each instruction set supplies for quantising.
#pragma once

#include <cstdint>

#include "scheme.h"

namespace layerlift {

struct QuantizeTable {
  // One row: x [columns] to blocks; w: importance, or nullptr; x is finite.
  void (*row)(const Scheme&, const float* x, const float* w, int64_t columns, uint8_t* out);
};

}  // namespace layerlift
