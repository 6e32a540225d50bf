#include "evenkeel/tools.h"

#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "evenkeel/model.h"
#include "evenkeel/network.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// What call() throws, or "".
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

template <class Call>
void expect_refused(const std::string& text, const Call& call) {
  const std::string message = message_of(call);
  EXPECT_FALSE(message.empty()) << "not refused: " << text;
  EXPECT_THAT(message, HasSubstr(text));
}

// A folder with a table of two classes that one number tells apart, and an `mlp` that was trained on it.
class ToolsApi : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::filesystem::temp_directory_path() / ("tools_api_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    std::ofstream table(folder_ / "table.csv");
    table << "a,b,class\n";
    for (int i = 0; i < 200; ++i)
      table << 0.1 * (i % 17) << "," << 0.3 * (i % 11) << "," << (i % 17 > 8 ? "high" : "low") << "\n";
    table.close();
    train_network(options_of_a_run("run"));
  }
  static TrainOptions options_of_a_run(const std::string& out) {
    TrainOptions options;
    options.data = path("table.csv");
    options.model = "mlp";
    options.batch_size = 40;
    options.epochs = 2;
    options.threads = 1;
    options.out = path(out);
    return options;
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }
  static std::string path(const std::string& name) { return (folder_ / name).string(); }
  static std::string model() { return path("run"); }

  static std::filesystem::path folder_;
};
std::filesystem::path ToolsApi::folder_;

TEST_F(ToolsApi, InspectHasEveryNormWithItsValues) {
  const ModelReport report = inspect_model(model());
  EXPECT_EQ(report.format, "evenkeel");
  ASSERT_EQ(report.norms.size(), 2u);
  EXPECT_EQ(report.norms[0].name, "bn1");
  EXPECT_EQ(report.norms[0].channels, 512);
  EXPECT_EQ(report.norms[0].var.size(), 512u);
  EXPECT_THAT(report.norms[0].conventions, HasSubstr("weight of a new batch 0.1"));
  ASSERT_FALSE(report.findings.empty());  // 8 batches are too few
  EXPECT_EQ(report.findings[0].code, "EK109");
  EXPECT_EQ(report.findings[0].title, explain("EK109").title);
  EXPECT_EQ(report.examples, 0);
}

TEST_F(ToolsApi, InspectRunsTheModelOnData) {
  ToolOptions options;
  options.data = path("table.csv");
  const ModelReport report = inspect_model(model(), options);
  EXPECT_GT(report.examples, 0);
  EXPECT_EQ(report.shifts.size(), 2u);
  ASSERT_TRUE(report.accuracy_stored.has_value());
  EXPECT_GT(*report.accuracy_stored, 0.5);
}

TEST_F(ToolsApi, InspectTakesTensorsInMemory) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gamma = {1, 2}, beta = {0, 0}, mean = {0, nan}, var = {1, 1};
  const ModelReport report = inspect_tensors({{"bn.weight", {2}, gamma},
                                              {"bn.bias", {2}, beta},
                                              {"bn.running_mean", {2}, mean},
                                              {"bn.running_var", {2}, var}});
  ASSERT_EQ(report.norms.size(), 1u);
  EXPECT_THAT(report.norms[0].gamma, ElementsAre(1, 2));
  ASSERT_FALSE(report.findings.empty());
  EXPECT_EQ(report.findings[0].severity, "error");
  EXPECT_THROW(inspect_tensors({{"bn.weight", {3}, gamma}}), std::runtime_error);
}

TEST_F(ToolsApi, FoldProvesAndWrites) {
  const FoldReport report = fold_model(model(), path("folded.onnx"));
  EXPECT_EQ(report.folded.size(), 2u);
  EXPECT_TRUE(report.left.empty());
  EXPECT_TRUE(report.proved && report.written);
  EXPECT_LT(report.worst, 1e-4);  // the default tolerance
  EXPECT_TRUE(inspect_model(path("folded.onnx")).norms.empty());
}

TEST_F(ToolsApi, FoldWritesNothingWhereTheProofFails) {
  FoldOptions options;
  options.tolerance = 0;  // rounding alone is more
  const FoldReport report = fold_model(model(), path("unproved.onnx"), options);
  EXPECT_GT(report.worst, 0);
  EXPECT_FALSE(report.written);
  EXPECT_FALSE(std::filesystem::exists(path("unproved.onnx")));
}

TEST_F(ToolsApi, RecalibrateWritesAndUndoBringsBack) {
  RecalibrateOptions options;
  const RecalibrateReport report = recalibrate_model(model(), path("new.safetensors"), options);
  EXPECT_EQ(report.out, path("new.safetensors"));
  EXPECT_THAT(report.running_statistics, HasSubstr("population"));
  EXPECT_EQ(report.moved.size(), 2u);
  EXPECT_GT(report.moved[0].log_var_ratio, 0);
  ASSERT_TRUE(report.before && report.after);
  EXPECT_GT(diff_models(model(), path("new.safetensors")).norms[0].effect, 0);

  options.undo = true;
  recalibrate_model(path("new.safetensors"), path("back.safetensors"), options);
  EXPECT_EQ(diff_models(model(), path("back.safetensors")).norms[0].effect, 0);
}

