#include "program.h"

#include "../matmul/api.h"

namespace {

const float* floats(void* p) { return static_cast<const float*>(p); }
float* output(void* p) { return static_cast<float*>(p); }
const ll_matrix* matrix(void* p) { return static_cast<const ll_matrix*>(p); }
const ll_cache* cache(void* p) { return static_cast<const ll_cache*>(p); }

int make(ll_context* c, const ll_call& call) {
  void* const* p = call.p;
  switch (call.op) {
    case ll_call_qkv:
      return ll_matmul3(c, floats(p[0]), call.tokens, floats(p[1]), call.eps, matrix(p[2]), floats(p[3]), output(p[4]),
                        matrix(p[5]), floats(p[6]), output(p[7]), matrix(p[8]), floats(p[9]), output(p[10]));
    case ll_call_rope_append:
      ll_rope_append(c, output(p[0]), output(p[1]), floats(p[2]), call.tokens, call.count, cache(p[3]),
                     static_cast<const int32_t*>(p[4]), static_cast<const ll_rotation*>(p[5]));
      return 0;
    case ll_call_attend:
      return ll_attend(c, floats(p[0]), output(p[1]), cache(p[2]), static_cast<const ll_span*>(p[3]), call.count,
                       static_cast<const ll_attention*>(p[4]));
    case ll_call_matmul_add:
      return ll_matmul_add(c, floats(p[0]), call.tokens, matrix(p[1]), floats(p[2]), output(p[3]));
    case ll_call_gated:
      return ll_gated(c, floats(p[0]), call.tokens, floats(p[1]), call.eps, matrix(p[2]), floats(p[3]), matrix(p[4]),
                      floats(p[5]), call.count, output(p[6]));
    default:
      ll_rms_norm(c, floats(p[0]), floats(p[1]), call.eps, call.tokens, call.count, output(p[2]));
      return 0;
  }
}

}  // namespace

int ll_program_run(ll_context* c, const ll_call* calls, int count) {
  for (int i = 0; i < count; i++)
    if (make(c, calls[i])) return 1;
  return 0;
}
