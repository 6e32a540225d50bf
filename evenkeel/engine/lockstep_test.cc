// The walk of a step, tile by tile: whatever tile, whatever is made again, whatever the threads, it is the same step.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "evenkeel/engine/engine_testing.h"

namespace evenkeel {
namespace {

constexpr Recompute kChoices[] = {Recompute::kNothing, Recompute::kCheap, Recompute::kAll};
constexpr int64_t kSteps = 3;

// Examples of a run, and of the batch that it is planned for: none is a multiple of a block, but for the last plan.
struct Sizes {
  int64_t n, planned;
};
constexpr Sizes kSizes[] = {{5, 5}, {20, 20}, {67, 67}, {20, 64}};

std::vector<int64_t> tiles_of(int64_t batch) { return {1, 3, 8, batch}; }

std::string describe(const TestNet& net, const Sizes& sizes, const PlanOptions& o) {
  return std::string(net.name) + ", " + std::to_string(sizes.n) + " of " + std::to_string(sizes.planned) +
         " examples, tile " + std::to_string(o.tile) + ", recompute " + std::to_string(static_cast<int>(o.recompute)) +
         ", " + std::to_string(o.threads) + " threads";
}

template <class F>
void for_each_net_size_and_tile(F&& f) {
  for (const TestNet& net : test_nets()) {
    for (const Sizes& sizes : kSizes) {
      for (const int64_t tile : tiles_of(sizes.planned)) f(net, sizes, tile);
    }
  }
}

Bits outcome_of(const TestNet& net, const Sizes& sizes, const PlanOptions& options,
                ActivationKind hidden = ActivationKind::kRelu) {
  TestStep step(net, options, sizes.n, Mode::kTrain, hidden);
  EXPECT_TRUE(step.train(kSteps)) << describe(net, sizes, options);
  return step.outcome();
}

TEST(Lockstep, has_the_same_bits_for_any_number_of_threads) {
  for_each_net_size_and_tile([](const TestNet& net, const Sizes& sizes, int64_t tile) {
    PlanOptions options{.batch = sizes.planned, .tile = tile, .threads = 1};
    const Bits alone = outcome_of(net, sizes, options);
    for (const int threads : {2, 3, 8}) {
      options.threads = threads;
      EXPECT_EQ(first_difference(outcome_of(net, sizes, options), alone), "") << describe(net, sizes, options);
    }
  });
}

TEST(Lockstep, has_the_same_bits_whatever_is_made_again) {
  for_each_net_size_and_tile([](const TestNet& net, const Sizes& sizes, int64_t tile) {
    PlanOptions options{.batch = sizes.planned, .tile = tile, .recompute = Recompute::kNothing, .threads = 2};
    const Bits kept = outcome_of(net, sizes, options);
    for (const Recompute recompute : kChoices) {
      options.recompute = recompute;
      EXPECT_EQ(first_difference(outcome_of(net, sizes, options), kept), "") << describe(net, sizes, options);
    }
  });
}

std::vector<float> floats_of(const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// ||a - b|| / ||b||
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error += difference * difference;
    size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

bool is_learned_or_running(const std::string& name) {
  return name != "loss" && !name.starts_with("grad:") && !name.starts_with("optimizer.") &&
         !name.ends_with("num_batches_tracked");
}

// A tile is the shape of oneDNN's products, which sum in an order that depends on it: some 150 products of a sum are then off by a few 2^-24,
// which the norms of up to eight layers pass on.
TEST(Lockstep, has_the_same_forward_pass_for_every_tile_but_for_the_rounding_of_products) {
  constexpr double kRounding = 1e-6;
  for (const TestNet& net : test_nets()) {
    for (const Sizes& sizes : kSizes) {
      TestStep eight(net, {.batch = sizes.planned, .tile = 8, .threads = 2}, sizes.n);
      eight.run();
      const Bits expected = eight.outcome();
      for (const int64_t tile : tiles_of(sizes.planned)) {
        const PlanOptions options{.batch = sizes.planned, .tile = tile, .threads = 2};
        TestStep step(net, options, sizes.n);
        step.run();
        EXPECT_NEAR(step.loss(), eight.loss(), kRounding * eight.loss()) << describe(net, sizes, options);
        for (const auto& [name, bytes] : step.outcome()) {
          if (name.find("running_") == std::string::npos) continue;
          EXPECT_LT(distance(floats_of(bytes), floats_of(expected.at(name))), kRounding)
              << name << ": " << describe(net, sizes, options);
        }
      }
    }
  }
}

// A gradient is a difference of terms some ten times its size, each right to about 1e-6, and three steps move a weight by less than its own
// size: 1e-5 of the weights. Smooth, since a relu whose argument is rounding away from 0 may be open for one tile and shut for another.
TEST(Lockstep, learns_the_same_for_every_tile_but_for_rounding) {
  for (const TestNet& net : test_nets()) {
    for (const Sizes& sizes : kSizes) {
      PlanOptions options{.batch = sizes.planned, .tile = 8, .threads = 2};
      const Bits expected = outcome_of(net, sizes, options, ActivationKind::kSilu);
      for (const int64_t tile : tiles_of(sizes.planned)) {
        options.tile = tile;
        for (const auto& [name, bytes] : outcome_of(net, sizes, options, ActivationKind::kSilu)) {
          if (!is_learned_or_running(name)) continue;
          EXPECT_LT(distance(floats_of(bytes), floats_of(expected.at(name))), 1e-5)
              << name << ": " << describe(net, sizes, options);
        }
      }
    }
  }
}

bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

TEST(Lockstep, infers_the_same_bits_whatever_is_made_again) {
  for_each_net_size_and_tile([](const TestNet& net, const Sizes& sizes, int64_t tile) {
    PlanOptions options{.batch = sizes.planned, .tile = tile, .recompute = Recompute::kNothing, .threads = 2};
    TestStep kept(net, options, sizes.n, Mode::kInference);
    kept.run();
    const Tensor expected = kept.executable().read("logits");
    for (const Recompute recompute : kChoices) {
      options.recompute = recompute;
      TestStep step(net, options, sizes.n, Mode::kInference);
      step.run();
      const Tensor logits = step.executable().read("logits");
      EXPECT_TRUE(same_bits(logits.values<float>().data(), expected.values<float>().data(), expected.count()))
          << describe(net, sizes, options);
    }
  });
}

// In a plan of the same batch, and in one of its own: an example is all that its logits depend on.
TEST(Lockstep, infers_an_example_alone_as_in_its_batch) {
  for (const TestNet& net : test_nets()) {
    for (const int64_t tile : {0, 1, 3, 8}) {
      const Sizes sizes{21, 21};
      const PlanOptions options{.batch = 21, .tile = tile, .threads = 2};
      TestStep step(net, options, 21, Mode::kInference);
      step.run();
      const Tensor together = step.executable().read("logits");
      TestStep single(net, {.batch = 1, .tile = tile, .threads = 1}, 21, Mode::kInference);
      for (int64_t i = 0; i < 21; ++i) {
        const float* expected = together.values<float>().data() + i * 4;
        for (Executable* executable : {&step.executable(), &single.executable()}) {
          executable->run(step.arguments(i, 1));
          EXPECT_TRUE(same_bits(executable->read("logits").values<float>().data(), expected, 4))
              << "example " << i << (executable == &single.executable() ? " in a plan of one: " : ": ")
              << describe(net, sizes, options);
        }
      }
    }
  }
}

// The same step twice, once over memory full of NaN: a value that is read but not made would show.
TEST(Lockstep, reads_nothing_that_an_earlier_step_left) {
  for_each_net_size_and_tile([](const TestNet& net, const Sizes& sizes, int64_t tile) {
    const PlanOptions options{.batch = sizes.planned, .tile = tile, .recompute = Recompute::kAll, .threads = 2};
    TestStep fresh(net, options, sizes.n), used(net, options, sizes.n);
    const auto fill = [&](float value) {
      std::vector<float> x(static_cast<size_t>(sizes.planned * element_count(net.input)), value);
      const std::vector<int32_t> labels(static_cast<size_t>(sizes.planned), 0);
      // The guard refuses it: nothing changes but memory.
      EXPECT_FALSE(used.executable().run({.x = x.data(), .labels = labels.data(), .n = sizes.planned}).finite);
    };
    fill(std::numeric_limits<float>::quiet_NaN());
    fresh.train(kSteps);
    used.train(kSteps);
    EXPECT_EQ(first_difference(fresh.outcome(), used.outcome()), "") << describe(net, sizes, options);
  });
}

}  // namespace
}  // namespace evenkeel
