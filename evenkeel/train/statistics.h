// The statistics that batch norms use at test time: read, made again by passes over data, and compared.
//
//   recompute_statistics(model, splits.train, {.kind = RunningStatistics::kPopulation});
//   save_model("better.safetensors", model);
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/running_statistics.h"

namespace evenkeel {

// A norm that has running statistics: its tensors are NAME.running_mean and so on.
struct NormLayer {
  std::string name;
  int64_t channels = 0;
  double eps = 1e-5;
  bool affine = true;  // has NAME.weight and NAME.bias
};
// In the order of the network's description.
std::vector<NormLayer> norm_layers(const ModelSpec& spec);

// What a norm normalizes by, per channel.
struct ChannelStatistics {
  std::string name;
  int64_t batches = 0;  // num_batches_tracked
  std::vector<double> mean, var;
};
// What the norms of a model hold, as inference reads it: with the start-up error divided out where the model says so.
std::vector<ChannelStatistics> running_statistics_of(const ModelSpec& spec, const ParameterStore& store);

// The moments of all values that came into a norm, per channel.
struct InputMoments {
  std::string name;
  std::vector<Moments> channels;
};
// As statistics with the population's variance: what normalization by a batch divides by.
ChannelStatistics statistics_of(const InputMoments& moments);

struct StatisticsSettings {
  RunningStatistics kind = RunningStatistics::kPopulation;
  bool biased = false;       // the variance: m2 / n instead of m2 / (n - 1)
  int64_t examples = 0;      // so many, drawn by the seed or, in_order, the first; 0: all
  bool in_order = false;     // as the data set has them, not shuffled: batches are those of a loader without shuffling
  int64_t batch_size = 128;  // population: at most, and without effect beyond rounding
  data::Augment augment = {};
  data::Corrupt corrupt = {};
  uint64_t seed = 1;  // of the order, the augmentation and the corruption
  int threads = 0;    // 0: the cores this process may use
  bool keep_frozen =
      false;  // leave the norms as they are whose running statistics training does not update (NormSwitches)
};
struct StatisticsWork {
  int64_t norms = 0, examples = 0, passes = 0;
  double seconds = 0;
};
// What a model says about statistics that were made so (Model::statistics_made).
std::map<std::string, std::string> statistics_record(const StatisticsSettings& settings, const data::Dataset& dataset,
                                                     const StatisticsWork& work);
// Makes the running statistics of `model` anew from the examples of `dataset`; its weights stay. Same bits for any number of threads.
//   population            level by level: norms whose inputs depend on no other norm first, then, with their statistics in place, those above
//   the others            one pass; every norm normalizes by the batch, as in training
//   ema                   from what the model holds, with its new_batch_weight; from nothing where the model is bias_corrected
// Assigns running_mean, running_var, num_batches_tracked, and what the model says about them: running_statistics, statistics_made, the
// kind of the variance; bias_corrected becomes false, for nothing is left to correct.
// Throws UsageError: no norms, no examples, more asked for than there are, one value per channel in a batch; Error with the exit code of
// "not finite" naming norm and channel. The model is then as it was.
StatisticsWork recompute_statistics(Model& model, const data::Dataset& dataset, const StatisticsSettings& settings);

// The indices of the examples that `settings` means, in the order of its batches. Throws UsageError: no examples, more asked for than there are,
// of another shape than the network's inputs, a batch size below 1.
std::vector<int64_t> calibration_examples(const ModelSpec& spec, const data::Dataset& dataset,
                                          const StatisticsSettings& settings);

// Assigns statistics by norm names, and that nothing is left to correct in them (bias_corrected = false). Throws UsageError naming a norm that
// is not there or has another number of channels; the model is then as it was.
void assign_statistics(Model& model, const std::vector<ChannelStatistics>& statistics);

// How far the statistics `to` of a norm are from `from`, in the norm's own units (docs/statistics.md).
struct NormDistance {
  std::string name;
  double mean_shift = 0;     // rms over the channels of (to.mean - from.mean) / sqrt(from.var + eps)
  double log_var_ratio = 0;  // rms over the channels of ln((to.var + eps) / (from.var + eps))
  int64_t channel = 0;       // the one furthest off, by the larger of the two
  double channel_mean_shift = 0, channel_log_var_ratio = 0;  // of that channel, with their signs
};
NormDistance distance(const ChannelStatistics& from, const ChannelStatistics& to, double eps);
// Of every norm in `to` for which `from` has statistics, too.
std::vector<NormDistance> distances(const ModelSpec& spec, const std::vector<ChannelStatistics>& from,
                                    const std::vector<ChannelStatistics>& to);

// One line: "population, unbiased, of 20000 examples in batches of 128".
std::string statistics_text(const Model& model);

// The graph with the moments of every norm that takes statistics of the batch (to normalize, or for the running ones only) as a value named
// moments_name(NORM), of ghost batches the pooled ones; and these norms, in its order. None where statistics are running ones.
std::string moments_name(const std::string& norm);
Graph with_named_moments(Graph graph, std::vector<std::string>* norms);

}  // namespace evenkeel
