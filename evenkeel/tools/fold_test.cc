// Folding: every pattern against a plain interpreter in double, always with a bias that is not zero; and what has to be left alone.
#include "evenkeel/tools/fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <random>

#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/naive_onnx_testing.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// A small network in the making. Constants are float64, so that what is compared is the formulas, not their rounding.
class Net {
 public:
  Net() {
    model.opsets[""] = 15;
    model.graph.name = "g";
  }
  Net& input(const std::string& name, const Shape& dims) {
    inputs[name] = {dims, random(element_count(dims), -2, 2)};
    onnx::ValueInfo info{.name = name, .type = onnx::ElementType::kDouble, .dims = std::vector<onnx::Dim>()};
    for (const int64_t extent : dims) info.dims->push_back({.value = extent, .symbol = ""});
    model.graph.inputs.push_back(info);
    return *this;
  }
  Net& constant(const std::string& name, const Shape& dims, double low = -1, double high = 1) {
    const std::vector<double> values = random(element_count(dims), low, high);
    graph->initializers.push_back(onnx::make_tensor(name, dims, std::span<const double>(values)));
    return *this;
  }
  onnx::Node& node(const std::string& op, std::vector<std::string> in, const std::string& out) {
    graph->nodes.push_back({.op_type = op,
                            .domain = "",
                            .name = op + "_" + out,
                            .inputs = std::move(in),
                            .outputs = {out},
                            .attributes = {}});
    return graph->nodes.back();
  }
  // A norm with parameters of its own; a letter of theirs in front of its output's name.
  onnx::Node& norm(const std::string& in, const std::string& out, int64_t channels) {
    constant("g_" + out, {channels}, 0.5, 2).constant("b_" + out, {channels});
    constant("m_" + out, {channels}).constant("v_" + out, {channels}, 0.1, 3);
    return node("BatchNormalization", {in, "g_" + out, "b_" + out, "m_" + out, "v_" + out}, out);
  }
  Net& output(const std::string& name) {
    graph->outputs.push_back({.name = name, .dims = {}});
    return *this;
  }
  naive::Values run(const onnx::Model& of) const {
    naive::Values values = inputs;
    naive::run(of.graph, values);
    return values;
  }
  std::vector<double> random(int64_t n, double low, double high) {
    std::vector<double> values;
    for (int64_t i = 0; i < n; ++i) values.push_back(std::uniform_real_distribution<double>(low, high)(generator_));
    return values;
  }

  onnx::Model model;
  onnx::Graph* graph = &model.graph;
  naive::Values inputs;

 private:
  std::mt19937_64 generator_{7};
};

// The largest difference of the outputs, against the largest value.
double difference(const naive::Array& a, const naive::Array& b) {
  EXPECT_EQ(a.dims, b.dims);
  double worst = 0, largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]));
    largest = std::max(largest, std::abs(a.values[i]));
  }
  return worst / largest;
}

size_t norms_in(const onnx::Graph& graph) {
  return static_cast<size_t>(std::count_if(graph.nodes.begin(), graph.nodes.end(),
                                           [](const onnx::Node& n) { return n.op_type == "BatchNormalization"; }));
}

// Folds a copy and compares every output of the graph with that of the original. Sums of some tens of doubles: 1e-13 of the largest.
FoldRecord folded(const Net& net, onnx::Model* result = nullptr, const FoldOptions& options = {}) {
  onnx::Model model = net.model;
  const naive::Values before = net.run(net.model);
  FoldRecord record = fold(model, options);
  EXPECT_EQ(record.left.size(), norms_in(model.graph));
  const naive::Values after = net.run(model);
  for (const onnx::ValueInfo& output : net.model.graph.outputs)
    EXPECT_LT(difference(before.at(output.name), after.at(output.name)), 1e-13) << output.name;
  // It survives the file, and nothing is left over there.
  const onnx::Model read = onnx::parse(onnx::serialize(model), "folded");
  for (const onnx::TensorValue& tensor : read.graph.initializers)
    EXPECT_FALSE(onnx::uses_of(read.graph).at(tensor.name).consumers.empty()) << tensor.name << " is not used";
  if (result != nullptr) *result = std::move(model);
  return record;
}

