// Single operators where ONNX's own cases (session_test.cc) do not look: far arguments, types of few bits, values that are not numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_testing.h"

namespace evenkeel::inference {
namespace {

using onnx::ElementType;
using onnx::info;
using onnx::Node;
using onnx::node;
using testing::ElementsAre;
using testing::HasSubstr;

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

// --- NaN ----------------------------------------------------------------------------------------------------------------
const float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> y_of(std::vector<Node> nodes, const Shape& shape, const std::vector<float>& x) {
  Program p = run(std::move(nodes), shape, x);
  const auto y = p.output("y");
  return {y.begin(), y.end()};
}

TEST(Operators, a_largest_and_a_smallest_value_are_nan_where_one_is) {
  const std::vector<float> x = {1, kNan, 2, 5, 4, 6, kNan, 0, 0, 7, 8, kNan};
  for (const char* op : {"ReduceMax", "ReduceMin"}) {
    Node rows = node(op, {"x"}, {"y"});
    rows.set("axes", std::vector<int64_t>{1});
    std::vector<float> y = y_of({rows}, {4, 3}, x);
    EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[2]) && std::isnan(y[3])) << op;
    EXPECT_EQ(y[1], std::string(op) == "ReduceMax" ? 6 : 4);
    Node space = node(op, {"x"}, {"y"});  // where a pool would do, which loses NaN
    space.set("axes", std::vector<int64_t>{2, 3});
    y = y_of({space}, {1, 2, 2, 3}, x);
    EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1])) << op;
  }
}

TEST(Operators, the_larger_and_the_smaller_of_arrays_are_nan_where_one_is) {
  const std::vector<float> x = {1, kNan, 3, 4};
  for (const bool larger : {true, false}) {
    for (const auto& inputs : std::vector<std::vector<std::string>>{
             {"x", "two"}, {"two", "x"}, {"x", "row"}, {"row", "x"}, {"x", "two", "row"}, {"column", "x"}}) {
      onnx::Model m = from_x_to_y({node(larger ? "Max" : "Min", inputs, {"y"})}, {1, 4});
      onnx::add(m, "two", {}, {2});
      onnx::add(m, "row", {1, 4}, {2, 2, 2, kNan});
      onnx::add(m, "column", {2, 1}, {2, 2});
      Program p(m, {.inputs = {{"x", {1, 4}}}, .threads = 1});
      p.run({{"x", x.data()}});
      const auto y = p.output("y");
      EXPECT_EQ(y[0], larger ? 2 : 1);
      EXPECT_TRUE(std::isnan(y[1]));
      EXPECT_EQ(y[2], larger ? 3 : 2);
      const bool row = std::find(inputs.begin(), inputs.end(), "row") != inputs.end();
      EXPECT_EQ(std::isnan(y[3]), row);
      if (!row) {
        EXPECT_EQ(y[3], larger ? 4 : 2);
      }
    }
  }
}

TEST(Operators, the_place_of_an_extreme_is_that_of_the_first_nan) {
  const std::vector<float> x = {1, kNan, 9, kNan, 5, 5, 2, 2};
  for (const char* op : {"ArgMax", "ArgMin"}) {
    Node arg = node(op, {"x"}, {"y"});
    arg.set("axis", int64_t{1});
    const float low = std::string(op) == "ArgMax" ? 0 : 2;
    EXPECT_THAT(y_of({arg}, {2, 4}, x), ElementsAre(1, low)) << op;
    arg.set("select_last_index", int64_t{1});
    EXPECT_THAT(y_of({arg}, {2, 4}, x), ElementsAre(3, low + 1)) << op;
  }
}

TEST(Operators, reductions_of_what_lies_channels_last_are_those_of_what_lies_plain) {
  const Shape shape = {2, 3, 4, 5};
  const std::vector<float> x = onnx::normal(120, 3);
  for (const std::vector<int64_t>& axes :
       std::vector<std::vector<int64_t>>{{2, 3}, {1}, {0, 2}, {1, 2, 3}, {0, 1, 2, 3}}) {
    for (const char* op : {"ReduceMax", "ReduceL1"}) {
      Node reduce = node(op, {"c"}, {"y"});
      reduce.set("axes", axes);
      std::vector<std::vector<float>> found;
      for (const bool last : {true, false}) {
        onnx::Model m = from_x_to_y({node(last ? "Conv" : "Identity", {"x"}, {"c"}), reduce}, shape);
        if (last) m.graph.nodes[0].inputs.emplace_back("same");
        onnx::add(m, "same", {3, 3, 1, 1}, {1, 0, 0, 0, 1, 0, 0, 0, 1});
        Program p(m, {.inputs = {{"x", shape}}, .threads = 1});
        p.run({{"x", x.data()}});
        found.emplace_back(p.output("y").begin(), p.output("y").end());
      }
      EXPECT_EQ(found[0], found[1]) << op << to_string(axes);
    }
  }
}

