// Steps of the zoo with few examples in work at a time, and with values in a file: the step of the undivided batch, to the bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan_check.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;
using Bits = std::map<std::string, std::vector<std::byte>>;

constexpr int64_t kMicroBatches[] = {8, 16, 32};
constexpr int64_t kBatches[] = {24, 64, 67};

const std::vector<std::string>& models() {
  static const std::vector<std::string> names = {"mlp", "cnn", "cnn-gap", "resnet20"};
  return names;
}

ModelSpec spec_of(const std::string& name) {
  return zoo_model(name, name == "resnet20" ? Shape{3, 16, 16} : Shape{1, 28, 28}, 10);
}

// A network of the zoo, its graph of a training step, and its first weights.
struct Step {
  explicit Step(const std::string& name) : spec(spec_of(name)) {
    const Network network = build_network(spec, Mode::kTrain);
    graph = with_updates(with_gradients(network.graph), {}, network.parameters, &states);
    initialize(network, 1, &store);
    for (const StateInfo& state : states) store.add(state.name, Tensor(DType::kF32, state.shape));
  }
  size_t needs(const PlanOptions& options) const {
    return memory_of(make_plan(graph, options), options.threads).total();
  }
  // Of a step that keeps all of it in memory, as little as that is without another rounding.
  size_t least_unspilled(PlanOptions options) const {
    options.recompute = Recompute::kAll;
    return needs(options);
  }

  ModelSpec spec;
  Graph graph;
  std::vector<StateInfo> states;
  ParameterStore store;
};

struct Examples {
  Examples(const ModelSpec& spec, int64_t count) : n(count) {
    RandomStream random(7, RandomUse::kCorrupt);
    x.resize(static_cast<size_t>(n * element_count(spec.input)));
    for (float& value : x) value = static_cast<float>(random.next_normal());
    for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>(i * i % spec.classes));
  }
  RunArguments arguments(int64_t step) const {
    return {.x = x.data(), .labels = labels.data(), .n = n, .learning_rate = 1e-2, .step = step};
  }
  int64_t n;
  std::vector<float> x;
  std::vector<int32_t> labels;
};

void put(Bits& bits, const std::string& name, const void* data, size_t bytes) {
  const auto* first = static_cast<const std::byte*>(data);
  bits[name].assign(first, first + bytes);
}

// Loss, logits, gradients, parameters, running statistics and states after that many steps from the first weights.
Bits outcome_of(const std::string& model, const Examples& examples, const PlanOptions& options,
                const std::string& folder = "", int64_t steps = 1) {
  Step step(model);
  Plan plan = make_plan(step.graph, options);
  EXPECT_EQ(plan.spill_bytes > 0, !folder.empty()) << model;
  const auto executable = cpu_backend(options.threads, folder)->compile(std::move(plan), step.store);
  for (int64_t i = 1; i <= steps; ++i) EXPECT_TRUE(executable->run(examples.arguments(i)).finite) << model;
  Bits bits;
  for (const auto& [name, id] : executable->plan().graph.named) {
    if (executable->plan().graph.value(id).element == Element::kF64) {
      const double scalar = executable->scalar(name);
      put(bits, name, &scalar, sizeof scalar);
    } else if (executable->plan().graph.value(id).element == Element::kF32) {
      const Tensor tensor = executable->read(name);
      put(bits, name, tensor.raw(), tensor.bytes());
    }
  }
  for (const auto& [name, tensor] : step.store.tensors()) put(bits, name, tensor.raw(), tensor.bytes());
  return bits;
}

std::string first_difference(const Bits& a, const Bits& b) {
  if (a.size() != b.size()) return "other names";
  for (const auto& [name, bytes] : a) {
    const auto other = b.find(name);
    if (other == b.end() || other->second != bytes) return name;
  }
  return "";
}

// Gradients, too: a micro-batch changes who works at a time, not what is summed in which order.
TEST(MicroBatch, has_the_bits_of_the_undivided_batch_for_any_number_of_threads) {
  for (const std::string& model : models()) {
    for (const int64_t batch : kBatches) {
      const Examples examples(spec_of(model), batch);
      const Bits undivided = outcome_of(model, examples, {.batch = batch, .threads = 2});
      ASSERT_TRUE(undivided.contains("loss") && undivided.contains("logits"));
      for (const int64_t micro_batch : kMicroBatches) {
        for (const int threads : {1, 2, 3}) {
          const PlanOptions options{.batch = batch, .threads = threads, .micro_batch = micro_batch};
          EXPECT_EQ(first_difference(outcome_of(model, examples, options), undivided), "")
              << model << ", " << micro_batch << " of " << batch << ", " << threads << " threads";
        }
      }
    }
  }
}

