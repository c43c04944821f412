#include "memory.h"

#include <sys/mman.h>

#include <new>

namespace layerlift {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

// Not whole huge pages: maps lie side by side and the system joins them, so that a huge page holds the end of one
// matrix and the beginning of the next, and none is half empty.
size_t whole_pages(size_t nbytes) { return (nbytes + 4095) / 4096 * 4096; }

}  // namespace

void* map_pages(size_t nbytes) {
  if (nbytes == 0) nbytes = 1;
  void* p = mmap(nullptr, whole_pages(nbytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  // Fewer address translations on the way through a gigabyte of weights.
  if (nbytes >= kHugePage) madvise(p, whole_pages(nbytes), MADV_HUGEPAGE);
#endif
  return p;
}

void unmap_pages(void* p, size_t nbytes) {
  if (p) munmap(p, whole_pages(nbytes ? nbytes : 1));
}

uint8_t* Scratch::reserve(size_t nbytes) {
  if (nbytes <= nbytes_) return data_;
  size_t grown = nbytes + nbytes / 2;
  void* p = map_pages(grown);
  if (!p) throw std::bad_alloc();
  unmap_pages(data_, nbytes_);
  data_ = static_cast<uint8_t*>(p);
  nbytes_ = grown;
  return data_;
}

}  // namespace layerlift