std::vector<std::string> patterns_of(const FoldRecord& record) {
  std::vector<std::string> patterns;
  for (const FoldedNorm& norm : record.folded) patterns.push_back(norm.pattern);
  return patterns;
}

// --- a product, then a norm ---

struct ConvCase {
  const char* name;
  const char* op;
  Shape x, w;
  int64_t out, groups;
  std::vector<int64_t> strides, pads, dilations, output_padding;
};
std::ostream& operator<<(std::ostream& os, const ConvCase& c) { return os << c.name; }

class Convolutions : public testing::TestWithParam<ConvCase> {};

INSTANTIATE_TEST_SUITE_P(
    Fold, Convolutions,
    testing::Values(
        ConvCase{"conv_1d", "Conv", {2, 3, 9}, {4, 3, 3}, 4, 1, {2}, {1, 0}, {1}, {}},
        ConvCase{"conv_2d", "Conv", {2, 3, 6, 5}, {4, 3, 3, 2}, 4, 1, {1, 2}, {1, 1, 0, 1}, {1, 1}, {}},
        ConvCase{
            "conv_3d", "Conv", {1, 2, 4, 3, 5}, {3, 2, 2, 1, 3}, 3, 1, {1, 1, 2}, {0, 0, 1, 1, 0, 1}, {1, 1, 1}, {}},
        ConvCase{"grouped_conv", "Conv", {2, 6, 5, 5}, {9, 2, 3, 3}, 9, 3, {1, 1}, {1, 1, 1, 1}, {2, 1}, {}},
        ConvCase{"depthwise_conv", "Conv", {2, 4, 5, 5}, {4, 1, 3, 3}, 4, 4, {1, 1}, {1, 1, 1, 1}, {1, 1}, {}},
        ConvCase{"transposed_1d", "ConvTranspose", {2, 3, 5}, {3, 4, 3}, 4, 1, {2}, {1, 1}, {1}, {1}},
        ConvCase{
            "transposed_2d", "ConvTranspose", {2, 3, 4, 3}, {3, 5, 3, 2}, 5, 1, {2, 1}, {1, 0, 0, 0}, {1, 2}, {1, 0}},
        ConvCase{"transposed_3d",
                 "ConvTranspose",
                 {1, 2, 3, 2, 2},
                 {2, 3, 2, 2, 1},
                 3,
                 1,
                 {2, 1, 1},
                 {0, 0, 0, 0, 0, 0},
                 {1, 1, 1},
                 {}},
        // The weight is [in, out / groups]: six inputs in three groups, each of which makes two of the six outputs.
        ConvCase{"grouped_transposed",
                 "ConvTranspose",
                 {2, 6, 4, 4},
                 {6, 2, 3, 3},
                 6,
                 3,
                 {2, 2},
                 {1, 1, 1, 1},
                 {1, 1},
                 {1, 1}},
        ConvCase{"depthwise_transposed",
                 "ConvTranspose",
                 {2, 4, 3, 3},
                 {4, 1, 2, 2},
                 4,
                 4,
                 {2, 2},
                 {0, 0, 0, 0},
                 {1, 1},
                 {}}),
    [](const auto& info) { return std::string(info.param.name); });

void set_window(onnx::Node& node, const ConvCase& c) {
  node.set("group", c.groups);
  node.set("strides", c.strides);
  node.set("pads", c.pads);
  node.set("dilations", c.dilations);
  if (!c.output_padding.empty()) node.set("output_padding", c.output_padding);
}

TEST_P(Convolutions, take_in_the_norm_behind_them) {
  const ConvCase& c = GetParam();
  for (const bool with_bias : {true, false}) {
    Net net;
    net.input("x", c.x).constant("w", c.w).constant("b", {c.out}, 1, 2);
    set_window(
        net.node(c.op, with_bias ? std::vector<std::string>{"x", "w", "b"} : std::vector<std::string>{"x", "w"}, "a"),
        c);
    if (!with_bias) net.graph->initializers.pop_back();
    net.norm("a", "y", c.out);
    net.output("y");
    const FoldRecord record = folded(net);
    ASSERT_THAT(record.folded, SizeIs(1));
    EXPECT_EQ(record.folded[0].norm, "BatchNormalization_y");
    EXPECT_THAT(record.folded[0].into, ElementsAre(std::string(c.op) + "_a"));
    EXPECT_THAT(record.folded[0].outputs, ElementsAre("y"));
  }
}

