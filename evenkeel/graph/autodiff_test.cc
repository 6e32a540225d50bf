#include "evenkeel/graph/autodiff.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

namespace evenkeel {
namespace {

// conv, norm, relu, shortcut around a conv and a norm, pool, linear: a bit of everything.
struct Example {
  Graph graph;
  std::vector<ParameterInfo> parameters;
};
Example example() {
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.conv("conv1", b.input({3, 6, 6}), {.out_channels = 4, .padding = 1, .bias = false});
  x = b.activate("relu1", b.batch_norm("bn1", x, {}), {ActivationKind::kRelu});
  ValueId y = b.batch_norm("bn2", b.conv("conv2", x, {.out_channels = 4, .padding = 1, .bias = false}), {});
  x = b.activate("relu2", b.add("add", y, x), {ActivationKind::kRelu});
  x = b.max_pool("pool", x, {.kernel = 2});
  x = b.linear("fc", x, {.out_features = 5});
  b.set_name("logits", x);
  b.softmax_cross_entropy(x, b.labels(), 0.1);
  return {b.take(), b.parameters()};
}

template <class T>
std::vector<size_t> places_of(const Graph& graph) {
  std::vector<size_t> places;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (std::holds_alternative<T>(graph.nodes[i].op)) places.push_back(i);
  }
  return places;
}

// Every value is made once, and before it is read.
void expect_sound(const Graph& graph) {
  std::vector<bool> there(graph.values.size(), false);
  for (size_t id = 0; id < there.size(); ++id) there[id] = graph.values[id].role != Role::kComputed;
  for (const Node& node : graph.nodes) {
    for (const ValueId id : node.inputs) EXPECT_TRUE(id == kNoValue || there[static_cast<size_t>(id)]) << node.name;
    for (const ValueId id : node.outputs) {
      if (id == kNoValue) continue;
      EXPECT_FALSE(there[static_cast<size_t>(id)]) << node.name << " makes " << graph.value(id).name << " again";
      there[static_cast<size_t>(id)] = true;
    }
  }
}

// Only gamma and beta are learned: nothing is computed for the weights, nor below the lowest norm.
TEST(Gradients, frozen_weights_have_none_and_cost_nothing) {
  Example e = example();
  for (Value& value : e.graph.values) value.trained = value.name.starts_with("bn");
  const Graph graph = with_gradients(e.graph);
  expect_sound(graph);
  for (const ParameterInfo& info : e.parameters)
    EXPECT_EQ(graph.find("grad:" + info.name) != kNoValue, info.name.starts_with("bn")) << info.name;
  EXPECT_EQ(places_of<ConvGradWeight>(graph).size() + places_of<GemmGradWeight>(graph).size(), 0u);
  EXPECT_EQ(places_of<ConvGradInput>(graph).size(), 1u);  // conv2's: conv1 has no norm below it
  // A bias alone still has its gradient.
  for (Value& value : e.graph.values) value.trained = value.name == "fc.bias";
  const Graph bias = with_gradients(e.graph);
  expect_sound(bias);
  EXPECT_NE(bias.find("grad:fc.bias"), kNoValue);
  EXPECT_EQ(bias.find("grad:fc.weight"), kNoValue);
}

TEST(Gradients, every_parameter_has_one_of_its_own_name_and_shape) {
  const Example e = example();
  const Graph graph = with_gradients(e.graph);
  expect_sound(graph);
  for (const ParameterInfo& info : e.parameters) {
    const ValueId id = graph.find("grad:" + info.name);
    ASSERT_NE(id, kNoValue) << info.name;
    EXPECT_EQ(graph.value(id).shape, info.shape);
    EXPECT_EQ(graph.value(id).role, Role::kComputed);
    EXPECT_FALSE(graph.value(id).batched);
  }
}

TEST(Gradients, the_input_has_none_unless_asked_for) {
  const Graph without = with_gradients(example().graph);
  EXPECT_EQ(without.find("grad:x"), kNoValue);
  const auto convs = places_of<ConvGradInput>(without);
  EXPECT_EQ(convs.size(), 1u);  // of conv2 only: nothing learned lies before conv1
  const Graph with = with_gradients(example().graph, true);
  ASSERT_NE(with.find("grad:x"), kNoValue);
  EXPECT_EQ(with.value(with.find("grad:x")).shape, (Shape{3, 6, 6}));
  EXPECT_EQ(places_of<ConvGradInput>(with).size(), 2u);
  expect_sound(with);
}

TEST(Gradients, the_input_has_none_either_when_the_first_layer_is_a_norm_with_a_learned_residual) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({4});
  b.softmax_cross_entropy(b.add("add", b.batch_norm("bn", x, {}), b.linear("fc", x, {.out_features = 4})), b.labels(),
                          0);
  const Graph graph = with_gradients(b.take());
  EXPECT_EQ(graph.find("grad:x"), kNoValue);
  EXPECT_NE(graph.find("grad:fc.weight"), kNoValue);
  expect_sound(graph);
}

