#include "evenkeel/graph/plan.h"

#include <functional>

#include <gtest/gtest.h>

#include "evenkeel/core/moments.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan_check.h"

namespace evenkeel {
namespace {

std::string usage_message(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

// Two dense layers with a norm between; the forward graph of training.
Graph dense(Mode mode = Mode::kTrain) {
  GraphBuilder b(mode);
  ValueId x = b.input({6});
  x = b.linear("fc1", x, {.out_features = 8, .bias = false});
  x = b.batch_norm("bn1", x, {});
  x = b.activate("relu1", x, {ActivationKind::kRelu});
  x = b.linear("fc2", x, {.out_features = 3});
  b.set_name("logits", x);
  if (mode == Mode::kTrain) b.softmax_cross_entropy(x, b.labels(), 0);
  return b.take();
}

Graph convolution(const Shape& input) {
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.input(input);
  x = b.conv("conv1", x, {.out_channels = 4, .kernel = 1, .bias = false});
  x = b.batch_norm("bn1", x, {});
  x = b.linear("fc", x, {.out_features = 2});
  b.softmax_cross_entropy(x, b.labels(), 0);
  return b.take();
}

Plan training_plan(Graph graph, int64_t batch) { return make_plan(with_gradients(std::move(graph)), {.batch = batch}); }

TEST(Plan, no_value_is_overwritten_while_it_is_needed) {
  for (const int64_t batch : {2, 7, 8, 9, 64, 65, 128, 1000}) {
    EXPECT_EQ(first_fault_of(training_plan(dense(), batch)), "") << batch;
    EXPECT_EQ(first_fault_of(training_plan(convolution({3, 5, 5}), batch)), "") << batch;
  }
}

TEST(Plan, the_check_itself_finds_a_value_that_was_overwritten) {
  Plan plan = training_plan(dense(), 32);
  const size_t logits = static_cast<size_t>(plan.graph.find("logits"));
  for (size_t id = 0; id < plan.offset.size(); ++id) {
    if (plan.in_arena(static_cast<ValueId>(id)) && id != logits) plan.offset[id] = plan.offset[logits];
  }
  EXPECT_NE(first_fault_of(plan), "");
}

// The gradients of three layers, which need not be there at the same time.
TEST(Plan, the_arena_is_smaller_than_the_sum_of_its_values) {
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.input({3, 16, 16});
  for (const char* name : {"1", "2", "3"}) {
    x = b.conv(std::string("conv") + name, x, {.out_channels = 4, .kernel = 1, .bias = false});
    x = b.batch_norm(std::string("bn") + name, x, {});
  }
  b.softmax_cross_entropy(b.linear("fc", x, {.out_features = 2}), b.labels(), 0);
  const Plan plan = training_plan(b.take(), 32);
  EXPECT_GT(plan.arena_bytes, 0u);
  EXPECT_LT(plan.arena_bytes, sum_of_value_bytes(plan));
}

TEST(Plan, inputs_parameters_and_buffers_have_no_place_in_the_arena) {
  const Plan plan = training_plan(dense(), 16);
  for (size_t id = 0; id < plan.offset.size(); ++id) {
    if (plan.graph.values[id].role != Role::kComputed) {
      EXPECT_EQ(plan.offset[id], kNotInArena) << plan.graph.values[id].name;
    }
  }
  EXPECT_EQ(plan.parameter_count, 6 * 8 + 8 + 8 + 8 * 3 + 3);
}

TEST(Plan, every_batched_value_has_room_for_whole_tiles_and_gradient_groups) {
  for (const int64_t batch : {1, 5, 8, 63, 64, 100, 128, 129, 1000}) {
    const Plan plan = make_plan(dense(Mode::kInference), {.batch = batch});
    EXPECT_GE(plan.row_capacity, batch);
    EXPECT_EQ(plan.row_capacity % kBlockExamples, 0) << batch;
  }
}

TEST(Plan, gradient_groups_are_whole_blocks_and_few) {
  for (int64_t batch = 1; batch < 700; ++batch) {
    for (const int64_t groups : {int64_t{16}, int64_t{8}, kWholeGroups}) {
      const int64_t rows = group_rows(batch, groups);
      EXPECT_EQ(rows % kBlockExamples, 0);
      EXPECT_LE((batch + rows - 1) / rows, groups) << batch;
    }
  }
}

TEST(Plan, refuses_to_normalize_a_dense_layer_over_a_batch_of_one) {
  const std::string message = usage_message([] { make_plan(dense(), {.batch = 1}); });
  EXPECT_NE(message.find("'bn1'"), std::string::npos) << message;
  EXPECT_NE(message.find("one value per channel"), std::string::npos) << message;
  EXPECT_NE(message.find("batch size of at least 2"), std::string::npos) << message;
}

TEST(Plan, normalizes_images_over_a_batch_of_one_when_they_have_more_than_one_pixel) {
  EXPECT_NO_THROW(make_plan(convolution({3, 1, 2}), {.batch = 1}));
  EXPECT_THROW(make_plan(convolution({3, 1, 1}), {.batch = 1}), UsageError);
}

TEST(Plan, takes_a_batch_of_one_for_running_statistics_and_for_no_norm) {
  EXPECT_NO_THROW(make_plan(dense(Mode::kInference), {.batch = 1}));
  GraphBuilder b(Mode::kTrain);
  b.softmax_cross_entropy(b.linear("fc", b.input({4}), {.out_features = 2}), b.labels(), 0);
  EXPECT_NO_THROW(make_plan(b.take(), {.batch = 1}));
}

TEST(Plan, refuses_statistics_of_the_batch_for_a_single_row_in_inference_too) {
  EXPECT_THROW(make_plan(dense(Mode::kInferenceBatchStatistics), {.batch = 1}), UsageError);
}

TEST(Plan, refuses_a_batch_of_none) {
  EXPECT_THROW(make_plan(dense(), {.batch = 0}), UsageError);
  EXPECT_THROW(make_plan(dense(), {.batch = -3}), UsageError);
}

TEST(Plan, refuses_a_value_whose_size_overflows) {
  const Value value{"huge", Role::kComputed, Element::kF32, true, {int64_t{1} << 40}};
  EXPECT_THROW(value_bytes(value, int64_t{1} << 40), UsageError);
}

}  // namespace
}  // namespace evenkeel
