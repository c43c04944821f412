// The kernels of ops/ for one instruction set.
#pragma once

#include "../simd/simd.h"
#include "attend_block.h"
#include "attend_few.h"
#include "best.h"
#include "probe.h"
#include "rows.h"
#include "table.h"

namespace layerlift::LL_ISA {

static const OpsTable ops_table = {
    attend_few, attend_block, few_scratch, block_scratch, merge_partials, rms_norm, rotate,     narrow,       widen,
    gate,       add_rows,     argmax,      top_k,         probe_read,     probe_floats, probe_bytes,
};

}  // namespace layerlift::LL_ISA
