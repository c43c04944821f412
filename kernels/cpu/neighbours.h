// How a pool's threads get along with other processes on their cores. Knows nothing of jobs.
//
// Measured with a process that keeps one of two cores busy (see tests/test_cpu_pool.py): without either class decoding
// falls to 0.7 of what one quiet core gives.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <sys/resource.h>
#endif

namespace layerlift {

// A thread's time on its core, and what it had to leave it for.
struct Usage {
  std::chrono::microseconds busy{0};
  long interrupted = 0, waited = 0;  // times: by the system's choice, by its own

  static Usage of_this_thread() {
    Usage u;
#if defined(RUSAGE_THREAD)
    rusage r;
    if (getrusage(RUSAGE_THREAD, &r) == 0) {
      u.busy = std::chrono::seconds(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
               std::chrono::microseconds(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
      u.interrupted = r.ru_nivcsw;
      u.waited = r.ru_nvcsw;
    }
#endif
    return u;
  }
};

// A worker that was put off its core with a chunk in hand, and kept the caller waiting, several times in a row, shares
// that core. From then on it works in bursts shorter than what the system gives it at a time, and rests between them, so
// that the system interrupts its rest and not its chunks. After a while it tries without. A neighbour that the system
// favours less makes it late seldom, and resting would cost more.
class Manners {
 public:
  using clock = std::chrono::steady_clock;
  using microseconds = std::chrono::microseconds;

  bool should_rest() const { return active_ && clock::now() - woken_ > burst_; }

  void rest() {
    std::this_thread::sleep_for(kRest);
    woken_ = clock::now();
    active_ = woken_ < until_;
  }

  // The caller waited for this worker.
  void was_late() {
    long interrupted = Usage::of_this_thread().interrupted;
    if (interrupted == interrupted_) return;
    interrupted_ = interrupted;
    auto now = clock::now();
    times_late_ = now - late_ < kInARow ? times_late_ + 1 : 1;
    late_ = now;
    if (active_) {
      burst_ = std::max(burst_ / 2, kShortestBurst);
    } else if (times_late_ >= kTimesLate) {
      burst_ = kLongestBurst;
      active_ = true;
      woken_ = now - burst_;
    } else {
      return;
    }
    until_ = now + kLast;
  }

 private:
  // Linux gives a task one to four milliseconds at a time.
  static constexpr microseconds kLongestBurst{1000}, kShortestBurst{250}, kRest{1000}, kInARow{20000}, kLast{1000000};
  static constexpr int kTimesLate = 3;

  bool active_ = false;
  long interrupted_ = Usage::of_this_thread().interrupted;
  int times_late_ = 0;
  microseconds burst_ = kLongestBurst;
  clock::time_point late_, woken_, until_;
};

// The cores of the caller and of the first worker. What only the caller does holds everybody up, so where it is the caller
// that shares its core, the two change places; the system would leave them, as neither core is ever idle for long.
class Places {
 public:
  using clock = std::chrono::steady_clock;

  // The caller, before a job.
  void look(clock::time_point now) {
    if (now < next_look_) return;
    auto seen = Usage::of_this_thread();
    auto wall = now - last_look_;
    bool shared = wall < 2 * kBetween && seen.busy - usage_.busy < wall * 3 / 4 && seen.waited - usage_.waited < 8 &&
                  seen.interrupted - usage_.interrupted >= 2;
    next_look_ = now + kBetween;
    if (shared && change()) next_look_ = now + 4 * kBetween;
    usage_ = seen;
    last_look_ = now;
  }

  // The worker, before its part of a job.
  void arrive() {
#if defined(__linux__)
    int core = wanted_.exchange(-1, std::memory_order_relaxed);
    if (core >= 0) move_to(core);
    core_.store(sched_getcpu(), std::memory_order_relaxed);
#endif
  }

 private:
  static constexpr std::chrono::milliseconds kBetween{20};

  bool change() {
#if defined(__linux__)
    cpu_set_t allowed;
    int mine = sched_getcpu(), other = core_.load(std::memory_order_relaxed);
    if (mine < 0 || other < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return false;
    if (mine == other) {  // the worker is the neighbour: any other core is better for it
      for (other = 0; other < CPU_SETSIZE && (other == mine || !CPU_ISSET(other, &allowed));) other++;
      if (other == CPU_SETSIZE) return false;
      wanted_.store(other, std::memory_order_relaxed);
      return true;
    }
    if (!move_to(other)) return false;
    wanted_.store(mine, std::memory_order_relaxed);
    return true;
#else
    return false;
#endif
  }

#if defined(__linux__)
  // The calling thread, which may leave again at once; false where it may not go.
  static bool move_to(int core) {
    cpu_set_t allowed, there;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || core >= CPU_SETSIZE || !CPU_ISSET(core, &allowed)) return false;
    CPU_ZERO(&there);
    CPU_SET(core, &there);
    if (sched_setaffinity(0, sizeof there, &there)) return false;
    sched_setaffinity(0, sizeof allowed, &allowed);
    return true;
  }
#endif

  clock::time_point last_look_, next_look_;
  Usage usage_;
  alignas(64) std::atomic<int> core_{-1}, wanted_{-1};
};

}  // namespace layerlift
