// Threads: the only file that knows OpenMP (or std::thread, in ThreadSanitizer builds, which cannot see into libgomp).
//
//   parallel_for(blocks, threads, [&](int64_t block, int thread) { ... });
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace evenkeel {

// The most threads that any part of the product may be asked for: OpenMP ends the process when the system gives it no more.
inline constexpr int kMostThreads = 1024;

// Cores this process may use: the affinity mask bounded by the cgroup quota; at least 1.
int available_cores();

// Pins the threads of the team to the cores of the affinity mask, one each. For programs, never called by the library.
// Does nothing where there are fewer cores than threads.
void pin_threads(int threads);

namespace internal {
using LoopBody = void (*)(void* context, int64_t index, int thread);
void parallel_for(int64_t count, int threads, LoopBody body, void* context);
void parallel_take(int64_t count, int threads, LoopBody body, void* context);
}  // namespace internal

// Calls f(index, thread) for index = 0 .. count-1, each once, on up to `threads` threads (0 < = thread < threads). Which thread
// takes which index is not promised: results must not depend on it. Inside, denormals are flushed to zero (restored after).
// Called from inside a parallel_for it runs serially. f must not throw. Allocates nothing after the team is up.
template <class F>
void parallel_for(int64_t count, int threads, F&& f) {
  auto body = [](void* context, int64_t index, int thread) {
    (*static_cast<std::remove_reference_t<F>*>(context))(index, thread);
  };
  internal::parallel_for(count, threads, body, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

// The same for few, long pieces of work: a thread that has done its share takes from the others'.
template <class F>
void parallel_take(int64_t count, int threads, F&& f) {
  auto body = [](void* context, int64_t index, int thread) {
    (*static_cast<std::remove_reference_t<F>*>(context))(index, thread);
  };
  internal::parallel_take(count, threads, body, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

// Sets flush-to-zero and denormals-are-zero for this thread while it lives, then restores what was there.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint32_t saved_;
};

// A scope in which libraries that ask OpenMP for its number of threads (oneDNN, when it makes a primitive) see one.
class SingleThreadScope {
 public:
  SingleThreadScope();
  ~SingleThreadScope();
  SingleThreadScope(const SingleThreadScope&) = delete;
  SingleThreadScope& operator=(const SingleThreadScope&) = delete;

 private:
  int saved_;
};

}  // namespace evenkeel