struct GemmCase {
  float alpha, beta;
  bool transpose_a, transpose_b;
  Shape c;  // {-1}: none
};
std::ostream& operator<<(std::ostream& os, const GemmCase& c) {
  return os << c.alpha << " " << c.beta << " " << c.transpose_a << c.transpose_b << " " << testing::PrintToString(c.c);
}
class Gemms : public testing::TestWithParam<GemmCase> {};
INSTANTIATE_TEST_SUITE_P(Fold, Gemms,
                         testing::Values(GemmCase{1, 1, false, false, {5}}, GemmCase{0.5F, 2, false, true, {5}},
                                         GemmCase{-1.5F, 0.25F, true, true, {1, 5}}, GemmCase{2, 3, true, false, {}},
                                         GemmCase{1, 0, false, false, {5}}, GemmCase{3, 1, false, true, {1}},
                                         GemmCase{0.5F, 2, false, false, {4, 1}},
                                         GemmCase{0.5F, 2, false, true, {4, 5}}, GemmCase{2, 1, false, false, {-1}}));

// [4, 3] x [3, 5], either operand transposed or not.
void add_gemm(Net& net, const GemmCase& c, const std::string& x, const std::string& out) {
  net.constant("w", c.transpose_b ? Shape{5, 3} : Shape{3, 5});
  std::vector<std::string> in{x, "w"};
  if (c.c != Shape{-1}) {
    net.constant("c", c.c, 1, 2);
    in.push_back("c");
  }
  onnx::Node& gemm = net.node("Gemm", in, out);
  gemm.set("alpha", c.alpha);
  gemm.set("beta", c.beta);
  gemm.set("transA", int64_t{c.transpose_a});
  gemm.set("transB", int64_t{c.transpose_b});
}

TEST_P(Gemms, take_in_the_norm_behind_them) {
  const GemmCase& c = GetParam();
  Net net;
  net.input("x", c.transpose_a ? Shape{3, 4} : Shape{4, 3});
  add_gemm(net, c, "x", "a");
  net.norm("a", "y", 5);
  net.output("y");
  EXPECT_THAT(patterns_of(folded(net)), ElementsAre("gemm -> norm"));
}

TEST_P(Gemms, take_in_the_norm_in_front_of_them_unless_they_transpose_it) {
  const GemmCase& c = GetParam();
  Net net;
  net.input("x", c.transpose_a ? Shape{3, 4} : Shape{4, 3});
  net.norm("x", "a", c.transpose_a ? 4 : 3);
  add_gemm(net, c, "a", "y");
  net.output("y");
  const FoldRecord record = folded(net);
  if (c.transpose_a) {
    ASSERT_THAT(record.left, SizeIs(1));
    EXPECT_THAT(record.left[0].reason, HasSubstr("transposes its input"));
  } else {
    EXPECT_THAT(patterns_of(record), ElementsAre("norm -> gemm"));
  }
}

TEST(Fold, a_matmul_takes_in_a_norm_behind_it_and_becomes_a_gemm) {
  Net net;
  net.input("x", {4, 3}).constant("w", {3, 5});
  net.node("MatMul", {"x", "w"}, "a");
  net.norm("a", "y", 5);
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(patterns_of(folded(net, &model)), ElementsAre("matmul -> norm"));
  ASSERT_THAT(model.graph.nodes, SizeIs(1));
  EXPECT_EQ(model.graph.nodes[0].op_type, "Gemm");
}

TEST(Fold, a_matmul_and_an_addition_take_in_the_norm_behind_them_whatever_the_addend_looks_like) {
  for (const Shape& addend : {Shape{5}, Shape{1, 5}, Shape{}, Shape{1}}) {
    for (const bool first : {false, true}) {
      Net net;
      net.input("x", {4, 3}).constant("w", {3, 5}).constant("c", addend, 1, 2);
      net.node("MatMul", {"x", "w"}, "a");
      net.node("Add", first ? std::vector<std::string>{"c", "a"} : std::vector<std::string>{"a", "c"}, "s");
      net.norm("s", "y", 5);
      net.output("y");
      onnx::Model model;
      EXPECT_THAT(patterns_of(folded(net, &model)), ElementsAre("matmul+add -> norm"));
      EXPECT_THAT(model.graph.nodes, SizeIs(2));
    }
  }
}

