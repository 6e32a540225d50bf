// Weights of examples in a training step: ones, repetition, absence, threads, and batches that have no statistics.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "evenkeel/engine/engine_testing.h"

namespace evenkeel {
namespace {

using Values = std::map<std::string, std::vector<float>>;

// A step of one of the nets of engine_testing.h over a batch that the test makes, from a given state.
class Step {
 public:
  Step(const TestNet& net, int64_t batch, bool weighted, int threads = 1, bool mse = false)
      : row_(element_count(net.input)) {
    GraphBuilder b(Mode::kTrain);
    const ValueId x = b.input(net.input);
    if (weighted) b.weights();
    const ValueId logits = net.layers(b, x, {ActivationKind::kRelu});
    b.set_name("logits", logits);
    mse ? b.mean_squared_error(logits, b.labels()) : b.softmax_cross_entropy(logits, b.labels(), 0.1);
    const auto parameters = b.parameters();
    const auto buffers = b.buffers();
    std::vector<StateInfo> states;
    const Graph graph =
        with_updates(with_gradients(b.take()), {.kind = OptimizerKind::kSgd, .weight_decay = 0}, parameters, &states);
    for (const auto& [name, id] : graph.named) {
      if (name.starts_with("grad:")) gradients_.push_back(name);
    }
    fill(parameters, buffers);
    executable_ = cpu_backend(threads)->compile(make_plan(graph, {.batch = batch, .threads = threads}), store_);
  }

  bool run(const std::vector<float>& x, const std::vector<int32_t>& labels, const std::vector<float>& weights) {
    weights_ = weights;
    arguments_ = {.x = x.data(),
                  .labels = labels.data(),
                  .n = static_cast<int64_t>(labels.size()),
                  .weights = weights_.empty() ? nullptr : weights_.data(),
                  .learning_rate = 0.05};
    return executable_->run(arguments_).finite;
  }
  std::string reason() { return executable_->first_nonfinite(arguments_); }
  double scalar(const std::string& name) const { return executable_->scalar(name); }
  Values gradients() const {
    Values values;
    for (const std::string& name : gradients_) values[name] = floats(executable_->read(name));
    return values;
  }
  // All of the store.
  Values state() const {
    Values values;
    for (const auto& [name, tensor] : store_.tensors()) {
      if (tensor.dtype() == DType::kF32) values[name] = floats(tensor);
    }
    return values;
  }
  int64_t row() const { return row_; }

 private:
  static std::vector<float> floats(const Tensor& tensor) {
    const auto values = tensor.values<float>();
    return {values.begin(), values.end()};
  }
  void fill(const std::vector<ParameterInfo>& parameters, const std::vector<BufferInfo>& buffers) {
    RandomStream random(3, RandomUse::kInitialize);
    for (const ParameterInfo& info : parameters) {
      Tensor tensor(DType::kF32, info.shape);
      for (float& v : tensor.values<float>())
        v = static_cast<float>(info.init == Init::kOne ? 1 : 0.2 * random.next_normal());
      store_.add(info.name, std::move(tensor));
    }
    for (const BufferInfo& info : buffers) {
      Tensor tensor(info.dtype, info.shape);
      if (info.dtype == DType::kF32) {
        for (float& v : tensor.values<float>()) v = static_cast<float>(info.initial);
      }
      store_.add(info.name, std::move(tensor));
    }
  }

  int64_t row_;
  RunArguments arguments_;
  std::vector<float> weights_;
  ParameterStore store_;
  std::vector<std::string> gradients_;
  std::unique_ptr<Executable> executable_;
};

struct Batch {
  std::vector<float> x;
  std::vector<int32_t> labels;
  std::vector<float> weights;

  Batch(int64_t n, int64_t row) {
    RandomStream random(9, RandomUse::kInitialize);
    for (int64_t i = 0; i < n * row; ++i) x.push_back(static_cast<float>(random.next_normal()));
    for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>(i * i % 4));
  }
};

double norm_of(const std::vector<float>& values) {
  double size = 0;
  for (const float v : values) size += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(size);
}
double distance(std::vector<float> a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return norm_of(a);
}
// Norm-wise. The bias of a layer is measured by its weight, too: in front of a norm its gradient is 0 but for rounding (math.md, eq. 23a).
void expect_close(const Values& a, const Values& b, double bound) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, values] : a) {
    double size = norm_of(b.at(name));
    const std::string weight = name.substr(0, name.rfind('.')) + ".weight";
    if (name.ends_with(".bias")) size += norm_of(b.at(weight));
    EXPECT_LE(distance(values, b.at(name)), bound * size) << name;
  }
}

TEST(Weights, of_one_are_the_step_without_weights_within_rounding) {
  for (const TestNet& net : test_nets()) {
    SCOPED_TRACE(net.name);
    Step plain(net, 21, false), ones(net, 21, true), none(net, 21, true);
    const Batch batch(21, plain.row());
    ASSERT_TRUE(plain.run(batch.x, batch.labels, {}));
    ASSERT_TRUE(ones.run(batch.x, batch.labels, std::vector<float>(21, 1)));
    ASSERT_TRUE(none.run(batch.x, batch.labels, {}));
    EXPECT_NEAR(ones.scalar("loss"), plain.scalar("loss"), 1e-6);
    EXPECT_EQ(ones.scalar("correct"), plain.scalar("correct"));
    expect_close(ones.gradients(), plain.gradients(), 1e-5);
    expect_close(ones.state(), plain.state(), 1e-5);
    EXPECT_EQ(ones.state(), none.state());
  }
}

