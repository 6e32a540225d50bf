// Training with images stored in bf16, beside the same in fp32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "evenkeel/engine/engine_testing.h"
#include "evenkeel/kernels/bf16.h"

namespace evenkeel {
namespace {

constexpr double kRounding = 1.0 / 256;  // relative, of one rounding to the 8 bits of bf16

class Bf16Step : public testing::Test {
 protected:
  void SetUp() override {
    if (!cpu_has_bf16()) GTEST_SKIP() << "this processor has no bf16 products";
  }
};

TestStep step_of(const TestNet& net, const PlanOptions& options, int64_t n, Precision precision = Precision::kBF16,
                 ActivationKind hidden = ActivationKind::kRelu) {
  return TestStep(net, options, n, Mode::kTrain, hidden, precision);
}

Bits outcome_of(const TestNet& net, const PlanOptions& options, int64_t n) {
  TestStep step = step_of(net, options, n);
  EXPECT_TRUE(step.train(2)) << net.name;
  return step.outcome();
}

// Of the values that a tensor of fp32 would have in bf16.
std::vector<double> rounded(const float* x, int64_t count) {
  std::vector<uint16_t> halves(static_cast<size_t>(count));
  std::vector<float> wide(halves.size());
  kernels::narrow_bf16(x, count, halves.data());
  kernels::widen_bf16(halves.data(), count, wide.data());
  return {wide.begin(), wide.end()};
}

// ||a - b|| / ||b|| of two tensors of fp32.
double distance(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i + sizeof(float) <= b.size(); i += sizeof(float)) {
    float x = 0, y = 0;
    std::memcpy(&x, a.data() + i, sizeof x);
    std::memcpy(&y, b.data() + i, sizeof y);
    error += std::pow(static_cast<double>(x) - static_cast<double>(y), 2);
    size += std::pow(static_cast<double>(y), 2);
  }
  return std::sqrt(error / size);
}

TEST_F(Bf16Step, has_the_same_bits_for_any_number_of_threads) {
  for (const TestNet& net : test_nets()) {
    for (const int64_t n : {5, 20, 67}) {
      for (const int64_t tile : {0, 1, 3, 8}) {
        const Bits alone = outcome_of(net, {.batch = n, .tile = tile, .threads = 1}, n);
        for (const int threads : {2, 3}) {
          EXPECT_EQ(first_difference(outcome_of(net, {.batch = n, .tile = tile, .threads = threads}, n), alone), "")
              << net.name << ", " << n << " examples, tile " << tile << ", " << threads << " threads";
        }
      }
    }
  }
}

TEST_F(Bf16Step, has_the_same_bits_whatever_is_made_again) {
  for (const TestNet& net : test_nets()) {
    const Bits kept = outcome_of(net, {.batch = 20, .recompute = Recompute::kNothing, .threads = 2}, 20);
    for (const Recompute recompute : {Recompute::kCheap, Recompute::kAll}) {
      EXPECT_EQ(first_difference(outcome_of(net, {.batch = 20, .recompute = recompute, .threads = 2}, 20), kept), "")
          << net.name << ", recompute " << static_cast<int>(recompute);
    }
  }
}

TEST_F(Bf16Step, starts_near_the_loss_of_fp32_and_learns) {
  for (const TestNet& net : test_nets()) {
    TestStep narrow = step_of(net, {.batch = 64, .threads = 2}, 64);
    TestStep wide = step_of(net, {.batch = 64, .threads = 2}, 64, Precision::kF32);
    ASSERT_TRUE(narrow.run().finite && wide.run().finite);
    EXPECT_NEAR(narrow.loss(), wide.loss(), 0.02 * wide.loss()) << net.name;
    const double first = narrow.loss();
    ASSERT_TRUE(narrow.train(20));
    EXPECT_LT(narrow.loss(), 0.9 * first) << net.name;
  }
}

// Some 20 roundings on the way to a gradient and back, each of its own sign, whose effect the norms multiply by a few. Smooth, since a relu whose
// argument is rounding away from 0 may be open for one and shut for the other; and a max-pool may choose
// another of two neighbours. Those, and biases before norms, are compared below.
TEST_F(Bf16Step, has_the_gradients_of_fp32_but_for_rounding) {
  for (const TestNet& net : test_nets()) {
    if (net.name == std::string("plain")) continue;  // has max-pools
    TestStep narrow = step_of(net, {.batch = 64, .threads = 2}, 64, Precision::kBF16, ActivationKind::kSilu);
    TestStep wide = step_of(net, {.batch = 64, .threads = 2}, 64, Precision::kF32, ActivationKind::kSilu);
    ASSERT_TRUE(narrow.run().finite && wide.run().finite);
    const Bits expected = wide.outcome();
    for (const auto& [name, bits] : narrow.outcome()) {
      // The gradient of a bias before a norm is 0 but for rounding.
      if (!name.starts_with("grad:") || name == "grad:conv2.bias") continue;
      EXPECT_LT(distance(bits, expected.at(name)), 10 * kRounding) << net.name << ", " << name;
    }
  }
}

// The same graph in fp32 whose values are rounded where with_precision() stores them in bf16: behind every node that makes such a value there
// is a Cast to bf16 and one back.
class RoundedInFp32 {
 public:
  explicit RoundedInFp32(Graph graph) : graph_(std::move(graph)), narrow_(with_precision(graph_, Precision::kBF16)) {}
  Graph take() {
    std::vector<Node> nodes;
    for (Node node : std::exchange(graph_.nodes, {})) {
      if (reads_images(node)) read_rounded_input(node, nodes);
      std::vector<Node> casts;
      for (ValueId& id : node.outputs) {
        if (!is_narrow(id)) continue;
        const ValueId stored = id;
        id = copy(stored, " before rounding", Element::kF32);
        round(id, stored, casts);
      }
      nodes.push_back(std::move(node));
      nodes.insert(nodes.end(), casts.begin(), casts.end());
    }
    graph_.nodes = std::move(nodes);
    return std::move(graph_);
  }

