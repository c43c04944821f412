// The machine's limits, measured with all threads of a context.
#include <atomic>

#include "../context.h"
#include "api.h"
#include "table.h"

int64_t ll_probe_read(ll_context* c, const void* p, int64_t nbytes) {
  constexpr int64_t kPiece = 1 << 20;
  const char* bytes = static_cast<const char*>(p);
  std::atomic<int64_t> total{0};
  c->pool.run(int(nbytes / kPiece), [&](int chunk, int) {
    total.fetch_add(c->isa.ops->probe_read(bytes + chunk * kPiece, kPiece), std::memory_order_relaxed);
  });
  return total.load();
}

int64_t ll_probe_peak(ll_context* c, int bytes, int64_t loops) {
  std::atomic<int64_t> done{0};
  c->pool.run(c->pool.threads() * 8, [&](int, int) {
    float values[32];
    for (int i = 0; i < 32; i++) values[i] = 0.5f;
    const auto probe = bytes ? c->isa.ops->probe_bytes : c->isa.ops->probe_floats;
    done.fetch_add(probe(loops / 8, values), std::memory_order_relaxed);
  });
  return done.load();
}

int64_t ll_idle() { return 0; }
