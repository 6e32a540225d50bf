#include "evenkeel/engine/parameter_store.h"

namespace evenkeel {

void ParameterStore::add(const std::string& name, Tensor tensor) {
  if (!tensors_.emplace(name, std::move(tensor)).second) {
    throw UsageError("parameter '" + name + "' is there twice; give each layer a name of its own");
  }
  touch();
}

const Tensor& ParameterStore::at(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) throw UsageError("there is no parameter named '" + name + "'");
  return it->second;
}

Tensor& ParameterStore::writable(const std::string& name) {
  touch();
  return const_cast<Tensor&>(at(name));
}

}  // namespace evenkeel
