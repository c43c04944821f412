// Threads that share out the chunks of one job. Knows nothing of what a chunk does.
//
// Chunks are handed out one at a time through an atomic counter, and the caller takes part: a worker that another
// process keeps off its core holds up at most the chunk it has taken, and one that never woke holds up nothing.
// Workers watch for the next job for a moment (decoding sends one every few microseconds), then sleep.
//
// In a process forked from the one that made it a pool has no workers: the caller does all.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "neighbours.h"

namespace layerlift {

class Pool {
 public:
  explicit Pool(int threads);  // the caller is one of them
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  bool is_forked() const;  // true in a process forked from the pool's: its workers are not here
  int threads() const { return int(workers_.size()) + 1; }

  // Calls f(chunk, worker) for each chunk in [0, chunks); worker in [0, threads()) indexes scratch memory.
  // Returns when all are done. One job at a time: a context belongs to one calling thread.
  template <class F>
  void run(int chunks, F&& f) {
    using Function = std::remove_reference_t<F>;
    run_erased(chunks, [](void* p, int chunk, int worker) { (*static_cast<Function*>(p))(chunk, worker); }, &f);
  }

  // f(begin, end, worker) over [0, count), cut so that each thread gets several pieces, none below `grain`.
  template <class F>
  void split(int64_t count, int64_t grain, F&& f) {
    if (count <= 0) return;
    int64_t piece = count / (int64_t(threads()) * 8);
    if (piece < grain) piece = grain;
    run(int((count + piece - 1) / piece), [&](int chunk, int worker) {
      int64_t begin = chunk * piece, end = begin + piece < count ? begin + piece : count;
      f(begin, end, worker);
    });
  }

 private:
  using Call = void (*)(void*, int, int);
  using clock = std::chrono::steady_clock;

  void run_erased(int chunks, Call call, void* data);
  void work(int worker);
  void dismiss();  // the workers
  // Until nothing is left, or good manners say so (the caller needs none); how many chunks.
  int take_and_run(int worker, Manners* manners);
  void wait(uint64_t job, int chunks, clock::time_point patience);

  // ticket: the job's number in the high half, its next chunk in the low half. A chunk is taken by a compare-and-swap
  // of both, so that a late worker can never take a chunk of one job with the function of another.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> chunks_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> data_{nullptr};
  std::atomic<uint64_t> late_job_{0};  // a job whose caller has waited for long
  Places places_;

  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  const int forks_;  // of this process and those before it when the pool was made
};

}  // namespace layerlift