TEST(Fold, a_conv_with_a_bias_of_its_own_and_an_addition_take_in_the_norm_behind_them) {
  Net net;
  net.input("x", {2, 3, 5, 5}).constant("w", {4, 3, 3, 3}).constant("b", {4}, 1, 2).constant("c", {4, 1, 1}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.node("Add", {"a", "c"}, "s");
  net.norm("s", "y", 4);
  net.output("y");
  EXPECT_THAT(patterns_of(folded(net)), ElementsAre("conv+add -> norm"));
}

TEST(Fold, an_addition_that_differs_within_a_channel_is_left) {
  Net net;
  net.input("x", {2, 3, 5, 5}).constant("w", {4, 3, 3, 3}).constant("c", {4, 3, 1}, 1, 2);
  net.node("Conv", {"x", "w"}, "a");
  net.node("Add", {"a", "c"}, "s");
  net.norm("s", "y", 4);
  net.output("y");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("differ within a channel"));
}

TEST(Fold, a_norm_over_the_middle_extent_of_a_matmul_is_left) {
  Net net;
  net.input("x", {2, 5, 3}).constant("w", {3, 5});  // as many rows as columns: only the number of extents tells
  net.node("MatMul", {"x", "w"}, "a");
  net.norm("a", "y", 5);
  net.output("y");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("sees 3 extents"));
}

TEST(Fold, a_matmul_of_unknown_extents_is_left) {
  Net net;
  net.input("x", {4, 3}).constant("w", {3, 5});
  net.model.graph.inputs[0].dims.reset();
  net.node("MatMul", {"x", "w"}, "a");
  net.norm("a", "y", 5);
  net.output("y");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("not known"));
}

// --- a norm, then a product ---

TEST_P(Convolutions, take_in_the_norm_in_front_of_them_only_where_nothing_is_cut_off) {
  const ConvCase& c = GetParam();
  for (const bool padded : {false, true}) {
    Net net;
    net.input("x", c.x).norm("x", "a", c.x[1]);
    net.constant("w", c.w).constant("b", {c.out}, 1, 2);
    onnx::Node& conv = net.node(c.op, {"a", "w", "b"}, "y");
    set_window(conv, c);
    if (!padded) conv.set("pads", std::vector<int64_t>(c.pads.size(), 0));
    net.output("y");
    const FoldRecord record = folded(net);
    const bool can_be = std::string(c.op) == "Conv" && !padded;
    EXPECT_EQ(record.folded.size(), can_be ? 1U : 0U);
    if (can_be) continue;
    EXPECT_THAT(record.left.at(0).reason, testing::AnyOf(HasSubstr("inexact at the borders"), HasSubstr("unevenly")));
  }
}

TEST(Fold, a_norm_that_shifts_nothing_goes_into_a_padded_conv) {
  for (const char* op : {"Conv", "ConvTranspose"}) {
    Net net;
    net.input("x", {2, 3, 5, 5});
    net.norm("x", "a", 3);
    // beta = mean * scale, exactly: with mean and beta 0
    for (const char* name : {"b_a", "m_a"})
      net.graph->set_initializer(onnx::make_tensor(name, {3}, std::vector<double>(3, 0.0)));
    net.constant("w", {3, 3, 3, 3}).constant("b", {3}, 1, 2);
    net.node(op, {"a", "w", "b"}, "y").set("pads", std::vector<int64_t>{1, 1, 1, 1});
    net.output("y");
    EXPECT_THAT(folded(net).folded, SizeIs(1));
  }
}

TEST(Fold, a_norm_goes_into_pointwise_convolutions_whatever_their_automatic_padding) {
  for (const char* op : {"Conv", "ConvTranspose"}) {
    for (const char* automatic : {"SAME_UPPER", "VALID", "NOTSET"}) {
      Net net;
      net.input("x", {2, 3, 5, 5}).norm("x", "a", 3);
      net.constant("w", {3, 3, 1, 1}).constant("b", {3}, 1, 2);
      net.node(op, {"a", "w", "b"}, "y").set("auto_pad", std::string(automatic));
      net.output("y");
      EXPECT_THAT(folded(net).folded, SizeIs(1)) << op << automatic;
    }
  }
}