TEST(Weights, of_k_are_k_equal_examples) {
  for (const TestNet& net : test_nets()) {
    if (net.name == std::string("mixed")) continue;  // dropout draws for each example
    for (const bool mse : {false, true}) {
      SCOPED_TRACE(net.name);
      Step weighted(net, 11, true, 2, mse);
      Batch batch(11, weighted.row()), repeated(0, weighted.row());
      for (int64_t i = 0; i < 11; ++i) {
        batch.weights.push_back(static_cast<float>((i * 7 + 1) % 4));
        for (int64_t k = 0; k < (i * 7 + 1) % 4; ++k) {
          repeated.x.insert(repeated.x.end(), batch.x.begin() + i * weighted.row(),
                            batch.x.begin() + (i + 1) * weighted.row());
          repeated.labels.push_back(batch.labels[static_cast<size_t>(i)]);
        }
      }
      Step plain(net, static_cast<int64_t>(repeated.labels.size()), false, 2, mse);
      ASSERT_TRUE(weighted.run(batch.x, batch.labels, batch.weights));
      ASSERT_TRUE(plain.run(repeated.x, repeated.labels, {}));
      EXPECT_NEAR(weighted.scalar("loss"), plain.scalar("loss"), 1e-6);
      EXPECT_EQ(weighted.scalar("correct"), plain.scalar("correct"));
      expect_close(weighted.gradients(), plain.gradients(), 1e-5);
      expect_close(weighted.state(), plain.state(), 1e-5);
    }
  }
}

TEST(Weights, of_0_at_the_end_of_a_batch_are_absence_to_the_bit_whatever_the_examples_hold) {
  for (const TestNet& net : test_nets()) {
    for (const int64_t present : {5, 8, 17}) {
      SCOPED_TRACE(net.name + std::string(", ") + std::to_string(present));
      Step all(net, 24, true), some(net, 24, true);
      Batch batch(24, all.row());
      for (int64_t i = 0; i < 24; ++i) batch.weights.push_back(i < present ? 0.5f + static_cast<float>(i % 3) : 0.0f);
      Batch part = batch;
      part.x.resize(static_cast<size_t>(present * all.row()));
      part.labels.resize(static_cast<size_t>(present));
      part.weights.resize(static_cast<size_t>(present));
      std::fill(batch.x.begin() + present * all.row(), batch.x.end(), std::numeric_limits<float>::quiet_NaN());
      std::fill(batch.labels.begin() + present, batch.labels.end(), -1);
      ASSERT_TRUE(all.run(batch.x, batch.labels, batch.weights)) << all.reason();
      ASSERT_TRUE(some.run(part.x, part.labels, part.weights));
      EXPECT_EQ(all.scalar("loss"), some.scalar("loss"));
      EXPECT_EQ(all.scalar("correct"), some.scalar("correct"));
      EXPECT_EQ(all.state(), some.state());
    }
  }
}

TEST(Weights, give_the_same_bits_with_any_number_of_threads) {
  for (const TestNet& net : test_nets()) {
    Values expected;
    for (const int threads : {1, 2, 3}) {
      Step step(net, 41, true, threads);
      Batch batch(41, step.row());
      for (int64_t i = 0; i < 41; ++i) batch.weights.push_back(static_cast<float>(i % 5) * 0.3f);
      ASSERT_TRUE(step.run(batch.x, batch.labels, batch.weights));
      if (threads == 1) expected = step.state();
      EXPECT_EQ(step.state(), expected) << net.name << ", " << threads << " threads";
    }
  }
}

TEST(Weights, that_leave_no_statistics_update_nothing_and_are_named) {
  const TestNet net = test_nets()[2];  // has a norm of a table
  Step step(net, 9, true);
  const Values before = step.state();
  const Batch batch(9, step.row());
  EXPECT_FALSE(step.run(batch.x, batch.labels, std::vector<float>(9, 0.0f)));
  EXPECT_EQ(step.reason(), "weights (all are 0: a fully masked batch)");
  EXPECT_EQ(step.state(), before);
  EXPECT_FALSE(step.run(batch.x, batch.labels, std::vector<float>(9, 0.1f)));
  EXPECT_NE(step.reason().find("weights (they add up to 0.9"), std::string::npos) << step.reason();
  EXPECT_EQ(step.state(), before);
  // Beyond 1, but so little that the unbiased variance is m2 times an enormous number.
  EXPECT_FALSE(step.run(batch.x, batch.labels, std::vector<float>(9, 1.0005f / 9)));
  EXPECT_NE(step.reason().find("more than 1.001"), std::string::npos) << step.reason();
  EXPECT_EQ(step.state(), before);
  EXPECT_TRUE(step.run(batch.x, batch.labels, std::vector<float>(9, 0.2f)));
}

}  // namespace
}  // namespace evenkeel
