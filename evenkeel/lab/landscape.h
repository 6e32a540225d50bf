// The landscape of a loss around a point, along the direction in which gradient descent would go (Santurkar et al. 2018).
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/train/probe.h"

namespace evenkeel::lab {

struct Landscape {
  double loss = 0, gradient_norm = 0;  // at the point
  std::vector<double> losses = {};     // after a step of each of the rates
  double gradient_change = 0;          // greatest ||g(w - rate g) - g(w)||: the less, the better it predicts
  double smoothness = 0;               // greatest ||g(w - rate g) - g(w)|| / ||rate g||: 0 where the loss is a plane
  // Greatest and least loss on the way apart.
  double loss_range() const;
};

// On the batch that is given, for all parameters that are trained. The store is as it was before, to the bit.
Landscape landscape_at(Probe& probe, ParameterStore& store, const float* x, const int32_t* labels, int64_t n,
                       const std::vector<double>& rates);

}  // namespace evenkeel::lab
