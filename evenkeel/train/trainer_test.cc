#include "evenkeel/train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/trainer_testing.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

TEST_F(TrainerTest, learns_and_leaves_model_log_and_two_checkpoints) {
  std::vector<std::string> notes;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { notes.push_back(text); };
  int epochs = 0, steps = 0;
  observer.epoch = [&](const EpochSummary&) { ++epochs; };
  observer.progress = [&](const Progress&) { ++steps; };
  const TrainResult result = train(settings("run"), observer);
  EXPECT_EQ(result.status, "finished");
  EXPECT_EQ(epochs, 3);
  EXPECT_EQ(steps, 3 * 6);
  EXPECT_EQ(result.steps, 18);
  EXPECT_GT(result.test_accuracy, 0.9);
  const TensorFile model = read_safetensors(result.model_path);
  ASSERT_NE(model.find("bn1.num_batches_tracked"), nullptr);
  EXPECT_EQ(model.find("bn1.num_batches_tracked")->values<int64_t>()[0], 18);
  EXPECT_EQ(model.find("conv1.bias"), nullptr) << "beta replaces the bias of a layer that feeds a norm";
  int records = 0, ends = 0;
  for (const LogRecord& record : read_log(folder_ / "run/log.jsonl")) {
    if (std::holds_alternative<StepRecord>(record)) ++records;
    if (const auto* end = std::get_if<EndRecord>(&record)) ends += end->status == "finished";
  }
  EXPECT_EQ(records, 18);
  EXPECT_EQ(ends, 1);
  int checkpoints = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "run")) {
    checkpoints += entry.path().filename().string().rfind("checkpoint-", 0) == 0;
  }
  EXPECT_EQ(checkpoints, 2);
}

TEST_F(TrainerTest, gives_the_same_bits_for_any_number_of_threads) {
  std::string first;
  for (const int threads : {1, 2, 3}) {
    TrainSettings s = settings("threads-" + std::to_string(threads));
    s.threads = threads;
    const TrainResult result = train(s, {});
    if (first.empty()) first = result.model_path;
    expect_same_tensors(first, result.model_path);
  }
}

TEST_F(TrainerTest, interrupted_anywhere_and_resumed_ends_with_the_same_bits) {
  const TrainResult whole = train(settings("whole"), {});
  for (const int64_t stop_at : {1, 6, 8, 17}) {
    TrainSettings s = settings("stopped-" + std::to_string(stop_at));
    std::atomic<bool> stop{false};
    TrainObserver observer;
    observer.stop = &stop;
    observer.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    EXPECT_EQ(train(s, observer).status, "interrupted");
    s.resume = true;
    s.threads = 1;
    const TrainResult resumed = train(s, {});
    EXPECT_EQ(resumed.status, "finished");
    EXPECT_EQ(resumed.train_loss, whole.train_loss);
    EXPECT_EQ(resumed.test_loss, whole.test_loss);
    expect_same_tensors(whole.model_path, resumed.model_path);
  }
}

TEST_F(TrainerTest, resuming_a_folder_without_a_checkpoint_starts_from_the_beginning_and_says_so) {
  TrainSettings s = settings("empty");
  s.resume = true;
  std::string said;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { said += text + "\n"; };
  EXPECT_EQ(train(s, observer).steps, 18);
  EXPECT_THAT(said, HasSubstr("starting from the beginning"));
}

TEST_F(TrainerTest, resuming_with_other_settings_is_refused) {
  TrainSettings s = settings("run");
  s.max_steps = 3;
  train(s, {});
  s.resume = true;
  s.batch_size = 16;
  EXPECT_THROW(train(s, {}), UsageError);
}

TEST_F(TrainerTest, every_policy_for_the_last_batch_trains) {
  for (const LastBatch policy : {LastBatch::kKeep, LastBatch::kMerge, LastBatch::kDrop, LastBatch::kRunning}) {
    TrainSettings s = settings("policy-" + std::to_string(static_cast<int>(policy)));
    s.last_batch = policy;
    const TrainResult result = train(s, {});
    const bool one_less = policy == LastBatch::kMerge || policy == LastBatch::kDrop;
    EXPECT_EQ(result.steps, one_less ? 15 : 18);
    const TensorFile model = read_safetensors(result.model_path);
    // A batch trained through the running statistics leaves them alone.
    EXPECT_EQ(model.find("bn1.num_batches_tracked")->values<int64_t>()[0],
              one_less || policy == LastBatch::kRunning ? 15 : 18);
  }
}

