#include <gtest/gtest.h>

#include "evenkeel/graph/builder.h"

namespace evenkeel {
namespace {

constexpr Activation kRelu{ActivationKind::kRelu};
constexpr size_t kResidual = 4;  // input of Normalize

template <class T>
std::vector<const Node*> nodes_of(const Graph& graph) {
  std::vector<const Node*> found;
  for (const Node& node : graph.nodes) {
    if (std::holds_alternative<T>(node.op)) found.push_back(&node);
  }
  return found;
}

ActivationKind activation_of(const Node& node) { return std::get<Normalize>(node.op).activation.kind; }

// Every input of every node is fed, stored, or made by a node before it.
void expect_in_order(const Graph& graph) {
  std::vector<bool> there(graph.values.size(), false);
  for (size_t id = 0; id < there.size(); ++id) there[id] = graph.values[id].role != Role::kComputed;
  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.inputs) EXPECT_TRUE(id == kNoValue || there[static_cast<size_t>(id)]) << node.name;
    for (const ValueId id : node.outputs) {
      if (id != kNoValue) there[static_cast<size_t>(id)] = true;
    }
  }
}

TEST(Fuse, a_norm_takes_the_activation_behind_it) {
  GraphBuilder b(Mode::kTrain);
  const ValueId y = b.activate("relu", b.batch_norm("bn", b.input({3, 4, 4}), {}), kRelu);
  b.set_name("y", y);
  const Graph graph = b.take();
  EXPECT_TRUE(nodes_of<Activate>(graph).empty());
  const auto norms = nodes_of<Normalize>(graph);
  ASSERT_EQ(norms.size(), 1u);
  EXPECT_EQ(activation_of(*norms[0]), ActivationKind::kRelu);
  EXPECT_EQ(norms[0]->outputs[0], graph.find("y"));
  expect_in_order(graph);
}

class FuseResidual : public testing::TestWithParam<bool> {};

TEST_P(FuseResidual, a_norm_takes_the_addition_and_the_activation_in_both_orders_of_the_operands) {
  const bool norm_first = GetParam();
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 4, 4});
  const ValueId body = b.batch_norm("bn", b.conv("conv", x, {.out_channels = 3, .padding = 1, .bias = false}), {});
  b.set_name("y", b.activate("relu", norm_first ? b.add("add", body, x) : b.add("add", x, body), kRelu));
  const Graph graph = b.take();
  EXPECT_TRUE(nodes_of<Add>(graph).empty());
  EXPECT_TRUE(nodes_of<Activate>(graph).empty());
  const auto norms = nodes_of<Normalize>(graph);
  ASSERT_EQ(norms.size(), 1u);
  EXPECT_EQ(norms[0]->inputs[kResidual], x);
  EXPECT_EQ(activation_of(*norms[0]), ActivationKind::kRelu);
  EXPECT_EQ(norms[0]->outputs[0], graph.find("y"));
  expect_in_order(graph);
}
INSTANTIATE_TEST_SUITE_P(Orders, FuseResidual, testing::Bool());

TEST(Fuse, of_two_norms_that_are_added_the_first_takes_the_other_as_its_residual) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 4, 4});
  const ValueId body = b.batch_norm("bn", b.conv("conv", x, {.out_channels = 3, .padding = 1, .bias = false}), {});
  const ValueId shortcut =
      b.batch_norm("down.1", b.conv("down.0", x, {.out_channels = 3, .kernel = 1, .bias = false}), {});
  b.set_name("y", b.activate("relu", b.add("add", body, shortcut), kRelu));
  const Graph graph = b.take();
  const auto norms = nodes_of<Normalize>(graph);
  ASSERT_EQ(norms.size(), 2u);
  EXPECT_EQ(norms[0]->name, "down.1");
  EXPECT_EQ(norms[1]->name, "bn");
  EXPECT_EQ(norms[1]->inputs[kResidual], norms[0]->outputs[0]);
  EXPECT_EQ(activation_of(*norms[0]), ActivationKind::kIdentity);
  expect_in_order(graph);
}

TEST(Fuse, a_norm_that_another_node_reads_stays_as_it_is) {
  GraphBuilder b(Mode::kTrain);
  const ValueId norm = b.batch_norm("bn", b.input({3, 4, 4}), {});
  b.set_name("y", b.add("add", b.activate("relu", norm, kRelu), b.max_pool("pool", norm, {.kernel = 1})));
  const Graph graph = b.take();
  EXPECT_EQ(nodes_of<Activate>(graph).size(), 1u);
  EXPECT_EQ(nodes_of<Add>(graph).size(), 1u);
  EXPECT_EQ(activation_of(*nodes_of<Normalize>(graph)[0]), ActivationKind::kIdentity);
  expect_in_order(graph);
}

TEST(Fuse, a_norm_that_the_caller_asks_for_by_name_stays_as_it_is) {
  GraphBuilder b(Mode::kTrain);
  const ValueId norm = b.batch_norm("bn", b.input({5}), {});
  b.set_name("normalized", norm);
  b.set_name("y", b.activate("relu", norm, kRelu));
  const Graph graph = b.take();
  EXPECT_EQ(nodes_of<Activate>(graph).size(), 1u);
  EXPECT_EQ(nodes_of<Normalize>(graph)[0]->outputs[0], graph.find("normalized"));
}

TEST(Fuse, a_sum_that_another_node_reads_keeps_its_activation_apart) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 4, 4});
  const ValueId sum = b.add("add", b.batch_norm("bn", x, {}), x);
  b.set_name("y", b.add("add2", b.activate("relu", sum, kRelu), sum));
  const Graph graph = b.take();
  EXPECT_EQ(nodes_of<Activate>(graph).size(), 1u);
  const auto norms = nodes_of<Normalize>(graph);
  ASSERT_EQ(norms.size(), 1u);
  EXPECT_EQ(norms[0]->inputs[kResidual], x);
  EXPECT_EQ(norms[0]->outputs[0], sum);
  expect_in_order(graph);
}

TEST(Fuse, the_addition_does_not_pass_an_activation_that_comes_first) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 4, 4});
  b.set_name("y", b.add("add", b.activate("relu", b.batch_norm("bn", x, {}), kRelu), x));
  const Graph graph = b.take();
  EXPECT_EQ(nodes_of<Add>(graph).size(), 1u);
  EXPECT_EQ(nodes_of<Normalize>(graph)[0]->inputs[kResidual], kNoValue);
  EXPECT_EQ(activation_of(*nodes_of<Normalize>(graph)[0]), ActivationKind::kRelu);
}

TEST(Fuse, a_value_added_to_itself_stays_an_addition) {
  GraphBuilder b(Mode::kTrain);
  const ValueId norm = b.batch_norm("bn", b.input({5}), {});
  b.set_name("y", b.add("add", norm, norm));
  EXPECT_EQ(nodes_of<Add>(b.take()).size(), 1u);
}

TEST(Fuse, a_norm_takes_one_addition_only) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({5});
  b.set_name("y", b.add("second", b.add("first", b.batch_norm("bn", x, {}), x), x));
  const Graph graph = b.take();
  ASSERT_EQ(nodes_of<Add>(graph).size(), 1u);
  EXPECT_EQ(nodes_of<Add>(graph)[0]->name, "second");
}

TEST(Fuse, does_nothing_the_second_time) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 4, 4});
  b.set_name("y", b.activate("relu", b.add("add", b.batch_norm("bn", x, {}), x), kRelu));
  const Graph once = b.take();
  EXPECT_EQ(to_string(fuse_normalize(once)), to_string(once));
}

}  // namespace
}  // namespace evenkeel
