// The table of norms from every format, and what lint says about it.
#include "evenkeel/tools/lint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/fold_testing.h"
#include "evenkeel/tools/lint_data.h"
#include "evenkeel/tools/norm_page.h"

namespace evenkeel::tools {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

NormRecord healthy(int64_t channels = 4) {
  const auto n = static_cast<size_t>(channels);
  NormRecord norm{.name = "bn", .output = "", .channels = channels};
  norm.new_batch_weight = 0.1;
  norm.gamma = std::vector<double>(n, 1.5);
  norm.beta = std::vector<double>(n, 0.5);
  norm.mean = std::vector<double>(n, 0.25);
  norm.var = std::vector<double>(n, 2);
  return norm;
}

std::vector<std::string> codes_of(const std::vector<Finding>& findings) {
  std::vector<std::string> codes;
  for (const Finding& f : findings) codes.push_back(f.code);
  return codes;
}

// Of a healthy norm after a change.
template <class Change>
std::vector<Finding> after(Change change) {
  NormTable table{.format = "test", .norms = {healthy()}, .notes = {}};
  change(table.norms[0]);
  return lint(table);
}

TEST(Lint, a_healthy_norm_has_no_findings) {
  EXPECT_THAT(after([](NormRecord&) {}), IsEmpty());
}

TEST(Lint, channels_are_counted_by_their_variance) {
  const auto findings = after([](NormRecord& n) { n.var = {1e-5, 0, 1e-40, -1e-7}; });
  EXPECT_THAT(codes_of(findings), ElementsAre("EK102", "EK103", "EK104", "EK105"));
  EXPECT_EQ(findings[0].channels, 3);
  EXPECT_THAT(findings[0].reason,
              HasSubstr("3 of 4 channels (eps 1e-05), 2 below 1e-10; the smallest is 0, of channel 1"));
  EXPECT_EQ(findings[1].channels, 1);
  EXPECT_EQ(findings[2].channels, 1);
  EXPECT_EQ(findings[3].severity, Severity::kError);
}

TEST(Lint, values_that_are_not_finite_are_errors_wherever_they_are) {
  for (auto values : {&NormRecord::gamma, &NormRecord::beta, &NormRecord::mean, &NormRecord::var}) {
    const auto findings = after([&](NormRecord& n) { (n.*values)[2] = kNan; });
    EXPECT_THAT(codes_of(findings), ElementsAre("EK106"));
    EXPECT_EQ(findings[0].channels, 1);
  }
}

TEST(Lint, gamma_near_0_is_counted) {
  const auto findings = after([](NormRecord& n) { n.gamma = {1, 0, -9e-4, 1.1e-3}; });
  ASSERT_THAT(codes_of(findings), Contains("EK107"));
  EXPECT_EQ(findings[0].channels, 2);
}

TEST(Lint, an_impossible_or_unusual_eps_is_told) {
  const auto with = [](const std::vector<double>& eps, bool known = true) {
    NormTable table{.format = "test", .norms = {}, .notes = {}};
    for (const double e : eps) {
      table.norms.push_back(healthy());
      table.norms.back().eps = e;
      table.norms.back().eps_known = known;
    }
    return lint(table);
  };
  for (const double eps : {-1.0, -1e-12, kNan, HUGE_VAL}) {
    const auto findings = with({eps, 1e-5});
    ASSERT_THAT(codes_of(findings), ElementsAre("EK123")) << eps;
    EXPECT_EQ(findings[0].severity, Severity::kError);
  }
  const auto zero = with({0});
  ASSERT_THAT(codes_of(zero), ElementsAre("EK124"));
  EXPECT_EQ(zero[0].severity, Severity::kWarning);
  const auto other = with({static_cast<double>(1e-3F), static_cast<double>(1e-5F), static_cast<double>(1e-5F)});
  ASSERT_THAT(codes_of(other), ElementsAre("EK124"));
  EXPECT_EQ(other[0].severity, Severity::kInfo);
  EXPECT_THAT(other[0].reason, HasSubstr("eps is 0.001, and 1e-05 in most other norms"));
  // Halves of two libraries, a smaller factor, and what the file does not say.
  EXPECT_THAT(with({1e-3, 1e-5}), IsEmpty());
  EXPECT_THAT(with({1e-4, 1e-5, 1e-5}), IsEmpty());
  EXPECT_THAT(with({1e-3, 1e-5, 1e-5}, false), IsEmpty());
}

TEST(Lint, start_values_beside_trained_weights_are_an_error_and_before_training_a_warning) {
  const auto start = [](NormRecord& n) {
    n.mean.assign(4, 0);
    n.var.assign(4, 1);
  };
  const auto trained = after(start);
  ASSERT_THAT(codes_of(trained), ElementsAre("EK108"));
  EXPECT_EQ(trained[0].severity, Severity::kError);
  const auto fresh = after([&](NormRecord& n) {
    start(n);
    n.gamma.assign(4, 1);
    n.beta.assign(4, 0);
  });
  ASSERT_THAT(codes_of(fresh), ElementsAre("EK108"));
  EXPECT_EQ(fresh[0].severity, Severity::kWarning);
}

TEST(Lint, too_few_updates_for_the_weight_are_told) {
  const auto with = [](int64_t batches, double weight) {
    return after([&](NormRecord& n) {
      n.batches = batches;
      n.new_batch_weight = weight;
    });
  };
  EXPECT_THAT(codes_of(with(28, 0.1)), ElementsAre("EK109"));  // 0.9^28 = 0.0523
  EXPECT_THAT(with(29, 0.1), IsEmpty());                       // 0.9^29 = 0.0471
  EXPECT_THAT(codes_of(with(200, 0.01)), ElementsAre("EK109"));
  const auto cumulative = after([](NormRecord& n) {
    n.batches = 1;
    n.new_batch_weight.reset();
  });
  EXPECT_THAT(cumulative, IsEmpty());
}

TEST(Lint, scales_that_spread_wide_are_told_unless_the_weights_make_up_for_it) {
  const auto wide = [](NormRecord& n) { n.gamma = {1, 1, 1, 40}; };
  EXPECT_THAT(codes_of(after(wide)), ElementsAre("EK110"));
  EXPECT_THAT(after([&](NormRecord& n) {
                wide(n);
                n.weight_range = {40, 40, 40, 1};
              }),
              IsEmpty());
}

TEST(Lint, numbers_too_large_for_float16_are_told) {
  EXPECT_THAT(codes_of(after([](NormRecord& n) { n.var.assign(4, 70000); })), ElementsAre("EK111"));
  EXPECT_THAT(codes_of(after([](NormRecord& n) { n.weight_range.assign(4, 70000); })), ElementsAre("EK111"));
}

TEST(Lint, what_stands_around_a_norm_is_judged) {
  const auto findings = after([](NormRecord& n) {
    n.bias_in_front = "conv.bias";
    n.training = true;
    n.shares_with = "other";
    n.fed_by = {"Add 'sum'"};
    n.streams = {"Conv 'a'", "Conv 'b'"};
    n.padded_behind = "Conv 'c'";
    n.values_per_channel = 1;
  });
  EXPECT_THAT(codes_of(findings), ElementsAre("EK101", "EK112", "EK113", "EK114", "EK115", "EK116"));
}

TEST(Lint, every_rule_can_be_explained_and_a_code_is_given_once) {
  std::string last;
  for (const LintRule& rule : lint_rules()) {
    EXPECT_LT(last, rule.code);
    last = rule.code;
    EXPECT_EQ(&lint_rule(rule.code), &rule);
    for (const std::string* text : {&rule.title, &rule.explanation, &rule.remedy}) EXPECT_FALSE(text->empty());
  }
  EXPECT_EQ(lint_rule("ek101").code, "EK101");
  EXPECT_THAT(message_of<UsageError>([] { lint_rule("EK999"); }), HasSubstr("EK999"));
}

// --- with data ---

// Norms "a", "b", ... and moments whose means are so many stored deviations off.
std::pair<NormTable, std::map<std::string, std::vector<Moments>>> shifted(const std::vector<double>& shifts) {
  NormTable table{.format = "test", .norms = {}, .notes = {}};
  std::map<std::string, std::vector<Moments>> moments;
  for (size_t i = 0; i < shifts.size(); ++i) {
    NormRecord norm = healthy();
    norm.name = std::string(1, static_cast<char>('a' + i));
    table.norms.push_back(norm);
    moments[norm.name].assign(4, {.count = 100, .mean = 0.25 + shifts[i] * std::sqrt(2.0 + 1e-5), .m2 = 200});
  }
  return {table, moments};
}

TEST(LintData, statistics_that_fit_have_no_findings) {
  const auto [table, moments] = shifted({0.1, 0, 0.2});
  const auto observations = observe(table, moments);
  ASSERT_THAT(observations, SizeIs(3));
  EXPECT_NEAR(observations[0].distance.mean_shift, 0.1, 1e-6);
  EXPECT_THAT(lint_observations(table, observations, Accuracies{0.9, 0.91}), IsEmpty());
}

TEST(LintData, first_layers_that_move_most_point_at_the_preprocessing) {
  const auto [table, moments] = shifted({2, 0.7, 0.1, 0.1, 0.1});
  EXPECT_THAT(codes_of(lint_observations(table, observe(table, moments), {})), ElementsAre("EK119", "EK118", "EK118"));
  const auto [late, late_moments] = shifted({0.1, 0.1, 0.1, 0.1, 2});
  EXPECT_THAT(codes_of(lint_observations(late, observe(late, late_moments), {})), ElementsAre("EK118"));
}

TEST(LintData, channels_that_stand_still_are_counted_and_accuracies_compared) {
  auto [table, moments] = shifted({0});
  moments["a"][1].m2 = 0;
  moments["a"][2].m2 = 1e-9;
  const auto findings = lint_observations(table, observe(table, moments), Accuracies{0.66, 0.88});
  ASSERT_THAT(codes_of(findings), ElementsAre("EK119", "EK118", "EK120", "EK121"));
  EXPECT_EQ(findings[2].channels, 2);
}

TEST(LintData, moments_are_found_by_the_name_of_the_output_too) {
  auto [table, moments] = shifted({0.1});
  table.norms[0].output = "value";
  moments["value"] = moments["a"];
  moments.erase("a");
  EXPECT_THAT(observe(table, moments), SizeIs(1));
}

// --- the page ---

TEST(NormPage, draws_every_norm_and_shows_nothing_of_a_name_as_markup) {
  NormTable table{.format = "test", .norms = {healthy(), healthy()}, .notes = {}};
  table.norms[0].name = "<script>alert(1)</script>";
  table.norms[1].gamma = {kNan, 1, 2, 3};
  const std::string page = norm_page(table, lint(table), "model & co");
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("model &amp; co"));
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_THAT(page, HasSubstr("EK106"));
  size_t drawings = 0;
  for (size_t at = 0; (at = page.find("<svg", at)) != page.npos; ++at) ++drawings;
  EXPECT_EQ(drawings, 10U);
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
}