TEST_F(TrainerTest, a_run_that_diverges_stops_names_the_tensor_and_keeps_a_good_checkpoint) {
  TrainSettings s = settings("diverged");
  s.learning_rate = 1e30;
  s.optimizer = {.kind = OptimizerKind::kSgd};
  s.schedule = ScheduleKind::kConstant;
  const TrainResult result = train(s, {});
  EXPECT_EQ(result.status, "not finite");
  EXPECT_THAT(result.message, HasSubstr("step "));
  EXPECT_THAT(result.message, HasSubstr("is not finite"));
  EXPECT_TRUE(result.model_path.empty());
  EXPECT_FALSE(std::filesystem::exists(folder_ / "diverged/model.safetensors"));
  s.resume = true;
  const LatestCheckpoint latest = RunFolder::create_or_resume(s.out, true).latest_checkpoint();
  ASSERT_TRUE(latest.found);
  for (const auto& [name, tensor] : latest.found->state.tensors) {
    if (tensor.dtype() != DType::kF32) continue;
    for (const float v : tensor.values<float>()) ASSERT_TRUE(std::isfinite(v)) << name;
  }
}

TEST_F(TrainerTest, a_batch_that_is_not_finite_can_be_skipped_and_touches_nothing) {
  // Weights so large that the squares of a few outlying pixels overflow, and nothing else does.
  write_data(1e4f);
  TrainSettings s = settings("skipped");
  s.on_nonfinite = OnNonfinite::kSkip;
  s.epochs = 1;
  s.batch_size = 16;
  s.init = Init::kNormal;
  s.init_sigma = 3e17;
  s.optimizer = {.kind = OptimizerKind::kSgd};
  s.learning_rate = 1e-25;  // gradients are as large
  s.schedule = ScheduleKind::kConstant;
  const TrainResult result = train(s, {});
  ASSERT_EQ(result.status, "finished") << result.message;
  const TensorFile model = read_safetensors(result.model_path);
  for (const auto& [name, tensor] : model.tensors) {
    if (tensor.dtype() != DType::kF32) continue;
    for (const float v : tensor.values<float>()) ASSERT_TRUE(std::isfinite(v)) << name;
  }
  int64_t refused = 0;
  for (const LogRecord& record : read_log(folder_ / "skipped/log.jsonl")) {
    if (const auto* epoch = std::get_if<EpochRecord>(&record)) refused += epoch->refused_batches;
  }
  EXPECT_GT(refused, 0);
  EXPECT_LE(refused, 3);  // outliers
  EXPECT_EQ(model.find("bn1.num_batches_tracked")->values<int64_t>()[0] + refused, 11);
}

TEST_F(TrainerTest, an_overflow_in_the_last_update_is_no_finished_run) {
  for (const OptimizerKind kind : {OptimizerKind::kSgd, OptimizerKind::kAdam}) {
    TrainSettings s = settings(std::string("overflow-") + name_of(kind));
    s.optimizer = {.kind = kind};
    s.schedule = ScheduleKind::kConstant;
    s.learning_rate = 1e39;
    s.max_steps = 1;
    const TrainResult result = train(s, {});
    EXPECT_EQ(result.status, "not finite");
    EXPECT_THAT(result.message, testing::AnyOf(HasSubstr("overflow"), HasSubstr("not finite")));
    EXPECT_TRUE(result.model_path.empty());
    EXPECT_FALSE(result.test_accuracy);
  }
}