TEST_F(ToolsApi, RecalibrateWithoutWritingLeavesNoFile) {
  RecalibrateOptions options;
  options.write = false;
  const RecalibrateReport report = recalibrate_model(model(), path("none.safetensors"), options);
  EXPECT_EQ(report.out, "");
  EXPECT_FALSE(std::filesystem::exists(path("none.safetensors")));
}

TEST_F(ToolsApi, DiffComparesOutputsOnRandomInputs) {
  const ConvertReport converted = convert_model(model(), path("model.onnx"));
  EXPECT_EQ(converted.to, "an ONNX model");
  DiffOptions options;
  options.random = 4;
  const DiffReport report = diff_models(model(), path("model.onnx"), options);
  EXPECT_EQ(report.norms.size(), 2u);
  EXPECT_EQ(report.inputs, 4);
  ASSERT_EQ(report.outputs.size(), 1u);
  EXPECT_EQ(report.outputs[0].max_abs, 0);  // both are run as the same ONNX
}

TEST_F(ToolsApi, NumbersOutOfBoundsAreRefusedByName) {
  const auto inspect_with = [&](const std::string& text, const ToolOptions& options) {
    expect_refused(text, [&] { inspect_model(model(), options); });
  };
  inspect_with("threads is 100000; expected 0 to 1024", {.threads = 100000});
  inspect_with("threads is -1", {.threads = -1});
  inspect_with("scale: found 0", {.data = "fashion-mnist", .scale = 0.0});
  inspect_with("mean: found inf", {.data = "fashion-mnist", .mean = {std::numeric_limits<double>::infinity()}});
  inspect_with("std: found 0", {.data = "fashion-mnist", .std = {0.0}});
  inspect_with("scale says which examples of data become inputs, and how", {.scale = 2.0});
  FoldOptions fold;
  fold.verify = -1;
  expect_refused("verify is -1; expected 0 to 1048576", [&] { fold_model(model(), path("f.onnx"), fold); });
  fold = {};
  fold.tolerance = std::numeric_limits<double>::quiet_NaN();
  expect_refused("tolerance is nan", [&] { fold_model(model(), path("f.onnx"), fold); });
  EXPECT_FALSE(std::filesystem::exists(path("f.onnx")));
  DiffOptions diff;
  diff.random = int64_t{1} << 50;
  expect_refused("random is 1125899906842624", [&] { diff_models(model(), model(), diff); });
  RecalibrateOptions recalibrate;
  recalibrate.adapt_epochs = -4;
  expect_refused("no meaning without adapt", [&] { recalibrate_model(model(), path("r.safetensors"), recalibrate); });
  recalibrate = {};
  recalibrate.undo = true;
  recalibrate.adapt = "gamma-beta";
  expect_refused("undo brings back", [&] { recalibrate_model(model(), path("r.safetensors"), recalibrate); });
  TrainOptions train = options_of_a_run("refused");
  const auto train_with = [&](const std::string& text, auto&& change) {
    TrainOptions changed = train;
    change(changed);
    expect_refused(text, [&] { train_network(changed); });
  };
  train_with("threads", [](TrainOptions& o) { o.threads = 100000; });
  train_with("the number of epochs must be from 1 to 1000000", [](TrainOptions& o) { o.epochs = int64_t{1} << 60; });
  train_with("weight-decay must be a number of at least 0, found inf",
             [](TrainOptions& o) { o.weight_decay = HUGE_VAL; });
  train_with("weight-decay must be a number of at least 0, found -1", [](TrainOptions& o) { o.weight_decay = -1; });
  train_with("momentum must be from 0 to below 1", [](TrainOptions& o) { o.momentum = 1; });
  train_with("max-steps must be at least 0, which is none; found -1", [](TrainOptions& o) { o.max_steps = -1; });
  EXPECT_FALSE(std::filesystem::exists(path("refused")));
  expect_refused("threads is 100000", [&] { SavedModel(path("run") + "/model.safetensors", 100000); });
}

