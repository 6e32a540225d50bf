// Networks that differ in where their norms stand and what these learn.
#pragma once

#include <string>

#include "evenkeel/train/model_file.h"
#include "evenkeel/train/probe.h"

namespace evenkeel::lab {

// The biases that a norm makes redundant: `with_biases` has them and `without` has not.
struct BiasGradient {
  double biases = 0;  // norm of the gradient over all of these
  double betas = 0;   // the same of the betas of the norms
  int64_t count = 0;  // values of the biases
};
// Of the probe's last run.
BiasGradient bias_gradient(const Probe& probe, const ModelSpec& with_biases, const ModelSpec& without);

// Sets gamma to 1, beta to 0, or both, in all norms.
void hold_affine(const ModelSpec& spec, ParameterStore& store, bool hold_gamma, bool hold_beta);

}  // namespace evenkeel::lab