// --- tables ---

TEST(NormTable, of_an_onnx_model_knows_the_neighbours) {
  onnx::Model model;
  model.opsets[""] = 15;
  onnx::Graph& graph = model.graph;
  const auto node = [&](const std::string& op, std::vector<std::string> in, const std::string& out) -> onnx::Node& {
    graph.nodes.push_back({.op_type = op,
                           .domain = "",
                           .name = op + "_" + out,
                           .inputs = std::move(in),
                           .outputs = {out},
                           .attributes = {}});
    return graph.nodes.back();
  };
  const auto constant = [&](const std::string& name, const Shape& dims, double value) {
    graph.initializers.push_back(
        onnx::make_tensor(name, dims, std::vector<double>(static_cast<size_t>(element_count(dims)), value)));
  };
  for (const char* name : {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}) constant(name, {2}, 0.5);
  constant("w", {2, 2, 3, 3}, -3);
  constant("b", {2}, 1);
  graph.inputs.push_back({.name = "x", .type = onnx::ElementType::kDouble, .dims = {}});
  node("Conv", {"x", "w", "b"}, "a");
  node("BatchNormalization", {"a", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}, "n")
      .set("momentum", 0.75F);
  node("Conv", {"n", "w"}, "c").set("pads", std::vector<int64_t>{1, 1, 1, 1});
  node("Add", {"c", "x"}, "s");
  node("BatchNormalization", {"s", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}, "y")
      .set("epsilon", 0.125F);
  graph.outputs.push_back({.name = "y", .dims = {}});

  const NormTable table = norm_table(model);
  ASSERT_THAT(table.norms, SizeIs(2));
  const NormRecord &first = table.norms[0], &second = table.norms[1];
  EXPECT_EQ(first.name, "bn1");
  EXPECT_EQ(first.output, "n");
  EXPECT_THAT(first.fed_by, ElementsAre("Conv 'Conv_a'"));
  EXPECT_THAT(first.feeds, ElementsAre("Conv 'Conv_c'"));
  EXPECT_EQ(first.bias_in_front, "b");
  EXPECT_THAT(first.weight_range, ElementsAre(3, 3));
  EXPECT_EQ(first.padded_behind, "Conv 'Conv_c'");
  EXPECT_EQ(first.new_batch_weight, 0.25);
  EXPECT_EQ(second.eps, 0.125);
  EXPECT_EQ(second.shares_with, "bn1");
  EXPECT_EQ(second.name, "bn1 -> y");
  EXPECT_THAT(second.streams, ElementsAre("Conv 'Conv_c'", "input 'x'"));
  EXPECT_THAT(second.feeds, ElementsAre("output 'y'"));
}

