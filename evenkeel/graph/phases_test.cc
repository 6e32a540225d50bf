#include "evenkeel/graph/phases.h"

#include <algorithm>
#include <map>

#include <gtest/gtest.h>

#include "evenkeel/graph/autodiff.h"

namespace evenkeel {
namespace {

constexpr Recompute kChoices[] = {Recompute::kNothing, Recompute::kCheap, Recompute::kAll};
const Activation kRelu{ActivationKind::kRelu};

ValueId convolution(GraphBuilder& b, ValueId x, const std::string& number) {
  x = b.conv("conv" + number, x, {.out_channels = 4, .padding = 1, .bias = false});
  return b.activate("relu" + number, b.batch_norm("bn" + number, x, {}), kRelu);
}

Graph finish(GraphBuilder& b, ValueId x) {
  x = b.linear("fc", b.global_average_pool("gap", x), {.out_features = 3});
  b.set_name("logits", x);
  if (b.trains()) b.softmax_cross_entropy(x, b.labels(), 0);
  return b.take();
}

// conv - norm - relu - max-pool - conv - norm - relu - global pool - linear.
Graph chain(Mode mode) {
  GraphBuilder b(mode);
  const ValueId x = b.max_pool("pool1", convolution(b, b.input({3, 8, 8}), "1"), {});
  return finish(b, convolution(b, x, "2"));
}

// A residual block around conv2, with a layer behind it.
Graph block(Mode mode) {
  GraphBuilder b(mode);
  const ValueId x = convolution(b, b.input({3, 8, 8}), "1");
  const ValueId y = b.batch_norm("bn2", b.conv("conv2", x, {.out_channels = 4, .padding = 1, .bias = false}), {});
  return finish(b, convolution(b, b.activate("relu2", b.add("add", y, x), kRelu), "3"));
}

Graph step_of(Graph forward) {
  std::vector<ParameterInfo> parameters;
  for (const Value& value : forward.values) {
    if (value.role == Role::kParameter) parameters.push_back({.name = value.name, .shape = value.shape});
  }
  std::vector<StateInfo> states;
  return with_updates(with_gradients(std::move(forward)), {.kind = OptimizerKind::kMomentum}, parameters, &states);
}

std::string names_of(const Graph& graph, const std::vector<int32_t>& nodes) {
  std::string text;
  for (const int32_t i : nodes) text += (text.empty() ? "" : " ") + graph.nodes[static_cast<size_t>(i)].name;
  return text;
}

// "before : tiles : after"
std::string names_of(const PhasedGraph& phased, size_t phase) {
  const PhaseNodes& nodes = phased.phases.at(phase);
  return names_of(phased.graph, nodes.before) + " : " + names_of(phased.graph, nodes.tiles) + " : " +
         names_of(phased.graph, nodes.after);
}

// 3 * phase + stage at which each node runs, by its index.
std::vector<int64_t> times_of(const PhasedGraph& phased) {
  std::vector<int64_t> times(phased.graph.nodes.size(), -1);
  for (size_t p = 0; p < phased.phases.size(); ++p) {
    int64_t time = static_cast<int64_t>(3 * p);
    for (const auto* list : {&phased.phases[p].before, &phased.phases[p].tiles, &phased.phases[p].after}) {
      for (const int32_t i : *list) times[static_cast<size_t>(i)] = time;
      ++time;
    }
  }
  return times;
}

// How often a node of that operation runs.
template <class T>
int64_t runs_of(const Graph& graph) {
  return std::count_if(graph.nodes.begin(), graph.nodes.end(),
                       [](const Node& node) { return std::holds_alternative<T>(node.op); });
}

const Node& node_named(const Graph& graph, const std::string& name) {
  const auto found =
      std::find_if(graph.nodes.begin(), graph.nodes.end(), [&](const Node& node) { return node.name == name; });
  EXPECT_NE(found, graph.nodes.end()) << name;
  return *found;
}

bool is_kept(const PhasedGraph& phased, const std::string& node) {
  return phased.kept[static_cast<size_t>(node_named(phased.graph, node).outputs[0])];
}

TEST(Phases, end_where_the_statistics_of_the_batch_are_needed) {
  const PhasedGraph phased = cut_into_phases(chain(Mode::kTrain), Recompute::kCheap);
  ASSERT_GE(phased.phases.size(), 3u);
  EXPECT_EQ(names_of(phased, 0), " : conv1 bn1.moments : ");
  EXPECT_EQ(names_of(phased, 1), "bn1.scale : bn1 pool1 conv2 bn2.moments : ");
  EXPECT_EQ(names_of(phased, 2), "bn2.scale : bn2 gap fc.flatten fc softmax_cross_entropy : ");
}

TEST(Phases, of_a_network_without_statistics_are_one) {
  for (const Graph& graph : {chain(Mode::kInference), block(Mode::kInference)}) {
    for (const Recompute recompute : kChoices) {
      const PhasedGraph phased = cut_into_phases(graph, recompute);
      EXPECT_TRUE(phased.phases[0].after.empty());
      for (size_t p = 1; p < phased.phases.size(); ++p) EXPECT_EQ(names_of(phased, p), " :  : ");
      EXPECT_EQ(phased.graph.nodes.size(), graph.nodes.size()) << "nothing is made again";
      for (size_t id = 0; id < phased.kept.size(); ++id) {
        EXPECT_EQ(phased.kept[id] && phased.graph.values[id].role == Role::kComputed,
                  static_cast<ValueId>(id) == phased.graph.find("logits"))
            << phased.graph.values[id].name;
      }
    }
  }
}

TEST(Phases, values_are_read_after_they_are_made_and_those_of_a_reduction_after_its_tiles) {
  for (const Graph& graph : {chain(Mode::kTrain), block(Mode::kTrain)}) {
    for (const Recompute recompute : kChoices) {
      const PhasedGraph phased = cut_into_phases(step_of(graph), recompute);
      const std::vector<int64_t> times = times_of(phased);
      std::vector<int64_t> made(phased.graph.values.size(), -1);
      for (size_t i = 0; i < times.size(); ++i) {
        const Node& node = phased.graph.nodes[i];
        ASSERT_GE(times[i], 0) << node.name;
        const bool reduces = walk_of(phased.graph, node) == Walk::kReduce;
        for (const ValueId id : node.outputs) {
          if (id != kNoValue) made[static_cast<size_t>(id)] = times[i] + (reduces ? 1 : 0);
        }
      }
      for (size_t i = 0; i < times.size(); ++i) {
        for (const ValueId id : phased.graph.nodes[i].inputs) {
          if (id == kNoValue) continue;
          EXPECT_LE(made[static_cast<size_t>(id)], times[i])
              << phased.graph.nodes[i].name << " reads " << phased.graph.value(id).name;
        }
      }
    }
  }
}

TEST(Phases, values_that_are_not_kept_are_read_by_the_tiles_that_make_them_only) {
  for (const Graph& graph : {chain(Mode::kTrain), block(Mode::kTrain)}) {
    for (const Recompute recompute : kChoices) {
      const PhasedGraph phased = cut_into_phases(step_of(graph), recompute);
      const std::vector<int64_t> times = times_of(phased);
      std::vector<int64_t> made(phased.graph.values.size(), -1);
      for (size_t i = 0; i < times.size(); ++i) {
        for (const ValueId id : phased.graph.nodes[i].outputs) {
          if (id != kNoValue) made[static_cast<size_t>(id)] = times[i];
        }
      }
      for (size_t i = 0; i < times.size(); ++i) {
        for (const ValueId id : phased.graph.nodes[i].inputs) {
          if (id == kNoValue || !phased.graph.value(id).batched || phased.graph.value(id).role != Role::kComputed ||
              phased.kept[static_cast<size_t>(id)])
            continue;
          EXPECT_EQ(made[static_cast<size_t>(id)], times[i])
              << phased.graph.nodes[i].name << " reads " << phased.graph.value(id).name;
        }
      }
    }
  }
}

TEST(Phases, make_again_what_is_cheap_and_no_product) {
  const Graph graph = step_of(chain(Mode::kTrain));
  const PhasedGraph nothing = cut_into_phases(graph, Recompute::kNothing);
  const PhasedGraph cheap = cut_into_phases(graph, Recompute::kCheap);
  const PhasedGraph all = cut_into_phases(graph, Recompute::kAll);
  EXPECT_EQ(nothing.graph.nodes.size(), graph.nodes.size());
  EXPECT_EQ(runs_of<MaxPool>(cheap.graph), 1);
  EXPECT_GT(runs_of<MaxPoolGradient>(cheap.graph), 1) << "eight bytes of it for two that it is made from";
  for (const PhasedGraph* phased : {&nothing, &cheap, &all}) {
    EXPECT_EQ(runs_of<Conv>(phased->graph), 2);
    EXPECT_EQ(runs_of<ConvGradInput>(phased->graph), 1);
    EXPECT_EQ(runs_of<ConvGradWeight>(phased->graph), 2);
    EXPECT_EQ(runs_of<Gemm>(phased->graph), 1);
    EXPECT_EQ(runs_of<NormGradientSums>(phased->graph), 2);
  }
}

// The pool's input is made again for conv2 in any case, so that the pool needs nothing kept for it.
TEST(Phases, make_a_pool_again_only_when_all_may_be) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = convolution(b, b.input({3, 8, 8}), "1");
  const ValueId y = convolution(b, b.max_pool("pool1", x, {}), "3");
  const Graph graph = step_of(finish(b, b.add("add", b.max_pool("pool2", convolution(b, x, "2"), {}), y)));
  const auto runs = [&](Recompute recompute) {
    const PhasedGraph phased = cut_into_phases(graph, recompute);
    return std::count_if(phased.graph.nodes.begin(), phased.graph.nodes.end(),
                         [](const Node& node) { return node.name == "pool1"; });
  };
  EXPECT_EQ(runs(Recompute::kNothing), 1);
  EXPECT_EQ(runs(Recompute::kCheap), 1);
  EXPECT_EQ(runs(Recompute::kAll), 2);
}

// Nothing else reads the norm between conv1 and the pool later: it is made again from what conv1 made, which is kept for its gradient.
TEST(Phases, make_the_norm_before_a_pool_again_for_the_pool) {
  const Graph graph = step_of(chain(Mode::kTrain));
  const PhasedGraph cheap = cut_into_phases(graph, Recompute::kCheap), all = cut_into_phases(graph, Recompute::kAll);
  EXPECT_TRUE(is_kept(cheap, "pool1"));
  EXPECT_FALSE(is_kept(all, "pool1"));
  EXPECT_FALSE(is_kept(all, "bn1"));
  EXPECT_TRUE(is_kept(all, "conv1"));
  EXPECT_GT(runs_of<Normalize>(all.graph), 2);
  EXPECT_GT(runs_of<MaxPool>(all.graph), 1);
}

// The convolution's output is kept for the norm's gradient anyway, so that its normalized form costs nothing but the work.
TEST(Phases, keep_the_input_of_a_norm_and_make_its_output_again) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = convolution(b, b.input({3, 8, 8}), "1");
  const Graph graph = step_of(finish(b, convolution(b, x, "2")));
  const PhasedGraph phased = cut_into_phases(graph, Recompute::kCheap);
  EXPECT_TRUE(is_kept(phased, "conv1"));
  EXPECT_TRUE(is_kept(phased, "conv2"));
  EXPECT_FALSE(is_kept(phased, "bn1"));
  const auto copies = std::count_if(phased.graph.nodes.begin(), phased.graph.nodes.end(),
                                    [](const Node& node) { return node.name == "bn1"; });
  EXPECT_EQ(copies, 2) << "for conv2, and for the gradient of its weight";
  const PhasedGraph kept = cut_into_phases(graph, Recompute::kNothing);
  EXPECT_TRUE(is_kept(kept, "bn1"));
}

