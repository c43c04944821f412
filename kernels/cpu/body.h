// All kernels of one instruction set. Included by isa_*.cpp alone, with LL_ISA defined and that set's flags on.
//
// Everything here lives in namespace layerlift::LL_ISA and calls no inline function of the standard library: the
// linker keeps one copy of those, and it must not be one compiled for a CPU that this machine is not.
#pragma once

#include "isa.h"
#include "matmul/body.h"
#include "ops/body.h"
#include "quantize/body.h"

namespace layerlift::LL_ISA {

extern const Isa isa;
const Isa isa = {LL_ISA_NAME, &matmul_table, &ops_table, &quantize_table};

}  // namespace layerlift::LL_ISA
