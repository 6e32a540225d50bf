#include "evenkeel/core/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

namespace evenkeel {
namespace {

TEST(ParallelFor, calls_every_index_once_whatever_the_threads) {
  for (const int64_t count : {0, 1, 2, 3, 7, 100, 1001}) {
    for (const int threads : {1, 2, 3, 8}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      std::atomic<bool> thread_out_of_range = false;
      parallel_for(count, threads, [&](int64_t i, int thread) {
        ++calls[static_cast<size_t>(i)];
        if (thread < 0 || thread >= threads) thread_out_of_range = true;
      });
      for (const auto& c : calls) ASSERT_EQ(c, 1);
      EXPECT_FALSE(thread_out_of_range);
    }
  }
}

TEST(ParallelFor, works_in_the_child_of_a_fork) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer refuses threads behind a fork";
#endif
  parallel_for(8, 2, [](int64_t, int) {});  // the team is there
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);  // ends a child that waits for threads that are not there
    std::atomic<int> calls = 0;
    parallel_for(100, 2, [&](int64_t, int) { ++calls; });
    parallel_take(100, 2, [&](int64_t, int) { ++calls; });
    _exit(calls == 200 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(ParallelFor, runs_serially_inside_itself) {
  std::atomic<int> calls = 0;
  parallel_for(4, 2, [&](int64_t, int) {
    const std::thread::id outer = std::this_thread::get_id();
    parallel_for(10, 4, [&](int64_t, int thread) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      EXPECT_EQ(thread, 0);
      ++calls;
    });
  });
  EXPECT_EQ(calls, 40);
}

TEST(ParallelFor, may_be_called_from_several_threads_at_once) {
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> hosts;
  for (int h = 0; h < 3; ++h) {
    hosts.emplace_back([&] {
      for (int repeat = 0; repeat < 20; ++repeat) parallel_for(50, 2, [&](int64_t i, int) { sum += i; });
    });
  }
  for (std::thread& host : hosts) host.join();
  EXPECT_EQ(sum, 3 * 20 * 1225);
}

bool denormals_survive() {
  volatile float tiny = std::numeric_limits<float>::min();
  volatile float half = 0.5f;
  volatile float product = tiny * half;
  return product != 0.0f;
}

// As an operand: the product itself is far from being a denormal.
bool denormals_count() {
  volatile float denormal = std::numeric_limits<float>::denorm_min();
  volatile float large = 0x1p100f;
  volatile float product = denormal * large;
  return product != 0.0f;
}

TEST(ParallelFor, flushes_denormals_inside_and_leaves_them_alone_outside) {
#if defined(__x86_64__) || defined(__aarch64__)
  ASSERT_TRUE(denormals_survive());
  ASSERT_TRUE(denormals_count());
  for (const int threads : {1, 2}) {
    std::atomic<int> survivors = 0;
    parallel_for(8, threads, [&](int64_t, int) { survivors += denormals_survive() + denormals_count(); });
    EXPECT_EQ(survivors, 0);
    EXPECT_TRUE(denormals_survive());
    EXPECT_TRUE(denormals_count());
  }
  {
    const FlushDenormals flush;
    EXPECT_FALSE(denormals_survive());
    EXPECT_FALSE(denormals_count());
  }
  EXPECT_TRUE(denormals_survive());
  EXPECT_TRUE(denormals_count());
#endif
}

TEST(AvailableCores, are_at_least_one_and_not_more_than_the_machine_has) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_LE(available_cores(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

}  // namespace
}  // namespace evenkeel