TEST(Gradients, of_a_value_used_twice_are_added) {
  const Graph graph = with_gradients(example().graph);
  // relu1's output feeds conv2 and the residual: its gradient is the sum of both, in one node.
  EXPECT_EQ(places_of<Add>(graph).size(), 0u);
  const auto gates = places_of<ResidualGradient>(graph);
  ASSERT_EQ(gates.size(), 1u);
  const Node& gate = graph.nodes[gates[0]];
  const Node& conv = graph.nodes[places_of<ConvGradInput>(graph)[0]];
  ASSERT_EQ(gate.inputs.size(), 3u);
  EXPECT_EQ(gate.inputs[2], conv.outputs[0]);
}

// A block without an activation of its own inside another one: the outer gate's gradient goes to the inner norm and, as it is, past it.
TEST(Gradients, of_a_residual_inside_a_residual_are_made_before_they_are_read) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.conv("conv0", b.input({3, 6, 6}), {.out_channels = 4, .kernel = 1, .bias = false});
  const ValueId shortcut =
      b.batch_norm("bn_s", b.conv("conv_s", x, {.out_channels = 4, .kernel = 1, .bias = false}), {});
  const ValueId body = b.batch_norm("bn_b", b.conv("conv_b", x, {.out_channels = 4, .kernel = 3, .padding = 1}), {});
  const ValueId inner = b.add("inner", body, x);
  const ValueId y = b.activate("relu", b.add("outer", shortcut, inner), {ActivationKind::kRelu});
  b.softmax_cross_entropy(b.linear("fc", y, {.out_features = 3}), b.labels(), 0);
  const Graph graph = with_gradients(b.take());
  EXPECT_EQ(places_of<ResidualGradient>(graph).size(), 1u);
  expect_sound(graph);
}

TEST(Gradients, of_a_sum_go_to_both_sides_without_a_copy) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({4});
  b.softmax_cross_entropy(b.add("add", b.linear("a", x, {.out_features = 3}), b.linear("b", x, {.out_features = 3})),
                          b.labels(), 0);
  const Graph graph = with_gradients(b.take());
  const auto weights = places_of<GemmGradWeight>(graph);
  ASSERT_EQ(weights.size(), 2u);
  EXPECT_EQ(graph.nodes[weights[0]].inputs[1], graph.nodes[weights[1]].inputs[1]);
  EXPECT_EQ(places_of<Add>(graph).size(), 1u);  // the forward one
}

TEST(Gradients, of_a_value_added_to_itself_are_doubled) {
  GraphBuilder b(Mode::kTrain);
  const ValueId y = b.linear("fc", b.input({4}), {.out_features = 3});
  b.softmax_cross_entropy(b.add("add", y, y), b.labels(), 0);
  const Graph graph = with_gradients(b.take());
  const auto sums = places_of<Add>(graph);
  ASSERT_EQ(sums.size(), 2u);
  EXPECT_EQ(graph.nodes[sums[1]].inputs[0], graph.nodes[sums[1]].inputs[1]);
}

TEST(Gradients, leave_the_updates_of_the_running_statistics_last) {
  const Graph graph = with_gradients(example().graph);
  const auto updates = places_of<UpdateRunning>(graph);
  ASSERT_EQ(updates.size(), 2u);
  EXPECT_EQ(updates[0], graph.nodes.size() - 2);
  EXPECT_EQ(updates[1], graph.nodes.size() - 1);
}

TEST(Gradients, through_a_norm_know_whether_it_read_the_batch) {
  for (const Mode mode : {Mode::kTrain, Mode::kInference}) {
    GraphBuilder b(mode);
    const ValueId x = b.batch_norm("bn", b.linear("fc", b.input({4}), {.out_features = 3}), {});
    b.softmax_cross_entropy(x, b.labels(), 0);
    const Graph graph = with_gradients(b.take());
    const auto places = places_of<NormGradientInput>(graph);
    ASSERT_EQ(places.size(), 1u);
    EXPECT_EQ(std::get<NormGradientInput>(graph.nodes[places[0]].op).batch_statistics, mode == Mode::kTrain);
  }
}

