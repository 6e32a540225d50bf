#include "evenkeel/cli/process.h"

#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <limits>

#include "evenkeel/core/parallel.h"

namespace evenkeel::cli {
namespace {

// A signal handler sees nothing but these.
std::atomic<bool> stop_asked{false};
std::atomic<int> stop_signal{0};
std::atomic<bool> be_quiet{false};
char stop_text[96];  // written before the handler is there
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_signal(int signal) {
  stop_signal = signal == SIGUSR1 ? SIGTERM : signal;
  stop_asked = true;
  if (be_quiet) return;
  const int saved = errno;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, stop_text, std::strlen(stop_text));
  errno = saved;
}

int cores_of_affinity_mask() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

}  // namespace

void keep_large_blocks() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

int take_threads(int asked) {
  const int threads = asked > 0 ? asked : available_cores();  // read before the pinning, which narrows it to one core
  if (threads > 1 && threads == cores_of_affinity_mask()) pin_threads(threads);
  return threads;
}

StopSignals::StopSignals(bool quiet, const std::string& unit) {
  be_quiet = quiet;
  std::snprintf(stop_text, sizeof stop_text, "\nevenkeel: stopping after this %s; once more to stop at once\n",
                unit.c_str());
  struct sigaction action {};
  action.sa_handler = on_signal;
  // The second signal finds the usual behaviour again; system calls go on.
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // mpirun passes this one on to its ranks, and kills them where it gets one of the others.
  sigaction(SIGUSR1, &action, nullptr);
}

StopSignals::~StopSignals() {
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  signal(SIGUSR1, SIG_DFL);
}

const std::atomic<bool>& StopSignals::stop() const { return stop_asked; }
int StopSignals::exit_code() const { return 128 + stop_signal; }
const char* StopSignals::name_of(int exit_code) { return exit_code == 128 + SIGTERM ? "SIGTERM" : "Ctrl-C"; }
const char* StopSignals::name() const { return name_of(exit_code()); }

}  // namespace evenkeel::cli
