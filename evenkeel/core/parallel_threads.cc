// The std::thread twin for ThreadSanitizer builds: correct and visible to the tool, not fast (threads are made per loop).
#include <algorithm>
#include <thread>
#include <vector>

#include "evenkeel/core/parallel.h"

namespace evenkeel {
namespace {
thread_local bool in_parallel = false;
}  // namespace

namespace internal {

void parallel_for(int64_t count, int threads, LoopBody body, void* context) {
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  if (team <= 1 || in_parallel) {
    const FlushDenormals flush;
    for (int64_t i = 0; i < count; ++i) body(context, i, 0);
    return;
  }
  auto share = [&](int thread) {
    in_parallel = true;
    const FlushDenormals flush;
    for (int64_t i = count * thread / team; i < count * (thread + 1) / team; ++i) {
      body(context, i, thread);
    }
    in_parallel = false;
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(team - 1));
  for (int thread = 1; thread < team; ++thread) others.emplace_back(share, thread);
  share(0);
  for (std::thread& other : others) other.join();
}

}  // namespace internal

SingleThreadScope::SingleThreadScope() : saved_(1) {}
SingleThreadScope::~SingleThreadScope() { (void)saved_; }

}  // namespace evenkeel
