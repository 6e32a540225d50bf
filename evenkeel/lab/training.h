// A training run in memory, step by step, for experiments: no folder, no files, and everything open to be looked at between two steps.
//
//   Training run({.spec = spec, .learning_rate = 0.1, .steps = 500, .seed = 1}, splits);
//   while (run.step()) { ... run.loss() ... }
//   double accuracy = run.test().accuracy;
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/schedule.h"

namespace evenkeel::lab {

struct TrainingSettings {
  ModelSpec spec;
  OptimizerOptions optimizer{.kind = OptimizerKind::kSgd,
                             .momentum = 0};  // constant rate unless `schedule` says otherwise
  double learning_rate = 0.1;
  ScheduleKind schedule = ScheduleKind::kConstant;
  int64_t batch = 128;
  int64_t micro_batch = 0;  // > 0: examples in work at a time; the statistics are those of the whole batch
  int64_t steps = 100;
  uint64_t seed = 1;  // of the weights, the order of the examples, dropout
  int threads = 1;
  data::Augment augment = {};
};

// Throws UsageError where the network cannot be trained in batches of so many examples: what an experiment calls for each of its networks when it
// makes its trials, so that nothing is refused in the middle of a lab.
void require_trainable(const ModelSpec& spec, int64_t batch);

class Training {
 public:
  // Keeps a reference to the splits. The standardization is that of splits.train, unless one is given: reading it takes time.
  Training(const TrainingSettings& settings, const data::Splits& splits,
           const std::optional<data::Standardization>& standardization = std::nullopt);
  ~Training();

  // One step on the next batch. False when the run is over: all steps done, or a value was not finite (then diverged()).
  bool step();
  bool diverged() const { return diverged_; }
  int64_t steps_done() const { return steps_; }
  double loss() const { return loss_; }          // of the batch of the last step, before its update
  double accuracy() const { return accuracy_; }  // the same

  Model& model() { return model_; }  // its values may be changed between two steps
  const data::Standardization& standardization() const { return model_.standardization; }

  // On the test set. kBatch: by the statistics of batches of `batch` examples.
  EvalResult test(EvalStatistics statistics = EvalStatistics::kRunning, int64_t batch = 256);
  // On the first n training examples, without augmentation, by running statistics.
  EvalResult train(int64_t n);

  // The examples of the batch that the next step takes, standardized, channels first; and their labels.
  void next_batch(std::vector<float>& x, std::vector<int32_t>& labels) const;

 private:
  struct Work;
  TrainingSettings settings_;
  const data::Splits& splits_;
  Model model_;
  std::unique_ptr<Work> work_;
  int64_t steps_ = 0;
  double loss_ = 0, accuracy_ = 0;
  bool diverged_ = false;
};

}  // namespace evenkeel::lab