TEST(Fold, a_norm_goes_into_a_matmul_behind_it) {
  Net net;
  net.input("x", {4, 3}).norm("x", "a", 3);
  net.constant("w", {3, 5}).constant("c", {5}, 1, 2);
  net.node("MatMul", {"a", "w"}, "p");
  net.node("Add", {"p", "c"}, "y");
  net.output("y");
  EXPECT_THAT(patterns_of(folded(net)), ElementsAre("norm -> matmul"));
}

TEST(Fold, a_norm_goes_into_all_of_its_readers_or_none) {
  for (const bool all : {true, false}) {
    Net net;
    net.input("x", {2, 3, 5, 5}).norm("x", "a", 3);
    net.constant("w", {4, 3, 3, 3}).constant("b", {4}, 1, 2);
    net.node("Conv", {"a", "w", "b"}, "y");
    net.node("Conv", {"a", "w", "b"}, "p");  // shares weights and bias with the other
    net.node(all ? "Relu" : "Identity", {"p"}, "z");
    if (!all) net.node("Mystery", {"a"}, "u");
    net.output("y").output("z");
    if (!all) net.output("u");
    const FoldRecord record = folded(net);
    EXPECT_EQ(record.folded.size(), all ? 1U : 0U);
    if (!all) {
      EXPECT_THAT(record.left.at(0).reason, HasSubstr("'Mystery_u' (Mystery)"));
    }
  }
}

// --- norms and norms ---

TEST(Fold, a_norm_takes_in_the_norm_behind_it_and_keeps_its_statistics) {
  Net net;
  net.input("x", {2, 3, 4});
  net.node("Relu", {"x"}, "r");
  net.norm("r", "a", 3);
  net.norm("a", "y", 3);
  net.output("y");
  onnx::Model model;
  const FoldRecord record = folded(net, &model);
  EXPECT_THAT(patterns_of(record), ElementsAre("norm -> norm"));
  EXPECT_THAT(record.left, SizeIs(1));  // the first: behind a Relu, in front of the output
  EXPECT_EQ(onnx::doubles_of(*model.graph.initializer("v_a")), onnx::doubles_of(*net.model.graph.initializer("v_a")));
}

TEST(Fold, a_chain_of_norms_goes_wherever_it_can) {
  Net net;
  net.input("x", {2, 3, 6}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2).constant("u", {2, 3, 1});
  net.node("Conv", {"x", "w", "b"}, "c");
  net.norm("c", "n1", 3);
  net.norm("n1", "n2", 3);
  net.node("Relu", {"n2"}, "r");
  net.norm("r", "n3", 3);
  net.norm("n3", "n4", 3);
  net.node("Conv", {"n4", "u"}, "d");
  net.norm("d", "y", 2);
  net.output("y");
  const FoldRecord record = folded(net);
  EXPECT_THAT(record.folded, SizeIs(5));
  EXPECT_THAT(record.left, IsEmpty());
}

// --- what others see stays ---

TEST(Fold, weights_that_another_node_uses_are_copied) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.node("Conv", {"x", "w", "b"}, "z");
  net.output("y").output("z");
  EXPECT_THAT(folded(net).folded, SizeIs(1));
}

TEST(Fold, two_convolutions_of_one_weight_take_in_a_norm_each) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  for (const std::string branch : {"1", "2"}) {
    net.node("Conv", {"x", "w", "b"}, "a" + branch);
    net.norm("a" + branch, "y" + branch, 3);
    net.output("y" + branch);
  }
  EXPECT_THAT(folded(net).folded, SizeIs(2));
}

TEST(Fold, two_norms_of_the_same_parameters_are_folded) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("u", {3, 3, 1}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a1");
  net.norm("a1", "y1", 3);
  net.node("Conv", {"x", "u", "b"}, "a2");
  net.node("BatchNormalization", {"a2", "g_y1", "b_y1", "m_y1", "v_y1"}, "y2");
  net.output("y1").output("y2");
  EXPECT_THAT(folded(net).folded, SizeIs(2));
}

