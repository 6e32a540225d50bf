#include "evenkeel/train/best_epoch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "evenkeel/train/run_log.h"
#include "evenkeel/train/trainer_testing.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

// Labels that have nothing to do with the examples: what is learned of them makes the validation loss larger from some epoch on.
class BestEpochTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    std::vector<int64_t> y(kCount);
    RandomStream random(7, RandomUse::kCorrupt);
    for (int64_t& label : y) label = static_cast<int64_t>(std::floor(100 * random.next_normal())) & 3;
    write_npy(folder_ / "y.npy", "<i8", std::to_string(kCount) + ",", y.data(), y.size() * sizeof(int64_t));
  }

  // With a constant rate a run of k epochs is the beginning of a longer one.
  TrainSettings noisy(const std::string& out, int64_t epochs) const {
    TrainSettings s = settings(out);
    s.schedule = ScheduleKind::kConstant;
    s.load.validation_fraction = 0.25;
    s.epochs = epochs;
    return s;
  }

  TrainResult watched(const TrainSettings& s) {
    epochs_.clear();
    notes_.clear();
    TrainObserver observer;
    observer.epoch = [&](const EpochSummary& e) { epochs_.push_back(e); };
    observer.note = [&](const std::string& text) { notes_ += text + "\n"; };
    return train(s, observer);
  }

  std::vector<EpochSummary> epochs_;
  std::string notes_;
};

TEST_F(BestEpochTest, the_model_is_that_of_the_epoch_with_the_smallest_validation_loss) {
  TrainSettings s = noisy("run", 12);
  s.keep = Keep::kBestLoss;
  const TrainResult result = watched(s);
  ASSERT_EQ(epochs_.size(), 12U);
  const auto best = std::min_element(epochs_.begin(), epochs_.end(), [](const EpochSummary& a, const EpochSummary& b) {
    return *a.validation_loss < *b.validation_loss;
  });
  ASSERT_LT(best->epoch, 12) << "nothing to go back to";
  EXPECT_EQ(result.best_epoch, best->epoch);
  EXPECT_FALSE(result.stopped_early);
  EXPECT_EQ(result.epochs, 12);
  EXPECT_EQ(result.validation_loss, best->validation_loss);
  EXPECT_EQ(result.test_loss, best->test_loss);
  EXPECT_THAT(notes_, HasSubstr("the model is that of the best epoch: epoch " + std::to_string(best->epoch) + " had"));
  expect_same_tensors(train(noisy("short", best->epoch), {}).model_path, result.model_path);
  const std::vector<LogRecord> log = read_log(folder_ / "run/log.jsonl");
  EXPECT_EQ(std::get<EndRecord>(log.back()).best_epoch, best->epoch);
  for (const LogRecord& record : log) {
    if (const auto* answers = std::get_if<AnswersRecord>(&record)) {
      EXPECT_EQ(answers->epoch, best->epoch);
    }
  }
}

TEST_F(BestEpochTest, statistics_made_anew_are_those_of_the_best_epoch) {
  TrainSettings s = noisy("run", 12);
  s.keep = Keep::kBestLoss;
  s.running_statistics = RunningStatistics::kPopulation;
  const TrainResult result = watched(s);
  ASSERT_LT(result.best_epoch, 12) << "nothing to go back to";
  int records = 0;
  for (const LogRecord& record : read_log(folder_ / "run/log.jsonl")) {
    const auto* made = std::get_if<StatisticsRecord>(&record);
    if (made == nullptr) continue;
    ++records;
    EXPECT_EQ(made->epoch, result.best_epoch);
    EXPECT_EQ(made->step, result.best_epoch * (result.steps / result.epochs));
  }
  EXPECT_EQ(records, 1);
}