TEST(MicroBatch, has_the_bits_of_the_undivided_batch_after_several_steps) {
  for (const std::string& model : models()) {
    const Examples examples(spec_of(model), 24);
    const Bits undivided = outcome_of(model, examples, {.batch = 24, .threads = 2}, "", 5);
    const PlanOptions options{.batch = 24, .threads = 2, .micro_batch = 8};
    EXPECT_EQ(first_difference(outcome_of(model, examples, options, "", 5), undivided), "") << model;
  }
}

TEST(MicroBatch, never_has_more_examples_in_scratch_memory_than_it_says) {
  for (const std::string& model : models()) {
    const Step step(model);
    for (const int64_t micro_batch : {8, 16, 24, 64}) {
      for (const int64_t tile : {0, 1, 3, 20, 64}) {
        const Plan plan = make_plan(step.graph, {.batch = 67, .tile = tile, .micro_batch = micro_batch});
        EXPECT_EQ(first_fault_of(plan), "") << model;
        for (const int threads : {1, 2, 3, 16}) {
          ASSERT_GE(tile_threads(plan, threads), 1);
          for (const Phase& phase : plan.phases) {
            EXPECT_LE(phase.tile, micro_batch);
            EXPECT_LE(phase.chunk * tile_threads(plan, threads), micro_batch) << model << ", " << threads << " threads";
          }
          for (size_t id = 0; id < plan.scratch_rows.size(); ++id)
            EXPECT_LE(plan.scratch_rows[id] * tile_threads(plan, threads), micro_batch) << model;
        }
      }
    }
  }
}

TEST(MicroBatch, needs_less_memory_the_smaller_it_is) {
  for (const std::string model : {"cnn", "cnn-gap", "resnet20"}) {
    const Step step(model);
    size_t last = step.needs({.batch = 64, .threads = 8});
    EXPECT_EQ(step.needs({.batch = 64, .threads = 8, .micro_batch = 64}), last) << model;
    for (const int64_t micro_batch : {32, 16, 8}) {
      const size_t needs = step.needs({.batch = 64, .threads = 8, .micro_batch = micro_batch});
      EXPECT_LT(needs, last) << model << ", " << micro_batch;
      last = needs;
    }
  }
}

