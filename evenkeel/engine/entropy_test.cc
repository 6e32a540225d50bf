// EntropyLoss and its gradient against the definition in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"

namespace evenkeel {
namespace {

// -sum p log p by its definition: probabilities first, then their logarithms.
double entropy(const std::vector<double>& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0, h = 0;
  for (const double value : z) sum += std::exp(value - top);
  for (const double value : z) {
    const double p = std::exp(value - top) / sum;
    h -= p > 0 ? p * std::log(p) : 0;
  }
  return h;
}

struct Net {
  Net(int64_t classes, int64_t batch, bool weighted = false, int threads = 2) {
    GraphBuilder b(Mode::kTrain);
    const ValueId x = b.input({classes});
    if (weighted) b.weights();
    b.entropy(x);
    executable = cpu_backend(threads)->compile(make_plan(with_gradients(b.take(), true), {.batch = batch}), store);
  }
  ParameterStore store;
  std::unique_ptr<Executable> executable;
};

std::vector<float> random_logits(int64_t n, double spread) {
  RandomStream random(5, RandomUse::kInitialize);
  std::vector<float> z;
  for (int64_t i = 0; i < n; ++i) z.push_back(static_cast<float>(spread * random.next_normal()));
  return z;
}

TEST(EntropyLoss, and_its_gradient_agree_with_finite_differences) {
  constexpr int64_t kClasses = 7, kExamples = 21;
  for (const double spread : {0.01, 1.0, 6.0}) {
    const std::vector<float> x = random_logits(kClasses * kExamples, spread);
    Net net(kClasses, kExamples);
    net.executable->run({.x = x.data(), .n = kExamples});
    const Tensor gradient = net.executable->read("grad:x");
    double mean = 0;
    for (size_t i = 0; i < kExamples; ++i) {
      const std::vector<double> z(x.begin() + static_cast<std::ptrdiff_t>(i * kClasses),
                                  x.begin() + static_cast<std::ptrdiff_t>((i + 1) * kClasses));
      mean += entropy(z) / kExamples;
      for (size_t j = 0; j < kClasses; ++j) {
        constexpr double kStep = 1e-4;
        std::vector<double> up = z, down = z;
        up[j] += kStep;
        down[j] -= kStep;
        const double expected = (entropy(up) - entropy(down)) / (2 * kStep) / kExamples;
        EXPECT_NEAR(static_cast<double>(gradient.values<float>()[i * kClasses + j]), expected, 2e-9) << spread;
      }
    }
    EXPECT_NEAR(net.executable->scalar("loss"), mean, 1e-12);
  }
}

TEST(EntropyLoss, of_extreme_logits_is_finite) {
  const std::vector<float> x = {3e38f, -3e38f, 0, 1e4f, 1e4f, 1e4f, 0, -1e4f, -2e4f};
  Net net(3, 3);
  net.executable->run({.x = x.data(), .n = 3});
  EXPECT_NEAR(net.executable->scalar("loss"), std::log(3.0) / 3, 1e-12);
  const Tensor gradient = net.executable->read("grad:x");
  for (const float value : gradient.values<float>()) EXPECT_NEAR(value, 0, 1e-9);
}

TEST(EntropyLoss, counts_examples_by_their_weights) {
  constexpr int64_t kClasses = 4, kExamples = 3;
  const std::vector<float> x = random_logits(kClasses * kExamples, 1.5);
  std::vector<float> twice = x;  // the second example two times, the third not at all
  std::copy(x.begin() + kClasses, x.begin() + 2 * kClasses, twice.begin() + 2 * kClasses);
  const std::vector<float> weights = {1, 2, 0};
  Net weighted(kClasses, kExamples, true), plain(kClasses, kExamples);
  weighted.executable->run({.x = x.data(), .n = kExamples, .weights = weights.data()});
  plain.executable->run({.x = twice.data(), .n = kExamples});
  EXPECT_NEAR(weighted.executable->scalar("loss"), plain.executable->scalar("loss"), 1e-12);
  const Tensor a = weighted.executable->read("grad:x"), b = plain.executable->read("grad:x");
  for (size_t j = 0; j < kClasses; ++j) {
    EXPECT_NEAR(a.values<float>()[j], b.values<float>()[j], 1e-8);
    EXPECT_NEAR(a.values<float>()[kClasses + j], 2 * b.values<float>()[kClasses + j], 1e-8);
    EXPECT_EQ(a.values<float>()[2 * kClasses + j], 0);
  }
}

}  // namespace
}  // namespace evenkeel
