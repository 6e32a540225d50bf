// The network as it is evaluated and saved where that is not the one that is trained: with averaged weights if there are, and running statistics
// made anew from the training set.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "evenkeel/comm/comm.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/running_statistics.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// Evaluates on running statistics, in batches of about those of the training.
std::unique_ptr<Evaluator> evaluator_of(Model& model, const TrainSettings& settings, bool weighted, int threads);

class Outcome {
 public:
  // Keeps references to all of them: `model` is the one that is trained. note: is told, once for averages, what was made anew.
  Outcome(const TrainSettings& settings, const data::Dataset& train, const Model& model, int threads,
          std::function<void(const std::string&)> note, Comm& comm);

  // The kind that averaged weights are evaluated with: a network in which some norms are trained through their running statistics has no pass
  // in which all normalize by the batch.
  RunningStatistics kind_of_averages() const;
  // Makes it of the weights of this moment, unless that is what there is. Collective: every rank makes the statistics by itself from all
  // examples, for the bits do not depend on threads, and waits for nobody meanwhile. Throws Error with the exit code of "not finite" when weights have
  // grown so large that they have no statistics: there is none then.
  void make(RunningStatistics kind, const TrainState& state);
  bool is_of(RunningStatistics kind, const TrainState& state) const {
    return model_ && step_ == state.step && kind_ == kind;
  }

  // The values of the trained network are others now: there is none any more.
  void forget() {
    evaluator_.reset();
    model_.reset();
    step_ = -1;
  }
  // Of the last make(); null, and not to be called, where there was none.
  const Model* model() const { return model_.get(); }
  Evaluator& evaluator() { return *evaluator_; }
  double seconds() const { return seconds_; }  // that the statistics took

 private:
  void say(RunningStatistics kind, bool averaged, const StatisticsWork& work);

  const TrainSettings& settings_;
  const data::Dataset& train_;
  const Model& trained_;
  const int threads_;
  const std::function<void(const std::string&)> note_;
  Comm& comm_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Evaluator> evaluator_;
  int64_t step_ = -1;
  RunningStatistics kind_ = RunningStatistics::kEma;
  double seconds_ = 0;
  std::set<RunningStatistics> said_;
};

}  // namespace evenkeel
