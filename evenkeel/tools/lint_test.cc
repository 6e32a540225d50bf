// What lint says about a table of norms, and the page that shows it.
#include "evenkeel/tools/lint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/lint_data.h"
#include "evenkeel/tools/lint_testing.h"
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

TEST(Lint, zeros_without_known_neighbours_may_close_a_residual_branch) {
  const auto unknown = after([](NormRecord& n) { n.gamma.assign(4, 0); });
  ASSERT_THAT(codes_of(unknown), Contains("EK107"));
  EXPECT_EQ(unknown[0].severity, Severity::kInfo);
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

}  // namespace
}  // namespace evenkeel::tools
