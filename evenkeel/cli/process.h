// What concerns the process as a whole, which only the program may touch: threads and signals.
#pragma once

#include <atomic>
#include <string>

namespace evenkeel::cli {

// The number of threads to use: `asked`, or the cores this process may use when 0. Pins the threads to the cores when
// they take all of them: with fewer, pinning could put two processes on one core and leave another idle. Call once,
// before any work.
int take_threads(int asked);

// Large blocks of memory that are given back are kept for the next ones, not returned to the system, which would clear them again: for
// commands that read a whole model and write another.
void keep_large_blocks();

// While it lives, SIGINT, SIGTERM and SIGUSR1, which counts as SIGTERM, ask for a stop instead of ending the process; the second one ends it. The
// first one is answered on standard error by what is still done: `unit`, such as "step".
class StopSignals {
 public:
  explicit StopSignals(bool quiet, const std::string& unit = "step");
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  const std::atomic<bool>& stop() const;
  int exit_code() const;     // 128 + the signal
  const char* name() const;  // "Ctrl-C" or "SIGTERM"
  static const char* name_of(int exit_code);
};

}  // namespace evenkeel::cli
