// Forward passes of a network by the statistics of the batch, to look at what its layers and norms receive. Without dropout, and
// nothing is updated.
//
//   Forward forward(model.spec, model.store, {.batch = 256, .watch = Watch::kLayers});
//   forward.run(x, 256);
//   std::vector<ChannelSpread> spread = spread_of(forward.input_of(forward.watched()[0]));
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::lab {

enum class Watch {
  kLayers,  // what comes into every convolution and linear layer, but for those that receive the examples as they are
  kNorms    // what comes into every batch norm
};
struct ForwardSettings {
  int64_t batch = 256;  // examples at most
  Watch watch = Watch::kLayers;
  std::string only = {};  // a name: of all these nothing but that one, and of the network nothing above it
  int threads = 1;
};

class Forward {
 public:
  // Keeps a reference to the store, whose values of the moment count.
  Forward(const ModelSpec& spec, ParameterStore& store, const ForwardSettings& settings);

  void run(const float* x, int64_t n);  // examples as the network sees them

  // Of the last run.
  const std::vector<std::string>& watched() const { return watched_; }  // in the order of the network
  Tensor input_of(const std::string& name) const;                       // [n, C, H, W] or [n, F]
  std::vector<Moments> moments_of(const std::string& norm) const;       // as the norm took them

 private:
  std::vector<std::string> watched_;
  std::unique_ptr<Executable> executable_;
};

// Mean and standard deviation of a channel over the batch and space.
struct ChannelSpread {
  double mean = 0, sd = 0;
};
std::vector<ChannelSpread> spread_of(const Tensor& input);

// How far a distribution has moved, in units of its standard deviation: the root mean square over the channels of the Wasserstein
// distance of two normal distributions, (difference of means)^2 + (difference of standard deviations)^2, over the root mean square of
// the standard deviations before. Channels that do not vary do not make it infinite in this way. 0 where nothing varies.
double shift_between(const std::vector<ChannelSpread>& from, const std::vector<ChannelSpread>& to);

// The first n examples as the network sees them; all, where there are fewer.
std::vector<float> first_inputs(const data::Dataset& data, const data::Standardization& standardization, int64_t n);

// Gives a model the statistics of the population of so many training examples, drawn (all, where there are fewer); one without norms
// stays as it is. False where they are not finite: the run has diverged.
bool take_population_statistics(Model& model, const data::Dataset& train, int64_t examples, int threads);

// Throws UsageError: the network has no batch norm with gamma and beta, which the experiment of that name is about.
void require_norms(const ModelSpec& spec, const std::string& experiment);

}  // namespace evenkeel::lab
