// Puts every thread of the process under a Landlock ruleset, for kernels that only know the calling one (before 7.0).
//
// Each thread is interrupted by a signal and makes the system call itself, as C libraries do it for setuid. A thread that
// is started meanwhile has the restrictions of the one that started it, or is found by the next look.
#include "api.h"

#ifdef __linux__
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <set>

namespace {

constexpr long kRestrictSelf = 446;  // landlock_restrict_self, on every architecture
constexpr int kTries = 2000;         // of a millisecond each, until a thread must have answered

std::atomic<int> ruleset{-1}, answers{0}, failure{0};

void restrict_self(int) {
  int kept = errno;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(kRestrictSelf, ruleset.load(), 0)) failure.store(errno);
  answers.fetch_add(1);
  errno = kept;
}

bool is_gone(int thread, int number) { return syscall(SYS_tgkill, getpid(), thread, number) != 0; }

// Has the thread restrict itself; one that has ended is none.
void restrict_other(int thread, int number) {
  int before = answers.load();
  if (is_gone(thread, number)) return;
  for (int i = 0; i < kTries && answers.load() == before; i++) {
    timespec moment{0, 1000000};
    nanosleep(&moment, nullptr);
    if (i % 100 == 99 && is_gone(thread, 0)) return;
  }
  if (answers.load() == before) failure.store(ETIMEDOUT);
}

// Restricts the threads that are not among `known` yet; how many there were.
int restrict_new(std::set<int>& known, int number) {
  DIR* folder = opendir("/proc/self/task");
  if (!folder) return failure.store(errno), 0;
  int found = 0, self = int(syscall(SYS_gettid));
  while (dirent* entry = readdir(folder)) {
    int thread = atoi(entry->d_name);
    if (thread <= 0 || thread == self || !known.insert(thread).second) continue;
    restrict_other(thread, number);
    found++;
  }
  closedir(folder);
  return found;
}

}  // namespace

int ll_restrict_threads(int file) {
  int number = SIGRTMAX - 3;
  struct sigaction ours {}, theirs {};
  ours.sa_handler = restrict_self;
  ours.sa_flags = SA_RESTART;
  ruleset.store(file);
  failure.store(0);
  if (sigaction(number, &ours, &theirs)) return errno;
  std::set<int> known;
  while (!failure.load() && restrict_new(known, number)) {
  }
  if (!failure.load()) restrict_self(0);
  sigaction(number, &theirs, nullptr);
  return failure.load();
}
#else
int ll_restrict_threads(int) { return -1; }
#endif