TEST(Gradients, need_a_loss) {
  GraphBuilder b(Mode::kTrain);
  b.set_name("y", b.linear("fc", b.input({4}), {.out_features = 3}));
  EXPECT_THROW(with_gradients(b.take()), UsageError);
}

Graph step_of(const OptimizerOptions& options, std::vector<StateInfo>* states) {
  Example e = example();
  return with_updates(with_gradients(std::move(e.graph)), options, e.parameters, states);
}

TEST(Updates, stand_behind_the_guard_which_looks_at_loss_statistics_and_gradients) {
  for (const std::string& name : optimizer_names()) {
    std::vector<StateInfo> states;
    const Graph graph = step_of({.kind = optimizer_from_name(name), .clip_norm = 1}, &states);
    expect_sound(graph);
    const auto guards = places_of<CheckFinite>(graph);
    ASSERT_EQ(guards.size(), 1u);
    int updates = 0;
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      if (!is_update(graph.nodes[i].op)) continue;
      ++updates;
      EXPECT_GT(i, guards[0]) << name << ": " << graph.nodes[i].name;
    }
    EXPECT_EQ(updates, 2 + 8) << name;  // running statistics, parameters
    const auto& checked = graph.nodes[guards[0]].inputs;
    const std::set<ValueId> all(checked.begin(), checked.end());
    EXPECT_EQ(all.size(), 1u + 2u + 8u);  // loss, moments, gradients
    EXPECT_TRUE(all.count(graph.find("loss")));
    EXPECT_TRUE(all.count(graph.find("grad:conv1.weight")));
  }
}

TEST(Updates, list_the_states_of_their_optimizer) {
  const std::map<std::string, std::vector<std::string>> expected = {
      {"sgd", {}},          {"momentum", {"momentum"}}, {"nesterov", {"momentum"}}, {"rmsprop", {"square_average"}},
      {"adam", {"m", "v"}}, {"adamw", {"m", "v"}}};
  for (const auto& [name, kinds] : expected) {
    std::vector<StateInfo> states;
    step_of({.kind = optimizer_from_name(name)}, &states);
    ASSERT_EQ(states.size(), kinds.size() * 8) << name;
    for (size_t k = 0; k < kinds.size(); ++k) {
      EXPECT_EQ(states[k].name, "optimizer." + kinds[k] + ".conv1.weight");
      EXPECT_EQ(states[k].shape, (Shape{4, 3, 3, 3}));
    }
  }
}

TEST(Updates, decay_weights_only_unless_asked) {
  for (const bool all : {false, true}) {
    std::vector<StateInfo> states;
    const Graph graph =
        step_of({.kind = OptimizerKind::kAdamW, .weight_decay = 0.5f, .decay_norm_and_bias = all}, &states);
    for (const size_t i : places_of<AdamUpdate>(graph)) {
      const Node& node = graph.nodes[i];
      const std::string& weight = graph.value(node.inputs[0]).name;
      const bool decays = weight == "conv1.weight" || weight == "conv2.weight" || weight == "fc.weight";
      EXPECT_EQ(std::get<AdamUpdate>(node.op).weight_decay, all || decays ? 0.5f : 0.0f) << weight;
      EXPECT_TRUE(std::get<AdamUpdate>(node.op).decoupled);
      EXPECT_EQ(node.inputs[1], graph.find("grad:" + weight));
    }
  }
}

TEST(Updates, read_the_clipping_factor_when_there_is_one) {
  std::vector<StateInfo> states;
  const Graph clipped = step_of({.kind = OptimizerKind::kSgd, .clip_norm = 2}, &states);
  const auto clips = places_of<ClipByNorm>(clipped);
  ASSERT_EQ(clips.size(), 1u);
  EXPECT_EQ(clipped.nodes[clips[0]].inputs.size(), 8u);
  for (const size_t i : places_of<SgdUpdate>(clipped))
    EXPECT_EQ(clipped.nodes[i].inputs[2], clipped.nodes[clips[0]].outputs[0]);
  const Graph plain = step_of({.kind = OptimizerKind::kSgd}, &states);
  EXPECT_TRUE(places_of<ClipByNorm>(plain).empty());
  for (const size_t i : places_of<SgdUpdate>(plain)) EXPECT_EQ(plain.nodes[i].inputs[2], kNoValue);
}

TEST(Updates, an_unknown_optimizer_is_answered_with_the_closest_name) {
  try {
    optimizer_from_name("adamm");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'adam'"), std::string::npos) << error.what();
  }
  for (const std::string& name : optimizer_names()) EXPECT_EQ(name_of(optimizer_from_name(name)), name);
}

}  // namespace
}  // namespace evenkeel
