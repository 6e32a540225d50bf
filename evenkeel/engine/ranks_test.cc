// A step whose batch is shared by several ranks: the same bits as in one process, right gradients, and what ranks that share no statistics do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>

#include "evenkeel/comm/thread_ranks.h"
#include "evenkeel/engine/engine_testing.h"
#include "evenkeel/graph/traffic.h"

namespace evenkeel {
namespace {

constexpr int kRanks[] = {1, 2, 3, 4, 7};

// With a linear layer so large that it is multiplied over the whole batch at once (Walk::kWhole).
std::vector<TestNet> nets() {
  std::vector<TestNet> all = test_nets();
  all.push_back({"wide", {3, 10, 9}, [](GraphBuilder& b, ValueId x, const Activation& hidden) {
                   x = b.linear("fc1", b.flatten("flatten", x), {.out_features = 300, .bias = false});
                   x = b.activate("act1", b.batch_norm("bn1", x, {}), hidden);
                   x = b.linear("fc2", x, {.out_features = 260, .bias = false});
                   x = b.activate("act2", b.batch_norm("bn2", x, {}), hidden);
                   return b.linear("fc3", x, {.out_features = 4});
                 }});
  return all;
}

// What one rank has at the end.
struct Outcome {
  Bits state;       // loss, gradients, parameters, running statistics and states
  Bits statistics;  // of them the loss and the buffers
  Tensor logits;    // of its examples
  bool finite = true;
  std::string fault;
};

struct Trial {
  TestNet net;
  PlanOptions plan;
  int64_t n = 61;
  int64_t steps = 1;
  std::vector<float> weights = {};                      // n, or none
  std::function<void(std::vector<float>&)> spoil = {};  // the inputs of all examples
};

Outcome outcome_of(TestStep& step, const Trial& trial) {
  std::vector<float> x;
  Outcome outcome;
  for (int64_t i = 1; i <= trial.steps; ++i) {
    RunArguments arguments = step.shared_arguments(trial.n, i);
    const int64_t row = element_count(trial.net.input);
    if (trial.spoil) {
      const float* all = arguments.x - arguments.first * row;
      x.assign(all, all + trial.n * row);
      trial.spoil(x);
      arguments.x = x.data() + arguments.first * row;
    }
    if (!trial.weights.empty()) {
      arguments.batch_weights = trial.weights.data();
      arguments.weights = trial.weights.data() + arguments.first;
    }
    outcome.finite = step.executable().run(arguments).finite && outcome.finite;
    if (!outcome.finite) outcome.fault = step.executable().first_nonfinite(arguments);
  }
  outcome.state = step.outcome();
  for (const auto& [name, bytes] : outcome.state) {
    if (name == "loss" || name.find("running_") != std::string::npos || name.find("num_batches") != std::string::npos)
      outcome.statistics[name] = bytes;
  }
  if (step.executable().plan().graph.find("logits") != kNoValue) outcome.logits = step.executable().read("logits");
  return outcome;
}

// Without ranks.
Outcome on_one(const Trial& trial) {
  TestStep step(trial.net, trial.plan, trial.n);
  return outcome_of(step, trial);
}

// On so many threads.
std::vector<Outcome> outcomes(const Trial& trial, int ranks) {
  PlanOptions plan = trial.plan;
  plan.ranks = ranks;
  std::vector<Outcome> all(static_cast<size_t>(ranks));
  run_ranks(ranks, [&](Comm& comm) {
    TestStep step(trial.net, plan, trial.n, Mode::kTrain, ActivationKind::kRelu, Precision::kF32, "", &comm);
    all[static_cast<size_t>(comm.rank())] = outcome_of(step, trial);
  });
  return all;
}

std::vector<float> logits_of(std::span<const Outcome> ranks) {
  std::vector<float> all;
  for (const Outcome& rank : ranks) {
    const auto values = rank.logits.values<float>();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

// ||a - b|| / ||b|| of one tensor.
double distance(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  EXPECT_EQ(a.size(), b.size());
  const auto* x = reinterpret_cast<const float*>(a.data());
  const auto* y = reinterpret_cast<const float*>(b.data());
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size() / sizeof(float); ++i) {
    error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    size += std::pow(static_cast<double>(y[i]), 2);
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

// The same gradients, up to the rounding of their sums. A bias in front of a norm has none but rounding.
void expect_close(const Bits& a, const Bits& b, double tolerance, const std::string& where) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, bytes] : a) {
    if (!name.starts_with("grad:") || name == "grad:conv2.bias") continue;
    EXPECT_LE(distance(bytes, b.at(name)), tolerance) << name << " " << where;
  }
}

void expect_all_alike(const std::vector<Outcome>& ranks) {
  for (const Outcome& rank : ranks) EXPECT_EQ(first_difference(rank.state, ranks.front().state), "");
}

TestNet weighted(TestNet net) {
  net.layers = [layers = net.layers](GraphBuilder& b, ValueId x, const Activation& hidden) {
    b.weights();
    return layers(b, x, hidden);
  };
  return net;
}

TEST(Ranks, one_step_has_the_statistics_and_outputs_of_one_process_to_the_bit) {
  for (const TestNet& net : cpu_products_depend_on_rows() ? test_nets() : nets()) {
    for (const int64_t n : {61, 157}) {
      const Trial trial{.net = net, .plan = {.batch = n + 3}, .n = n};
      const Outcome one = on_one(trial);
      for (const int ranks : kRanks) {
        const std::vector<Outcome> all = outcomes(trial, ranks);
        const std::string where = std::string(net.name) + " on " + std::to_string(ranks) + " ranks";
        expect_all_alike(all);
        EXPECT_EQ(first_difference(all.front().statistics, one.statistics), "") << where;
        EXPECT_EQ(logits_of(all), logits_of(std::span(&one, 1))) << where;
        expect_close(all.front().state, one.state, 2e-6, where);
      }
    }
  }
}

TEST(Ranks, a_deterministic_plan_trains_to_the_same_bits_on_any_number_of_ranks) {
  for (const TestNet& net : nets()) {
    const Trial trial{.net = net, .plan = {.batch = 64, .deterministic = true}, .steps = 3};
    const Outcome one = on_one(trial);
    for (const int ranks : kRanks) {
      const std::vector<Outcome> all = outcomes(trial, ranks);
      expect_all_alike(all);
      EXPECT_EQ(first_difference(all.front().state, one.state), "") << net.name << " on " << ranks << " ranks";
    }
    // Another sum of the same numbers.
    Trial other = trial;
    other.plan.deterministic = false;
    other.steps = 1;
    Trial first = trial;
    first.steps = 1;
    expect_close(on_one(first).state, on_one(other).state, 2e-6, net.name);
  }
}

TEST(Ranks, may_have_no_example_of_a_small_batch) {
  for (const TestNet& net : test_nets()) {
    for (const bool deterministic : {false, true}) {
      for (const int64_t n : {3, 9, 17}) {
        // The plan is that of a larger batch: ranks behind the first blocks are idle.
        const Trial trial{.net = net, .plan = {.batch = 64, .deterministic = deterministic}, .n = n};
        const Outcome one = on_one(trial);
        const std::vector<Outcome> all = outcomes(trial, 4);
        expect_all_alike(all);
        EXPECT_EQ(first_difference(all.front().statistics, one.statistics), "") << net.name << " " << n;
        EXPECT_EQ(logits_of(all), logits_of(std::span(&one, 1)));
        if (deterministic) {
          EXPECT_EQ(first_difference(all.front().state, one.state), "") << net.name << " " << n;
        }
        expect_close(all.front().state, one.state, 2e-6, net.name);
      }
    }
  }
}

TEST(Ranks, weights_of_examples_count_over_all_ranks_and_may_mask_all_of_one) {
  for (const TestNet& plain : {test_nets()[0], test_nets()[1]}) {
    Trial trial{.net = weighted(plain), .plan = {.batch = 64, .deterministic = true}};
    for (int64_t i = 0; i < trial.n; ++i)  // on 4 ranks the second has no example that counts
      trial.weights.push_back(i >= 16 && i < 32 ? 0.0f : static_cast<float>(i % 4) * 0.5f);
    const Outcome one = on_one(trial);
    ASSERT_TRUE(one.finite);
    for (const int ranks : kRanks) {
      const std::vector<Outcome> all = outcomes(trial, ranks);
      expect_all_alike(all);
      EXPECT_EQ(first_difference(all.front().state, one.state), "") << plain.name << " on " << ranks << " ranks";
    }
  }
}

TEST(Ranks, a_batch_without_weight_is_refused_on_all) {
  Trial trial{.net = weighted(test_nets()[0]), .plan = {.batch = 64}};
  trial.weights.assign(static_cast<size_t>(trial.n), 0.0f);
  for (const Outcome& rank : outcomes(trial, 3)) {
    EXPECT_FALSE(rank.finite);
    EXPECT_EQ(rank.fault, "weights (all are 0: a fully masked batch)");
  }
}

TEST(Ranks, what_is_not_finite_on_one_is_named_on_all_and_nothing_is_updated) {
  Trial trial{.net = test_nets()[1], .plan = {.batch = 64}};
  const int64_t row = element_count(trial.net.input);
  trial.spoil = [&](std::vector<float>& x) {
    x[static_cast<size_t>(40 * row)] = std::numeric_limits<float>::quiet_NaN();
  };
  for (const Outcome& rank : outcomes(trial, 4)) {
    EXPECT_FALSE(rank.finite);
    EXPECT_EQ(rank.fault, "x (the input) on rank 2 (host2)");
  }
  // Finite inputs that overflow in a layer.
  trial.spoil = [&](std::vector<float>& x) {
    for (int64_t i = 0; i < row; ++i) x[static_cast<size_t>(40 * row + i)] = i % 2 == 0 ? 3e38f : -3e38f;
  };
  const std::vector<Outcome> all = outcomes(trial, 4);
  expect_all_alike(all);
  for (const Outcome& rank : all) {
    EXPECT_FALSE(rank.finite);
    EXPECT_THAT(rank.fault, testing::AllOf(testing::HasSubstr("conv1"), testing::HasSubstr("on rank 2 (host2)")));
  }
}

TestNet ghosts(int64_t ghost) {
  return {"ghosts", {3, 10, 9}, [ghost](GraphBuilder& b, ValueId x, const Activation& hidden) {
            const auto norm = [&](const std::string& name, ValueId v) {
              return b.activate(name + ".act", b.batch_norm(name, v, {.ghost_batch = ghost}), hidden);
            };
            x = norm("bn1", b.conv("conv1", x, {.out_channels = 8, .padding = 1, .bias = false}));
            x = norm("bn2", b.conv("conv2", x, {.out_channels = 6, .padding = 1, .bias = false}));
            return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
          }};
}

TEST(Ranks, that_share_no_statistics_are_ghost_batches) {
  // 64 examples: 16 of each rank.
  for (const int group : {1, 2}) {
    const Trial local{.net = ghosts(0), .plan = {.batch = 64, .norm_group = group}, .n = 64};
    const Trial ghost{.net = ghosts(16 * group), .plan = {.batch = 64}, .n = 64};
    const Outcome one = on_one(ghost);
    const std::vector<Outcome> all = outcomes(local, 4);
    for (const Outcome& rank : all) {
      EXPECT_EQ(first_difference(rank.statistics, all.front().statistics), "");
      expect_close(rank.state, all.front().state, 0, "between ranks");
    }
    for (const auto& [name, bytes] : one.statistics) {
      if (name.find("num_batches") != std::string::npos) continue;
      if (name == "loss") {
        const auto loss = [](const std::vector<std::byte>& b) { return *reinterpret_cast<const double*>(b.data()); };
        EXPECT_NEAR(loss(bytes), loss(all.front().statistics.at(name)), 1e-6);
      } else {
        EXPECT_LE(distance(all.front().statistics.at(name), bytes), 1e-6) << name;
      }
    }
    expect_close(all.front().state, one.state, 5e-6, "against ghost batches");
  }
}

TEST(Ranks, without_shared_statistics_agree_on_what_is_not_finite) {
  Trial trial{.net = ghosts(0), .plan = {.batch = 64, .norm_group = 1}, .n = 64};
  const int64_t row = element_count(trial.net.input);
  trial.spoil = [&](std::vector<float>& x) {
    x[static_cast<size_t>(20 * row)] = std::numeric_limits<float>::infinity();
  };
  for (const Outcome& rank : outcomes(trial, 4)) {
    EXPECT_FALSE(rank.finite);
    EXPECT_EQ(rank.fault, "x (the input) on rank 1 (host1)");
  }
}

TEST(Ranks, keep_ghost_batches_whole) {
  for (const int64_t ghost : {4, 12, 16}) {
    const Trial trial{.net = ghosts(ghost), .plan = {.batch = 96, .deterministic = true}, .n = 93};
    const Outcome one = on_one(trial);
    for (const int ranks : {1, 2, 3, 4}) {
      const std::vector<Outcome> all = outcomes(trial, ranks);
      expect_all_alike(all);
      EXPECT_EQ(first_difference(all.front().state, one.state), "")
          << "ghosts of " << ghost << ", " << ranks << " ranks";
    }
  }
}

TestNet group_norms() {
  return {"groups", {4, 8, 8}, [](GraphBuilder& b, ValueId x, const Activation& hidden) {
            x = b.conv("conv1", x, {.out_channels = 8, .padding = 1});
            x = b.activate("act", b.norm("gn", x, NormKind::kGroup, {.groups = 4}), hidden);
            return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
          }};
}

TEST(Ranks, sum_the_gradients_of_norms_of_single_examples) {
  const TestNet net = group_norms();
  for (const bool deterministic : {false, true}) {
    const Trial trial{.net = net, .plan = {.batch = 64, .deterministic = deterministic}};
    const Outcome one = on_one(trial);
    for (const int ranks : kRanks) {
      const std::vector<Outcome> all = outcomes(trial, ranks);
      expect_all_alike(all);
      expect_close(all.front().state, one.state, 2e-6, "group norm");
      if (deterministic) {
        EXPECT_EQ(first_difference(all.front().state, one.state), "");
      }
    }
  }
}

// What a plan says in advance is what the rank gives that gives most.
TEST(Ranks, give_the_bytes_that_the_plan_tells) {
  std::vector<TestNet> all = nets();
  all.push_back(group_norms());
  for (const TestNet& net : all) {
    for (const bool deterministic : {false, true}) {
      for (const int64_t batch : {80, 96}) {
        for (const int ranks : {2, 4}) {
          const PlanOptions options{.batch = batch, .ranks = ranks, .deterministic = deterministic};
          std::vector<int64_t> given(static_cast<size_t>(ranks));
          Traffic traffic;
          run_ranks(ranks, [&](Comm& comm) {
            TestStep step(net, options, batch, Mode::kTrain, ActivationKind::kRelu, Precision::kF32, "", &comm);
            const int64_t before = comm.totals().bytes;
            step.run();
            given[static_cast<size_t>(comm.rank())] = comm.totals().bytes - before;
            if (comm.rank() == 0) traffic = traffic_of(step.executable().plan());
          });
          EXPECT_EQ(*std::max_element(given.begin(), given.end()),
                    static_cast<int64_t>(traffic.reduction_bytes + traffic.gradient_bytes))
              << net.name << " " << batch << " " << ranks << " " << deterministic;
          EXPECT_GE(traffic.exchanges, 1);
        }
      }
    }
  }
}

// Norms of single examples beside those of the batch: what one leaves for the exchange, another must not overwrite.
TEST(Ranks, a_deterministic_plan_has_the_gradients_of_another_whatever_norms_it_mixes) {
  RandomStream random(17, RandomUse::kInitialize);
  for (int trial = 0; trial < 60; ++trial) {
    std::vector<int> kinds;
    for (int i = 0; i < 3; ++i) kinds.push_back(static_cast<int>(random.next_uniform() * 4));
    const int64_t channels = 4 + 4 * static_cast<int64_t>(random.next_uniform() * 4);
    const TestNet net{"mixed norms", {4, 6, 6}, [=](GraphBuilder& b, ValueId x, const Activation& hidden) {
                        for (size_t i = 0; i < kinds.size(); ++i) {
                          const std::string name = "layer" + std::to_string(i);
                          x = b.conv(name, x, {.out_channels = channels, .padding = 1, .bias = false});
                          NormSettings options{.ghost_batch = kinds[i] == 2 ? 8 : 0};
                          if (kinds[i] == 1) options.groups = 2;
                          x = b.norm(name + ".norm", x,
                                     kinds[i] == 1   ? NormKind::kGroup
                                     : kinds[i] == 3 ? NormKind::kLayer
                                                     : NormKind::kBatch,
                                     options);
                          x = b.activate(name + ".act", x, hidden);
                        }
                        return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
                      }};
    Trial fixed{.net = net, .plan = {.batch = 24, .deterministic = true}, .n = 24};
    Trial plain = fixed;
    plain.plan.deterministic = false;
    TestStep step(fixed.net, fixed.plan, fixed.n);
    const Outcome outcome = outcome_of(step, fixed);
    expect_close(outcome.state, on_one(plain).state, 1e-5, "trial " + std::to_string(trial));
    EXPECT_EQ(step.executable().first_nonfinite(step.shared_arguments(fixed.n)), "");
  }
}

TEST(Ranks, take_all_weights_as_1_where_a_caller_gives_none) {
  const Trial trial{.net = weighted(test_nets()[0]), .plan = {.batch = 200, .deterministic = true}, .n = 200};
  const Outcome one = on_one(trial);
  for (const Outcome& rank : outcomes(trial, 4)) EXPECT_EQ(first_difference(rank.state, one.state), "");
}

TEST(Ranks, that_share_no_statistics_may_have_no_example_that_counts) {
  Trial trial{.net = weighted(ghosts(0)), .plan = {.batch = 64, .norm_group = 1}, .n = 64};
  for (int64_t i = 0; i < trial.n; ++i) trial.weights.push_back(i >= 16 && i < 32 ? 0.0f : 1.0f);
  for (const Outcome& rank : outcomes(trial, 4)) EXPECT_TRUE(rank.finite) << rank.fault;
}

TEST(Ranks, are_refused_a_single_value_to_normalize) {
  const auto plan_of = [](const NormSettings& norm, const Shape& input, PlanOptions options) {
    GraphBuilder b(Mode::kTrain);
    ValueId x = b.input(input);
    x = input.size() == 1 ? b.linear("fc1", x, {.out_features = 6})
                          : b.conv("conv", x, {.out_channels = 6, .kernel = 1});
    x = b.batch_norm("bn", x, norm);
    if (input.size() == 3) x = b.flatten("flatten", x);
    b.softmax_cross_entropy(b.linear("fc2", x, {.out_features = 3}), b.labels(), 0);
    return make_plan(with_gradients(b.take()), options);
  };
  for (const Shape& input : {Shape{5}, Shape{5, 1, 1}}) {
    EXPECT_THROW(plan_of({}, input, {.batch = 25, .ranks = 4, .norm_group = 1}), UsageError);
    EXPECT_THROW(plan_of({.ghost_batch = 8}, input, {.batch = 25, .ranks = 4}), UsageError);
    EXPECT_NO_THROW(plan_of({}, input, {.batch = 25, .ranks = 4}));
    EXPECT_NO_THROW(plan_of({.ghost_batch = 8}, input, {.batch = 25, .ranks = 2}));
    const Plan plan = plan_of({}, input, {.batch = 32, .ranks = 4, .norm_group = 2});
    EXPECT_THROW(require_shares_to_normalize(plan, 17), UsageError);
    EXPECT_NO_THROW(require_shares_to_normalize(plan, 26));
  }
  EXPECT_NO_THROW(plan_of({}, {5, 2, 1}, {.batch = 25, .ranks = 4, .norm_group = 1}));
}

TEST(Ranks, have_room_for_their_share_only) {
  Plan whole, share;
  for (Plan* plan : {&whole, &share}) {
    GraphBuilder b(Mode::kTrain);
    const TestNet net = test_nets()[1];
    const ValueId logits = net.layers(b, b.input(net.input), {ActivationKind::kRelu});
    b.softmax_cross_entropy(logits, b.labels(), 0);
    *plan = make_plan(with_gradients(b.take()), {.batch = 64, .ranks = plan == &share ? 4 : 1});
  }
  EXPECT_EQ(share.batch, 16);
  EXPECT_LT(share.arena_bytes, whole.arena_bytes / 3);
}

}  // namespace
}  // namespace evenkeel
