#include "evenkeel/graph/precision.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"

namespace evenkeel {
namespace {

Graph step_graph(bool with_dropout = false) {
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.input({3, 8, 8});
  x = b.batch_norm("bn", b.conv("conv", x, {.out_channels = 16, .padding = 1, .bias = false}), {});
  x = b.max_pool("pool", b.activate("relu", x, {ActivationKind::kRelu}), {});
  if (with_dropout) x = b.dropout("dropout", x, 0.5);
  x = b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
  b.set_name("logits", x);
  b.softmax_cross_entropy(x, b.labels(), 0);
  const auto parameters = b.parameters();
  std::vector<StateInfo> states;
  return with_updates(with_gradients(b.take()), {}, parameters, &states);
}

const Value& value_named(const Graph& graph, const std::string& name) {
  const auto found =
      std::find_if(graph.values.begin(), graph.values.end(), [&](const Value& value) { return value.name == name; });
  EK_ASSERT(found != graph.values.end());
  return *found;
}

TEST(WithPrecision, returns_a_graph_of_fp32_as_it_is) {
  const Graph graph = step_graph();
  EXPECT_EQ(to_string(with_precision(graph, Precision::kF32)), to_string(graph));
}

TEST(WithPrecision, stores_images_and_their_gradients_in_bf16_and_nothing_else) {
  const Graph graph = with_precision(step_graph(), Precision::kBF16);
  for (const char* name : {"conv", "pool", "d conv", "d pool", "x in bf16"})
    EXPECT_EQ(value_named(graph, name).element, Element::kBF16) << name;
  for (const char* name : {"x", "gap", "d gap", "conv.weight", "d conv.weight", "bn.running_mean"})
    EXPECT_EQ(value_named(graph, name).element, Element::kF32) << name;
  for (const Value& value : graph.values)
    EXPECT_TRUE(value.element != Element::kBF16 || (value.batched && value.shape.size() == 3)) << value.name;
}

TEST(WithPrecision, converts_the_input_once_for_all_that_read_it) {
  const Graph graph = with_precision(step_graph(), Precision::kBF16);
  const auto is_cast = [](const Node& node) { return std::holds_alternative<Cast>(node.op); };
  EXPECT_EQ(std::count_if(graph.nodes.begin(), graph.nodes.end(), is_cast), 1);
}

TEST(WithPrecision, does_not_keep_the_converted_input_for_the_backward_pass) {
  const Plan plan = make_plan(with_precision(step_graph(), Precision::kBF16), {.batch = 16});
  for (const Node& node : plan.graph.nodes) {
    if (std::holds_alternative<Cast>(node.op)) {
      EXPECT_TRUE(plan.in_scratch(node.outputs[0]));
    }
  }
}

TEST(WithPrecision, needs_memory_for_examples_in_fp32_only_where_a_node_computes_in_fp32) {
  EXPECT_EQ(stage_bytes(with_precision(step_graph(), Precision::kBF16)), 0u);
  EXPECT_EQ(stage_bytes(with_precision(step_graph(true), Precision::kBF16)), 16u * 4 * 4 * sizeof(float));
  EXPECT_EQ(stage_bytes(step_graph(true)), 0u);
}

TEST(WithPrecision, halves_the_arena) {
  const Plan wide = make_plan(step_graph(), {.batch = 128});
  const Plan narrow = make_plan(with_precision(step_graph(), Precision::kBF16), {.batch = 128});
  EXPECT_LT(static_cast<double>(narrow.arena_bytes), 0.6 * static_cast<double>(wide.arena_bytes));
}

}  // namespace
}  // namespace evenkeel
