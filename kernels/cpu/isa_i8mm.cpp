// The kernels for i8mm; the flags are in CMakeLists.txt.
#define LL_ISA i8mm
#define LL_ISA_NAME "i8mm"
#include "body.h"