TEST(NormTable, a_bias_that_others_read_too_is_not_said_to_be_redundant) {
  const auto table_with = [](bool second_norm, bool reader, bool output) {
    onnx::Model model;
    model.opsets[""] = 15;
    onnx::Graph& graph = model.graph;
    const auto constant = [&](const char* name, const Shape& dims) {
      const std::vector<float> values(static_cast<size_t>(element_count(dims)), 0.5F);
      graph.initializers.push_back(onnx::make_tensor(name, dims, std::span<const float>(values)));
    };
    const auto node = [&](const char* op, std::vector<std::string> inputs, const char* result) {
      graph.nodes.push_back({.op_type = op,
                             .domain = "",
                             .name = "",
                             .inputs = std::move(inputs),
                             .outputs = {result},
                             .attributes = {}});
    };
    for (const char* name : {"g", "s", "m", "v", "b", "a"}) constant(name, {2});
    constant("w", {2, 2});
    graph.inputs.push_back({.name = "x", .dims = {}});
    node("Gemm", {"x", "w", "b"}, "c");
    node("MatMul", {"x", "w"}, "p");
    node("Add", {"p", "a"}, "d");
    for (const char* front : {"c", "d"}) {
      const std::string name = front;
      node("BatchNormalization", {name, "g", "s", "m", "v"}, (name + "_y").c_str());
      if (second_norm) node("BatchNormalization", {name, "g", "s", "m", "v"}, (name + "_z").c_str());
      if (reader) node("Relu", {name}, (name + "_r").c_str());
      if (output) graph.outputs.push_back({.name = name, .dims = {}});
    }
    return norm_table(model);
  };
  for (const bool second_norm : {false, true}) {
    const NormTable table = table_with(second_norm, false, false);
    EXPECT_EQ(table.norms.front().bias_in_front, "b");
    EXPECT_EQ(table.norms.back().bias_in_front, "a");
  }
  for (const bool reader : {false, true}) {
    for (const NormRecord& norm : table_with(true, reader, !reader).norms) EXPECT_EQ(norm.bias_in_front, "");
  }
}