TEST_F(BestEpochTest, of_equal_accuracies_the_first_is_the_best) {
  TrainSettings s = noisy("run", 12);
  s.keep = Keep::kBestAccuracy;
  const TrainResult result = watched(s);
  const auto best = std::max_element(epochs_.begin(), epochs_.end(), [](const EpochSummary& a, const EpochSummary& b) {
    return *a.validation_accuracy < *b.validation_accuracy;
  });
  EXPECT_EQ(result.best_epoch, best->epoch);
  EXPECT_EQ(result.validation_accuracy, best->validation_accuracy);
  expect_same_tensors(train(noisy("short", best->epoch), {}).model_path, result.model_path);
}

TEST_F(BestEpochTest, patience_ends_a_run_and_by_itself_keeps_the_last_epoch) {
  TrainSettings s = noisy("run", 40);
  s.patience = 2;
  const TrainResult result = watched(s);
  EXPECT_EQ(result.status, "finished");
  EXPECT_TRUE(result.stopped_early);
  ASSERT_LT(result.epochs, 40);
  EXPECT_EQ(result.epochs, result.best_epoch + 2);
  EXPECT_THAT(notes_, HasSubstr("stopped after " + std::to_string(result.epochs) + " epochs: epoch " +
                                std::to_string(result.best_epoch) + " had the smallest validation loss"));
  expect_same_tensors(train(noisy("short", result.epochs), {}).model_path, result.model_path);
}

TEST_F(BestEpochTest, an_epoch_is_better_only_by_more_than_min_delta) {
  const auto best_of = [&](double min_delta) {  // the rule, applied to what was measured
    size_t best = 0;
    for (size_t i = 1; i < epochs_.size(); ++i) {
      if (*epochs_[i].validation_loss < *epochs_[best].validation_loss - min_delta) best = i;
    }
    return best;
  };
  TrainSettings s = noisy("plain", 12);
  s.keep = Keep::kBestLoss;
  const TrainResult plain = watched(s);  // before best_of looks
  EXPECT_EQ(plain.best_epoch, static_cast<int64_t>(best_of(0) + 1));
  const double gain = *epochs_[0].validation_loss - *epochs_[best_of(0)].validation_loss;
  ASSERT_GT(gain, 0);
  for (const double share : {0.3, 1.01}) {
    s.out = noisy(share < 1 ? "some" : "all", 12).out;
    s.min_delta = share * gain;
    const int64_t expected = static_cast<int64_t>(best_of(s.min_delta)) + 1;
    EXPECT_EQ(watched(s).best_epoch, expected);
    if (share > 1) {
      EXPECT_EQ(expected, 1);
    }
  }
  s.out = noisy("patient", 12).out;
  s.patience = 2;
  EXPECT_EQ(watched(s).epochs, 3);  // the first epoch stays the best one
  s.min_delta = -1;
  EXPECT_THAT(message_of<UsageError>([&] { train(s, {}); }), HasSubstr("min_delta must be a number of at least 0"));
}

std::vector<double> rates_of(const std::string& log) {
  std::vector<double> rates;
  for (const LogRecord& record : read_log(log)) {
    if (const auto* step = std::get_if<StepRecord>(&record)) rates.push_back(step->learning_rate);
  }
  return rates;
}

TEST_F(BestEpochTest, a_plateau_lowers_the_rate_and_a_resumed_run_goes_on_with_it) {
  TrainSettings s = noisy("whole", 12);
  s.schedule = ScheduleKind::kPlateau;
  s.plateau_patience = 2;
  s.step_factor = 0.5;
  const TrainResult whole = watched(s);
  // The rule, applied to what was measured.
  std::vector<double> expected;
  double rate = s.learning_rate, best = HUGE_VAL;
  int64_t since = 0, reductions = 0;
  for (const EpochSummary& e : epochs_) {
    expected.insert(expected.end(), static_cast<size_t>(e.batches), rate);
    if (*e.validation_loss < best) {
      best = *e.validation_loss;
      since = e.epoch;
    } else if (e.epoch - since == 2) {
      rate /= 2;
      since = e.epoch;
      ++reductions;
    }
  }
  ASSERT_GT(reductions, 1);
  EXPECT_EQ(rates_of(folder_ / "whole/log.jsonl"), expected);
  EXPECT_THAT(notes_, HasSubstr("the learning rate is 0.01 from here on: epoch"));
  const int64_t per_epoch = whole.steps / 12;
  s.out = folder_ / "stopped";
  for (const int64_t stop_at : {per_epoch * 5 + 1, per_epoch * 8}) {
    std::atomic<bool> stop{false};
    TrainObserver observer;
    observer.stop = &stop;
    observer.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    EXPECT_EQ(train(s, observer).status, "interrupted");
    s.resume = true;
  }
  expect_same_tensors(whole.model_path, train(s, {}).model_path);
  EXPECT_EQ(rates_of(folder_ / "stopped/log.jsonl"), expected);
}

