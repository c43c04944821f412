// The kernels of ops/ that each instruction set supplies.
#pragma once

namespace layerlift {

struct OpsTable {
  int reserved;
};

}  // namespace layerlift
