// The noise of the statistics of a batch: what the norms of a network measure on batches that are drawn, and what the examples one by
// one predict.
//
//   NoiseMeter meter(model, splits.train, {.norm = "bn1"});
//   Noise noise = meter.measure(32, 200);   // noise.mean is about noise.predicted_mean
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/lab/forward.h"

namespace evenkeel::lab {

// In units of each channel's standard deviation (mean) and variance (variance); root mean square over the channels that vary. NaN where
// none does.
struct Noise {
  double mean = 0, variance = 0;  // measured: standard deviations over the batches
  // For the mean of n independent examples: the standard deviation of the examples' means over sqrt(n). A dense layer has one value for
  // each example, and this is sigma / sqrt(n). For the variance the same with the mean squared distances from the population's mean.
  double predicted_mean = 0, predicted_variance = 0;
  double naive_mean = 0;  // 1 / sqrt(values per channel), as if the positions of a picture were independent, too
};

// What the noise of a channel follows from.
struct NoiseSource {
  double sd = 0;           // of all values
  double sd_mean = 0;      // of the means of the examples
  double sd_variance = 0;  // of their mean squared distances from the mean of all
};

struct NoiseSettings {
  std::string norm = {};
  int64_t population = 512;  // the first examples of the data, from which batches are drawn; all, where there are fewer
  int threads = 1;
  uint64_t seed = 1;
};

class NoiseMeter {
 public:
  // Keeps a reference to the model's values.
  NoiseMeter(Model& model, const data::Dataset& data, const NoiseSettings& settings);

  int64_t population() const { return population_; }
  // Batches are drawn with replacement, so that their examples are independent. Requires 1 <= batch <= population.
  Noise measure(int64_t batch, int draws);

 private:
  std::string norm_;
  Forward forward_;
  int64_t population_;
  RandomStream random_;
  size_t size_ = 0;       // of an example
  std::vector<float> x_;  // of the population
};

}  // namespace evenkeel::lab
