// What a whole run records: which looks and answers stand in its log.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <numeric>

#include "evenkeel/core/rng.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/recording.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {
namespace {

using testing::ElementsAre;

// Runs on a table of 205 rows, 164 to train in 6 steps an epoch, 41 to test.
class Recording : public testing::Test {
 protected:
  void SetUp() override {
    RandomStream random(5, RandomUse::kCorrupt);
    std::string rows = "a,b,c,kind\n";
    for (int i = 0; i < 205; ++i) {
      for (int k = 0; k < 3; ++k)
        rows += std::to_string((i % 3 == k ? 1.5 : 0.0) + static_cast<double>(random.next_normal())) + ",";
      rows += std::to_string(i % 3) + "\n";
    }
    write_text(folder_ / "table.csv", rows);
    write_text(folder_ / "net.toml", R"(
[[layer]]
type = "linear"
name = "fc1"
out = 12
[[layer]]
type = "dropout"
probability = 0.1
[[layer]]
type = "linear"
name = "fc2"
out = 3
)");
  }

  TrainSettings settings(const std::string& out) const {
    TrainSettings s;
    s.data = folder_ / "table.csv";
    s.model = folder_ / "net.toml";
    s.out = folder_ / out;
    s.epochs = 2;
    s.batch_size = 32;
    s.learning_rate = 0.02;
    s.threads = 2;
    s.checkpoint_every_s = 0;
    s.record_layers = 2;
    return s;
  }

  template <class Record>
  static std::vector<Record> records_of(const TrainSettings& s) {
    std::vector<Record> found;
    for (const LogRecord& record : read_log(s.out + "/log.jsonl")) {
      if (const auto* typed = std::get_if<Record>(&record)) found.push_back(*typed);
    }
    return found;
  }

  // What the log says in the end is what the saved model says.
  static void expect_answers_of_saved_model(const TrainSettings& s, const TrainResult& result) {
    const auto all = records_of<AnswersRecord>(s);
    ASSERT_EQ(all.size(), 1u);
    const AnswersRecord& answers = all[0];
    EXPECT_EQ(answers.step, result.steps);
    EXPECT_EQ(answers.epoch, result.epochs);
    EXPECT_THAT(answers.classes, ElementsAre("0", "1", "2"));
    Model model = load_model(result.model_path);
    const data::Splits splits = data::load(s.data, {.seed = s.seed});
    const EvalResult expected = evaluate(model, splits.test, {.batch_size = 32});
    EXPECT_EQ(answers.confusion, expected.confusion);
    EXPECT_EQ(std::accumulate(answers.confusion.begin(), answers.confusion.end(), int64_t{0}), 41);
    int64_t wrong = 0;
    double worst = 0;
    for (size_t i = 0; i < 41; ++i) {
      if (expected.predictions[i] == splits.test.labels[i]) continue;
      ++wrong;
      worst = std::max(
          worst, static_cast<double>(expected.probabilities[i * 3 + static_cast<size_t>(expected.predictions[i])]));
    }
    ASSERT_GT(wrong, 0);  // else there is nothing to see
    EXPECT_EQ(answers.mistakes.size(), std::min<size_t>(static_cast<size_t>(wrong), kMostMistakes));
    EXPECT_EQ(answers.mistakes[0].probability, worst);
    for (const Mistake& mistake : answers.mistakes) {
      const auto i = static_cast<size_t>(mistake.example);
      EXPECT_EQ(mistake.label, splits.test.labels[i]);
      EXPECT_EQ(mistake.predicted, expected.predictions[i]);
    }
  }

  // Runs until `stop_at` steps are done.
  static TrainResult interrupted(const TrainSettings& s, int64_t stop_at) {
    std::atomic<bool> stop{false};
    TrainObserver observer;
    observer.stop = &stop;
    observer.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    return train(s, observer);
  }