TEST_F(TrainerTest, finite_weights_with_outputs_that_are_not_are_no_finished_run) {
  TrainSettings s = settings("huge");
  s.optimizer = {.kind = OptimizerKind::kSgd};
  s.schedule = ScheduleKind::kConstant;
  s.max_steps = 1;
  s.norm = NormKind::kNone;
  s.activation = Activation{ActivationKind::kRelu};
  s.learning_rate = 1e37;
  const TrainResult result = train(s, {});
  EXPECT_EQ(result.status, "not finite");
  EXPECT_TRUE(result.model_path.empty());
}

TEST_F(TrainerTest, an_epoch_of_refused_batches_only_is_no_finished_run) {
  TrainSettings s = settings("refused");
  s.on_nonfinite = OnNonfinite::kSkip;
  s.init = Init::kNormal;
  s.init_sigma = 1e25;  // no batch is ever finite
  s.norm = NormKind::kNone;
  const TrainResult result = train(s, {});
  EXPECT_EQ(result.status, "not finite");
  EXPECT_TRUE(std::isnan(result.train_loss));
  EXPECT_THAT(result.message, HasSubstr("all of its batches were refused"));
}

TEST_F(TrainerTest, a_network_or_data_changed_under_the_same_name_is_not_resumed) {
  TrainSettings s = settings("run");
  s.max_steps = 7;
  train(s, {});
  s.resume = true;
  const std::string toml = text_of_file(s.model);
  write_text(s.model, "activation = \"tanh\"\n" + toml);
  EXPECT_THROW(train(s, {}), UsageError);
  write_text(s.model, toml);
  EXPECT_EQ(train(s, {}).status, "finished");
  std::string labels = text_of_file(folder_ / "y.npy");
  labels[labels.size() - 8 * 100] = static_cast<char>(3 - labels[labels.size() - 8 * 100]);
  write_text(folder_ / "y.npy", labels);
  EXPECT_THROW(train(s, {}), UsageError);
}

TEST_F(TrainerTest, a_checkpoint_whose_numbers_do_not_belong_together_is_refused) {
  TrainSettings s = settings("run");
  s.max_steps = 7;
  train(s, {});
  s.resume = true;
  const std::string path = folder_ / "run/checkpoint-000000000007.safetensors";
  for (const auto& [key, value] :
       std::map<std::string, std::string>{{"batch", "900"}, {"first_example", "1"}, {"epoch", "-1"}}) {
    TensorFile file = read_safetensors(path);
    const std::string right = file.metadata[key];
    file.metadata[key] = value;
    write_safetensors(path, file);
    EXPECT_THROW(train(s, {}), FormatError) << key;
    file.metadata[key] = right;
    write_safetensors(path, file);
  }
  EXPECT_EQ(train(s, {}).status, "finished");
}

TEST_F(TrainerTest, averaged_weights_are_the_mean_of_those_after_every_step) {
  const auto trained = [&](const std::string& out, int64_t steps, const std::string& average) {
    TrainSettings s = settings(out);
    s.max_steps = steps;
    s.average = parse_averaging(average);
    return train(s, {}).model_path;
  };
  const std::string swa = trained("swa", 3, "swa=1"), ema = trained("ema", 3, "ema=0.75");
  std::vector<std::string> after;
  for (const int64_t steps : {1, 2, 3}) after.push_back(trained("after-" + std::to_string(steps), steps, "none"));
  for (const char* name : {"conv1.weight", "bn1.weight", "fc2.bias"}) {
    const std::vector<float> a = values_of(after[0], name), b = values_of(after[1], name),
                             c = values_of(after[2], name);
    const std::vector<float> plain = values_of(swa, name), exponential = values_of(ema, name);
    double moved = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const double mean = (static_cast<double>(a[i]) + static_cast<double>(b[i]) + static_cast<double>(c[i])) / 3;
      EXPECT_NEAR(plain[i], mean, 1e-7) << name;
      const double first = 0.75 * static_cast<double>(a[i]) + 0.25 * static_cast<double>(b[i]);
      EXPECT_NEAR(exponential[i], 0.75 * first + 0.25 * static_cast<double>(c[i]), 1e-7) << name;
      moved = std::max(moved, std::abs(mean - static_cast<double>(c[i])));
    }
    EXPECT_GT(moved, 1e-5) << name;  // else there was nothing to average
  }
}

