// Recalibration from the model's file to the new one: what `evenkeel recalibrate` does, before it prints anything.
//
//   tools::Recalibration work(asked, {.out = "better.safetensors"});
//   const tools::Recalibrated done = work.run();
//   work.save();
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/recalibrate_models.h"
#include "evenkeel/train/adapt.h"

namespace evenkeel::tools {

struct RecalibrateAsked {
  RunningStatistics kind = RunningStatistics::kPopulation;
  std::optional<bool> biased;         // none: as the model has it
  std::optional<int64_t> batch_size;  // none: as in training
  int64_t examples = 0;               // 0: all
  bool in_order = false;
  data::Augment augment;
  std::string split = "train";
  std::string out;   // "": beside the model
  std::string test;  // data to judge by; "": the test split of the data
  double blend = 1;  // share of the new statistics
  bool undo = false, dry_run = false;
  std::optional<AdaptGoal> adapt;  // of gamma and beta
  int64_t adapt_epochs = AdaptSettings{}.epochs;
  double adapt_rate = AdaptSettings{}.learning_rate;
};

struct Recalibrated {
  StatisticsWork work;
  std::vector<NormDistance> moved;          // from the old statistics to the new ones
  std::optional<EvalResult> before, after;  // none where there are no labels to judge by
  std::optional<AdaptSettings> adapted;
  AdaptWork adapt_work;
  std::optional<EvalResult> recalibrated;  // with the new statistics, before gamma and beta were adapted
  std::string judged_on = "test set";
  EndedTraining ended;
  std::vector<std::string> warnings;  // one sentence each
};
struct Undone {
  std::vector<NormDistance> moved;
  bool affine = false;  // gamma and beta came back, too
};

class Recalibration {
 public:
  // Loads the model. Throws what the readers throw, UsageError where it has no statistics to make anew or asked.out is of another format,
  // BackendError where an ONNX model is to be adapted.
  Recalibration(const Asked& asked, const RecalibrateAsked& how);

  // An operator because of which the network cannot be run here; "" = none.
  std::string unsupported() const { return model_->unsupported(); }
  // With how.undo: brings back what was; Throws UsageError where the model does not hold it.
  Undone undo();
  // Else: reads the data, makes the statistics, judges them. Throws UsageError where data, options and model do not fit, or the file to write
  // is there and was made from another model; Error with the exit code of "not finite".
  Recalibrated run();
  // Writes out(), unless that is "".
  void save() const;

  const std::string& out() const { return out_; }  // after run() or undo(); "": nothing is written
  const RecalibratedModel& model() const { return *model_; }

 private:
  std::string out_path() const;
  StatisticsSettings settings() const;
  std::optional<EvalResult> tested(const data::Dataset& test);
  const data::Dataset& test_set(data::Splits& splits, const data::Dataset& dataset, data::Dataset& rest,
                                Recalibrated& o);
  void renew(const std::vector<ChannelStatistics>& old, const data::Dataset& dataset, Recalibrated& o);
  void adapt(const std::vector<ChannelStatistics>& old, const data::Dataset& dataset, Recalibrated& o);
  void collect_warnings(Recalibrated& o) const;

  const Asked asked_;
  const RecalibrateAsked how_;
  std::unique_ptr<RecalibratedModel> model_;
  std::string out_;
  std::string judged_on_ = "the test set";
};

}  // namespace evenkeel::tools