  TestFolder folder_;
};

// The norm of the network; null: it was not looked at.
const LayerRecord* norm_of(const LayersRecord& record) {
  for (const LayerRecord& layer : record.layers) {
    if (layer.name == "bn1") return &layer;
  }
  return nullptr;
}

std::vector<std::pair<int64_t, double>> steps_and_losses(const std::vector<LayersRecord>& looks) {
  std::vector<std::pair<int64_t, double>> all;
  for (const LayersRecord& look : looks) all.emplace_back(look.step, look.loss);
  return all;
}

TEST_F(Recording, looks_stand_in_the_log_between_their_steps_and_the_answers_at_its_end) {
  const TrainSettings s = settings("run");
  const TrainResult result = train(s, {});
  int64_t step = 0;
  std::vector<int64_t> looks, epochs;
  const std::vector<LogRecord> log = read_log(s.out + "/log.jsonl");
  for (const LogRecord& record : log) {
    if (const auto* done = std::get_if<StepRecord>(&record)) step = done->step;
    const auto* look = std::get_if<LayersRecord>(&record);
    if (look == nullptr) continue;
    EXPECT_EQ(look->step, step);
    EXPECT_EQ(look->examples, 32);
    EXPECT_EQ(look->gradients.size(), 5u);  // fc1.weight, bn1.weight, bn1.bias, fc2.weight, fc2.bias
    looks.push_back(look->step);
    epochs.push_back(look->epoch);
  }
  EXPECT_THAT(looks, ElementsAre(0, 3, 6, 9, 12));
  EXPECT_THAT(epochs, ElementsAre(0, 1, 1, 2, 2));
  EXPECT_TRUE(std::holds_alternative<AnswersRecord>(log[log.size() - 2]));
  expect_answers_of_saved_model(s, result);
  const std::vector<LayersRecord> records = records_of<LayersRecord>(s);
  EXPECT_LT(records.back().loss, records.front().loss);
  const LayerRecord* bn1 = norm_of(records.front());
  ASSERT_NE(bn1, nullptr);
  EXPECT_EQ(bn1->gamma->least, 1);
  EXPECT_EQ(bn1->gamma->greatest, 1);
  // The last look is at what is saved.
  const Model model = load_model(result.model_path);
  const auto gamma = model.store.at("bn1.weight").values<float>();
  EXPECT_EQ(norm_of(records.back())->gamma->greatest,
            static_cast<double>(*std::max_element(gamma.begin(), gamma.end())));
}

TEST_F(Recording, the_model_is_the_same_to_the_byte_with_and_without_looks) {
  TrainSettings s = settings("none");
  s.record_layers = 0;
  const std::string plain = text_of_file(train(s, {}).model_path);
  EXPECT_TRUE(records_of<LayersRecord>(s).empty());
  EXPECT_EQ(records_of<AnswersRecord>(s).size(), 1u);
  EXPECT_EQ(records_of<RunStart>(s)[0].settings.at("record-layers"), "0");
  for (const int64_t looks : {int64_t{1}, int64_t{1000}}) {
    s = settings("looks-" + std::to_string(looks));
    s.record_layers = looks;
    EXPECT_EQ(text_of_file(train(s, {}).model_path), plain);
    EXPECT_EQ(records_of<LayersRecord>(s).size(), looks == 1 ? 3u : 13u);
  }
}

TEST_F(Recording, a_run_that_was_interrupted_has_each_look_once) {
  const TrainSettings whole = settings("whole");
  train(whole, {});
  for (const int64_t stop_at : {1, 3, 6, 8}) {
    TrainSettings s = settings("stopped-" + std::to_string(stop_at));
    EXPECT_EQ(interrupted(s, stop_at).status, "interrupted");
    EXPECT_EQ(records_of<AnswersRecord>(s).size(), stop_at == 6 ? 1u : 0u);  // at an epoch's end there are some
    s.resume = true;
    s.threads = 1;
    const TrainResult resumed = train(s, {});
    EXPECT_EQ(steps_and_losses(records_of<LayersRecord>(s)), steps_and_losses(records_of<LayersRecord>(whole)));
    expect_answers_of_saved_model(s, resumed);
  }
}

TEST_F(Recording, a_run_that_failed_in_its_first_steps_looks_again) {
  TrainSettings s = settings("run");
  TrainObserver observer;
  observer.progress = [](const Progress& p) {
    if (p.step == 4) throw IoError("the terminal is gone");
  };
  EXPECT_THROW(train(s, observer), IoError);
  EXPECT_EQ(records_of<LayersRecord>(s).size(), 2u);
  EXPECT_TRUE(records_of<AnswersRecord>(s).empty());
  s.resume = true;
  train(s, {});
  std::vector<int64_t> steps;
  for (const LayersRecord& look : records_of<LayersRecord>(s)) steps.push_back(look.step);
  EXPECT_THAT(steps, ElementsAre(0, 3, 6, 9, 12));
  EXPECT_EQ(records_of<StepRecord>(s).size(), 12u);
}

TEST_F(Recording, the_number_of_looks_may_change_on_resume) {
  TrainSettings s = settings("run");
  interrupted(s, 5);
  s.resume = true;
  s.record_layers = 0;
  interrupted(s, 8);
  s.record_layers = 6;
  EXPECT_EQ(train(s, {}).status, "finished");
  std::vector<int64_t> steps;
  for (const LayersRecord& look : records_of<LayersRecord>(s)) steps.push_back(look.step);
  EXPECT_THAT(steps, ElementsAre(0, 3, 9, 10, 11, 12));
}

TEST_F(Recording, answers_are_those_of_averaged_weights_and_of_statistics_made_at_the_end) {
  for (const char* average : {"none", "swa=1", "swa=2"}) {
    for (const RunningStatistics kind : {RunningStatistics::kEma, RunningStatistics::kPopulation}) {
      TrainSettings s = settings(std::string(average) + "-" + name_of(kind));
      s.average = parse_averaging(average);
      s.running_statistics = kind;
      s.load.validation_fraction = 0.1;  // whose evaluation comes after that of the test set
      expect_answers_of_saved_model(s, train(s, {}));
      s.resume = true;  // after its end: the same again
      expect_answers_of_saved_model(s, train(s, {}));
    }
  }
}

TEST_F(Recording, a_run_that_is_not_finite_has_no_answers) {
  TrainSettings s = settings("run");
  s.record_layers = 6;
  s.optimizer = {.kind = OptimizerKind::kSgd};
  s.schedule = ScheduleKind::kConstant;
  s.learning_rate = 1e30;
  EXPECT_EQ(train(s, {}).status, "not finite");
  EXPECT_FALSE(records_of<LayersRecord>(s).empty());
  EXPECT_TRUE(records_of<AnswersRecord>(s).empty());
}

TEST_F(Recording, a_number_of_looks_below_0_is_refused) {
  TrainSettings s = settings("run");
  s.record_layers = -1;
  EXPECT_THAT(message_of<UsageError>([&] { train(s, {}); }), testing::HasSubstr("record-layers must be at least 0"));
  EXPECT_FALSE(std::filesystem::exists(s.out));
}

TEST_F(Recording, a_dry_run_looks_and_writes_nothing) {
  TrainSettings s = settings("run");
  s.dry_run = true;
  EXPECT_EQ(train(s, {}).status, "finished");
  EXPECT_FALSE(std::filesystem::exists(s.out));
}

}  // namespace
}  // namespace evenkeel
