// Folding: every pattern against a plain interpreter in double, always with a bias that is not zero.
#include "evenkeel/tools/fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/fold_model.h"
#include "evenkeel/tools/fold_testing.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

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

TEST(Fold, the_usual_tolerance_is_that_of_the_coarsest_weights) {
  for (const auto& [type, expected] :
       {std::pair{onnx::ElementType::kFloat, 1e-4}, std::pair{onnx::ElementType::kDouble, 1e-4},
        std::pair{onnx::ElementType::kFloat16, 1e-2}, std::pair{onnx::ElementType::kBfloat16, 5e-2}}) {
    Net net;
    net.input("x", {2, 3, 5, 5}).constant("w", {4, 3, 3, 3}).constant("c", {4}, 1, 2);
    net.node("Conv", {"x", "w", "c"}, "y");
    net.output("y");
    const std::vector<double> values(4 * 3 * 3 * 3, 0.5);
    net.model.graph.set_initializer(onnx::tensor_as(type, "w", {4, 3, 3, 3}, values));
    EXPECT_EQ(usual_tolerance(net.model), expected) << onnx::name_of(type);
  }
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

// --- what passes its input on ---

TEST(Fold, identities_and_dropout_that_drops_nothing_do_not_part_a_norm_from_its_neighbour) {
  Net net;
  net.input("x", {2, 3, 5})
      .constant("w", {4, 3, 1})
      .constant("b", {4}, 1, 2)
      .constant("u", {3, 4, 1})
      .constant("ratio", {}, 0.5, 0.5);
  net.node("Conv", {"x", "w", "b"}, "c");
  net.node("Identity", {"c"}, "i");
  net.node("Dropout", {"i", "ratio"}, "d");
  net.norm("d", "n", 4);
  net.node("Relu", {"n"}, "r");
  net.norm("r", "m", 4);
  net.node("Identity", {"m"}, "j");
  net.node("Conv", {"j", "u"}, "y");
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(patterns_of(folded(net, &model)), ElementsAre("conv -> norm", "norm -> conv"));
  EXPECT_THAT(model.graph.nodes, SizeIs(3));
}

TEST(Fold, what_others_see_of_an_identity_stays) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {4, 3, 1}).constant("b", {4}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "c");
  net.node("Identity", {"c"}, "i");
  net.norm("i", "y", 4);
  net.output("i").output("y");
  EXPECT_THAT(folded(net).folded, IsEmpty());
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
