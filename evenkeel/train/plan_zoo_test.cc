// Plans of the networks of the zoo: sound, within a budget of memory, and true about what they need.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan_check.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

constexpr Recompute kChoices[] = {Recompute::kNothing, Recompute::kCheap, Recompute::kAll};

ModelSpec spec_of(const std::string& name) {
  const bool color = name.starts_with("resnet") || name == "vgg11";
  return zoo_model(name, color ? Shape{3, 32, 32} : Shape{1, 28, 28}, 10);
}

struct Step {
  Network network;
  std::vector<StateInfo> states;
  Graph graph;
};

Step step_of(const std::string& name) {
  Step step;
  step.network = build_network(spec_of(name), Mode::kTrain);
  step.graph = with_updates(with_gradients(step.network.graph), {}, step.network.parameters, &step.states);
  return step;
}

size_t needs(const Plan& plan, int threads) { return memory_of(plan, threads).total(); }

TEST(PlanOfTheZoo, overwrites_nothing_that_is_needed_for_any_tile_and_any_recomputation) {
  for (const std::string& name : zoo_names()) {
    const Graph graph = step_of(name).graph;
    for (const int64_t tile : {0, 1, 3, 20}) {
      for (const Recompute recompute : kChoices) {
        const Plan plan = make_plan(graph, {.batch = 20, .tile = tile, .recompute = recompute});
        EXPECT_EQ(first_fault_of(plan), "")
            << name << ", tile " << tile << ", recompute " << static_cast<int>(recompute);
      }
    }
  }
}

TEST(PlanOfTheZoo, needs_no_more_memory_the_more_it_makes_again) {
  for (const std::string& name : zoo_names()) {
    const Graph graph = step_of(name).graph;
    const size_t nothing = make_plan(graph, {.batch = 128, .recompute = Recompute::kNothing}).arena_bytes;
    const size_t cheap = make_plan(graph, {.batch = 128, .recompute = Recompute::kCheap}).arena_bytes;
    const size_t all = make_plan(graph, {.batch = 128, .recompute = Recompute::kAll}).arena_bytes;
    EXPECT_LE(cheap, nothing) << name;
    EXPECT_LE(all, cheap) << name;
    const bool pools = name == "cnn" || name == "cnn-gap" || name == "lenet" || name == "vgg11";
    if (pools) {
      EXPECT_LT(all, cheap) << name << ": the pools are made again";
    }
  }
}

TEST(PlanOfTheZoo, keeps_to_a_budget_just_below_what_it_would_like) {
  for (const std::string& name : zoo_names()) {
    const Graph graph = step_of(name).graph;
    for (const Recompute recompute : kChoices) {
      PlanOptions options{.batch = 128, .recompute = recompute, .threads = 2};
      const size_t liked = needs(make_plan(graph, options), 2);
      options.memory_bytes = liked;
      EXPECT_EQ(needs(make_plan(graph, options), 2), liked) << name << ": what it likes is allowed";
      options.memory_bytes = liked - 1;
      PlanOptions smallest{.batch = 128, .tile = 1, .recompute = Recompute::kAll, .threads = 2};
      if (needs(make_plan(graph, smallest), 2) > options.memory_bytes) continue;  // nothing is smaller
      const Plan plan = make_plan(graph, options);
      EXPECT_LE(needs(plan, 2), options.memory_bytes) << name;
      EXPECT_EQ(first_fault_of(plan), "") << name;
    }
  }
}

// The networks with norms and pools between convolutions have something to give.
TEST(PlanOfTheZoo, has_a_smaller_plan_where_there_is_something_to_make_again) {
  for (const std::string name : {"cnn", "cnn-gap", "lenet", "resnet20"}) {
    const Graph graph = step_of(name).graph;
    const size_t liked = needs(make_plan(graph, {.batch = 128, .recompute = Recompute::kNothing, .threads = 2}), 2);
    const Plan plan = make_plan(
        graph, {.batch = 128, .recompute = Recompute::kNothing, .memory_bytes = liked - (liked >> 4), .threads = 2});
    EXPECT_LE(needs(plan, 2), liked - (liked >> 4)) << name;
  }
}

TEST(PlanOfTheZoo, refuses_an_impossible_budget_and_says_by_how_much) {
  const Graph graph = step_of("cnn").graph;
  const size_t least =
      needs(make_plan(graph, {.batch = 128, .tile = 1, .recompute = Recompute::kAll, .threads = 2}), 2);
  try {
    make_plan(graph, {.batch = 128, .memory_bytes = size_t{5} << 20, .threads = 2});
    FAIL() << "nothing was thrown";
  } catch (const UsageError& error) {
    constexpr size_t kMebi = 1 << 20;
    const auto megabytes = [](size_t bytes) { return std::to_string((bytes + kMebi - 1) / kMebi) + " MiB"; };
    EXPECT_THAT(error.what(), HasSubstr("a step over 128 examples needs"));
    EXPECT_THAT(error.what(), HasSubstr("more than the 5 MiB allowed"));
    EXPECT_THAT(error.what(), HasSubstr(megabytes(least)));
    EXPECT_THAT(error.what(), HasSubstr(megabytes(least - 5 * kMebi)));
  }
}

// Packed weights are padded to the blocks of oneDNN's layouts, which the plan does not know: 15 %.
TEST(PlanOfTheZoo, tells_the_memory_of_its_executable) {
  for (const std::string& name : zoo_names()) {
    const Step step = step_of(name);
    for (const int threads : {1, 2}) {
      ParameterStore store;
      initialize(step.network, 1, &store);
      for (const StateInfo& state : step.states) store.add(state.name, Tensor(DType::kF32, state.shape));
      Plan plan = make_plan(step.graph, {.batch = 128, .threads = threads});
      const PlanMemory memory = memory_of(plan, threads);
      const auto told = static_cast<double>(memory.total() - memory.parameters);
      const auto executable = cpu_backend(threads)->compile(std::move(plan), store);
      EXPECT_NEAR(static_cast<double>(executable->memory_bytes()), told, 0.15 * told)
          << name << ", " << threads << " threads";
      size_t stored = 0;
      for (const auto& [key, tensor] : store.tensors()) stored += tensor.bytes();
      EXPECT_EQ(memory.parameters, stored) << name;
    }
  }
}

}  // namespace
}  // namespace evenkeel