TEST_F(ToolsApi, OptionsWithoutMeaningAreRefused) {
  const auto diff_with = [&](const std::string& text, auto&& change) {
    DiffOptions options;
    options.random = 2;
    change(options);
    expect_refused(text, [&] { diff_models(model(), model(), options); });
  };
  diff_with("scale says which", [](DiffOptions& o) { o.scale = 2; });
  diff_with("mean says which", [](DiffOptions& o) { o.mean = {1, 2}; });
  diff_with("split says which", [](DiffOptions& o) { o.split = "train"; });
  diff_with("label says which", [](DiffOptions& o) { o.label = "class"; });
  diff_with("corrupt has no meaning for diff_models", [](DiffOptions& o) {
    o.random = 0;
    o.data = path("table.csv");
    o.corrupt = "invert";
  });
  FoldOptions fold;
  fold.verify = 0;
  fold.data = path("table.csv");
  expect_refused("verify is 0, which is none", [&] { fold_model(model(), path("f.onnx"), fold); });
  expect_refused("or write = false", [&] { fold_model(model(), ""); });
  ConvertOptions convert;
  convert.training = true;
  expect_refused("training is about ONNX", [&] { convert_model(model(), path("c.safetensors"), convert); });
  expect_refused("two tensors 'a'", [&] {
    inspect_tensors({{"a", {}, std::vector{1.0f}}, {"a", {}, std::vector{1.0f}}});
  });
  for (const int64_t extent : {int64_t{1} << 40, std::numeric_limits<int64_t>::max(), int64_t{-1}}) {
    expect_refused("tensor 'x' has 0 values, but its shape is [" + std::to_string(extent), [&] {
      inspect_tensors({{"x", {extent}, {}}});
    });
  }
}

TEST_F(ToolsApi, TrainingHasTheDefaultsOfTheCommandLineAndSaysWhatHappens) {
  TrainOptions options = options_of_a_run("adam");
  options.optimizer = "adam";
  options.label = "class";
  options.validation = 0.2;
  options.epochs = 3;
  int64_t judged = 0;
  double last = -1;
  options.on_validation = [&](int64_t epoch, double loss, double) {
    judged = epoch;
    last = loss;
  };
  const TrainReport report = train_network(options);
  EXPECT_EQ(judged, 3);
  ASSERT_TRUE(report.validation_loss);
  EXPECT_EQ(*report.validation_loss, last);
  const std::vector<LogRecord> log = read_log(path("adam/log.jsonl"));
  EXPECT_EQ(std::get<RunStart>(log.front()).settings.at("weight-decay"), "0");  // 0.01 is adamw's

  options.out = path("stopped");
  std::atomic<bool> stop{true};
  options.stop = &stop;
  const TrainReport stopped = train_network(options);
  EXPECT_EQ(stopped.status, "interrupted");
  EXPECT_EQ(stopped.steps, 1);
  stop = false;
  options.resume = true;
  std::string said;
  options.on_warning = [&](const std::string& sentence) { said += sentence + "\n"; };
  EXPECT_EQ(train_network(options).train_loss, report.train_loss);
  EXPECT_THAT(said, HasSubstr("resum"));

  TrainOptions from = options_of_a_run("from");
  from.from = path("run");  // the folder
  EXPECT_EQ(train_network(from).status, "finished");
}

TEST_F(ToolsApi, ModelsAreOpenedByTheFolderOfTheirRun) {
  SavedModel saved(model(), 1);
  EXPECT_EQ(InferenceModel(model()).inputs().size(), 1u);
  EXPECT_THAT(message_of([&] { saved.predict({}, 0); }), HasSubstr("n is 0; expected at least 1"));
  EXPECT_THAT(message_of([&] { saved.predict(std::vector<float>(3), 2); }), HasSubstr("2 floats each, found 3 floats"));
  EXPECT_THAT(message_of([&] { SavedModel(model(), -1); }), HasSubstr("threads is -1; expected 0 to 1024"));
  std::vector<float> x{1, 2, NAN, 2};
  EXPECT_THAT(message_of([&] { saved.predict(x, 2); }), HasSubstr("probabilities of example 1 are not numbers"));
}

TEST_F(ToolsApi, WordsThatAreNoneAreRefusedWithASuggestion) {
  RecalibrateOptions options;
  options.adapt = "gamma-bta";
  EXPECT_THAT(message_of([&] { recalibrate_model(model(), "", options); }), HasSubstr("did you mean 'gamma-beta'"));
  ToolOptions split;
  split.split = "tset";
  EXPECT_THAT(message_of([&] { inspect_model(model(), split); }), HasSubstr("did you mean 'test'"));
  EXPECT_THAT(message_of([&] { inspect_model(path("absent.onnx")); }), HasSubstr("absent.onnx"));
  EXPECT_THAT(message_of([] { explain("EK10l"); }), HasSubstr("EK101"));
}

TEST_F(ToolsApi, EveryRuleIsExplained) {
  const std::vector<FindingRule> rules = explain_all();
  EXPECT_GT(rules.size(), 10u);
  for (const FindingRule& rule : rules) EXPECT_FALSE(rule.remedy.empty()) << rule.code;
}

}  // namespace
}  // namespace evenkeel
