#include "api.h"

#include <new>

#include "context.h"

using layerlift::find_isa;

int ll_abi_version() { return LL_ABI_VERSION; }
const char* ll_isa_names() { return layerlift::isa_names(); }

ll_context* ll_open(int threads, const char* isa) {
  const layerlift::Isa* found = find_isa(isa);
  if (!found || threads < 1) return nullptr;
  try {
    return new ll_context(threads, *found);
  } catch (const std::exception&) {  // no memory, or the system refuses another thread
    return nullptr;
  }
}

void ll_close(ll_context* context) {
  // A forked process has the memory of threads that it has not, and nothing can wait for those.
  if (!context->pool.is_forked()) delete context;
}
const char* ll_isa(const ll_context* context) { return context->isa.name; }
int ll_threads(const ll_context* context) { return context->pool.threads(); }

void* ll_alloc(size_t nbytes) { return layerlift::map_pages(nbytes); }
void ll_free(void* p, size_t nbytes) { layerlift::unmap_pages(p, nbytes); }
