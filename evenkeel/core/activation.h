// The names of the activations: shared by the graph, which asks for them, and the kernels, which compute them.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace evenkeel {

enum class ActivationKind { kIdentity, kRelu, kLeakyRelu, kSigmoid, kTanh, kGelu, kGeluTanh, kSilu };

// slope: of leaky_relu for negative input (PyTorch's and ONNX's 0.01), unused by the others.
// gelu is the erf form, gelu_tanh the approximation.
struct Activation {
  ActivationKind kind = ActivationKind::kIdentity;
  float slope = 0.01f;
  bool operator==(const Activation&) const = default;
};

// "identity", "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu".
const char* name_of(ActivationKind kind);
std::optional<ActivationKind> activation_from_name(const std::string& name);
const std::vector<std::string>& activation_names();

}  // namespace evenkeel
