// The kernels for generic; the flags are in CMakeLists.txt.
#define LL_ISA generic
#define LL_ISA_NAME "generic"
#include "body.h"