TEST_F(BestEpochTest, interrupted_anywhere_and_resumed_finds_the_same_best_epoch) {
  TrainSettings s = noisy("whole", 40);
  s.keep = Keep::kBestLoss;
  s.patience = 2;
  const TrainResult whole = watched(s);
  ASSERT_TRUE(whole.stopped_early);
  const int64_t steps_per_epoch = whole.steps / whole.epochs;
  // In the first epoch, right behind the best one, in the one behind it, and at the end.
  for (const int64_t stop_at :
       {int64_t{1}, whole.best_epoch * steps_per_epoch, whole.best_epoch * steps_per_epoch + 2, whole.steps}) {
    s.out = folder_ / ("stopped-" + std::to_string(stop_at));
    s.resume = false;
    std::atomic<bool> stop{false};
    TrainObserver observer;
    observer.stop = &stop;
    observer.progress = [&](const Progress& p) { stop = p.step == stop_at; };
    const TrainResult first = train(s, observer);
    EXPECT_EQ(first.status, "interrupted") << stop_at;
    if (stop_at > whole.best_epoch * steps_per_epoch) expect_same_tensors(whole.model_path, first.model_path);
    s.resume = true;
    const TrainResult resumed = watched(s);
    EXPECT_EQ(resumed.status, "finished");
    EXPECT_EQ(resumed.epochs, whole.epochs);
    EXPECT_EQ(resumed.best_epoch, whole.best_epoch);
    EXPECT_EQ(resumed.test_loss, whole.test_loss);
    expect_same_tensors(whole.model_path, resumed.model_path);
  }
}

TEST_F(BestEpochTest, averages_and_population_statistics_are_those_of_the_best_epoch) {
  for (const bool averaged : {true, false}) {
    const std::string name = averaged ? "averaged" : "population";
    const auto with = [&](TrainSettings s) {
      if (averaged) s.average = {.kind = AveragingKind::kEma, .decay = 0.5};
      if (!averaged) s.running_statistics = RunningStatistics::kPopulation;
      return s;
    };
    TrainSettings s = with(noisy(name, 12));
    s.keep = Keep::kBestLoss;
    const TrainResult result = watched(s);
    ASSERT_LT(result.best_epoch, 12) << name;
    const TrainResult shorter = train(with(noisy(name + "-short", result.best_epoch)), {});
    expect_same_tensors(shorter.model_path, result.model_path);
    EXPECT_EQ(result.test_loss, shorter.test_loss);
  }
}

TEST_F(BestEpochTest, an_average_that_begins_behind_the_best_epoch_is_not_kept) {
  TrainSettings s = noisy("kept", 12);
  s.keep = Keep::kBestLoss;
  s.average = {.kind = AveragingKind::kSwa, .first_epoch = 12};
  const TrainResult result = watched(s);
  ASSERT_LT(result.best_epoch, 12);
  EXPECT_THAT(notes_, testing::Not(HasSubstr("no weights were averaged")));
  const TrainResult shorter = train(noisy("short", result.best_epoch), {});
  expect_same_tensors(shorter.model_path, result.model_path);
  EXPECT_EQ(result.test_loss, shorter.test_loss);
}

