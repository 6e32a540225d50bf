// For tests only: small ONNX models written down by hand.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::onnx {

inline std::vector<float> normal(size_t count, uint64_t seed) {
  RandomStream stream(seed, RandomUse::kInitialize, 0);
  std::vector<float> v(count);
  for (float& x : v) x = static_cast<float>(stream.next_normal());
  return v;
}

inline ValueInfo info(const std::string& name, const Shape& shape) {
  ValueInfo v{.name = name, .type = ElementType::kFloat};
  v.dims.emplace();
  for (const int64_t d : shape)
    v.dims->push_back(d < 0 ? Dim{.value = {}, .symbol = "N"} : Dim{.value = d, .symbol = ""});
  return v;
}
inline Node node(const std::string& op, std::vector<std::string> in, std::vector<std::string> out) {
  Node n;
  n.op_type = op;
  n.inputs = std::move(in);
  n.outputs = std::move(out);
  return n;
}
inline void add(Model& m, const std::string& name, const Shape& dims, const std::vector<float>& v) {
  m.graph.set_initializer(make_tensor(name, dims, std::span<const float>(v)));
}

}  // namespace evenkeel::onnx
