// Shares the rows of a weight out among the threads: widened, checked, quantised.
#include "api.h"

#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "../context.h"
#include "../ops/table.h"
#include "table.h"

using namespace layerlift;

namespace {

constexpr int64_t kDone = -1, kNoMemory = -2, kUnknown = -3;
constexpr uint32_t kMostHalf = 0x477fe000, kMostFloat = 0x7f7fffff;  // 65504, and the largest float

// How numbers of a GGUF type are stored, or -1 for what is no plain number.
int storage_of(int type) {
  constexpr int kF32 = 0, kF16 = 1, kBF16 = 30;
  return type == kF32 ? kCellF32 : type == kF16 ? kCellF16 : type == kBF16 ? kCellBF16 : -1;
}

bool has_above(const float* x, int64_t n, uint32_t most) {
  uint32_t above = 0;
  for (int64_t i = 0; i < n; i++) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    above |= uint32_t((bits & 0x7fffffff) > int32_t(most));  // as integers: infinity and NaN are above every number
  }
  return above;
}

}  // namespace

int64_t ll_quantize(ll_context* context, int source_type, const void* raw, int64_t rows, int64_t columns, int type,
                    const float* importance, void* out) {
  const int source = storage_of(source_type), target = storage_of(type);
  const Scheme* scheme = find_scheme(type);
  if (source < 0 || (target < 0 && (!scheme || columns % scheme->block))) return kUnknown;
  const uint32_t most = scheme || target == kCellF16 ? kMostHalf : kMostFloat;
  const int64_t from = columns * int64_t(storage_nbytes(source));
  const int64_t to = scheme ? columns / scheme->block * scheme->nbytes : columns * int64_t(storage_nbytes(target));
  std::vector<float> widened;
  try {
    widened.resize(size_t(context->pool.threads() * columns));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  std::atomic<int64_t> wrong{kDone};
  context->pool.split(rows, 1, [&](int64_t begin, int64_t end, int worker) {
    float* x = widened.data() + worker * columns;
    for (int64_t i = begin; i < end && wrong.load(std::memory_order_relaxed) == kDone; i++) {
      context->isa.ops->widen(static_cast<const uint8_t*>(raw) + i * from, columns, source, x);
      uint8_t* row = static_cast<uint8_t*>(out) + i * to;
      if (has_above(x, columns, most))
        wrong = i;
      else if (scheme)
        context->isa.quantize->row(*scheme, x, importance, columns, row);
      else
        context->isa.ops->narrow(x, columns, target, row);
    }
  });
  return wrong;
}