// Made again it would need the block before, and so on down to the input.
TEST(Phases, keep_what_a_residual_was_added_to) {
  for (const Recompute recompute : kChoices) {
    const PhasedGraph phased = cut_into_phases(step_of(block(Mode::kTrain)), recompute);
    const Node& sum = node_named(phased.graph, "bn2");
    ASSERT_NE(sum.inputs[4], kNoValue) << "the addition is part of the norm";
    EXPECT_TRUE(is_kept(phased, "bn2"));
    const auto runs = std::count_if(phased.graph.nodes.begin(), phased.graph.nodes.end(),
                                    [](const Node& node) { return node.name == "bn2"; });
    EXPECT_EQ(runs, 1);
  }
}

TEST(Phases, commit_at_the_very_end_in_the_order_of_the_graph) {
  const Graph graph = step_of(chain(Mode::kTrain));
  const PhasedGraph phased = cut_into_phases(graph, Recompute::kCheap);
  std::vector<std::string> expected, found;
  bool guarded = false;
  for (const Node& node : graph.nodes) {
    guarded = guarded || std::holds_alternative<CheckFinite>(node.op);
    if (guarded) expected.push_back(node.name);
  }
  EXPECT_TRUE(phased.phases.back().tiles.empty());
  EXPECT_TRUE(phased.phases.back().after.empty());
  for (const int32_t i : phased.phases.back().before) found.push_back(phased.graph.nodes[static_cast<size_t>(i)].name);
  ASSERT_GE(found.size(), expected.size());
  EXPECT_EQ(std::vector<std::string>(found.end() - static_cast<int64_t>(expected.size()), found.end()), expected);
}

TEST(Phases, of_a_large_weight_over_few_positions_take_its_gradient_from_the_whole_batch) {
  const Shape small{64, 4, 4}, large{64, 14, 14};
  EXPECT_EQ(gradient_groups(small, 64 * 64 * 9), 0);
  EXPECT_EQ(gradient_groups(large, 64 * 64 * 9), 16);
  EXPECT_EQ(gradient_groups(large, 512 * 1024), 8);
  EXPECT_EQ(gradient_groups(large, 512 * 512 * 9), 0);
  EXPECT_EQ(gradient_groups(small, 16 * 16 * 9), 16);
}

}  // namespace
}  // namespace evenkeel
