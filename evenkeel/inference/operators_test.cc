// Single operators where ONNX's own cases (session_test.cc) do not look: far arguments, types of few bits, values that are not numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_testing.h"

namespace evenkeel::inference {
namespace {

using onnx::ElementType;
using onnx::info;
using onnx::Node;
using onnx::node;

// A model of the nodes, from x to y.
onnx::Model from_x_to_y(std::vector<Node> nodes, const Shape& x) {
  onnx::Model m;
  m.opsets[""] = 17;
  m.graph.inputs = {info("x", x)};
  m.graph.outputs = {info("y", {1})};
  m.graph.nodes = std::move(nodes);
  return m;
}

// y of that model; x is fed.
Program run(std::vector<Node> nodes, const Shape& shape, const std::vector<float>& x) {
  Program p(from_x_to_y(std::move(nodes), shape), {.inputs = {{"x", shape}}, .threads = 1});
  p.run({{"x", x.data()}});
  return p;
}

TEST(Operators, softplus_is_exact_relative_to_its_result) {
  std::vector<float> x;
  for (int i = -30 * 64; i <= 100 * 64; ++i) x.push_back(static_cast<float>(i) / 64);
  Program p = run({node("Softplus", {"x"}, {"y"})}, {static_cast<int64_t>(x.size())}, x);
  const auto y = p.output("y");
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = static_cast<double>(x[i]), exact = std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v)));
    // exp and log1p of the C library are within 1 ulp each, and the sum rounds once: 3 half-ulps of 6e-8 and some room.
    ASSERT_NEAR(static_cast<double>(y[i]) / exact, 1, 2.4e-7) << x[i];
  }
}

TEST(Operators, softplus_of_what_is_far_out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Program p = run({node("Softplus", {"x"}, {"y"})}, {4}, {-kInfinity, kInfinity, 1e30f, std::nanf("")});
  const auto y = p.output("y");
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], kInfinity);
  EXPECT_EQ(y[2], 1e30f);
  EXPECT_TRUE(std::isnan(y[3]));
}

}  // namespace
}  // namespace evenkeel::inference