 private:
  bool is_narrow(ValueId id) const { return id != kNoValue && narrow_.value(id).element == Element::kBF16; }
  // As the node of the same name there, which reads a copy of the input in bf16.
  bool reads_images(const Node& node) const {
    return std::holds_alternative<Conv>(node.op) || std::holds_alternative<ConvGradWeight>(node.op);
  }
  void read_rounded_input(Node& node, std::vector<Node>& nodes) {
    for (ValueId& id : node.inputs) {
      if (id == kNoValue || graph_.value(id).role != Role::kInput || !graph_.value(id).batched) continue;
      if (input_ == kNoValue) {
        input_ = copy(id, " rounded", Element::kF32);
        round(id, input_, nodes);
      }
      id = input_;
    }
  }
  ValueId copy(ValueId id, const char* suffix, Element element) {
    Value value = graph_.value(id);
    value.name += suffix;
    value.role = Role::kComputed;
    value.element = element;
    return graph_.add_value(std::move(value));
  }
  void round(ValueId from, ValueId to, std::vector<Node>& nodes) {
    const ValueId half = copy(from, " in bf16", Element::kBF16);
    const std::string name = graph_.value(to).name;
    nodes.push_back({name + ".round", Cast{}, {from}, {half}});
    nodes.push_back({name + ".widen", Cast{}, {half}, {to}});
  }

  Graph graph_, narrow_;
  ValueId input_ = kNoValue;  // rounded
};

void round_weights_of_convolutions(ParameterStore& store) {
  for (const auto& [name, tensor] : store.tensors()) {
    if (tensor.shape().size() != 4) continue;
    const std::span<float> values = store.writable(name).values<float>();
    const std::vector<double> narrow = rounded(values.data(), tensor.count());
    std::transform(narrow.begin(), narrow.end(), values.begin(), [](double v) { return static_cast<float>(v); });
  }
  store.touch();
}

TestNet one_block(const char* shortcut) {
  return {shortcut, {3, 12, 12}, [shortcut](GraphBuilder& b, ValueId x, const Activation& hidden) {
            x = test_net::convolution(b, x, "conv1", {.out_channels = 8, .padding = 1, .bias = false}, hidden);
            x = test_net::block(b, x, "block", shortcut == std::string("identity") ? 8 : 16, shortcut, hidden);
            return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
          }};
}

// Of the gradients: the largest distance between bf16 and fp32 rounded at the same places, and whose it is.
std::pair<double, std::string> largest_distance(const TestNet& net, ActivationKind hidden) {
  const PlanOptions options{.batch = 64, .threads = 2};
  TestStep narrow = step_of(net, options, 64, Precision::kBF16, hidden);
  TestStep wide(net, options, 64, Mode::kTrain, hidden,
                [](Graph graph) { return RoundedInFp32(std::move(graph)).take(); });
  round_weights_of_convolutions(narrow.store());
  round_weights_of_convolutions(wide.store());
  EXPECT_TRUE(narrow.run().finite && wide.run().finite);
  const Bits expected = wide.outcome();
  std::pair<double, std::string> largest{-1, ""};
  for (const auto& [name, bits] : narrow.outcome()) {
    if (!name.starts_with("grad:")) continue;
    const double error = distance(bits, expected.at(name));
    EXPECT_FALSE(std::isnan(error)) << net.name << ", " << name << " is 0";
    largest = std::max(largest, {error, name});
  }
  return largest;
}

// Winners of pools, gates and biases before norms included. What remains are sums that lie so near the middle of two values of bf16 that
// the order of summing decides, which in turn open or shut a gate of relu here and there: few behind one or two convolutions.
TEST_F(Bf16Step, has_the_gradients_of_fp32_rounded_at_the_same_places) {
  std::vector<TestNet> nets = {one_block("identity"), one_block("pad")};
  for (const TestNet& net : test_nets()) {
    if (net.name != std::string("residual")) nets.push_back(net);
  }
  for (const TestNet& net : nets) {
    const auto [error, name] = largest_distance(net, ActivationKind::kRelu);
    EXPECT_LT(error, kRounding) << net.name << ", " << name;
    EXPECT_GE(error, 0) << net.name << " has no gradients";
  }
}

// Without gates, deeper networks, too.
TEST_F(Bf16Step, has_the_gradients_of_smooth_networks_in_fp32_rounded_at_the_same_places) {
  std::vector<TestNet> nets = test_nets();
  nets.push_back(one_block("projection"));
  for (const TestNet& net : nets) {
    const auto [error, name] = largest_distance(net, ActivationKind::kSilu);
    EXPECT_LT(error, kRounding) << net.name << ", " << name;
    EXPECT_GE(error, 0) << net.name << " has no gradients";
  }
}

constexpr int64_t kChannels = 3, kOut = 7, kSide = 6;

TestNet convolution_net() {
  return {"one convolution", {kChannels, kSide, kSide}, [](GraphBuilder& b, ValueId x, const Activation& hidden) {
            x = b.conv("conv", x, {.out_channels = kOut, .padding = 1, .bias = false});
            b.set_name("conv", x);
            x = b.activate("relu", b.batch_norm("bn", x, {}), hidden);
            return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
          }};
}

// Sum over the window at (h, w) of an image [c, h, w] times the weight [c, 3, 3]; `size`: of the absolute values.
double window_sum(const double* image, const double* weight, int64_t h, int64_t w, double* size) {
  double sum = 0;
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int64_t i = 0; i < 9; ++i) {
      const int64_t y = h + i / 3 - 1, x = w + i % 3 - 1;
      if (y < 0 || y >= kSide || x < 0 || x >= kSide) continue;
      const double product = image[(c * kSide + y) * kSide + x] * weight[c * 9 + i];
      sum += product;
      *size += std::abs(product);
    }
  }
  return sum;
}

