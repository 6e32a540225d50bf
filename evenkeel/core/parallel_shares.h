// Shares of a loop that threads take from each other. Internal to core/parallel*.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace evenkeel::internal {

// Each thread has a contiguous share of [0, count); whoever is done goes on with what is left of the next thread's.
class Shares {
 public:
  static constexpr int kMostThreads = 64;
  Shares(int64_t count, int threads) : count_(count), threads_(threads) {
    for (int t = 0; t < threads; ++t) next_[static_cast<size_t>(t)].index = begin(t);
  }
  // Calls f(index) until nothing is left.
  template <class F>
  void work(int thread, F&& f) {
    for (int k = 0; k < threads_; ++k) {
      const int owner = (thread + k) % threads_;
      std::atomic<int64_t>& next = next_[static_cast<size_t>(owner)].index;
      const int64_t end = begin(owner + 1);
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < end;) f(i);
    }
  }

 private:
  int64_t begin(int thread) const { return count_ * thread / threads_; }
  struct alignas(64) Cursor {
    std::atomic<int64_t> index;
  };
  int64_t count_;
  int threads_;
  std::array<Cursor, kMostThreads> next_;
};

}  // namespace evenkeel::internal