TEST(Fold, a_product_that_somebody_else_reads_is_left) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.node("Relu", {"a"}, "z");
  net.output("y").output("z");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("is read by 'Relu_z' (Relu), too"));
}

TEST(Fold, a_product_that_is_an_output_of_the_graph_is_left) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y").output("a");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("is an output of the graph, too"));
}

TEST(Fold, constants_of_nodes_count_as_constants_and_go_with_the_norm) {
  Net net;
  net.input("x", {2, 3, 5}).constant("b", {3}, 1, 2);
  const std::vector<double> w = net.random(18, -1, 1);
  onnx::Node& constant = net.node("Constant", {}, "w");
  constant.attributes.push_back({.name = "value", .kind = onnx::Attribute::Kind::kTensor});
  constant.attributes[0].tensor = std::make_shared<onnx::TensorValue>(onnx::make_tensor("", {3, 3, 2}, w));
  net.node("Identity", {"w"}, "same");
  net.node("Conv", {"x", "same", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  EXPECT_THAT(model.graph.nodes, SizeIs(1));
}

TEST(Fold, initializers_that_old_files_list_as_inputs_come_and_go_there_too) {
  Net net;
  net.model.ir_version = 3;
  net.model.opsets[""] = 9;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2});
  net.node("Conv", {"x", "w"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  for (const onnx::TensorValue& tensor : net.model.graph.initializers)
    net.model.graph.inputs.push_back({.name = tensor.name, .type = tensor.type, .dims = {}});
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  std::vector<std::string> names;
  for (const onnx::ValueInfo& info : model.graph.inputs) names.push_back(info.name);
  EXPECT_THAT(names, ElementsAre("x", "w", "a_bias"));
}

TEST(Fold, values_declared_for_what_is_gone_are_gone) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2});
  net.node("Conv", {"x", "w"}, "a");
  net.norm("a", "n", 3);
  net.node("Relu", {"n"}, "y");
  net.output("y");
  for (const char* name : {"a", "n"}) net.model.graph.value_infos.push_back({.name = name, .dims = {}});
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  ASSERT_THAT(model.graph.value_infos, SizeIs(1));
  EXPECT_EQ(model.graph.value_infos[0].name, "n");
}

TEST(Fold, operators_that_nobody_knows_are_carried_through) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Mystery", {"x"}, "u").set("secret", int64_t{5});
  net.node("Conv", {"u", "w", "b"}, "a");
  net.norm("a", "n", 3);
  net.node("Mystery", {"n"}, "y").domain = "com.example";
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  EXPECT_EQ(model.graph.nodes[0].integer("secret", 0), 5);
}

// A conv and a norm in both branches; the weights are those of the graph around.
Net with_branches() {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.inputs["which"] = {{}, {1}};
  net.model.graph.inputs.push_back(
      {.name = "which", .type = onnx::ElementType::kBool, .dims = std::vector<onnx::Dim>()});
  net.node("Conv", {"x", "w", "b"}, "z");
  net.norm("x", "shared", 3);
  onnx::Graph then_branch, else_branch;
  for (auto* body : {&then_branch, &else_branch}) {
    const std::string name = body == &then_branch ? "then" : "else";
    net.graph = body;
    net.node("Conv", {"x", "w", "b"}, "a_" + name);
    net.norm("a_" + name, "n_" + name, 3);
    net.node("Relu", {"n_" + name}, "y_" + name);
    net.output("y_" + name);
  }
  // One branch reads the outer norm, so that it cannot go into the conv that reads it outside.
  net.graph = &then_branch;
  net.graph->nodes[2].op_type = "Add";
  net.graph->nodes[2].inputs = {"n_then", "small"};
  net.graph = &net.model.graph;
  net.node("Conv", {"shared", "w"}, "small");
  onnx::Node& branch = net.node("If", {"which"}, "y");
  for (auto* body : {&then_branch, &else_branch}) {
    branch.attributes.push_back(
        {.name = body == &then_branch ? "then_branch" : "else_branch", .kind = onnx::Attribute::Kind::kGraph});
    branch.attributes.back().graph = std::make_shared<onnx::Graph>(*body);
  }
  net.output("y").output("z");
  return net;
}

