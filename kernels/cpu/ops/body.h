// The kernels of ops/ for one instruction set.
#pragma once

#include "../simd/simd.h"
#include "table.h"

namespace layerlift::LL_ISA {

static const OpsTable ops_table = {0};

}  // namespace layerlift::LL_ISA
