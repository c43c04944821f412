// The library's C ABI. Every call takes the context first; calls on one context come from one thread at a time.
// Arrays are float32 and row-major unless said otherwise; nothing is kept of a caller's pointers after a call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define LL_API extern "C" __attribute__((visibility("default")))
#define LL_ABI_VERSION 4

struct ll_context;  // a chosen instruction set, its threads and scratch memory

LL_API int ll_abi_version(void);
LL_API const char* ll_isa_names(void);                         // those this CPU can run, best first: "avx512 avx2 generic"
LL_API ll_context* ll_open(int threads, const char* isa);      // isa NULL or "": the best; NULL result: cannot run it
LL_API void ll_close(ll_context*);
LL_API const char* ll_isa(const ll_context*);
LL_API int ll_threads(const ll_context*);

// Puts every thread of the process under a Landlock ruleset, the calling one last, with no new privileges from then on.
// 0, or the error number of a thread that could not; others are restricted then.
LL_API int ll_restrict_threads(int ruleset);

// Zeroed memory in whole pages, huge ones where the system has them; committed as it is written. NULL: out of memory.
LL_API void* ll_alloc(size_t nbytes);
LL_API void ll_free(void*, size_t nbytes);
