#include "pool.h"

#include <pthread.h>

namespace layerlift {
namespace {

using std::chrono::microseconds;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough to bridge the caller's work between two jobs, short enough not to be seen in an idle process.
constexpr auto kSpin = microseconds(100);
// The caller waits for chunks that others hold: if one was put off its core, spinning would keep it off.
constexpr int kSpinsBeforeYield = 2000;

// The caller has waited for long when it waits this long beyond what its own chunks took on average.
constexpr auto kLate = microseconds(200);

std::atomic<int> forks{0};

int count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
  return forks.load();
}

uint64_t job_of(uint64_t ticket) { return ticket >> 32; }
int chunk_of(uint64_t ticket) { return int(ticket & 0xffffffffu); }

}  // namespace

Pool::Pool(int threads) : forks_(count_forks()) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {  // the system refuses another thread
    dismiss();
    throw;
  }
}

Pool::~Pool() { dismiss(); }

void Pool::dismiss() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool Pool::is_forked() const { return forks_ != forks.load(std::memory_order_relaxed); }

int Pool::take_and_run(int worker, Manners* manners) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (int taken = 0;;) {
    int chunks = chunks_.load(std::memory_order_acquire);
    Call call = call_.load(std::memory_order_acquire);
    void* data = data_.load(std::memory_order_acquire);
    if (chunk_of(ticket) >= chunks) {
      // Either this job is given out, or `chunks` belongs to a job not yet announced; look once more.
      uint64_t again = ticket_.load(std::memory_order_acquire);
      if (again == ticket) return taken;
      ticket = again;
      continue;
    }
    if (manners && manners->should_rest()) return taken;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    call(data, chunk_of(ticket), worker);
    taken++;
    if (manners && late_job_.load(std::memory_order_relaxed) == job_of(ticket)) manners->was_late();
    done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void Pool::run_erased(int chunks, Call call, void* data) {
  if (chunks <= 0) return;
  if (workers_.empty() || chunks == 1 || is_forked()) {
    for (int chunk = 0; chunk < chunks; chunk++) call(data, chunk, 0);
    return;
  }
  auto begin = clock::now();
  places_.look(begin);
  uint64_t job = job_of(ticket_.load(std::memory_order_relaxed)) + 1;
  // Close the old job before its fields change: with this ticket no chunk can be taken.
  ticket_.store((job << 32) | 0x7fffffffu, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  call_.store(call, std::memory_order_relaxed);
  data_.store(data, std::memory_order_relaxed);
  chunks_.store(chunks, std::memory_order_release);
  ticket_.store((job + 1) << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  int taken = take_and_run(0, nullptr);
  if (done_.load(std::memory_order_acquire) == chunks) return;
  auto end = clock::now();
  wait(job_of((job + 1) << 32), chunks, taken ? end + kLate + 4 * (end - begin) / taken : clock::time_point::max());
}

void Pool::wait(uint64_t job, int chunks, clock::time_point patience) {
  for (int spins = 1; done_.load(std::memory_order_acquire) < chunks; spins++) {
    if (spins < kSpinsBeforeYield)
      relax();
    else
      std::this_thread::yield();
    if (spins % 256 == 0 && clock::now() > patience) late_job_.store(job, std::memory_order_relaxed);
  }
}

void Pool::work(int worker) {
  Manners manners;
  uint64_t seen = job_of(ticket_.load(std::memory_order_acquire));
  while (!stop_.load(std::memory_order_relaxed)) {
    auto give_up = clock::now() + kSpin;
    bool found = false;
    while (!found && clock::now() < give_up) {
      for (int i = 0; i < 32 && !found; i++) {
        found = job_of(ticket_.load(std::memory_order_acquire)) != seen;
        if (!found) relax();
      }
    }
    if (!found) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_.load() || job_of(ticket_.load(std::memory_order_seq_cst)) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = job_of(ticket_.load(std::memory_order_acquire));
    if (worker == 1) places_.arrive();
    take_and_run(worker, &manners);
    if (manners.should_rest()) manners.rest();
  }
}

}  // namespace layerlift