TEST(NormTable, a_table_of_places_in_front_is_no_bias) {
  struct Case {
    const char* op;
    Shape x, weights, addend;
    bool bias;
  };
  const Case cases[] = {
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {4, 1, 1}, true},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {1}, true},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {7}, false},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {4, 5, 7}, false},
      {"MatMul", {2, 3}, {3, 4}, {4}, true},
      {"MatMul", {2, 3}, {3, 4}, {2, 4}, false},
      {"Gemm", {2, 3}, {3, 4}, {1, 4}, true},
      {"Gemm", {2, 3}, {3, 4}, {2, 4}, false},
  };
  for (const Case& c : cases) {
    Net net;
    net.input("x", c.x).constant("w", c.weights).constant("a", c.addend, 1, 2);
    if (c.op == std::string("Gemm")) {
      net.node("Gemm", {"x", "w", "a"}, "s");
    } else {
      net.node(c.op, {"x", "w"}, "p");
      net.node("Add", {"p", "a"}, "s");
    }
    net.norm("s", "y", 4);
    net.output("y");
    EXPECT_EQ(norm_table(net.model).norms.at(0).bias_in_front, c.bias ? "a" : "") << c.op << " " << to_string(c.addend);
  }
}

TEST(NormTable, what_is_constant_is_kept_where_the_statistics_are_computed) {
  Net net;
  net.input("x", {2, 3, 4, 4});
  net.norm("x", "y", 3);
  net.node("ReduceMean", {"x"}, "mean");
  net.graph->nodes[0].inputs[3] = "mean";
  net.graph->nodes[0].set("training_mode", int64_t{1});
  net.output("y");
  const NormTable table = norm_table(net.model);
  const NormRecord& norm = table.norms.at(0);
  EXPECT_EQ(norm.gamma, onnx::doubles_of(*net.graph->initializer("g_y")));
  EXPECT_EQ(norm.beta, onnx::doubles_of(*net.graph->initializer("b_y")));
  EXPECT_THAT(norm.mean, IsEmpty());
  EXPECT_THAT(norm.var, IsEmpty());  // of use only together
  EXPECT_THAT(norm.scale(), IsEmpty());
  EXPECT_THAT(norm.shift(), IsEmpty());
  // No advice to use stored statistics, for there are none.
  EXPECT_THAT(codes_of(lint(table)), ElementsAre("EK117", "EK122"));
  EXPECT_THAT(norm_page(table, lint(table), "m"), HasSubstr("EK122"));

  net.constant("b_y2", {4});
  net.graph->nodes[0].inputs[2] = "b_y2";
  EXPECT_THAT(message_of<FormatError>([&] { norm_table(net.model); }),
              HasSubstr("beta has 4 values where gamma has 3"));
}

