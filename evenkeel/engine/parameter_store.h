// The tensors that outlive a step: parameters, running statistics, optimizer states; by name, in PyTorch's state-dict layout.
// Training and inference graphs share one store.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "evenkeel/core/tensor.h"

namespace evenkeel {

class ParameterStore {
 public:
  // Adds a tensor. Throws UsageError when the name is there already.
  void add(const std::string& name, Tensor tensor);
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  // Throws UsageError when there is none of that name.
  const Tensor& at(const std::string& name) const;
  // As at(), for writing: counts as a change, so that executables pack the weights anew.
  Tensor& writable(const std::string& name);
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

  // Grows with every change; executables compare it to know whether their packed weights are still those of the store.
  uint64_t version() const { return version_; }
  void touch() { ++version_; }

 private:
  std::map<std::string, Tensor> tensors_;
  uint64_t version_ = 1;
};

}  // namespace evenkeel
