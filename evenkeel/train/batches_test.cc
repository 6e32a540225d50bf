#include "evenkeel/train/batches.h"

#include <gtest/gtest.h>

#include <numeric>

namespace evenkeel {
namespace {

int64_t total(const BatchCut& cut) { return std::accumulate(cut.sizes.begin(), cut.sizes.end(), int64_t{0}); }

TEST(Batches, keep_trains_on_every_example_and_leaves_a_smaller_last_batch) {
  const BatchCut cut = cut_batches(60000, 128, LastBatch::kKeep, 2);
  EXPECT_EQ(cut.sizes.size(), 469u);
  EXPECT_EQ(cut.sizes.back(), 96);
  EXPECT_EQ(total(cut), 60000);
  EXPECT_FALSE(cut.last_uses_running);
}

TEST(Batches, keep_merges_a_last_batch_that_would_leave_one_value_per_channel) {
  const BatchCut cut = cut_batches(129, 64, LastBatch::kKeep, 2);
  EXPECT_EQ(cut.sizes, (std::vector<int64_t>{64, 65}));
  EXPECT_EQ(cut.largest(), 65);
  // With space behind every channel one example is enough.
  EXPECT_EQ(cut_batches(129, 64, LastBatch::kKeep, 1).sizes, (std::vector<int64_t>{64, 64, 1}));
}

TEST(Batches, merge_drop_and_running_do_what_their_names_say) {
  EXPECT_EQ(cut_batches(100, 32, LastBatch::kMerge, 1).sizes, (std::vector<int64_t>{32, 32, 36}));
  EXPECT_EQ(cut_batches(100, 32, LastBatch::kDrop, 1).sizes, (std::vector<int64_t>{32, 32, 32}));
  const BatchCut running = cut_batches(100, 32, LastBatch::kRunning, 1);
  EXPECT_EQ(running.sizes, (std::vector<int64_t>{32, 32, 32, 4}));
  EXPECT_TRUE(running.last_uses_running);
}

TEST(Batches, a_set_smaller_than_a_batch_is_one_batch_unless_it_is_dropped) {
  EXPECT_TRUE(cut_batches(5, 128, LastBatch::kDrop, 2).sizes.empty());
  for (const LastBatch policy : {LastBatch::kKeep, LastBatch::kMerge, LastBatch::kRunning}) {
    const BatchCut cut = cut_batches(5, 128, policy, 2);
    EXPECT_EQ(cut.sizes, (std::vector<int64_t>{5}));
    EXPECT_FALSE(cut.last_uses_running);
  }
}

TEST(Batches, a_set_of_whole_batches_has_no_rest) {
  for (const LastBatch policy : {LastBatch::kKeep, LastBatch::kMerge, LastBatch::kDrop, LastBatch::kRunning}) {
    EXPECT_EQ(cut_batches(64, 32, policy, 2).sizes, (std::vector<int64_t>{32, 32}));
  }
}

}  // namespace
}  // namespace evenkeel