TEST_F(TrainerTest, an_average_without_memory_is_the_network_itself) {
  TrainSettings plain = settings("plain"), averaged = settings("averaged");
  averaged.average = parse_averaging("ema=0");
  plain.running_statistics = RunningStatistics::kPopulationOnePass;  // as the averaged network has them
  expect_same_tensors(train(plain, {}).model_path, train(averaged, {}).model_path);
}

TEST_F(TrainerTest, an_averaged_run_resumed_anywhere_ends_with_the_same_bits) {
  for (const char* average : {"ema=0.9", "swa=2"}) {
    TrainSettings s = settings(std::string("whole-") + average);
    s.average = parse_averaging(average);
    const TrainResult whole = train(s, {});
    for (const int64_t stop_at : {int64_t{5}, int64_t{12}, int64_t{17}}) {
      s.out = folder_ / (std::string(average) + "-" + std::to_string(stop_at));
      std::atomic<bool> stop{false};
      TrainObserver observer;
      observer.stop = &stop;
      observer.progress = [&](const Progress& p) { stop = p.step == stop_at; };
      s.resume = false;
      EXPECT_EQ(train(s, observer).status, "interrupted");
      s.resume = true;
      const TrainResult resumed = train(s, {});
      EXPECT_EQ(resumed.test_loss, whole.test_loss);
      expect_same_tensors(whole.model_path, resumed.model_path);
    }
  }
}

TEST_F(TrainerTest, the_averaged_network_is_evaluated_once_averaging_has_begun) {
  TrainSettings s = settings("run");
  s.average = parse_averaging("swa=3");
  std::vector<std::string> notes;
  std::vector<double> losses;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { notes.push_back(text); };
  observer.epoch = [&](const EpochSummary& epoch) { losses.push_back(*epoch.test_loss); };
  const TrainResult result = train(s, observer);
  EXPECT_THAT(notes, testing::Contains(HasSubstr("averaged weights are evaluated and saved")).Times(1));
  s.out = folder_ / "plain";
  s.average = {};
  std::vector<double> plain;
  observer.epoch = [&](const EpochSummary& epoch) { plain.push_back(*epoch.test_loss); };
  train(s, observer);
  EXPECT_EQ(losses[0], plain[0]);
  EXPECT_EQ(losses[1], plain[1]);
  EXPECT_NE(losses[2], plain[2]);
  Model model = load_model(result.model_path);
  EXPECT_EQ(model.running_statistics, "population_one_pass");
  const data::Splits splits = data::load(s.data, {.seed = s.seed});
  EXPECT_NEAR(evaluate(model, splits.test, {.batch_size = 32}).loss, *result.test_loss, 1e-9);
  s.average = parse_averaging("swa=4");
  EXPECT_THAT(message_of<UsageError>([&] { train(s, {}); }), HasSubstr("from epoch 4 on, but the run has 3"));
}

TEST_F(TrainerTest, a_run_that_ends_before_averaging_begins_says_so) {
  TrainSettings s = settings("run");
  s.average = parse_averaging("swa=2");
  s.max_steps = 6;  // one epoch
  std::string notes;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { notes += text + "\n"; };
  EXPECT_EQ(train(s, observer).status, "finished");
  EXPECT_THAT(notes, HasSubstr("no weights were averaged: --average-weights swa=2 begins behind the end of this run"));
}

