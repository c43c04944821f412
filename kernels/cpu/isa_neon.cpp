// The kernels for neon; the flags are in CMakeLists.txt.
#define LL_ISA neon
#define LL_ISA_NAME "neon"
#include "body.h"