TEST_F(BestEpochTest, a_run_that_diverges_later_saves_the_best_epoch) {
  TrainSettings s = noisy("run", 12);
  s.norm = NormKind::kNone;
  s.optimizer.kind = OptimizerKind::kSgd;
  s.optimizer.weight_decay = 0;
  s.schedule = ScheduleKind::kStep;  // up, a thousand times an epoch from the third on
  s.step_epochs = 2;
  s.step_factor = 1e9;
  s.keep = Keep::kBestLoss;
  const TrainResult result = watched(s);
  ASSERT_EQ(result.status, "not finite");
  ASSERT_GT(result.best_epoch, 0);
  EXPECT_THAT(notes_,
              HasSubstr("the model is that of the best epoch: epoch " + std::to_string(result.best_epoch) + " had"));
  TrainSettings shorter = s;
  shorter.keep = Keep::kLast;
  shorter.out = folder_ / "short";
  shorter.epochs = result.best_epoch;
  expect_same_tensors(train(shorter, {}).model_path, result.model_path);
}

TEST_F(BestEpochTest, killed_between_the_values_and_the_checkpoint_a_run_still_has_the_best_of_that_checkpoint) {
  TrainSettings s = noisy("run", 12);
  s.keep = Keep::kBestLoss;
  const TrainResult whole = watched(s);
  // The folder as it is behind epoch 1, with the values of epoch 2 written already.
  s.out = folder_ / "killed";
  s.epochs = 12;
  std::atomic<bool> stop{false};
  TrainObserver observer;
  observer.stop = &stop;
  const int64_t per_epoch = whole.steps / 12;
  observer.progress = [&](const Progress& p) { stop = p.step == per_epoch; };
  EXPECT_EQ(train(s, observer).best_epoch, 1);
  std::filesystem::copy_file(s.out + "/best-1.safetensors", s.out + "/best-2.safetensors");
  // Stopped again in the middle of epoch 2: the best epoch is 1.
  s.resume = true;
  stop = false;
  observer.progress = [&](const Progress& p) { stop = p.step == per_epoch + 1; };
  const TrainResult again = train(s, observer);
  EXPECT_EQ(again.status, "interrupted");
  expect_same_tensors(train(noisy("one", 1), {}).model_path, again.model_path);
  expect_same_tensors(whole.model_path, train(s, {}).model_path);
  for (const auto& entry : std::filesystem::directory_iterator(s.out)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("best-")) {
      EXPECT_EQ(name, "best-" + std::to_string(whole.best_epoch) + ".safetensors");
    }
  }
}

TEST_F(BestEpochTest, a_file_that_is_gone_or_damaged_leaves_the_last_epoch_and_is_named) {
  for (const bool gone : {true, false}) {
    TrainSettings s = noisy(gone ? "gone" : "damaged", 12);
    s.keep = Keep::kBestLoss;
    const int64_t best = watched(s).best_epoch;
    ASSERT_LT(best, 12);
    const std::string file = s.out + "/best-" + std::to_string(best) + ".safetensors";
    if (gone) {
      std::filesystem::remove(file);
    } else {
      std::filesystem::resize_file(file, 1000);
    }
    s.resume = true;
    const TrainResult result = watched(s);
    EXPECT_THAT(notes_, HasSubstr("best-" + std::to_string(best) + ".safetensors"));
    EXPECT_THAT(notes_, HasSubstr("those of the last step are saved"));
    EXPECT_EQ(result.best_epoch, best);
    expect_same_tensors(train(noisy(gone ? "a" : "b", 12), {}).model_path, result.model_path);
  }
}

TEST_F(BestEpochTest, without_a_validation_set_nothing_can_be_judged) {
  for (const bool patience : {true, false}) {
    TrainSettings s = noisy("none", 2);
    s.load.validation_fraction = 0;
    if (patience) s.patience = 1;
    if (!patience) s.keep = Keep::kBestAccuracy;
    try {
      train(s, {});
      FAIL();
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(patience ? "--patience judges" : "--keep judges"));
      EXPECT_THAT(error.what(), HasSubstr("--validation 0.1"));
    }
    EXPECT_FALSE(std::filesystem::exists(folder_ / "none"));
  }
}

}  // namespace
}  // namespace evenkeel
