// The kernels for avx2; the flags are in CMakeLists.txt.
#define LL_ISA avx2
#define LL_ISA_NAME "avx2"
#include "body.h"
