// peak_memory_bytes of trainer.h.
#include <sys/resource.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>

#include "evenkeel/train/trainer.h"

namespace evenkeel {

int64_t peak_memory_bytes() {
  // Since the start of this program; ru_maxrss begins with what the process had before its exec, that of a large parent.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %" SCNd64 " kB", &kib) == 1) return kib * 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

}  // namespace evenkeel
