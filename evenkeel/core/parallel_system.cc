// What both thread backends share: cores, pinning, denormals.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "evenkeel/core/parallel.h"

namespace evenkeel {
namespace {

// Cores allowed by a cgroup v2 quota ("max 100000" or "200000 100000"), rounded up; 0 when there is none.
int cgroup_cores() {
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return 0;
  long long quota = 0, period = 0;
  const int fields = std::fscanf(file, "%lld %lld", &quota, &period);
  std::fclose(file);
  if (fields != 2 || quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::max<long long>(1, (quota + period - 1) / period));
}

std::vector<size_t> cores_of_affinity_mask() {
  std::vector<size_t> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

}  // namespace

int available_cores() {
  // Asked once: pinning narrows the mask of the calling thread.
  static const int cores = [] {
    const int mask = std::max<int>(1, static_cast<int>(cores_of_affinity_mask().size()));
    const int quota = cgroup_cores();
    return quota > 0 ? std::min(mask, quota) : mask;
  }();
  return cores;
}

void pin_threads(int threads) {
  available_cores();  // before the mask is narrowed
  const std::vector<size_t> cores = cores_of_affinity_mask();
  if (threads < 1 || static_cast<int>(cores.size()) < threads) return;
  // As many indices as threads, taken one each: whichever thread takes an index pins itself to that thread's core.
  parallel_for(threads, threads, [&](int64_t, int thread) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[static_cast<size_t>(thread)], &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  });
}

#if defined(__SSE__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) {
  constexpr uint32_t kFlushToZero = 1u << 15, kDenormalsAreZero = 1u << 6;
  _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero);
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
// The upper half of FPCR is reserved. One bit does both, for operands and for results of float and double. "memory" keeps loads
// and stores on their side of the switch.
FlushDenormals::FlushDenormals() {
  uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  saved_ = static_cast<uint32_t>(control);
  constexpr uint64_t kFlushToZero = 1u << 24;
  asm volatile("msr fpcr, %0" : : "r"(control | kFlushToZero) : "memory");
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(uint64_t{saved_}) : "memory"); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() { (void)saved_; }
#endif

}  // namespace evenkeel