TEST_F(TrainerTest, population_statistics_are_made_when_the_run_ends) {
  TrainSettings s = settings("ema");
  const TrainResult ema = train(s, {});
  for (const RunningStatistics kind : {RunningStatistics::kPopulation, RunningStatistics::kPopulationOnePass}) {
    s.out = folder_ / name_of(kind);
    s.running_statistics = kind;
    std::vector<std::string> notes;
    TrainObserver observer;
    observer.note = [&](const std::string& text) { notes.push_back(text); };
    const TrainResult result = train(s, observer);
    EXPECT_THAT(notes, testing::Contains(HasSubstr("made anew from 164 training examples")));
    EXPECT_NE(result.test_loss, ema.test_loss);
    EXPECT_EQ(values_of(result.model_path, "conv1.weight"), values_of(ema.model_path, "conv1.weight"));
    Model expected = load_model(ema.model_path), found = load_model(result.model_path);
    EXPECT_EQ(found.running_statistics, name_of(kind));
    const data::Splits splits = data::load(s.data, {.seed = s.seed});
    recompute_statistics(expected, splits.train, {.kind = kind, .batch_size = 32, .seed = s.seed});
    EXPECT_EQ(values_of(result.model_path, "bn2.running_var"), [&] {
      const auto values = expected.store.at("bn2.running_var").values<float>();
      return std::vector<float>(values.begin(), values.end());
    }());
    int64_t records = 0;
    for (const LogRecord& record : read_log(s.out + "/log.jsonl")) {
      const auto* statistics = std::get_if<StatisticsRecord>(&record);
      if (statistics == nullptr) continue;
      ++records;
      EXPECT_EQ(statistics->running_statistics, name_of(kind));
      EXPECT_EQ(statistics->examples, 164);
      EXPECT_EQ(statistics->test_loss, result.test_loss);
    }
    EXPECT_EQ(records, 1);
    s.resume = true;  // after its end: the same again
    const TrainResult again = train(s, {});
    s.resume = false;
    EXPECT_EQ(again.test_loss, result.test_loss);
    EXPECT_EQ(values_of(again.model_path, "bn2.running_var"), values_of(result.model_path, "bn2.running_var"));
  }
}

TEST_F(TrainerTest, an_epoch_record_says_how_far_batch_and_running_statistics_are_apart) {
  const TrainResult result = train(settings("run"), {});
  std::vector<std::vector<NormRecord>> epochs;
  for (const LogRecord& record : read_log(folder_ / "run/log.jsonl")) {
    if (const auto* epoch = std::get_if<EpochRecord>(&record)) epochs.push_back(epoch->norms);
  }
  ASSERT_EQ(epochs.size(), 3u);
  for (const auto& norms : epochs) {
    ASSERT_EQ(norms.size(), 2u);
    EXPECT_EQ(norms[0].name, "bn1");
    EXPECT_EQ(norms[1].name, "bn2");
    EXPECT_GT(norms[1].mean_shift, 0);
    EXPECT_GT(norms[1].log_var_ratio, 0);
    EXPECT_LT(norms[1].channel, 12);
  }
  EXPECT_GT(epochs[0][1].mean_shift, epochs[2][1].mean_shift);  // six steps of 0.1 have not forgotten the start
}

TEST_F(TrainerTest, validation_is_reported_and_logged) {
  TrainSettings s = settings("run");
  s.load.validation_fraction = 0.2;
  const TrainResult result = train(s, {});
  ASSERT_TRUE(result.validation_accuracy);
  for (const LogRecord& record : read_log(folder_ / "run/log.jsonl")) {
    if (const auto* epoch = std::get_if<EpochRecord>(&record)) {
      EXPECT_TRUE(epoch->validation_loss && epoch->validation_accuracy);
    }
  }
}

TEST_F(TrainerTest, a_failure_on_the_way_leaves_an_end_record) {
  TrainSettings s = settings("run");
  TrainObserver observer;
  observer.epoch = [](const EpochSummary&) { throw IoError("the disk is gone"); };
  EXPECT_THROW(train(s, observer), IoError);
  const auto log = read_log(folder_ / "run/log.jsonl");
  const auto* end = std::get_if<EndRecord>(&log.back());
  ASSERT_NE(end, nullptr);
  EXPECT_EQ(end->status, "failed");
  EXPECT_EQ(end->message, "the disk is gone");
}

TEST_F(TrainerTest, durations_out_of_range_are_refused) {
  for (const double epochs : {-1.0, 1e300, std::nan("")}) {
    TrainSettings s = settings("run");
    s.schedule = ScheduleKind::kCosine;
    s.warmup_epochs = epochs;
    EXPECT_THROW(train(s, {}), UsageError);
    s.schedule = ScheduleKind::kStep;
    s.warmup_epochs = 0;
    s.step_epochs = epochs;
    EXPECT_THROW(train(s, {}), UsageError);
  }
}