TEST(NormTable, what_a_norm_of_a_state_dict_lacks_is_named) {
  TensorFile file;
  // The last has no running statistics at all, as with track_running_stats=False.
  for (const char* name : {"a.weight", "a.bias", "a.running_mean", "b.running_var", "c.weight", "c.bias"}) {
    file.tensors.emplace_back(name, Tensor(DType::kF32, {2}));
    std::fill_n(file.tensors.back().second.values<float>().begin(), 2, 1.0F);
  }
  const auto findings = lint(norm_table_of_state_dict(file));
  ASSERT_THAT(codes_of(findings), ElementsAre("EK125", "EK125"));
  EXPECT_EQ(findings[0].norm, "a");
  EXPECT_EQ(findings[0].reason, "'a.running_var'");
  EXPECT_EQ(findings[1].reason, "'b.running_mean'");
  EXPECT_EQ(findings[0].severity, Severity::kError);
}

TEST(NormTable, inputs_that_nobody_makes_and_channels_that_do_not_fit_are_told) {
  Net net;
  net.input("x", {2, 3, 4, 4}).constant("w", {8, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
  net.norm("c", "y", 8);
  net.output("y");
  EXPECT_THAT(codes_of(lint(norm_table(net.model))), Not(Contains("EK126")));
  net.graph->nodes[1].inputs[4] = "nowhere";
  const auto unmade = lint(norm_table(net.model));
  ASSERT_THAT(codes_of(unmade), ElementsAre("EK125"));
  EXPECT_EQ(unmade[0].reason, "'nowhere'");

  Net five;
  five.input("x", {2, 3, 4, 4}).constant("w", {8, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
  five.norm("c", "y", 5);
  five.output("y");
  const auto findings = lint(norm_table(five.model));
  ASSERT_THAT(codes_of(findings), Contains("EK126"));
  EXPECT_THAT(findings.back().reason, HasSubstr("'Conv_c' makes 8 channels, and the norm has parameters of 5"));
}

TEST(NormTable, a_norm_of_zeros_is_a_warning_unless_it_may_close_a_residual_branch) {
  const auto severity = [](bool residual) {
    Net net;
    net.input("x", {2, 3, 4, 4}).constant("w", {3, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
    net.norm("c", "y", 3);
    net.graph->set_initializer(onnx::make_tensor("g_y", {3}, std::span<const double>(std::vector<double>(3, 0))));
    if (residual) {
      net.node("Dropout", {"y"}, "d");
      net.node("Add", {"x", "d"}, "s");
    } else {
      net.node("Relu", {"y"}, "r");
      net.node("Conv", {"r", "w"}, "s");
    }
    net.output("s");
    for (const Finding& f : lint(norm_table(net.model))) {
      if (f.code == "EK107") return f.severity;
    }
    return Severity::kError;
  };
  EXPECT_EQ(severity(false), Severity::kWarning);
  EXPECT_EQ(severity(true), Severity::kInfo);
  const auto unknown = after([](NormRecord& n) { n.gamma.assign(4, 0); });
  ASSERT_THAT(codes_of(unknown), Contains("EK107"));
  EXPECT_EQ(unknown[0].severity, Severity::kInfo);
}

TEST(NormTable, same_padding_that_pads_nothing_is_none) {
  const auto padded = [](int64_t side, int64_t kernel, int64_t stride) {
    Net net;
    net.input("x", {2, 3, side, side}).constant("w", {4, 3, kernel, kernel});
    net.norm("x", "y", 3);
    onnx::Node& conv = net.node("Conv", {"y", "w"}, "c");
    conv.set("auto_pad", std::string("SAME_UPPER"));
    conv.set("strides", std::vector<int64_t>{stride, stride});
    net.output("c");
    return norm_table(net.model).norms.at(0).padded_behind;
  };
  EXPECT_EQ(padded(8, 2, 2), "");
  EXPECT_EQ(padded(9, 2, 2), "Conv 'Conv_c'");
  EXPECT_EQ(padded(8, 3, 2), "Conv 'Conv_c'");
}

TEST(NormTable, an_export_of_ours_says_which_variance_it_holds) {
  onnx::Model model;
  model.opsets[""] = 15;
  const std::vector<float> values(2, 1);
  for (const char* name : {"g", "b", "m", "v"})
    model.graph.initializers.push_back(onnx::make_tensor(name, {2}, std::span<const float>(values)));
  model.graph.nodes.push_back({.op_type = "BatchNormalization",
                               .domain = "",
                               .name = "n",
                               .inputs = {"x", "g", "b", "m", "v"},
                               .outputs = {"y"},
                               .attributes = {}});
  EXPECT_EQ(norm_table(model).norms.at(0).variance_kind, RunningVariance::kBiased);
  model.metadata["evenkeel.running_statistics"] = "ema; " + in_words(0.1, RunningVariance::kUnbiased);
  EXPECT_EQ(norm_table(model).norms.at(0).variance_kind, RunningVariance::kUnbiased);
}

TEST(NormTable, of_a_state_dict_finds_norms_by_their_names) {
  TensorFile file;
  const auto add = [&](const std::string& name, const std::vector<float>& values) {
    Tensor tensor(DType::kF32, {std::ssize(values)});
    std::copy(values.begin(), values.end(), tensor.values<float>().begin());
    file.tensors.emplace_back(name, std::move(tensor));
  };
  add("module.layer1.0.conv1.bias", {0, 1});
  add("module.layer1.0.bn1.weight", {1, 2});
  add("module.layer1.0.bn1.bias", {3, 4});
  add("module.layer1.0.bn1.running_mean", {5, 6});
  add("module.layer1.0.bn1.running_var", {7, 8});
  add("plain.running_mean", {1});
  add("plain.running_var", {1});
  add("lonely.running_mean", {1});
  const NormTable table = norm_table_of_state_dict(file);
  ASSERT_THAT(table.norms, SizeIs(3));
  EXPECT_THAT(table.norms[2].missing, ElementsAre("lonely.running_var"));
  EXPECT_EQ(table.norms[0].name, "layer1.0.bn1");
  EXPECT_THAT(table.norms[0].gamma, ElementsAre(1, 2));
  EXPECT_THAT(table.norms[0].var, ElementsAre(7, 8));
  EXPECT_EQ(table.norms[0].bias_in_front, "module.layer1.0.conv1.bias");
  EXPECT_FALSE(table.norms[0].eps_known);
  EXPECT_THAT(table.norms[1].gamma, IsEmpty());
  EXPECT_THAT(table.norms[1].scale(), ElementsAre(1 / std::sqrt(1 + 1e-5)));
  EXPECT_THAT(table.notes, ElementsAre(HasSubstr("are assumed")));
  add("broken.running_mean", {1});
  add("broken.running_var", {1, 2});
  EXPECT_THROW(norm_table_of_state_dict(file), FormatError);
}

TEST(NormTable, of_a_state_dict_pairs_a_bias_only_with_a_norm_that_stands_behind_it) {
  const auto biases = [](const std::vector<std::pair<std::string, Shape>>& keys) {
    TensorFile file;
    for (const auto& [name, shape] : keys) {
      Tensor tensor(DType::kF32, shape);
      std::fill(tensor.values<float>().begin(), tensor.values<float>().end(), 1.0F);
      file.tensors.emplace_back(name, std::move(tensor));
    }
    std::vector<std::string> found;
    for (const NormRecord& norm : norm_table_of_state_dict(file).norms) found.push_back(norm.bias_in_front);
    return found;
  };
  using Keys = std::vector<std::pair<std::string, Shape>>;
  const Keys conv = {{"conv1.weight", {2, 3, 1, 1}}, {"conv1.bias", {2}}};
  const Keys norm = {{"bn1.running_mean", {2}}, {"bn1.running_var", {2}}};
  const auto both = [](Keys a, const Keys& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  EXPECT_THAT(biases(both(conv, norm)), ElementsAre("conv1.bias"));
  // Sorted names say nothing about the order.
  EXPECT_THAT(biases(both(norm, {{"conv1.bias", {2}}, {"conv1.weight", {2, 3, 1, 1}}})), ElementsAre("conv1.bias"));
  // The norm comes first.
  EXPECT_THAT(biases(both(norm, conv)), ElementsAre(""));
  // Pre-activation: the norm has the channels that the convolution takes, and so have all others of the file.
  const Keys takes = {{"bn1.running_mean", {4}}, {"bn1.running_var", {4}},      {"bn2.running_mean", {2}},
                      {"bn2.running_var", {2}},  {"conv1.bias", {2}},           {"conv1.weight", {2, 4, 3, 3}},
                      {"conv2.bias", {2}},       {"conv2.weight", {2, 2, 3, 3}}};
  EXPECT_THAT(biases(takes), ElementsAre("", ""));
  EXPECT_THAT(biases({{"bn1.running_mean", {2}}, {"bn1.running_var", {2}}, {"conv1.bias", {3}}}), ElementsAre(""));
}

// The figures of shared/data/README.md.
class RealModels : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("EVENKEEL_TEST_DATA");
    models_ = std::string(folder != nullptr ? folder : "../shared/data") + "/models/";
    if (!std::filesystem::exists(models_)) GTEST_SKIP() << "no " << models_;
  }
  std::string models_;
};

TEST_F(RealModels, the_weak_channels_of_the_face_detectors_are_counted) {
  const ChannelTotals rfb = totals_of(read_norm_table(models_ + "version-RFB-320.onnx"));
  EXPECT_EQ(rfb.norms, 35);
  EXPECT_EQ(rfb.channels, 2404);
  EXPECT_EQ(rfb.variance_below_eps, 44);
  const ChannelTotals slim = totals_of(read_norm_table(models_ + "version-slim-320.onnx"));
  EXPECT_EQ(slim.norms, 25);
  EXPECT_EQ(slim.channels, 2272);
  EXPECT_EQ(slim.variance_below_eps, 263);
  EXPECT_EQ(slim.variance_below_1e10, 27);
  EXPECT_EQ(slim.variance_denormal, 27);  // one number, 5.6e-45, in all of them
  EXPECT_EQ(slim.gamma_near_0, 52);
}

TEST_F(RealModels, a_model_is_the_same_in_onnx_and_in_safetensors) {
  const NormTable a = read_norm_table(models_ + "resnet20_cifar10_bn.onnx");
  const NormTable b = read_norm_table(models_ + "resnet20_cifar10.safetensors");
  ASSERT_THAT(a.norms, SizeIs(19));
  ASSERT_THAT(b.norms, SizeIs(19));
  for (const NormRecord& norm : a.norms) {
    const auto other = std::find_if(b.norms.begin(), b.norms.end(), [&](const auto& n) { return n.name == norm.name; });
    ASSERT_NE(other, b.norms.end()) << norm.name;
    EXPECT_EQ(norm.var, other->var);
    EXPECT_EQ(norm.gamma, other->gamma);
  }
}

TEST_F(RealModels, keras_files_are_read_where_the_library_is_there) {
  if (!reads_keras_h5()) GTEST_SKIP() << "built without libhdf5";
  const NormTable table = read_norm_table(models_ + "pretrainedResnet.h5");
  EXPECT_THAT(table.norms, SizeIs(7));
  EXPECT_EQ(totals_of(table).channels, 240);
  EXPECT_DOUBLE_EQ(table.norms[0].eps, 1e-3);
  EXPECT_EQ(table.norms[0].new_batch_weight, 0.01);
}

TEST_F(RealModels, have_no_unusual_eps) {
  for (const auto& entry : std::filesystem::directory_iterator(models_)) {
    if (entry.path().extension() != ".onnx") continue;
    EXPECT_THAT(codes_of(lint(read_norm_table(entry.path()))), testing::Each(Not(testing::AnyOf("EK123", "EK124"))))
        << entry.path();
  }
}

TEST_F(RealModels, a_pickle_is_refused) {
  EXPECT_THROW(read_norm_table(models_ + "resnet20-12fca82f.th"), FormatError);
}

}  // namespace
}  // namespace evenkeel::tools
