#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

// conv - norm - relu - pool - linear on 3x6x5 images, 4 classes, with momentum.
struct Net {
  ParameterStore store;
  std::unique_ptr<Executable> executable;
  std::vector<float> x;
  std::vector<int32_t> labels;

  explicit Net(int64_t batch, int threads = 2, int64_t plan_batch = 0) {
    GraphBuilder b(Mode::kTrain);
    ValueId x_value = b.input({3, 6, 5});
    ValueId v = b.conv("conv1", x_value, {.out_channels = 7, .kernel = 3, .padding = 1, .bias = false});
    v = b.batch_norm("bn1", v, {});
    v = b.activate("relu1", v, {ActivationKind::kRelu});
    v = b.max_pool("pool1", v, {});
    v = b.linear("fc", v, {.out_features = 4});
    b.set_name("logits", v);
    b.softmax_cross_entropy(v, b.labels(), 0);
    const auto parameters = b.parameters();
    std::vector<StateInfo> states;
    Graph graph = with_updates(with_gradients(b.take()), {.kind = OptimizerKind::kMomentum}, parameters, &states);
    RandomStream random(3, RandomUse::kInitialize);
    for (const ParameterInfo& info : parameters) {
      Tensor tensor(DType::kF32, info.shape);
      for (float& w : tensor.values<float>()) w = info.init == Init::kOne ? 1.0f : random.next_uniform() - 0.5f;
      store.add(info.name, std::move(tensor));
    }
    for (const BufferInfo& info : b.buffers()) {
      Tensor tensor(info.dtype, info.shape);
      if (info.dtype == DType::kF32) {
        for (float& v0 : tensor.values<float>()) v0 = static_cast<float>(info.initial);
      }
      store.add(info.name, std::move(tensor));
    }
    for (const StateInfo& info : states) store.add(info.name, Tensor(DType::kF32, info.shape));
    executable =
        cpu_backend(threads)->compile(make_plan(std::move(graph), {.batch = std::max(batch, plan_batch)}), store);
    for (int64_t i = 0; i < batch * 90; ++i) x.push_back(static_cast<float>(random.next_normal()));
    for (int64_t i = 0; i < batch; ++i) labels.push_back(static_cast<int32_t>(i % 4));
  }

  RunResult run(int64_t step = 1) {
    return executable->run({.x = x.data(),
                            .labels = labels.data(),
                            .n = static_cast<int64_t>(labels.size()),
                            .learning_rate = 0.1,
                            .step = step});
  }
};

std::map<std::string, std::vector<std::byte>> bytes_of(const ParameterStore& store) {
  std::map<std::string, std::vector<std::byte>> bytes;
  for (const auto& [name, tensor] : store.tensors()) bytes[name].assign(tensor.raw(), tensor.raw() + tensor.bytes());
  return bytes;
}

TEST(CpuExecutable, a_value_that_is_not_finite_stops_every_update) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Net net(20);
    ASSERT_TRUE(net.run(1).finite);
    const auto before = bytes_of(net.store);
    net.x[90 * 7 + 11] = bad;
    EXPECT_FALSE(net.run(2).finite);
    EXPECT_EQ(bytes_of(net.store), before) << "weights, running statistics and momentum stay as they were, to the bit";
  }
}

TEST(CpuExecutable, names_the_first_value_that_is_not_finite) {
  Net net(20);
  net.x[5] = std::numeric_limits<float>::infinity();
  const RunArguments arguments{.x = net.x.data(), .labels = net.labels.data(), .n = 20};
  EXPECT_EQ(net.executable->first_nonfinite(arguments), "x (the input)");
  net.x[5] = 0;
  EXPECT_EQ(net.executable->first_nonfinite(arguments), "");
  net.store.writable("conv1.weight").values<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(net.executable->first_nonfinite(arguments), "conv1.weight (a parameter)");
  net.store.writable("conv1.weight").values<float>()[3] = 3e38f;
  EXPECT_THAT(net.executable->first_nonfinite(arguments), HasSubstr("conv1"));
}

