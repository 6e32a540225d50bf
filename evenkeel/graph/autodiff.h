// Gradients and updates, graph -> graph.
//
//   Graph step = with_gradients(std::move(forward));      // appends the backward pass
//   step = with_updates(std::move(step), optimizer, info); // appends the guard, clipping and the updates
#pragma once

#include <string>
#include <vector>

#include "evenkeel/graph/builder.h"
#include "evenkeel/graph/graph.h"

namespace evenkeel {

// Appends the gradient of the value named "loss" with respect to every parameter (docs/math.md, eq. 15-24) and names each one
// "grad:" + parameter name. input_gradient: also that of "x", named "grad:x". Update nodes stay last.
// Throws UsageError when there is no loss.
Graph with_gradients(Graph graph, bool input_gradient = false);

enum class OptimizerKind { kSgd, kMomentum, kNesterov, kRmsprop, kAdam, kAdamW };
struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double momentum = 0.9;              // momentum, nesterov
  double alpha = 0.99;                // rmsprop
  double beta1 = 0.9, beta2 = 0.999;  // double: 1 - 0.999f is off by 1e-5
  double eps = 1e-8;
  double weight_decay = 0;
  bool decay_norm_and_bias = false;  // by default weights of linear and conv layers only
  double clip_norm = 0;              // > 0: gradients are clipped to this global norm
};
const std::vector<std::string>& optimizer_names();
// Throws UsageError with a suggestion for an unknown name.
OptimizerKind optimizer_from_name(const std::string& name);
const char* name_of(OptimizerKind kind);
// Where none is stated: 0.01 for adamw; in the others it would be a penalty that nobody asked for.
double usual_weight_decay(OptimizerKind kind);

// State tensors of an optimizer, in the parameter store next to the parameters: "optimizer.NAME.PARAMETER", zero at first.
struct StateInfo {
  std::string name;
  Shape shape;
};

// Appends: CheckFinite over the loss, the batch statistics and the gradients; ClipByNorm if asked; one update node per parameter. All
// nodes that change parameters, buffers or states stand after the guard. Fills `states`.
Graph with_updates(Graph graph, const OptimizerOptions& options, const std::vector<ParameterInfo>& parameters,
                   std::vector<StateInfo>* states);

// Appends, behind the updates of with_updates, one node AverageWeights for every parameter that is updated. Adds their averages,
// "average.PARAMETER", to `states`.
Graph with_averages(Graph graph, std::vector<StateInfo>* states);

}  // namespace evenkeel