TEST(Fold, bodies_are_folded_with_copies_of_what_lies_outside) {
  for (const double which : {1.0, 0.0}) {
    Net net = with_branches();
    net.inputs["which"].values[0] = which;
    onnx::Model model;
    const FoldRecord record = folded(net, &model);
    ASSERT_THAT(patterns_of(record), ElementsAre("conv -> norm", "conv -> norm", "norm -> conv"));
    EXPECT_EQ(record.folded[0].norm, "If_y/then_branch/BatchNormalization_n_then");
    // The original keeps its own bodies.
    EXPECT_THAT(net.model.graph.nodes.back().attributes[0].graph->nodes, SizeIs(3));
    EXPECT_THAT(model.graph.nodes.back().attributes[0].graph->nodes, SizeIs(2));
  }
}

TEST(Fold, a_norm_that_a_body_reads_is_left) {
  Net net = with_branches();
  onnx::Node& branch = net.model.graph.nodes.back();
  branch.attributes[0].graph->nodes[2].inputs[1] = "shared";
  const FoldRecord record = [&] {
    onnx::Model model = net.model;
    return fold(model);
  }();
  EXPECT_THAT(record.left.at(0).reason, HasSubstr("'If_y' (If)"));
}

// --- norms that are no affine map ---

Net conv_and_norm(int64_t opset) {
  Net net;
  net.model.opsets[""] = opset;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  return net;
}

TEST(Fold, all_opsets_are_read_by_their_own_rules) {
  for (const int64_t opset : {7, 8, 9, 13, 14, 15, 17, 21})
    EXPECT_THAT(folded(conv_and_norm(opset)).folded, SizeIs(1)) << opset;
  Net six = conv_and_norm(6);
  EXPECT_THAT(folded(six).left.at(0).reason, HasSubstr("training mode"));
  six.graph->nodes[1].set("is_test", int64_t{1});
  EXPECT_THAT(folded(six).folded, SizeIs(1));
  for (const int64_t opset : {6, 7}) {
    Net net = conv_and_norm(opset);
    net.graph->nodes[1].set("is_test", int64_t{1});
    net.graph->nodes[1].set("spatial", int64_t{0});
    EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("spatial"));
  }
}

TEST(Fold, norms_in_training_mode_are_left_unless_that_is_overruled) {
  Net by_attribute = conv_and_norm(15);
  by_attribute.graph->nodes[1].set("training_mode", int64_t{1});
  Net by_outputs = conv_and_norm(9);
  for (Net* net : {&by_attribute, &by_outputs})
    net->graph->nodes[1].outputs.insert(net->graph->nodes[1].outputs.end(), {"rm", "rv"});
  for (Net* net : {&by_attribute, &by_outputs}) {
    EXPECT_THAT(folded(*net).left.at(0).reason, HasSubstr("training mode"));
    EXPECT_THAT(folded(*net, nullptr, {.force_inference = true}).folded, SizeIs(1));
    net->output("rm");
    onnx::Model model = net->model;
    EXPECT_THAT(fold(model, {.force_inference = true}).left.at(0).reason, HasSubstr("training mode"));
  }
}

TEST(Fold, parameters_that_are_computed_are_named) {
  Net net = conv_and_norm(15);
  net.node("Relu", {"v_y"}, "computed");
  std::rotate(net.graph->nodes.begin(), net.graph->nodes.end() - 1, net.graph->nodes.end());
  net.graph->nodes[2].inputs[4] = "computed";
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("the variance ('computed') is computed at run time"));
}

TEST(Fold, weights_that_are_computed_are_left) {
  Net net = conv_and_norm(15);
  net.node("Relu", {"w"}, "computed");
  std::rotate(net.graph->nodes.begin(), net.graph->nodes.end() - 1, net.graph->nodes.end());
  net.graph->nodes[1].inputs[1] = "computed";
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("weights of 'Conv_a' (Conv) are computed"));
}

TEST(Fold, channels_that_would_not_be_finite_are_refused) {
  Net net = conv_and_norm(15);
  net.graph->set_initializer(onnx::make_tensor("v_y", {3}, std::vector<double>{1, -0.5, 1}));
  onnx::Model model = net.model;
  EXPECT_THAT(fold(model).left.at(0).reason, HasSubstr("channel 1 is not finite"));
}

