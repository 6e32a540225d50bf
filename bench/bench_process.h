// Other processes, for benchmarks that must start a program afresh.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace evenkeel::bench {

// A folder below the system's temporary one, removed with all it holds at the end. Throws IoError.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A running program. Its standard output goes to a file; its standard error too, or stays ours.
class Process {
 public:
  struct Options {
    std::string output_path = "/dev/null";
    std::string error_path = {};                                        // "": ours
    std::vector<std::pair<std::string, std::string>> environment = {};  // added to ours
  };
  // arguments[0] is the program's path. Throws IoError when it cannot be started.
  Process(const std::vector<std::string>& arguments, const Options& options);
  ~Process();  // kills it if it still runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  bool has_ended();
  int wait();  // the exit code; 128 + signal when a signal ended it
  void kill_and_wait();

 private:
  pid_t pid_;
  bool ended_ = false;
  int status_ = 0;
};

// Runs a program to its end and returns what it printed; its standard error is ours. Throws BackendError when it fails.
std::string output_of(const std::vector<std::string>& arguments,
                      const std::vector<std::pair<std::string, std::string>>& environment = {});

// Path of this program.
std::string own_path();

}  // namespace evenkeel::bench
