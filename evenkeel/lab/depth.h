// What passes through a network, layer by layer: the signal forwards, the gradient backwards.
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/train/probe.h"

namespace evenkeel::lab {

// Of every layer that has a norm or an activation, in their order.
struct LayerNorms {
  std::vector<double> signal = {};    // root mean square of what its weights give, in front of norm and activation
  std::vector<double> gradient = {};  // norm of the gradient of the loss by that
  std::vector<double> weight_gradient = {};  // norm of the gradient by its weights
};
LayerNorms layer_norms(Probe& probe, const float* x, const int32_t* labels, int64_t n);

// The factor by which values grow from a layer to the one in front of it: a straight line through their logarithms. Requires two or
// more, all above 0.
double growth_backwards(const std::vector<double>& values);

}  // namespace evenkeel::lab