TEST(MicroBatch, is_refused_unless_it_is_whole_blocks_and_the_message_says_which_would_do) {
  const Step step("mlp");
  const auto message_for = [&](int64_t micro_batch) -> std::string {
    try {
      make_plan(step.graph, {.batch = 64, .micro_batch = micro_batch});
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message_for(13), HasSubstr("found 13; use 8 or 16"));
  EXPECT_THAT(message_for(3), HasSubstr("found 3; use 8"));
  EXPECT_THAT(message_for(-8), HasSubstr("found -8"));
  EXPECT_EQ(message_for(8), "");
}

// --- spilling ---

std::vector<int64_t> tiles_of(const Plan& plan) {
  std::vector<int64_t> tiles;
  for (const Phase& phase : plan.phases) tiles.push_back(phase.tile);
  return tiles;
}

// Budgets that the undivided batch exceeds, but not by so much that tiles get smaller.
TEST(Spilling, has_the_bits_of_the_step_that_keeps_all_in_memory) {
  const TestFolder folder;
  for (const std::string model : {"cnn", "cnn-gap", "resnet20"}) {
    for (const int64_t batch : {64, 67}) {
      const Examples examples(spec_of(model), batch);
      const PlanOptions undivided{.batch = batch, .threads = 2};
      const Bits kept = outcome_of(model, examples, undivided, "", 2);
      const Step step(model);
      const std::vector<int64_t> tiles = tiles_of(make_plan(step.graph, undivided));
      for (const int64_t micro_batch : {0, 16}) {
        for (const int threads : {1, 3}) {
          PlanOptions options{.batch = batch, .threads = threads, .micro_batch = micro_batch};
          const size_t least = step.least_unspilled(options);
          options.spill = true;
          for (const size_t percent : {size_t{98}, size_t{90}}) {
            options.memory_bytes = least * percent / 100;
            ASSERT_EQ(tiles_of(make_plan(step.graph, options)), tiles) << model << ": another rounding";
            EXPECT_EQ(first_difference(outcome_of(model, examples, options, folder.path(), 2), kept), "")
                << model << ", " << batch << ", micro-batch " << micro_batch << ", " << threads << " threads, "
                << percent;
          }
        }
      }
    }
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(Spilling, takes_runs_of_fewer_examples_than_planned) {
  const TestFolder folder;
  for (const std::string model : {"cnn", "resnet20"}) {
    PlanOptions options{.batch = 64, .threads = 2};
    for (const int64_t n : {64, 24, 13}) {
      const Examples examples(spec_of(model), n);
      const Bits kept = outcome_of(model, examples, options, "", 2);
      PlanOptions spilling = options;
      spilling.spill = true;
      spilling.memory_bytes = Step(model).least_unspilled(options) * 8 / 10;
      EXPECT_EQ(first_difference(outcome_of(model, examples, spilling, folder.path(), 2), kept), "") << model << n;
    }
  }
}

TEST(Spilling, keeps_to_a_budget_that_the_undivided_batch_exceeds_before_tiles_get_smaller) {
  for (const std::string model : {"cnn", "cnn-gap", "resnet20"}) {
    const Step step(model);
    PlanOptions options{.batch = 512, .threads = 2};
    const Plan liked = make_plan(step.graph, options);
    const size_t least = step.least_unspilled(options);
    for (const size_t percent : {size_t{90}, size_t{50}, size_t{30}}) {
      options.memory_bytes = least * percent / 100;
      options.spill = false;
      EXPECT_THROW(make_plan(step.graph, options), UsageError) << model << ": there is nothing to test";
      options.spill = true;
      const Plan plan = make_plan(step.graph, options);
      const PlanMemory memory = memory_of(plan, 2);
      EXPECT_LE(memory.total(), options.memory_bytes) << model;
      EXPECT_GT(memory.spilled, 0u) << model;
      EXPECT_EQ(first_fault_of(plan), "") << model;
      EXPECT_EQ(tiles_of(plan), tiles_of(liked)) << model;
      const auto x = static_cast<size_t>(plan.graph.find("x"));
      EXPECT_EQ(plan.offset[x] == kNotInArena, !plan.spilled[x]) << model;
    }
  }
}

TEST(Spilling, spills_nothing_where_all_fits_and_where_recomputing_is_enough) {
  const Step step("cnn");
  PlanOptions options{.batch = 128, .threads = 2};
  const size_t liked = step.needs(options);
  options.spill = true;
  for (const size_t budget : {liked, step.least_unspilled({.batch = 128, .threads = 2})}) {
    options.memory_bytes = budget;
    EXPECT_EQ(make_plan(step.graph, options).spill_bytes, 0u) << budget;
  }
  options.memory_bytes -= 1;
  EXPECT_GT(make_plan(step.graph, options).spill_bytes, 0u);
}

TEST(Spilling, refuses_what_does_not_fit_with_all_of_it_spilled) {
  const Step step("cnn");
  EXPECT_THROW(make_plan(step.graph, {.batch = 128, .memory_bytes = size_t{5} << 20, .threads = 2, .spill = true}),
               UsageError);
}

TEST(Spilling, names_the_first_value_that_is_not_finite_and_traces_a_step) {
  const TestFolder folder;
  const Examples examples(spec_of("cnn"), 64);
  std::string names[2];
  double losses[2] = {};
  for (const bool spilling : {false, true}) {
    Step step("cnn");
    PlanOptions options{.batch = 64, .threads = 2, .spill = spilling};
    if (spilling) options.memory_bytes = step.least_unspilled(options) * 8 / 10;
    Plan plan = make_plan(step.graph, options);
    ASSERT_EQ(plan.spill_bytes > 0, spilling);
    const auto executable = cpu_backend(2, folder.path())->compile(std::move(plan), step.store);
    EXPECT_TRUE(executable->trace(examples.arguments(1)).finite);
    losses[spilling] = executable->scalar("loss");
    // 3e38 * 3e38 overflows where the second convolution adds up.
    for (const char* name : {"conv2.weight", "bn1.weight"}) {
      for (float& w : step.store.writable(name).values<float>()) w = 3e38f;
    }
    step.store.touch();
    EXPECT_FALSE(executable->run(examples.arguments(2)).finite);
    names[spilling] = executable->first_nonfinite(examples.arguments(2));
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_NE(names[0], "");
  EXPECT_EQ(names[0], names[1]);
}

}  // namespace
}  // namespace evenkeel