// A layer so large that it is multiplied over the whole batch at once, without tiles.
TEST(CpuExecutable, names_the_output_of_a_large_layer_that_is_not_finite) {
  GraphBuilder b(Mode::kTrain);
  ValueId v = b.linear("fc1", b.input({300}), {.out_features = 300, .bias = false});
  v = b.activate("relu1", b.batch_norm("bn1", v, {}), {ActivationKind::kRelu});
  b.softmax_cross_entropy(b.linear("fc2", v, {.out_features = 3}), b.labels(), 0);
  const auto parameters = b.parameters();
  ParameterStore store;
  for (const ParameterInfo& info : parameters) {
    Tensor tensor(DType::kF32, info.shape);
    for (float& w : tensor.values<float>()) w = 1e38f;
    store.add(info.name, std::move(tensor));
  }
  for (const BufferInfo& info : b.buffers()) store.add(info.name, Tensor(info.dtype, info.shape));
  const auto executable = cpu_backend(2)->compile(make_plan(with_gradients(b.take()), {.batch = 16}), store);
  const std::vector<float> x(16 * 300, 1.0f);
  const std::vector<int32_t> labels(16, 1);
  EXPECT_THAT(executable->first_nonfinite({.x = x.data(), .labels = labels.data(), .n = 16}),
              HasSubstr("made by node 'fc1'"));
}

TEST(CpuExecutable, a_step_has_the_same_bits_for_any_number_of_threads) {
  for (const int64_t batch : {5, 20, 64, 67}) {
    Net one(batch, 1);
    for (int64_t step = 1; step <= 3; ++step) one.run(step);
    for (const int threads : {2, 3, 8}) {
      Net many(batch, threads);
      for (int64_t step = 1; step <= 3; ++step) many.run(step);
      EXPECT_EQ(bytes_of(one.store), bytes_of(many.store)) << batch << " examples, " << threads << " threads";
    }
  }
}

TEST(CpuExecutable, a_batch_smaller_than_the_plan_gives_the_loss_and_statistics_of_its_own_plan) {
  for (const int64_t batch : {3, 8, 21}) {
    Net exact(batch), roomy(batch, 2, 64);
    // What an earlier, larger batch left in memory must not matter.
    Net full(64);
    roomy.executable->run({.x = full.x.data(), .labels = full.labels.data(), .n = 64, .learning_rate = 0});
    for (auto& [name, bytes] : bytes_of(exact.store))
      std::memcpy(roomy.store.writable(name).raw(), bytes.data(), bytes.size());
    exact.run();
    roomy.run();
    EXPECT_EQ(exact.executable->scalar("loss"), roomy.executable->scalar("loss"));
    for (const char* name : {"bn1.running_mean", "bn1.running_var"}) {
      EXPECT_EQ(bytes_of(exact.store)[name], bytes_of(roomy.store)[name]) << name;
    }
    // Weight gradients are grouped by the plan's batch: within rounding.
    const Tensor& a = exact.store.at("conv1.weight");
    const Tensor& b = roomy.store.at("conv1.weight");
    for (int64_t i = 0; i < a.count(); ++i) {
      EXPECT_NEAR(a.values<float>()[static_cast<size_t>(i)], b.values<float>()[static_cast<size_t>(i)], 1e-6);
    }
  }
}

TEST(CpuExecutable, training_makes_the_loss_fall) {
  Net net(64);
  net.run(1);
  const double first = net.executable->scalar("loss");
  for (int64_t step = 2; step <= 40; ++step) net.run(step);
  EXPECT_LT(net.executable->scalar("loss"), first / 4);
}

TEST(CpuExecutable, a_step_runs_without_the_update_of_the_running_statistics_where_the_caller_wants_it) {
  Net net(16), usual(16);
  const Tensor before = net.store.at("bn1.running_mean").clone();
  RunArguments arguments{.x = net.x.data(), .labels = net.labels.data(), .n = 16, .learning_rate = 0.1};
  usual.executable->run(arguments);
  arguments.update_running = false;
  net.executable->run(arguments);
  const auto same = [](const Tensor& a, const Tensor& b) { return std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; };
  EXPECT_TRUE(same(net.store.at("bn1.running_mean"), before));
  EXPECT_EQ(net.store.at("bn1.num_batches_tracked").values<int64_t>()[0], 0);
  EXPECT_FALSE(same(usual.store.at("bn1.running_mean"), before));
  // All else was done.
  for (const char* name : {"conv1.weight", "bn1.weight", "bn1.bias", "fc.weight"})
    EXPECT_TRUE(same(net.store.at(name), usual.store.at(name))) << name;
}

TEST(CpuExecutable, a_parameter_of_another_shape_is_refused_by_name) {
  GraphBuilder b(Mode::kInference);
  ValueId v = b.input({4});
  v = b.linear("fc", v, {.out_features = 2, .bias = false});
  b.set_name("logits", v);
  ParameterStore store;
  store.add("fc.weight", Tensor(DType::kF32, {2, 5}));
  try {
    cpu_backend(1)->compile(make_plan(b.take(), {.batch = 8}), store);
    FAIL() << "nothing was thrown";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'fc.weight' has shape [2, 5]"));
  }
}

}  // namespace
}  // namespace evenkeel
