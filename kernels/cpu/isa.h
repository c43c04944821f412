// One instruction set's kernels. The bodies (body.h) are compiled once for each; the CPU's features choose at run time.
#pragma once

namespace layerlift {

struct MatmulTable;  // matmul/table.h
struct OpsTable;     // ops/table.h
struct QuantizeTable;  // quantize/table.h

struct Isa {
  const char* name;
  const MatmulTable* matmul;
  const OpsTable* ops;
  const QuantizeTable* quantize;
};

// The best this CPU can run, or the one of that name; nullptr if it cannot run it.
const Isa* find_isa(const char* name);
const char* isa_names();  // space-separated, best first

}  // namespace layerlift