TEST(Fold, weights_are_rounded_to_their_own_type_or_refused) {
  for (const onnx::ElementType type :
       {onnx::ElementType::kFloat16, onnx::ElementType::kBfloat16, onnx::ElementType::kFloat}) {
    Net net = conv_and_norm(15);
    for (onnx::TensorValue& tensor : net.graph->initializers) {
      if (tensor.name == "w" || tensor.name == "b")
        tensor = onnx::tensor_as(type, tensor.name, tensor.dims, onnx::doubles_of(tensor));
    }
    onnx::Model model = net.model;
    ASSERT_THAT(fold(model).folded, SizeIs(1));
    EXPECT_EQ(model.graph.initializer("w")->type, type);
    // Each weight is that of a fold in double, rounded once.
    const auto w = onnx::doubles_of(*net.graph->initializer("w"));
    const auto g = onnx::doubles_of(*net.graph->initializer("g_y")),
               v = onnx::doubles_of(*net.graph->initializer("v_y"));
    std::vector<double> expected = w;
    for (size_t i = 0; i < w.size(); ++i) expected[i] *= g[i / 6] / std::sqrt(v[i / 6] + static_cast<double>(1e-5F));
    EXPECT_EQ(onnx::doubles_of(*model.graph.initializer("w")),
              onnx::doubles_of(onnx::tensor_as(type, "w", {3, 3, 2}, expected)));
  }
  Net net = conv_and_norm(15);
  for (onnx::TensorValue& tensor : net.graph->initializers) {
    if (tensor.name == "w")
      tensor = onnx::tensor_as(onnx::ElementType::kFloat16, "w", tensor.dims, onnx::doubles_of(tensor));
  }
  net.graph->set_initializer(onnx::make_tensor("g_y", {3}, std::vector<double>{1, 1e6, 1}));
  onnx::Model model = net.model;
  EXPECT_THAT(fold(model).left.at(0).reason, HasSubstr("float16 does not hold"));
}

TEST(Fold, a_norm_of_too_few_inputs_is_a_bad_file) {
  Net net = conv_and_norm(15);
  net.graph->nodes[1].inputs.pop_back();
  EXPECT_THROW(fold(net.model), FormatError);
}

// --- real models ---

TEST(Fold, all_norms_of_the_face_detectors_go_and_the_weights_are_those_of_their_authors) {
  const char* folder = std::getenv("EVENKEEL_TEST_DATA");
  const std::string models = std::string(folder != nullptr ? folder : "../shared/data") + "/models/";
  if (!std::filesystem::exists(models)) GTEST_SKIP() << "no " << models;
  for (const auto& [name, norms] : {std::pair{"version-RFB-320", 35U}, std::pair{"version-slim-320", 25U}}) {
    onnx::Model model = onnx::load(models + name + ".onnx");
    const FoldRecord record = fold(model);
    EXPECT_THAT(record.folded, SizeIs(norms));
    EXPECT_THAT(record.left, IsEmpty());
    EXPECT_EQ(norms_in(model.graph), 0U);
    // Their convolutions stand in the same order.
    const onnx::Model theirs = onnx::load(models + name + "_simplified.onnx");
    const onnx::Constants ours_constants(model.graph), theirs_constants(theirs.graph);
    std::vector<const onnx::Node*> ours, wanted;
    for (const onnx::Node& node : model.graph.nodes) {
      if (node.op_type == "Conv") ours.push_back(&node);
    }
    for (const onnx::Node& node : theirs.graph.nodes) {
      if (node.op_type == "Conv") wanted.push_back(&node);
    }
    ASSERT_EQ(ours.size(), wanted.size());
    double worst = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      for (const size_t input : {1U, 2U}) {
        const naive::Array a{{}, onnx::doubles_of(*ours_constants.find(ours[i]->inputs.at(input)))};
        const naive::Array b{{}, onnx::doubles_of(*theirs_constants.find(wanted[i]->inputs.at(input)))};
        ASSERT_EQ(a.values.size(), b.values.size()) << ours[i]->label();
        worst = std::max(worst, difference(a, b));
      }
    }
    EXPECT_LT(worst, 1e-6) << name;  // theirs were folded in float: a few roundings of 6e-8
  }
}

}  // namespace
}  // namespace evenkeel::tools