TEST_F(TrainerTest, batch_statistics_work_for_every_rest_and_refuse_a_single_value) {
  const TrainResult result = train(settings("run"), {});
  Model model = load_model(result.model_path);
  data::Splits splits = data::load(settings("run").data, {.seed = 1});
  // 41 test examples: rests 1 (20, 40), 2 (39) and 0. fc1's norm is dense: two values at least.
  for (const int64_t batch_size : {2, 20, 39, 40, 41}) {
    const EvalResult by_batch =
        evaluate(model, splits.test, {.statistics = EvalStatistics::kBatch, .batch_size = batch_size});
    EXPECT_EQ(by_batch.examples, 41);
  }
  // A network whose norms all have space may leave one example alone.
  write_text(
      folder_ / "net.toml",
      "[[layer]]\ntype = \"conv\"\nout = 4\n[[layer]]\ntype = \"global_avg_pool\"\n[[layer]]\ntype = \"linear\"\n");
  Model spatial = load_model(train(settings("spatial"), {}).model_path);
  EXPECT_EQ(evaluate(spatial, splits.test, {.statistics = EvalStatistics::kBatch, .batch_size = 20}).examples, 41);
  data::Dataset one = std::move(splits.test);
  one.count = 1;
  one.labels.resize(1);
  EXPECT_THROW(evaluate(model, one, {.statistics = EvalStatistics::kBatch}), UsageError);
}

TEST_F(TrainerTest, the_loss_is_that_of_the_examples_whose_label_is_known) {
  Model model = load_model(train(settings("run"), {}).model_path);
  data::Splits splits = data::load(settings("run").data, {.seed = 1});
  data::Dataset& test = splits.test;
  const EvalResult all = evaluate(model, test, {.batch_size = 64});
  std::vector<int32_t> labels = test.labels;
  double loss = 0;
  for (size_t i = 0; i < labels.size(); ++i) {  // each alone
    for (size_t j = 0; j < labels.size(); ++j) test.labels[j] = i == j ? labels[j] : -1;
    const EvalResult one = evaluate(model, test, {.batch_size = 64});
    EXPECT_EQ(one.labelled, 1);
    loss += one.loss;
  }
  EXPECT_NEAR(loss / static_cast<double>(labels.size()), all.loss, 1e-9);
}

TEST_F(TrainerTest, a_dry_run_writes_nothing) {
  TrainSettings s = settings("dry");
  s.dry_run = true;
  EXPECT_EQ(train(s, {}).status, "finished");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "dry"));
}

TEST_F(TrainerTest, a_batch_of_one_on_a_dense_norm_is_refused_before_anything_is_written) {
  TrainSettings s = settings("one");
  s.batch_size = 1;
  try {
    train(s, {});
    FAIL() << "nothing was thrown";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("one value per channel"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "one"));
}

TEST_F(TrainerTest, overfit_trains_on_the_first_examples_only) {
  TrainSettings s = settings("overfit");
  s.overfit = 8;
  s.epochs = 40;
  const TrainResult result = train(s, {});
  EXPECT_EQ(result.steps, 40);
  EXPECT_EQ(result.train_accuracy, 1.0);
}

TEST_F(TrainerTest, predictions_do_not_depend_on_the_batch_size) {
  const TrainResult result = train(settings("run"), {});
  Model model = load_model(result.model_path);
  const data::Splits splits = data::load(settings("run").data, {.seed = 1});
  const EvalResult one = evaluate(model, splits.test, {.batch_size = 1, .threads = 2});
  for (const int64_t batch_size : {7, 8, 1000}) {
    const EvalResult many = evaluate(model, splits.test, {.batch_size = batch_size, .threads = 1});
    EXPECT_EQ(one.predictions, many.predictions);
    EXPECT_EQ(one.probabilities, many.probabilities);
  }
  EXPECT_EQ(one.accuracy, result.test_accuracy);
}

}  // namespace
}  // namespace evenkeel
