// Whole networks trained to compare norms: what such experiments share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/lab/training.h"
#include "evenkeel/lab/values.h"

namespace evenkeel::lab {

// The network asked for, or `cnn` for images and `mlp` for tables.
ModelSpec usual_network(const LabSetup& setup);
// The network with that norm in place of its own, in every layer that has one; kNone: without any. Throws UsageError where
// there is to be one and no layer has it.
ModelSpec normalized_by(ModelSpec spec, NormKind kind);

struct CurveSettings {
  TrainingSettings training;
  int64_t every = 10;  // steps between two measurements; the first is before the first step
  int64_t test_examples = 2000;
  std::function<void(Training&)> look = {};  // at every measurement
};
// {"network", "steps": [], "seconds": [], "accuracy": [], "diverged"}: at every measurement the accuracy on the first test examples, by running
// statistics, and the seconds of the steps up to it: as many times the median step. A run that diverged ends with the measurement before.
Json train_curve(const CurveSettings& settings, const data::Splits& splits);

// Trains to the end: {"accuracy", "diverged"}, on the test set by running statistics. A run that came to a value that is not finite counts as
// one that guesses: 1 / classes.
Json train_to_end(const TrainingSettings& settings, const data::Splits& splits,
                  const std::function<void(Training&, Json&)>& after = {});

std::vector<double> numbers_of(const Json& array);
// The median of several lines, point by point, as far as the shortest goes, with the least and the greatest as its band.
report::Series median_line(const std::string& name, const std::vector<double>& x,
                           const std::vector<std::vector<double>>& lines);

}  // namespace evenkeel::lab
