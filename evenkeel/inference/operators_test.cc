// Single operators where ONNX's own cases (session_test.cc) do not look: far arguments, types of few bits, values that are not numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

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

// y of the node over int64 inputs that are cast to `type`: fed ones, or constants, which are computed when the model is bound.
std::vector<int64_t> whole(Node n, ElementType type, const std::vector<std::vector<int64_t>>& inputs, bool fed) {
  onnx::Model m;
  m.opsets[""] = 17;
  m.graph.outputs = {info("y", {1})};
  Options options{.threads = 1};
  std::map<std::string, const void*> feeds;
  n.inputs.clear();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string wide = "wide" + std::to_string(i), narrow = "narrow" + std::to_string(i);
    const Shape shape = {static_cast<int64_t>(inputs[i].size())};
    if (fed) {
      m.graph.inputs.push_back(info(wide, shape));
      m.graph.inputs.back().type = ElementType::kInt64;
      options.inputs[wide] = shape;
      feeds[wide] = inputs[i].data();
    } else {
      m.graph.set_initializer(onnx::make_tensor(wide, shape, std::span<const int64_t>(inputs[i])));
    }
    Node cast = node("Cast", {wide}, {narrow});
    cast.set("to", static_cast<int64_t>(type));
    m.graph.nodes.push_back(cast);
    n.inputs.push_back(narrow);
  }
  m.graph.nodes.push_back(n);
  Program p(m, options);
  p.run(feeds);
  const auto y = p.integers("y");
  return {y.begin(), y.end()};
}

TEST(Operators, whole_numbers_wrap_around_as_their_types_do) {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();
  struct Case {
    const char* op;
    ElementType type;
    std::vector<std::vector<int64_t>> inputs;
    std::vector<int64_t> expected;
  };
  const std::vector<Case> cases = {
      {"Sub", ElementType::kUint8, {{10, 20}, {20, 10}}, {246, 10}},
      {"Add", ElementType::kUint8, {{250, 1}, {10, 2}}, {4, 3}},
      {"Add", ElementType::kInt8, {{127, -128}, {1, -1}}, {-128, 127}},
      {"Mul", ElementType::kInt16, {{256, 181}, {256, -182}}, {0, 32594}},
      {"Mul", ElementType::kInt32, {{4096, 46341}, {1 << 20, 46341}}, {0, -2147479015}},
      {"Sub", ElementType::kUint16, {{0}, {1}}, {65535}},
      {"Sub", ElementType::kUint32, {{0}, {1}}, {4294967295}},
      {"Add", ElementType::kInt64, {{kMost}, {1}}, {kLeast}},
      {"Div", ElementType::kInt8, {{-128, 7}, {-1, 2}}, {-128, 3}},
      {"Sum", ElementType::kUint8, {{200}, {100}, {1}}, {45}},
      {"Sum", ElementType::kInt64, {{kMost}, {kMost}, {3}}, {1}},
      {"Neg", ElementType::kInt8, {{-128, 5}}, {-128, -5}},
      {"Abs", ElementType::kInt16, {{-32768, -5}}, {-32768, 5}},
      {"Abs", ElementType::kInt64, {{kLeast, -5}}, {kLeast, 5}},
      {"ReduceSum", ElementType::kInt32, {{kMost >> 32, 1}}, {kLeast >> 32}},
      {"ReduceSum", ElementType::kInt64, {{(int64_t{1} << 53) + 1, 1}}, {(int64_t{1} << 53) + 2}},
      {"ReduceSum", ElementType::kInt64, {{kMost, kMost, 3}}, {1}},
      {"ReduceProd", ElementType::kInt64, {{int64_t{1} << 40, int64_t{1} << 40}}, {0}},
      {"ReduceProd", ElementType::kUint8, {{16, 17}}, {16}},
      {"ReduceSumSquare", ElementType::kInt8, {{12, 1}}, {-111}},
      {"ReduceL1", ElementType::kInt8, {{-100, 100}}, {-56}},
      {"ReduceL2", ElementType::kInt64, {{-3, 4}}, {5}},
      {"ReduceMean", ElementType::kInt8, {{100, 101, -1}}, {66}},
      {"ReduceMax", ElementType::kInt8, {{-3, 100, 7}}, {100}},
      {"ReduceMin", ElementType::kUint8, {{3, 250, 7}}, {3}}};
  for (const Case& c : cases) {
    for (const bool fed : {true, false}) {
      Node n = node(c.op, {}, {"y"});
      if (std::string(c.op).starts_with("Reduce")) n.set("keepdims", int64_t{0});
      EXPECT_EQ(whole(n, c.type, c.inputs, fed), c.expected)
          << c.op << " of " << onnx::name_of(c.type) << (fed ? ", fed" : ", constant");
    }
  }
}

TEST(Operators, a_difference_of_bytes_is_a_byte_also_as_a_float) {
  Node bytes = node("Cast", {"x"}, {"b"}), floats = node("Cast", {"d"}, {"y"});
  bytes.set("to", static_cast<int64_t>(ElementType::kUint8));
  floats.set("to", static_cast<int64_t>(ElementType::kFloat));
  Node twice = node("Add", {"b", "b"}, {"t"});
  Program p = run({bytes, twice, node("Sub", {"b", "t"}, {"d"}), floats}, {2}, {10, 200});
  EXPECT_EQ(p.output("y")[0], 246);
  EXPECT_EQ(p.output("y")[1], 56);
}

}  // namespace
}  // namespace evenkeel::inference
