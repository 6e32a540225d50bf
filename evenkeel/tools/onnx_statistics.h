// The running statistics of an ONNX model: read, made anew from data, blended, kept for a way back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evenkeel/tools/classifier.h"
#include "evenkeel/train/adapt.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::tools {

// A norm of the main graph whose mean and variance are constants of the file.
struct OnnxNorm {
  std::string name;    // as in tables: NormRecord::name; where norms share one, with its output behind it
  std::string output;  // the value that it makes
  size_t node = 0;     // index
  int64_t level = 0;   // norms on the longest way from an input to it
  double eps = 1e-5, new_batch_weight = 0.1;
  ChannelStatistics stored;
};
std::vector<OnnxNorm> onnx_norms(const onnx::Model& model);
// Names of norms that have their running statistics in common: a layer that several streams run through. In groups, in the order of onnx_norms().
std::vector<std::vector<std::string>> norms_that_share(const onnx::Model& model);

// What recompute_statistics() of evenkeel's own models does (train/statistics.h), for a model that classifies. Other values of the file stay.
// Throws what that throws; BackendError where the model has to be run and cannot be.
StatisticsWork recompute_statistics(onnx::Model& model, const ClassifierForm& form, const data::Dataset& dataset,
                                    const data::Standardization& standardization, const StatisticsSettings& settings);

// Assigns statistics by norm names. Tensors that other nodes read, too, are copied first. Throws UsageError naming a norm that is not there or has
// another number of channels.
void assign_statistics(onnx::Model& model, const std::vector<ChannelStatistics>& statistics);

// a * to + (1 - a) * from, channel by channel; norms by their order, which is the same.
std::vector<ChannelStatistics> blended(const std::vector<ChannelStatistics>& from,
                                       const std::vector<ChannelStatistics>& to, double a);

// Statistics, and gamma and beta where they were changed as well, as text for a file's metadata, exact to the bit (NaN too), in their order, and
// back. Throws FormatError.
inline constexpr const char* kStatisticsBefore = "evenkeel.statistics_before";
std::string packed(const std::vector<ChannelStatistics>& statistics, const std::vector<NormAffine>& affine = {});
std::vector<ChannelStatistics> unpacked(const std::string& text);
std::vector<NormAffine> unpacked_affine(const std::string& text);  // empty where there are none

}  // namespace evenkeel::tools
