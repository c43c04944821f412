// Page-aligned memory: anonymous maps for weights, and grow-only scratch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace layerlift {

void* map_pages(size_t nbytes);  // zeroed; nullptr when out of memory
void unmap_pages(void*, size_t nbytes);

// Memory that keeps its contents only until the next `reserve`.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { unmap_pages(data_, nbytes_); }

  // At least `nbytes`, 64-byte aligned; throws std::bad_alloc.
  uint8_t* reserve(size_t nbytes);

 private:
  uint8_t* data_ = nullptr;
  size_t nbytes_ = 0;
};

}  // namespace layerlift
