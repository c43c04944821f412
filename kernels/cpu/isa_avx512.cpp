// The kernels for avx512; the flags are in CMakeLists.txt.
#define LL_ISA avx512
#define LL_ISA_NAME "avx512"
#include "body.h"
