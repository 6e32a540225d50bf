// Statistics of ONNX models: levels, every kind against plain formulas, shared tensors, the way back.
#include "evenkeel/tools/onnx_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/onnx_testing.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/recalibrate_models.h"

namespace evenkeel::tools {
namespace {

using onnx::add;
using onnx::info;
using onnx::node;
using onnx::normal;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// x [N, 3] -> norm a -> relu -> gemm -> norm b [N, 2]; both norms read gamma and beta of their own, `shared`: the same mean and variance tensors.
onnx::Model two_norms() {
  onnx::Model m;
  m.opsets[""] = 15;
  m.graph.inputs = {info("x", {-1, 3})};
  m.graph.outputs = {info("y", {-1, 2})};
  add(m, "a.weight", {3}, {1, 2, 0.5f});
  add(m, "a.bias", {3}, {0, 0.5f, -0.5f});
  add(m, "a.running_mean", {3}, {0, 0, 0});
  add(m, "a.running_var", {3}, {1, 1, 1});
  add(m, "b.weight", {2}, {1, 1});
  add(m, "b.bias", {2}, {0, 0});
  add(m, "b.running_mean", {2}, {0, 0});
  add(m, "b.running_var", {2}, {1, 1});
  add(m, "w", {3, 2}, {1, -1, 2, 0.5f, 0, 1});
  m.graph.nodes = {node("BatchNormalization", {"x", "a.weight", "a.bias", "a.running_mean", "a.running_var"}, {"an"}),
                   node("Relu", {"an"}, {"r"}), node("Gemm", {"r", "w"}, {"g"}),
                   node("BatchNormalization", {"g", "b.weight", "b.bias", "b.running_mean", "b.running_var"}, {"y"})};
  return m;
}

data::Dataset examples(int64_t count) {
  data::Dataset d;
  d.name = "numbers";
  d.example_shape = {3};
  d.count = count;
  d.values = Tensor(DType::kF32, {count, 3});
  const std::vector<float> v = normal(static_cast<size_t>(count * 3), 7);
  for (size_t i = 0; i < v.size(); ++i) d.values.values<float>()[i] = 3 * v[i] + static_cast<float>(i % 3);
  d.labels.assign(static_cast<size_t>(count), 0);
  d.class_names = {"0", "1"};
  return d;
}
const data::Standardization kAsTheyAre{{0, 0, 0}, {1, 1, 1}};

struct Column {
  double mean = 0, var = 0;
};
// In double, two passes; var: divided by n - 1.
std::vector<Column> columns_of(const std::vector<std::vector<double>>& rows) {
  std::vector<Column> columns(rows[0].size());
  const auto n = static_cast<double>(rows.size());
  for (size_t c = 0; c < columns.size(); ++c) {
    for (const auto& row : rows) columns[c].mean += row[c] / n;
    for (const auto& row : rows) columns[c].var += (row[c] - columns[c].mean) * (row[c] - columns[c].mean) / (n - 1);
  }
  return columns;
}
std::vector<std::vector<double>> rows_of(const data::Dataset& d) {
  std::vector<std::vector<double>> rows;
  const auto v = d.values.values<float>();
  for (size_t i = 0; i < v.size(); i += 3) rows.push_back({v[i], v[i + 1], v[i + 2]});
  return rows;
}
// What comes into norm b where norm a normalizes by `a`.
std::vector<std::vector<double>> into_b(const std::vector<std::vector<double>>& rows, const std::vector<Column>& a) {
  const double gamma[] = {1, 2, 0.5}, beta[] = {0, 0.5, -0.5}, w[3][2] = {{1, -1}, {2, 0.5}, {0, 1}};
  std::vector<std::vector<double>> out;
  for (const auto& row : rows) {
    out.push_back({0, 0});
    for (size_t c = 0; c < 3; ++c) {
      const double r = std::max(0.0, gamma[c] * (row[c] - a[c].mean) / std::sqrt(a[c].var + 1e-5) + beta[c]);
      for (size_t k = 0; k < 2; ++k) out.back()[k] += r * w[c][k];
    }
  }
  return out;
}
void expect_near(const ChannelStatistics& found, const std::vector<Column>& expected) {
  ASSERT_EQ(found.mean.size(), expected.size());
  for (size_t c = 0; c < expected.size(); ++c) {
    EXPECT_NEAR(found.mean[c], expected[c].mean, 1e-5 * (1 + std::abs(expected[c].mean))) << found.name << " " << c;
    EXPECT_NEAR(found.var[c], expected[c].var, 1e-5 * expected[c].var) << found.name << " " << c;
  }
}

TEST(OnnxStatistics, KnowsTheNormsAndTheirLevels) {
  const std::vector<OnnxNorm> norms = onnx_norms(two_norms());
  ASSERT_EQ(norms.size(), 2u);
  EXPECT_EQ(norms[0].name, "a");
  EXPECT_EQ(norms[0].level, 0);
  EXPECT_EQ(norms[1].name, "b");
  EXPECT_EQ(norms[1].level, 1);
  EXPECT_NEAR(norms[1].new_batch_weight, 0.1, 1e-6);
}

TEST(OnnxStatistics, PopulationIsExactLayerByLayer) {
  onnx::Model m = two_norms();
  const data::Dataset d = examples(50);
  const ClassifierForm form = classifier_form(m, {});
  EXPECT_EQ(form.classes, 2);
  const StatisticsWork work = recompute_statistics(m, form, d, kAsTheyAre, {.batch_size = 7, .threads = 2});
  EXPECT_EQ(work.passes, 2);
  EXPECT_EQ(work.norms, 2);
  const std::vector<Column> a = columns_of(rows_of(d));
  expect_near(onnx_norms(m)[0].stored, a);
  expect_near(onnx_norms(m)[1].stored, columns_of(into_b(rows_of(d), a)));
}

TEST(OnnxStatistics, AFixedBatchSaysWhatCanBeGiven) {
  onnx::Model m = two_norms();
  m.graph.inputs = {info("x", {30, 3})};
  m.graph.outputs = {info("y", {30, 2})};
  const ClassifierForm form = classifier_form(m, {});
  const auto refusal = [&](int64_t count, int64_t wanted) {
    return message_of<UsageError>(
        [&, d = examples(count)] { recompute_statistics(m, form, d, kAsTheyAre, {.examples = wanted, .threads = 1}); });
  };
  EXPECT_THAT(refusal(19, 0), AllOf(HasSubstr("at least 30 examples"), Not(HasSubstr("--examples"))));
  EXPECT_THAT(refusal(70, 0), HasSubstr("70 are no multiple of it: give --examples 60"));
  EXPECT_THAT(refusal(70, 20), HasSubstr("give --examples 30"));
  EXPECT_EQ(refusal(70, 60), "");
}

TEST(OnnxStatistics, MeanOfBatchesNormalizesByEachBatch) {
  onnx::Model m = two_norms();
  const data::Dataset d = examples(40);
  recompute_statistics(m, classifier_form(m, {}), d, kAsTheyAre,
                       {.kind = RunningStatistics::kMeanOfBatches, .in_order = true, .batch_size = 10, .threads = 1});
  const auto rows = rows_of(d);
  std::vector<Column> a(3), b(2);
  for (size_t first = 0; first < 40; first += 10) {
    const std::vector<std::vector<double>> batch(rows.begin() + static_cast<std::ptrdiff_t>(first),
                                                 rows.begin() + static_cast<std::ptrdiff_t>(first) + 10);
    std::vector<Column> here = columns_of(batch);
    for (size_t c = 0; c < 3; ++c) {
      a[c].mean += here[c].mean / 4;
      a[c].var += here[c].var / 4;
      here[c].var *= 0.9;  // normalizes by the population's variance
    }
    const std::vector<Column> there = columns_of(into_b(batch, here));
    for (size_t c = 0; c < 2; ++c) {
      b[c].mean += there[c].mean / 4;
      b[c].var += there[c].var / 4;
    }
  }
  expect_near(onnx_norms(m)[0].stored, a);
  expect_near(onnx_norms(m)[1].stored, b);
}

TEST(OnnxStatistics, EmaGoesOnFromWhatIsStored) {
  onnx::Model m = two_norms();
  const data::Dataset d = examples(20);
  recompute_statistics(m, classifier_form(m, {}), d, kAsTheyAre,
                       {.kind = RunningStatistics::kEma, .in_order = true, .batch_size = 20, .threads = 1});
  std::vector<Column> a = columns_of(rows_of(d));
  for (Column& c : a) {
    c.mean *= 0.1;
    c.var = 0.9 + 0.1 * c.var;
  }
  expect_near(onnx_norms(m)[0].stored, a);
}

TEST(OnnxStatistics, TensorsThatOthersReadAreCopied) {
  onnx::Model m = two_norms();
  m.graph.nodes.push_back(node("Add", {"y", "b.running_mean"}, {"z"}));
  m.graph.outputs = {info("z", {-1, 2})};
  assign_statistics(m, {{"b", 0, {5, 6}, {7, 8}}});
  EXPECT_THAT(onnx::floats_of(*m.graph.initializer("b.running_mean")), testing::ElementsAre(0.f, 0.f));
  EXPECT_NE(m.graph.nodes[3].inputs[3], "b.running_mean");
  EXPECT_THAT(onnx_norms(m)[1].stored.mean, testing::ElementsAre(5, 6));
  EXPECT_THAT(onnx::floats_of(*m.graph.initializer("b.running_var")), testing::ElementsAre(7.f, 8.f));
}

// Both norms read the tensors of `a`.
onnx::Model sharing_norms() {
  onnx::Model m = two_norms();
  for (const char* p : {"weight", "bias", "running_mean", "running_var"}) {
    const std::string a = std::string("a.") + p;
    m.graph.nodes[3].inputs[std::string(p) == "weight"         ? 1
                            : std::string(p) == "bias"         ? 2
                            : std::string(p) == "running_mean" ? 3
                                                               : 4] = a;
  }
  add(m, "w", {3, 3}, {1, -1, 2, 0.5f, 0, 1, 1, 1, 1});
  m.graph.outputs = {info("y", {-1, 3})};
  m.graph.nodes[2].inputs[0] = "x";  // beside each other
  m.graph.nodes.push_back(node("Add", {"y", "r"}, {"z"}));
  m.graph.outputs = {info("z", {-1, 3})};
  return m;
}

TEST(OnnxStatistics, NormsThatShareTheirParametersAreTwoNorms) {
  onnx::Model m = sharing_norms();
  const std::vector<OnnxNorm> norms = onnx_norms(m);
  ASSERT_EQ(norms.size(), 2u);
  EXPECT_NE(norms[0].name, norms[1].name);
  assign_statistics(m, {{norms[1].name, 0, {1, 2, 3}, {4, 5, 6}}});
  EXPECT_THAT(onnx_norms(m)[0].stored.mean, testing::ElementsAre(0, 0, 0));
  EXPECT_THAT(onnx_norms(m)[1].stored.mean, testing::ElementsAre(1, 2, 3));
}

TEST(OnnxStatistics, SharedStatisticsThatNobodyReadsAnyMoreAreLeftOut) {
  EXPECT_THAT(norms_that_share(two_norms()), testing::IsEmpty());
  onnx::Model m = sharing_norms();
  ASSERT_EQ(norms_that_share(m).size(), 1u);
  const std::vector<std::string> names = norms_that_share(m)[0];
  EXPECT_THAT(names, testing::ElementsAre(onnx_norms(m)[0].name, onnx_norms(m)[1].name));
  assign_statistics(m, {{names[0], 0, {1, 2, 3}, {4, 5, 6}}, {names[1], 0, {7, 8, 9}, {1, 2, 3}}});
  EXPECT_EQ(m.graph.initializer("a.running_mean"), nullptr);
  EXPECT_EQ(m.graph.initializer("a.running_var"), nullptr);
  EXPECT_NE(m.graph.initializer("a.weight"), nullptr);
  EXPECT_NE(m.graph.initializer("b.running_mean"), nullptr) << "not ours to take away: nobody read it before";
  EXPECT_THAT(onnx_norms(m)[0].stored.mean, testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(onnx_norms(m)[1].stored.mean, testing::ElementsAre(7, 8, 9));
  EXPECT_THAT(norms_that_share(m), testing::IsEmpty());
}

TEST(OnnxStatistics, SharedStatisticsAreAnnounced) {
  const TestFolder folder;
  onnx::save(folder / "shared.onnx", sharing_norms());
  std::vector<std::string> notes;
  Asked asked;
  asked.model = folder / "shared.onnx";
  asked.on_note = [&](const std::string& note) { notes.push_back(note); };
  load_recalibrated(asked, "");
  EXPECT_THAT(notes, testing::ElementsAre(AllOf(HasSubstr("share their running statistics"), HasSubstr("'a -> an', '"),
                                                HasSubstr("of its own inputs"))));
}

TEST(OnnxStatistics, NumbersThatAreNoneComeBack) {
  const std::vector<ChannelStatistics> back = unpacked(packed({{"a", 0, {std::nan(""), HUGE_VAL}, {-HUGE_VAL, 1}}}));
  EXPECT_TRUE(std::isnan(back[0].mean[0]));
  EXPECT_EQ(back[0].mean[1], HUGE_VAL);
  EXPECT_EQ(back[0].var[0], -HUGE_VAL);
}

TEST(OnnxStatistics, RefusesWhatTheTypeOfTheModelCannotHold) {
  onnx::Model m = two_norms();
  const std::vector<double> start = {1, 1};
  m.graph.set_initializer(onnx::tensor_as(onnx::ElementType::kFloat16, "b.running_var", {2}, start));
  assign_statistics(m, {{"b", 0, {5, 6}, {7, 65504}}});
  EXPECT_THAT(onnx_norms(m)[1].stored.var, testing::ElementsAre(7, 65504));
  EXPECT_THAT(message_of<Error>([&] {
                assign_statistics(m, {{"b", 0, {5, 6}, {7, 90000}}});
              }),
              testing::AllOf(testing::HasSubstr("norm 'b' would get the variance 90000 (channel 1)"),
                             testing::HasSubstr("float16"), testing::HasSubstr("nothing was changed")));
  EXPECT_THAT(onnx_norms(m)[1].stored.var, testing::ElementsAre(7, 65504));
}

TEST(OnnxStatistics, RefusesNormsThatAreNotThere) {
  onnx::Model m = two_norms();
  EXPECT_THROW(assign_statistics(m, {{"c", 0, {5, 6}, {7, 8}}}), UsageError);
  EXPECT_THROW(assign_statistics(m, {{"b", 0, {5}, {7}}}), UsageError);
  EXPECT_THROW(recompute_statistics(m, classifier_form(m, {}), examples(4), kAsTheyAre, {.examples = 9}), UsageError);
  EXPECT_THROW(recompute_statistics(m, classifier_form(m, {}), examples(1), kAsTheyAre, {}), UsageError);
}

TEST(OnnxStatistics, ComeBackFromTextToTheBit) {
  const std::vector<ChannelStatistics> s = {{"a", 3, {0.1f, 1e-30f, -3.25}, {5.605193857299268e-45f, 0.3f, 7}},
                                            {"b \"quoted\"", 0, {1}, {2}}};
  const std::vector<ChannelStatistics> back = unpacked(packed(s));
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].mean, s[0].mean);
  EXPECT_EQ(back[0].var, s[0].var);
  EXPECT_EQ(back[1].name, s[1].name);
  EXPECT_THROW(unpacked("{\"a\": 3}"), FormatError);
  EXPECT_THROW(unpacked("nonsense"), FormatError);
  EXPECT_THROW(unpacked(std::string(1000, '[') + std::string(1000, ']')), FormatError);
}

TEST(OnnxStatistics, BlendLiesBetween) {
  const std::vector<ChannelStatistics> from = {{"a", 0, {0}, {1}}}, to = {{"a", 2, {4}, {3}}};
  const auto half = blended(from, to, 0.25);
  EXPECT_EQ(half[0].mean[0], 1);
  EXPECT_EQ(half[0].var[0], 1.5);
}

TEST(Classifier, KnowsLayoutsScoresAndFixedBatches) {
  onnx::Model m = two_norms();
  m.graph.nodes.push_back(node("Softmax", {"y"}, {"p"}));
  m.graph.outputs = {info("p", {-1, 2})};
  ClassifierForm form = classifier_form(m, {});
  EXPECT_EQ(form.scores, Scores::kProbabilities);
  EXPECT_EQ(form.fixed_batch, 0);
  m.graph.inputs = {info("x", {4, 3})};
  form = classifier_form(m, {});
  EXPECT_EQ(form.fixed_batch, 4);
  // Six examples are two batches of four, the last filled up.
  const EvalResult result = evaluate(m, form, examples(6), kAsTheyAre, {.threads = 1});
  EXPECT_EQ(result.predictions.size(), 6u);
  onnx::Model open = m;
  open.graph.inputs = {info("x", {-1, 3})};
  const EvalResult same = evaluate(open, classifier_form(open, {}), examples(6), kAsTheyAre, {.threads = 1});
  for (size_t i = 0; i < 12; ++i) EXPECT_NEAR(result.probabilities[i], same.probabilities[i], 1e-6);
  EXPECT_NEAR(result.probabilities[0] + result.probabilities[1], 1, 1e-6);
  // Softmax behind a change of shape, and inputs of double precision.
  open.graph.nodes.push_back(node("Identity", {"p"}, {"q"}));
  open.graph.outputs = {info("q", {-1, 2})};
  open.graph.inputs[0].type = onnx::ElementType::kDouble;
  EXPECT_EQ(classifier_form(open, {}).scores, Scores::kProbabilities);
  const EvalResult wide = evaluate(open, classifier_form(open, {}), examples(6), kAsTheyAre, {.threads = 1});
  for (size_t i = 0; i < 12; ++i) EXPECT_NEAR(wide.probabilities[i], same.probabilities[i], 1e-6);
  // As torch writes softmax(1) of pictures, and cut off in front of a logarithm.
  onnx::Model cut = open;
  cut.graph.nodes.push_back(node("Transpose", {"q"}, {"t1"}));
  cut.graph.nodes.push_back(node("Transpose", {"t1"}, {"t2"}));
  cut.graph.nodes.push_back(node("Clip", {"t2"}, {"t3"}));
  cut.graph.outputs = {info("t3", {-1, 2})};
  EXPECT_EQ(classifier_form(cut, {}).scores, Scores::kProbabilities);
  // Probabilities by other means are logits, with a warning.
  const auto warnings_of = [](const onnx::Model& model) {
    std::vector<std::string> said;
    evaluate(model, classifier_form(model, {}), examples(6), kAsTheyAre, {.threads = 1}, false,
             [&](const std::string& sentence) { said.push_back(sentence); });
    return said;
  };
  onnx::Model by_hand = open;
  by_hand.graph.nodes.push_back(node("Add", {"q", "q"}, {"t1"}));
  by_hand.graph.nodes.push_back(node("Sub", {"t1", "q"}, {"t2"}));
  by_hand.graph.outputs = {info("t2", {-1, 2})};
  EXPECT_EQ(classifier_form(by_hand, {}).scores, Scores::kLogits);
  EXPECT_THAT(warnings_of(by_hand), testing::ElementsAre(testing::HasSubstr("softmax taken twice")));
  EXPECT_THAT(warnings_of(open), testing::IsEmpty());
  EXPECT_THAT(warnings_of(two_norms()), testing::IsEmpty());
  EXPECT_THROW(evaluate(m, form, examples(6), kAsTheyAre, {.statistics = EvalStatistics::kBatch, .threads = 1}),
               BackendError);
}

}  // namespace
}  // namespace evenkeel::tools
