// What data say about the stored statistics of a model: how far the actual ones are from them, layer by layer, and what that means.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/tools/lint.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::tools {

// Of one norm: the distance of the actual statistics from the stored ones (docs/statistics.md), and the channels that stood still.
struct NormObservation {
  NormDistance distance = {};
  int64_t constant_channels = 0;
  // The larger of the two distances: about 0 where the statistics fit, 1 for a shift of a whole deviation or a factor e in the variance.
  double apart() const;
};

// Moments of what came into the norms, by NormRecord::name or, for ONNX models, by NormRecord::output (inference::Program::moments()).
// Norms without moments, or without stored statistics, are left out; the order is that of the table.
std::vector<NormObservation> observe(const NormTable& table,
                                     const std::map<std::string, std::vector<Moments>>& moments);

// The finding that the inputs are other ones than in training, when the first norms moved most; nothing else. In the order of the network.
std::optional<Finding> preprocessing_suspicion(const std::vector<NormDistance>& distances);

// Shares of right answers with the stored statistics and with those of the batches.
struct Accuracies {
  double stored = 0, batch = 0;
};
std::vector<Finding> lint_observations(const NormTable& table, const std::vector<NormObservation>& observations,
                                       const std::optional<Accuracies>& accuracies);

}  // namespace evenkeel::tools
