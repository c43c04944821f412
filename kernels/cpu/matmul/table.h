// The matrix kernels that each instruction set supplies.
#pragma once

namespace layerlift {

struct MatmulTable {
  int reserved;
};

}  // namespace layerlift
