#include "evenkeel/core/cache_sizes.h"

#include <gtest/gtest.h>

namespace evenkeel {
namespace {

TEST(CacheSizes, are_in_order_and_the_last_one_counts) {
  const std::vector<Cache> caches = caches_of_core();
  int level = 0;
  for (const Cache& cache : caches) {
    EXPECT_GE(cache.level, level);
    EXPECT_GE(cache.bytes, 1024);
    EXPECT_GE(cache.shared_by, 1);
    level = cache.level;
  }
  EXPECT_EQ(last_level_cache_bytes(), caches.empty() ? 8 << 20 : caches.back().bytes);
}

}  // namespace
}  // namespace evenkeel
