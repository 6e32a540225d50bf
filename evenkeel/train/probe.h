// A look into a network on one batch: its loss, the gradient of every parameter, and what comes into its norms and activations. Changes
// nothing: not the weights, not the running statistics.
//
//   Probe probe(model.spec, model.store, {.batch = 64});
//   double loss = probe.run(x, labels, 64);
//   Tensor gradient = probe.gradient("conv1.weight");
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/model_spec.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel {

struct ProbeSettings {
  int64_t batch = 64;        // examples at most
  Mode mode = Mode::kTrain;  // kTrain: statistics of the batch; kTrainRunningStatistics: the running ones
  int threads = 0;           // 0: the cores this process may use
  uint64_t seed = 1;         // of dropout
  bool layers = true;        // false: loss and gradients only, which takes less memory
  bool outputs = false;      // output_of(): what the norms give
};

// A place where values are looked at: in front of a norm, or of an activation that no norm is fused with.
struct ProbedLayer {
  std::string name;          // of the norm or the activation
  bool is_norm = false;      // of any kind
  bool has_moments = false;  // a norm that takes statistics of the batch, or of its ghost batches
};

class Probe {
 public:
  // Keeps a reference to the store, whose values of the moment count. Throws as build_network and Backend::compile.
  Probe(const ModelSpec& spec, ParameterStore& store, const ProbeSettings& settings);

  // n examples as the network sees them, channels first; returns the mean loss. The same dropout masks every time. `step`, from 1, is the one
  // that the network is about to take: the limits of batch renorm depend on it.
  double run(const float* x, const int32_t* labels, int64_t n, int64_t step = 1);

  // Of the last run.
  double correct() const;                                                     // right answers
  const std::vector<std::string>& parameters() const { return parameters_; }  // those that are trained
  Tensor gradient(const std::string& parameter) const;
  double squared_gradient_norm() const;  // over all parameters
  const std::vector<ProbedLayer>& layers() const { return layers_; }
  Tensor input_of(const std::string& layer) const;           // [n, C, H, W] or [n, F]
  Tensor input_gradient_of(const std::string& layer) const;  // of the loss by that input, through this layer
  // Of a norm, as the network computed it: gamma * xhat + beta, before the residual and the activation that it is fused with. With
  // ProbeSettings::outputs.
  Tensor output_of(const std::string& norm) const;
  // Of a norm that has them, for each channel of its input; of ghost batches the means of their means and of their variances.
  std::vector<Moments> moments_of(const std::string& norm) const;

 private:
  ProbeSettings settings_;
  std::vector<std::string> parameters_;
  std::vector<ProbedLayer> layers_;
  std::unique_ptr<Executable> executable_;
};

// Norms of a vector, and percentiles of values.
double squared_norm(const Tensor& tensor);
// NaN in all of them where there are no values, or one is not finite. At most kMostSampled evenly spaced values are sorted; the extremes are
// those of all.
Percentiles percentiles_of(const float* values, int64_t count);
Percentiles percentiles_of(const std::vector<double>& values);
inline constexpr int64_t kMostSampled = 50000;

}  // namespace evenkeel
