#include "evenkeel/core/activation.h"

namespace evenkeel {

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names = {"identity", "relu", "leaky_relu", "sigmoid",
                                                 "tanh",     "gelu", "gelu_tanh",  "silu"};
  return names;
}

const char* name_of(ActivationKind kind) { return activation_names()[static_cast<size_t>(kind)].c_str(); }

std::optional<ActivationKind> activation_from_name(const std::string& name) {
  for (size_t i = 0; i < activation_names().size(); ++i) {
    if (activation_names()[i] == name) return static_cast<ActivationKind>(i);
  }
  return std::nullopt;
}

}  // namespace evenkeel