// --- numbers in files that mean harm: what overflowed is for the sanitizers, the sentence for all builds --------------------
constexpr int64_t kHuge = int64_t{1} << 40, kFar = std::numeric_limits<int64_t>::max();

// x is of shape `x`; constants of whole numbers by name. The message with which the model is refused, or "shape [..]" of its output.
std::string bound(Node n, const Shape& x, const std::map<std::string, std::vector<int64_t>>& constants = {},
                  const std::map<std::string, Shape>& weights = {}) {
  onnx::Model m = from_x_to_y({std::move(n)}, Shape(x.size(), -1));
  for (const auto& [name, values] : constants) {
    m.graph.set_initializer(
        onnx::make_tensor(name, {static_cast<int64_t>(values.size())}, std::span<const int64_t>(values)));
  }
  for (const auto& [name, shape] : weights)
    onnx::add(m, name, shape, std::vector<float>(static_cast<size_t>(element_count(shape)), 1));
  try {
    Program p(m, {.inputs = {{"x", x}}, .threads = 1});
    return "shape " + to_string(p.shape_of("y"));
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(HostileNumbers, extents_beside_a_0_are_bounded_too) {
  EXPECT_THAT(bound(node("Flatten", {"x"}, {"y"}), {0, kHuge, kHuge, 5}), HasSubstr("is too large"));
  EXPECT_THAT(bound(node("Transpose", {"x"}, {"y"}), {kHuge, kHuge, 5, 0}), HasSubstr("is too large"));
  Node reshape = node("Reshape", {"x", "s"}, {"y"});
  reshape.set("allowzero", int64_t{1});
  EXPECT_THAT(bound(reshape, {0}, {{"s", {0, kHuge, kHuge}}}), HasSubstr("more than can be held"));
  EXPECT_THAT(bound(node("ConstantOfShape", {"s"}, {"y"}), {1}, {{"s", {0, kHuge, kHuge}}}),
              HasSubstr("more than can be held"));
  EXPECT_THAT(bound(node("Add", {"x", "w"}, {"y"}), {1}, {}, {{"w", {0, kHuge, 3}}}),
              HasSubstr("tensor 'w' has the shape [0, 1099511627776, 3], more than can be held"));
  EXPECT_EQ(bound(node("Flatten", {"x"}, {"y"}), {0, 1000, 1000, 5}), "shape [0, 5000000]");
}

TEST(HostileNumbers, of_transposed_convolutions) {
  for (const int64_t extent : {std::numeric_limits<int64_t>::min(), int64_t{0}, kFar, kHuge}) {
    Node n = node("ConvTranspose", {"x", "w"}, {"y"});
    n.set("output_shape", std::vector<int64_t>{extent, 5});
    EXPECT_THAT(bound(n, {1, 2, 4, 4}, {}, {{"w", {2, 3, 2, 2}}}), HasSubstr("output_shape: expected 1 to 2^24"))
        << extent;
  }
  Node wide = node("ConvTranspose", {"x", "w"}, {"y"});
  wide.set("strides", std::vector<int64_t>{1 << 24, 1 << 24});
  EXPECT_THAT(bound(wide, {1, 2, 400, 400}, {}, {{"w", {2, 3, 2, 2}}}), HasSubstr("more than can be held"));
}

TEST(HostileNumbers, of_groups) {
  Node conv = node("Conv", {"x", "w"}, {"y"}), norm = node("GroupNormalization", {"x", "g", "b"}, {"y"});
  conv.set("group", int64_t{1} << 62);  // times 4: 0
  norm.set("num_groups", int64_t{1} << 62);
  EXPECT_THAT(bound(conv, {1, 0, 4, 4}, {}, {{"w", {4, 4, 1, 1}}}), HasSubstr("do not fit an input"));
  EXPECT_THAT(bound(norm, {4, 0, 4}, {}, {{"g", {0}}, {"b", {0}}}), HasSubstr("0 channels in"));
}

TEST(HostileNumbers, of_windows_and_products) {
  Node pool = node("MaxPool", {"x"}, {"y"}), conv = node("Conv", {"x", "w"}, {"y"});
  const std::vector<int64_t> wide(4, 1 << 23);
  pool.set("kernel_shape", std::vector<int64_t>{(1 << 23) + 1, (1 << 23) + 1});
  pool.set("pads", wide);
  conv.set("pads", wide);
  EXPECT_THAT(bound(conv, {1, 1, 4, 4}, {}, {{"w", {1, 1, 2, 2}}}), HasSubstr("more than can be held"));
  EXPECT_THAT(bound(pool, {1, 1, 4, 4}), HasSubstr("more than can be held"));
}

TEST(HostileNumbers, of_parts_that_add_up_to_it_only_after_they_overflow) {
  EXPECT_THAT(bound(node("Split", {"x", "s"}, {"y", "", ""}), {4}, {{"s", {kFar, kFar, 6}}}), HasSubstr("parts of"));
  EXPECT_EQ(bound(node("Split", {"x", "s"}, {"y", "", ""}), {4}, {{"s", {3, 0, 1}}}), "shape [3]");
}

TEST(HostileNumbers, of_steps_and_paddings) {
  Node slice = node("Slice", {"x", "s", "e", "a", "t"}, {"y"});
  const Shape x = {0, int64_t{1} << 33, 2};
  for (const int64_t step : {kHuge, kFar, -kHuge, std::numeric_limits<int64_t>::min()}) {
    EXPECT_EQ(bound(slice, x, {{"s", {0}}, {"e", {9}}, {"a", {0}}, {"t", {step}}}), "shape [0, 8589934592, 2]");
  }
  EXPECT_EQ(bound(slice, {5}, {{"s", {0}}, {"e", {9}}, {"a", {0}}, {"t", {kFar}}}), "shape [1]");
  EXPECT_EQ(bound(slice, {5}, {{"s", {4}}, {"e", {-9}}, {"a", {0}}, {"t", {-kFar}}}), "shape [1]");
  const int64_t far = int64_t{1} << 32;
  EXPECT_EQ(bound(node("Pad", {"x", "p"}, {"y"}), x, {{"p", {-far, 0, 0, far, 0, 0}}}), "shape [0, 8589934592, 2]");
  EXPECT_EQ(bound(node("Pad", {"x", "p"}, {"y"}), {5}, {{"p", {-7, 9}}}), "shape [7]");
}

TEST(HostileNumbers, of_blocks) {
  Node blocks = node("SpaceToDepth", {"x"}, {"y"});
  for (const int64_t size : {int64_t{1} << 16, int64_t{1} << 14}) {
    blocks.set("blocksize", size);
    EXPECT_EQ(bound(blocks, {1, int64_t{1} << 34, 0, 0}).rfind("shape", 0), std::string::npos) << size;
  }
}

TEST(HostileNumbers, of_ranges) {
  const auto whole_range = [](int64_t start, int64_t limit, int64_t delta) {
    return bound(node("Range", {"a", "b", "c"}, {"y"}), {1}, {{"a", {start}}, {"b", {limit}}, {"c", {delta}}});
  };
  EXPECT_EQ(whole_range(-kFar - 1, kFar, int64_t{1} << 62), "shape [4]");
  EXPECT_EQ(whole_range(kFar, -kFar - 1, -kFar - 1), "shape [2]");
  EXPECT_EQ(whole_range(0, 7, 3), "shape [3]");
  EXPECT_EQ(whole_range(7, 0, -7), "shape [1]");
  EXPECT_EQ(whole_range(3, 3, 1), "shape [0]");
  EXPECT_EQ(whole_range(3, 4, -1), "shape [0]");
  for (const auto& [limit, delta] : {std::pair{kFar, int64_t{1}}, {3, 0}, {-3, 0}})
    EXPECT_THAT(whole_range(0, limit, delta), HasSubstr("a range without end")) << limit << ", " << delta;
  const auto range = [](float start, float limit, float delta) {
    onnx::Model m = from_x_to_y({node("Range", {"a", "b", "c"}, {"y"})}, {1});
    for (const auto& [name, value] : {std::pair{"a", start}, {"b", limit}, {"c", delta}})
      onnx::add(m, name, {}, {value});
    Program p(m, {.inputs = {{"x", {1}}}, .threads = 1});
    p.run({{"x", &start}});
    const auto y = p.output("y");
    return std::vector<float>(y.begin(), y.end());
  };
  EXPECT_THAT(range(1, 2, 0.5f), ElementsAre(1, 1.5f));
  EXPECT_THAT(range(2, 1, 0.5f), ElementsAre());
  for (const float limit : {0.0f, 1.0f, 2.0f}) EXPECT_THROW(range(1, limit, 0), FormatError) << limit;
  EXPECT_THROW(range(0, std::numeric_limits<float>::infinity(), 1), FormatError);
  EXPECT_THROW(range(std::nanf(""), 1, 1), FormatError);
}

}  // namespace
}  // namespace evenkeel::inference