// Products of rounded factors are exact in fp32, and so is nearly their sum: 27 terms, each off by 2^-24 of all; the result is rounded once.
TEST_F(Bf16Step, convolves_rounded_images_with_rounded_weights_and_rounds_once) {
  constexpr int64_t kN = 11, kImage = kChannels * kSide * kSide;
  TestStep step = step_of(convolution_net(), {.batch = kN, .threads = 2}, kN);
  const Tensor& stored = step.store().at("conv.weight");
  const std::vector<double> weight = rounded(stored.values<float>().data(), stored.count());
  const std::vector<double> x = rounded(step.arguments(0, kN).x, kN * kImage);
  ASSERT_TRUE(step.run().finite);
  const Tensor y = step.executable().read("conv");
  for (int64_t i = 0; i < y.count(); ++i) {
    const int64_t w = i % kSide, h = i / kSide % kSide, o = i / (kSide * kSide) % kOut, n = i / (kSide * kSide * kOut);
    double size = 0;
    const double expected =
        window_sum(&x[static_cast<size_t>(n * kImage)], &weight[static_cast<size_t>(o * kChannels * 9)], h, w, &size);
    const auto found = static_cast<double>(y.values<float>()[static_cast<size_t>(i)]);
    EXPECT_NEAR(found, expected, kRounding * std::abs(expected) + 27 * 0x1p-23 * size);
    EXPECT_EQ(rounded(&y.values<float>()[static_cast<size_t>(i)], 1)[0], found);  // stored in bf16
  }
}

TEST_F(Bf16Step, keeps_running_statistics_of_the_stored_values_as_exact_as_in_fp32) {
  constexpr int64_t kN = 11, kSpace = kSide * kSide;
  TestStep step = step_of(convolution_net(), {.batch = kN, .threads = 2}, kN);
  ASSERT_TRUE(step.run().finite);
  const Tensor y = step.executable().read("conv");
  for (int64_t c = 0; c < kOut; ++c) {
    double sum = 0, squares = 0;
    const auto for_values = [&](auto&& f) {
      for (int64_t n = 0; n < kN; ++n) {
        for (int64_t s = 0; s < kSpace; ++s)
          f(static_cast<double>(y.values<float>()[static_cast<size_t>((n * kOut + c) * kSpace + s)]));
      }
    };
    for_values([&](double v) { sum += v; });
    const double mean = sum / (kN * kSpace);
    for_values([&](double v) { squares += (v - mean) * (v - mean); });
    const double variance = squares / (kN * kSpace - 1);
    const auto at = [&](const char* name) {
      return static_cast<double>(step.store().at(name).values<float>()[static_cast<size_t>(c)]);
    };
    EXPECT_NEAR(at("bn.running_mean"), 0.1 * mean, 1e-6 * std::sqrt(variance));
    EXPECT_NEAR(at("bn.running_var"), 0.9 + 0.1 * variance, 1e-6);
  }
}

TEST_F(Bf16Step, names_the_value_that_is_not_finite) {
  TestStep step = step_of(convolution_net(), {.batch = 8, .threads = 2}, 8);
  // A finite weight that overflows in the product.
  step.store().writable("conv.weight").values<float>()[0] = 3e38f;
  step.store().touch();
  EXPECT_FALSE(step.run().finite);
  EXPECT_EQ(step.executable().first_nonfinite(step.arguments(0, 8)), "conv (made by node 'conv')");
}

}  // namespace
}  // namespace evenkeel
