// The proof of a fold can fail, and says by how much; diffs of norms.
#include "evenkeel/tools/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_testing.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/diff.h"
#include "evenkeel/tools/fold.h"

namespace evenkeel::tools {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

onnx::ValueInfo value(const std::string& name, const std::vector<int64_t>& dims) {
  onnx::ValueInfo info{.name = name, .type = onnx::ElementType::kFloat, .dims = std::vector<onnx::Dim>()};
  for (const int64_t extent : dims)
    info.dims->push_back(extent < 0 ? onnx::Dim{.value = std::nullopt, .symbol = "N"}
                                    : onnx::Dim{.value = extent, .symbol = ""});
  return info;
}

// x [N, 2, 4] -> Conv with a bias -> norm -> y
onnx::Model conv_and_norm(double gamma = 1.5) {
  onnx::Model model;
  model.opsets[""] = 15;
  onnx::Graph& g = model.graph;
  g.name = "g";
  g.inputs.push_back(value("x", {-1, 2, 4}));
  g.outputs.push_back(value("y", {-1, 3, 3}));
  const auto constant = [&](const std::string& name, const Shape& dims, double scale) {
    std::vector<float> values;
    for (int64_t i = 0; i < element_count(dims); ++i)
      values.push_back(static_cast<float>(scale * (1 + std::cos(double(i)))));
    g.initializers.push_back(onnx::make_tensor(name, dims, std::span<const float>(values)));
  };
  constant("w", {3, 2, 2}, 0.5);
  constant("b", {3}, 2);
  constant("bn.weight", {3}, gamma);
  constant("bn.bias", {3}, 0.25);
  constant("bn.running_mean", {3}, 1);
  constant("bn.running_var", {3}, 0.75);
  const auto node = [&](const std::string& op, std::vector<std::string> in, const std::string& out) {
    g.nodes.push_back(
        {.op_type = op, .domain = "", .name = op, .inputs = std::move(in), .outputs = {out}, .attributes = {}});
  };
  node("Conv", {"x", "w", "b"}, "a");
  node("BatchNormalization", {"a", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}, "n");
  node("Relu", {"n"}, "y");
  return model;
}

TEST(Compare, a_fold_is_within_rounding_at_outputs_and_folded_layers) {
  const onnx::Model before = conv_and_norm();
  onnx::Model after = before;
  const FoldRecord record = fold(after);
  const Comparison c = compare(before, after, {.inputs = 20, .values = record.folded.at(0).outputs});
  EXPECT_GE(c.inputs, 20);
  ASSERT_THAT(c.outputs, SizeIs(1));
  ASSERT_THAT(c.values, SizeIs(1));
  EXPECT_EQ(c.values[0].name, "n");
  EXPECT_EQ(c.outputs[0].count, c.inputs * 3 * 3);
  EXPECT_GT(c.outputs[0].largest, 1);
  EXPECT_LT(c.worst_of_all(), 1e-6);
}

TEST(Compare, a_wrong_fold_is_found) {
  const onnx::Model before = conv_and_norm();
  onnx::Model after = before;
  fold(after);
  // The mistake of half a dozen projects: the bias that was there is not multiplied.
  std::vector<double> b = onnx::doubles_of(*after.graph.initializer("b"));
  b[1] += 0.01;
  after.graph.set_initializer(onnx::tensor_as(onnx::ElementType::kFloat, "b", {3}, b));
  const Comparison c = compare(before, after, {});
  EXPECT_NEAR(c.outputs[0].max_abs, 0.01, 1e-4);
  EXPECT_NEAR(c.outputs[0].relative, 0.01 / c.outputs[0].largest, 1e-4);
  EXPECT_GT(c.outputs[0].mean_abs, 0);
  EXPECT_LT(c.outputs[0].mean_abs, c.outputs[0].max_abs);
}

TEST(Compare, a_value_that_is_a_number_in_one_model_only_is_infinitely_far) {
  const onnx::Model before = conv_and_norm();
  onnx::Model after = before;
  after.graph.set_initializer(
      onnx::make_tensor("b", {3}, std::vector<float>{1, std::numeric_limits<float>::quiet_NaN(), 1}));
  EXPECT_EQ(compare(before, after, {}).worst(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(compare(after, after, {}).worst(), 0);  // NaN in both is the same
}

TEST(Compare, the_same_seed_makes_the_same_inputs) {
  const onnx::Model a = conv_and_norm(), b = conv_and_norm(1.25);
  EXPECT_EQ(compare(a, b, {.seed = 3}).worst(), compare(a, b, {.seed = 3}).worst());
  EXPECT_NE(compare(a, b, {.seed = 3}).worst(), compare(a, b, {.seed = 4}).worst());
}

TEST(Compare, given_examples_are_taken_and_have_to_fit) {
  const onnx::Model a = conv_and_norm(), b = conv_and_norm(1.25);
  const std::vector<float> examples(5 * 8, 0.5F);
  EXPECT_EQ(compare(a, b, {.inputs = 5, .examples = examples}).inputs, 5);
  const std::vector<float> odd(7, 0.5F);
  EXPECT_THAT(message_of<UsageError>([&] { compare(a, b, {.inputs = 5, .examples = odd}); }), HasSubstr("do not fit"));
}

// Inputs and outputs of another element type: x -> Cast -> the network -> Cast -> y.
onnx::Model taking(onnx::ElementType type) {
  onnx::Model model = conv_and_norm();
  onnx::Graph& g = model.graph;
  g.inputs[0].type = g.outputs[0].type = type;
  g.nodes[0].inputs[0] = "x32";
  g.nodes.back().outputs[0] = "y32";
  const auto cast = [](const std::string& from, const std::string& to, onnx::ElementType as) {
    onnx::Node node{.op_type = "Cast", .domain = "", .name = to, .inputs = {from}, .outputs = {to}, .attributes = {}};
    node.set("to", static_cast<int64_t>(as));
    return node;
  };
  g.nodes.insert(g.nodes.begin(), cast("x", "x32", onnx::ElementType::kFloat));
  g.nodes.push_back(cast("y32", "y", type));
  return model;
}

TEST(Compare, each_model_is_fed_in_its_own_element_type) {
  // The inputs are rounded to the type, a weight is at most 1, and 4 of them make an output: their rounding, and that of the output.
  const std::vector<std::pair<onnx::ElementType, double>> types = {{onnx::ElementType::kDouble, 0},
                                                                   {onnx::ElementType::kFloat16, 4.0 / (1 << 11)},
                                                                   {onnx::ElementType::kBfloat16, 4.0 / (1 << 8)}};
  const onnx::Model plain = conv_and_norm();
  const std::vector<float> examples = onnx::normal(size_t{20} * 8, 7);
  for (const auto& [type, most] : types) {
    const onnx::Model other = taking(type);
    for (const bool random : {true, false}) {
      const CompareOptions options{.inputs = 20, .examples = random ? std::span<const float>() : examples};
      EXPECT_LE(compare(plain, other, options).worst(), most) << onnx::name_of(type);
      EXPECT_LE(compare(other, plain, options).worst(), most) << onnx::name_of(type);
    }
  }
}

TEST(Compare, floats_and_whole_numbers_are_compared_as_numbers) {
  const Comparison c = compare(conv_and_norm(), taking(onnx::ElementType::kInt32), {});
  EXPECT_GT(c.outputs.at(0).largest, 1);
  EXPECT_LE(c.outputs.at(0).max_abs, 1) << "the cast of the output cuts fractions off";
}

TEST(Compare, outputs_of_one_model_alone_are_listed) {
  const onnx::Model one = conv_and_norm();
  onnx::Model two = one;
  two.graph.outputs.push_back(value("n", {-1, 3, 3}));
  const Comparison more = compare(one, two, {}), fewer = compare(two, one, {});
  ASSERT_THAT(more.outputs, SizeIs(1));
  EXPECT_THAT(more.only_a, IsEmpty());
  EXPECT_THAT(more.only_b, ElementsAre("n"));
  ASSERT_THAT(fewer.outputs, SizeIs(1));
  EXPECT_THAT(fewer.only_a, ElementsAre("n"));
  EXPECT_THAT(fewer.only_b, IsEmpty());
}

// The same network with names as another export gives them.
onnx::Model renamed(onnx::Model model, const std::string& input, const std::string& output) {
  model.graph.inputs[0].name = model.graph.nodes.front().inputs[0] = input;
  model.graph.outputs[0].name = model.graph.nodes.back().outputs[0] = output;
  return model;
}

TEST(Compare, inputs_and_outputs_of_other_names_are_matched_by_their_place) {
  const onnx::Model one = conv_and_norm();
  const Comparison c = compare(one, renamed(one, "inp", "17"), {});
  ASSERT_THAT(c.outputs, SizeIs(1));
  EXPECT_EQ(c.outputs[0].name, "y");
  EXPECT_EQ(c.outputs[0].other, "17");
  EXPECT_EQ(c.worst(), 0);
  EXPECT_GT(c.outputs[0].largest, 1);
  EXPECT_THAT(c.notes, ElementsAre(HasSubstr("'x' is matched with 'inp'"), HasSubstr("'y' is matched with '17'")));
  EXPECT_THAT(c.only_a, IsEmpty());
  EXPECT_THAT(compare(one, one, {}).notes, IsEmpty());
}

TEST(Compare, what_cannot_be_matched_is_named_with_what_was_found) {
  const onnx::Model one = conv_and_norm();
  onnx::Model wide = renamed(one, "inp", "y"), two = renamed(one, "x", "17");
  wide.graph.inputs[0].dims->at(2).value = 8;
  EXPECT_THAT(message_of<UsageError>([&] { compare(one, wide, {}); }),
              AllOf(HasSubstr("'x' [-1, 2, 4]"), HasSubstr("'inp' [-1, 2, 8]")));
  two.graph.outputs.push_back(value("n", {-1, 3, 3}));
  EXPECT_THAT(message_of<UsageError>([&] { compare(one, two, {}); }),
              AllOf(HasSubstr("'y' ["), HasSubstr("'17' ["), HasSubstr("'n' ["), HasSubstr("same names of outputs")));
}

TEST(Compare, a_batch_that_one_model_fixes_is_that_of_both) {
  const onnx::Model open = conv_and_norm();
  onnx::Model fixed = open, other = open;
  for (const auto& [model, batch] : {std::pair{&fixed, 3}, {&other, 4}}) {
    model->graph.inputs[0].dims->at(0) = {.value = batch, .symbol = ""};
    model->graph.outputs[0].dims->at(0) = {.value = batch, .symbol = ""};
  }
  EXPECT_EQ(compare(open, fixed, {.inputs = 6}).outputs[0].count, 6 * 9);
  EXPECT_EQ(compare(fixed, open, {.inputs = 6}).outputs[0].count, 6 * 9);
  EXPECT_THAT(message_of<UsageError>([&] { compare(other, fixed, {}); }),
              AllOf(HasSubstr("[4, 2, 4] in the first"), HasSubstr("[3, 2, 4] in the second")));
}

TEST(Compare, another_number_of_inputs_than_asked_is_said) {
  const onnx::Model a = conv_and_norm();
  onnx::Model fixed = a;
  fixed.graph.inputs[0].dims->at(0) = {.value = 16, .symbol = ""};
  fixed.graph.outputs[0].dims->at(0) = {.value = 16, .symbol = ""};
  const std::vector<float> fifty(50 * 8, 0.5F);
  const Comparison all = compare(a, a, {.inputs = 256, .examples = fifty});
  EXPECT_EQ(all.inputs, 50);
  EXPECT_THAT(all.notes, IsEmpty());
  const Comparison some = compare(a, fixed, {.inputs = 256, .examples = fifty}), more = compare(a, a, {.inputs = 17});
  EXPECT_EQ(some.inputs, 48);
  EXPECT_THAT(some.notes, ElementsAre(HasSubstr("on 48 inputs, not on 50, because 16 are run at a time")));
  EXPECT_EQ(more.inputs, 32);
  EXPECT_THAT(more.notes, ElementsAre(HasSubstr("on 32 inputs, not on 17")));
}

TEST(Compare, the_first_operator_that_cannot_be_run_is_named) {
  onnx::Model model = conv_and_norm();
  model.graph.nodes.back().op_type = "Mystery";
  EXPECT_THAT(message_of<BackendError>([&] { compare(model, model, {}); }), HasSubstr("Mystery"));
}

// --- norms ---

NormTable table_of(const std::string& name, double change = 0) {
  NormRecord norm{.name = name, .output = "", .channels = 2};
  norm.gamma = {1, 2};
  norm.beta = {0.5, 0};
  norm.mean = {1, -1};
  norm.var = {4, 9 + change};
  return {.format = "test", .norms = {norm}, .notes = {}};
}

TEST(DiffNorms, equal_norms_do_not_differ) {
  const NormDiff diff = diff_norms(table_of("bn1"), table_of("module.bn1"));
  ASSERT_THAT(diff.changes, SizeIs(1));
  EXPECT_EQ(diff.changes[0].other, "module.bn1");
  EXPECT_EQ(diff.largest_effect(), 0);
  EXPECT_EQ(diff.changes[0].var.relative, 0);
}

TEST(DiffNorms, eps_of_another_width_is_the_same_eps) {
  NormTable a = table_of("bn1"), b = table_of("bn1");
  for (NormRecord& norm : a.norms) norm.eps = 1e-5;
  for (NormRecord& norm : b.norms) norm.eps = static_cast<double>(1e-5F);
  const NormDiff same = diff_norms(a, b);
  EXPECT_EQ(same.largest_effect(), 0);
  EXPECT_FALSE(same.changes.at(0).eps_differs);
  for (NormRecord& norm : b.norms) norm.eps = 1.1e-5;
  EXPECT_TRUE(diff_norms(a, b).changes.at(0).eps_differs);
}

TEST(DiffNorms, a_change_is_measured_per_value_and_by_its_effect) {
  const NormDiff diff = diff_norms(table_of("bn1"), table_of("bn1", 7));
  const NormChange& c = diff.changes.at(0);
  EXPECT_EQ(c.gamma.relative, 0);
  EXPECT_DOUBLE_EQ(c.var.relative, 7 / std::sqrt(16.0 + 81.0));
  EXPECT_EQ(c.var.largest, 7);
  EXPECT_EQ(c.var.channel, 1);
  // The second channel's scale falls from 2/3 to 2/4, its mean stays where it was: rms(1/6 * 3) / rms(1, 2).
  EXPECT_NEAR(c.effect, 0.5 / std::sqrt(1.0 + 4.0), 1e-5);
}

TEST(DiffNorms, norms_are_ranked_and_those_without_a_partner_listed) {
  NormTable a = table_of("bn1"), b = table_of("bn1");
  a.norms.push_back(table_of("bn2").norms[0]);
  b.norms.push_back(table_of("bn2", 7).norms[0]);
  a.norms.push_back(table_of("old").norms[0]);
  b.norms.push_back(table_of("new").norms[0]);
  const NormDiff diff = diff_norms(a, b);
  ASSERT_THAT(diff.changes, SizeIs(2));
  EXPECT_EQ(diff.changes[0].name, "bn2");
  EXPECT_THAT(diff.only_a, ElementsAre("old"));
  EXPECT_THAT(diff.only_b, ElementsAre("new"));
}

TEST(DiffNorms, without_a_name_in_common_the_order_counts) {
  const NormDiff diff = diff_norms(table_of("bn1"), table_of("batch_normalization", 7));
  ASSERT_THAT(diff.changes, SizeIs(1));
  EXPECT_THAT(diff.notes, ElementsAre(HasSubstr("in their order")));
  NormTable other = table_of("batch_normalization");
  other.norms[0].channels = 3;
  EXPECT_THAT(diff_norms(table_of("bn1"), other).changes, IsEmpty());
}

TEST(DiffNorms, a_file_without_eps_gets_that_of_the_other) {
  NormTable a = table_of("bn1"), b = table_of("bn1");
  a.norms[0].eps = 1e-3;
  b.norms[0].eps_known = false;
  EXPECT_EQ(diff_norms(a, b).largest_effect(), 0);
  b.norms[0].eps_known = true;
  EXPECT_GT(diff_norms(a, b).largest_effect(), 0);
  EXPECT_TRUE(diff_norms(a, b).changes[0].eps_differs);
}

}  // namespace
}  // namespace evenkeel::tools
