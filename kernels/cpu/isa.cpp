#include "isa.h"

#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace layerlift {

namespace generic {
extern const Isa isa;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
#elif defined(__aarch64__)
namespace neon {
extern const Isa isa;
}
namespace i8mm {
extern const Isa isa;
}
#endif

namespace {

#if defined(__x86_64__)
// Bits that __builtin_cpu_supports does not know in every compiler.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
bool has_avx512bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#endif

std::vector<const Isa*> usable() {
  std::vector<const Isa*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
                  __builtin_cpu_supports("bmi2");
  bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni") && has_avx512bf16();
  if (has_avx512) found.push_back(&avx512::isa);
  if (has_avx2) found.push_back(&avx2::isa);
#elif defined(__aarch64__)
#if defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM)) found.push_back(&i8mm::isa);
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&neon::isa);
#else
  found.push_back(&neon::isa);
#endif
#endif
  found.push_back(&generic::isa);
  return found;
}

}  // namespace

const Isa* find_isa(const char* name) {
  for (const Isa* isa : usable())
    if (!name || !*name || !strcmp(name, isa->name)) return isa;
  return nullptr;
}

const char* isa_names() {
  static const std::string names = [] {
    std::string joined;
    for (const Isa* isa : usable()) joined += (joined.empty() ? "" : " ") + std::string(isa->name);
    return joined;
  }();
  return names.c_str();
}

}  // namespace layerlift
