// Norms whose outputs are shifted on purpose, and how far the inputs of the layers move.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/lab/forward.h"

namespace evenkeel::lab {

// Scales and moves every channel behind every norm for one step, and takes it back so that only the step's update stays:
//
//   shifting.apply(step);      // gamma' = s * gamma, beta' = s * beta + b
//   run.step();
//   shifting.take_back();      // gamma + (gamma' after the step - gamma' before it)
//
// s is log-uniform from 1/kFactor to kFactor, b uniform from -kOffset to kOffset: functions of (seed, step, norm, channel).
class ShiftingNorms {
 public:
  // As large as those of Santurkar et al. 2018: means from -0.5 to 0.5, standard deviations up to 1.25.
  static constexpr double kOffset = 0.5, kFactor = 1.25;

  // Keeps a reference to the store.
  ShiftingNorms(const ModelSpec& spec, ParameterStore& store, uint64_t seed);
  void apply(int64_t step);
  void take_back();

 private:
  struct Norm {
    std::string name;
    Tensor gamma, beta, shifted_gamma, shifted_beta;
  };
  void take_back(const std::string& name, const Tensor& before, const Tensor& shifted);

  ParameterStore& store_;
  uint64_t seed_;
  std::vector<Norm> norms_;
};

// The inputs of the layers above the first, on examples that stay the same.
class InputWatch {
 public:
  // Keeps a reference to the model's values.
  InputWatch(Model& model, const data::Dataset& data, int threads);

  struct Moved {
    double from_last = 0,
           from_first = 0;  // shift_between the last or the first look and this one, means over the layers
  };
  Moved look();

 private:
  Forward forward_;
  std::vector<float> x_;
  int64_t n_;
  std::vector<std::vector<ChannelSpread>> first_, last_;
};

}  // namespace evenkeel::lab
