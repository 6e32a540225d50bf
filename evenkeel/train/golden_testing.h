// What the golden tests share: the files of tests/golden, distances, and a small network with its two graphs. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel::golden {

// One file of tests/golden (README.md there says what is in each). The folder is found from the source folder: the working folder, or
// EVENKEEL_SOURCE_DIR.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name) {
    const char* source = std::getenv("EVENKEEL_SOURCE_DIR");
    const std::string folder = source == nullptr ? "" : std::string(source) + "/";
    file_ = read_safetensors(folder + "tests/golden/" + name + ".safetensors");
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  const Tensor& at(const std::string& name) const {
    const Tensor* tensor = file_.find(name);
    if (tensor == nullptr) throw UsageError("the golden file has no tensor '" + name + "'");
    return *tensor;
  }
  std::span<const float> floats(const std::string& name) const { return at(name).values<float>(); }
  std::span<const double> doubles(const std::string& name) const { return at(name).values<double>(); }
  nlohmann::json settings(const std::string& name) const { return nlohmann::json::parse(file_.metadata.at(name)); }
  const TensorFile& file() const { return file_; }
  // Names of the cases of an op_* file.
  std::vector<std::string> cases() const {
    std::istringstream words(file_.metadata.at("cases"));
    return {std::istream_iterator<std::string>(words), {}};
  }
  std::vector<int32_t> labels(const std::string& name) const {
    std::vector<int32_t> labels;
    for (const int64_t label : at(name).values<int64_t>()) labels.push_back(static_cast<int32_t>(label));
    return labels;
  }

 private:
  TensorFile file_;
};

// ||a - b|| / ||b||, and ||a|| where b is 0; infinite when a value is not finite or the sizes differ.
template <class A, class B>
double norm_error(const A& a, const B& b) {
  if (a.size() != b.size()) return INFINITY;
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (!std::isfinite(x)) return INFINITY;
    error += (x - y) * (x - y);
    size += y * y;
  }
  return std::sqrt(size > 0 ? error / size : error);
}

// The largest error as a share of the largest |b|.
template <class A, class B>
double largest_error(const A& a, const B& b) {
  if (a.size() != b.size()) return INFINITY;
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (!std::isfinite(x)) return INFINITY;
    error = std::max(error, std::abs(x - y));
    size = std::max(size, std::abs(y));
  }
  return size > 0 ? error / size : error;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0);
}

// The formulas of tests/golden/README.md: inputs that both sides make to the same bits.
inline uint64_t mix(uint64_t stream, uint64_t i) {
  uint64_t z = ((stream << 32) + i + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}
inline float value(uint64_t stream, uint64_t i) {
  return static_cast<float>(static_cast<int64_t>(mix(stream, i) >> 48) - 32768) / 32768;
}
inline std::vector<float> values(uint64_t stream, int64_t count) {
  std::vector<float> v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = value(stream, i);
  return v;
}
inline std::vector<int32_t> labels(uint64_t stream, int64_t count, uint64_t classes) {
  std::vector<int32_t> v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<int32_t>((mix(stream, i) >> 32) % classes);
  return v;
}

// The small models of the step_* files, made of the zoo's by their names: so the zoo is under test as well.
inline ModelSpec step_spec(const std::string& name, const Shape& input) {
  const auto resize = [](ModelSpec spec, std::vector<int64_t> outs) {
    size_t next = 0;
    for (LayerSpec& layer : spec.layers) {
      for (LayerSpec& inner : layer.body) inner.out = outs[next];
      if (layer.out > 0 || !layer.body.empty()) layer.out = layer.body.empty() ? outs[next++] : (++next, 0);
    }
    return spec;
  };
  if (name == "mlp") return resize(zoo_model("mlp", input, 5), {16, 12});
  if (name != "resnet") return resize(zoo_model(name, input, 5), {4, 6, 8});
  ModelSpec spec = zoo_model("resnet20", input, 5);
  std::erase_if(spec.layers, [](const LayerSpec& layer) {
    return !layer.body.empty() && layer.name != "layer1.0" && layer.name != "layer2.0";
  });
  return resize(spec, {4, 4, 8});
}

// Settings of an optimizer as the golden files state them.
inline OptimizerOptions optimizer_options(const nlohmann::json& settings) {
  OptimizerOptions o;
  const std::string kind = settings.at("kind");
  o.momentum = settings.value("momentum", 0.0);
  o.kind = optimizer_from_name(kind);
  if (o.momentum > 0) o.kind = settings.value("nesterov", false) ? OptimizerKind::kNesterov : OptimizerKind::kMomentum;
  o.alpha = settings.value("alpha", o.alpha);
  o.beta1 = settings.value("beta1", o.beta1);
  o.beta2 = settings.value("beta2", o.beta2);
  o.eps = settings.value("epsilon", o.eps);
  o.weight_decay = settings.value("weight_decay", 0.0);
  o.decay_norm_and_bias = settings.value("decay", "") == "all";
  return o;
}

// A network with its parameters, a training step and an evaluation; all parameters 0 at first.
class Net {
 public:
  Net(const ModelSpec& spec, const OptimizerOptions& optimizer, int64_t batch, int threads)
      : network_(build_network(spec, Mode::kTrain)), input_(element_count(spec.input)) {
    std::vector<StateInfo> states;
    const Graph step = with_updates(with_gradients(network_.graph), optimizer, network_.parameters, &states);
    for (const ParameterInfo& info : network_.parameters) store_.add(info.name, Tensor(DType::kF32, info.shape));
    for (const BufferInfo& info : network_.buffers) store_.add(info.name, Tensor(info.dtype, info.shape));
    for (const StateInfo& info : states) store_.add(info.name, Tensor(DType::kF32, info.shape));
    const auto backend = cpu_backend(threads);
    train_ = backend->compile(make_plan(step, {.batch = batch}), store_);
    eval_ = backend->compile(make_plan(build_network(spec, Mode::kInference).graph, {.batch = batch}), store_);
  }

  // Takes every tensor of `file` called prefix + NAME, and forgets the optimizer's states.
  void load(const GoldenFile& file, const std::string& prefix) {
    steps_ = 0;
    for (const auto& [name, ignored] : store_.tensors()) {
      Tensor& tensor = store_.writable(name);
      if (!file.has(prefix + name)) {
        ASSERT_EQ(name.rfind("optimizer.", 0), 0u) << name << " is not in the golden file";
        std::memset(tensor.raw(), 0, tensor.bytes());
        continue;
      }
      const Tensor& golden = file.at(prefix + name);
      ASSERT_EQ(golden.shape(), tensor.shape()) << name;
      ASSERT_EQ(golden.dtype(), tensor.dtype()) << name;
      std::memcpy(tensor.raw(), golden.raw(), tensor.bytes());
    }
  }
  // Numbers for every tensor, a function of name order alone: gamma and the variances near 1, all else around 0.
  void fill(uint64_t stream) {
    for (const auto& [name, ignored] : store_.tensors()) {
      Tensor& tensor = store_.writable(name);
      if (tensor.dtype() != DType::kF32 || name.rfind("optimizer.", 0) == 0) continue;
      const Shape& shape = tensor.shape();
      const double fan_in = shape.size() > 1 ? static_cast<double>(tensor.count()) / static_cast<double>(shape[0]) : 4;
      const bool around_one = name.ends_with("running_var") || (shape.size() == 1 && name.ends_with(".weight"));
      uint64_t i = 0;
      for (float& v : tensor.values<float>()) {
        v = (around_one ? 1.0f : 0.0f) + value(stream, i++) * static_cast<float>(1 / std::sqrt(fan_in));
      }
      ++stream;
    }
  }

  RunResult step(const float* x, const int32_t* labels, int64_t n, double learning_rate) {
    return train_->run({.x = x, .labels = labels, .n = n, .learning_rate = learning_rate, .step = ++steps_});
  }
  Tensor logits(const float* x, const int32_t* labels, int64_t n) {
    eval_->run({.x = x, .labels = labels, .n = n});
    return eval_->read("logits");
  }
  double eval_loss() const { return eval_->scalar("loss"); }  // of the last logits()
  double loss() const { return train_->scalar("loss"); }
  Tensor read(const std::string& name) const { return train_->read(name); }
  const Network& network() const { return network_; }
  ParameterStore& store() { return store_; }
  int64_t input_elements() const { return input_; }

 private:
  Network network_;
  int64_t input_;
  ParameterStore store_;
  std::unique_ptr<Executable> train_, eval_;
  int64_t steps_ = 0;
};

// [n, c, ...] -> [n, ..., c] and back, example by example; tables stay as they are.
using Transpose = void (*)(const float*, int64_t, int64_t, float*);
inline std::vector<float> transposed(std::span<const float> x, const Shape& shape, Transpose transpose) {
  std::vector<float> out(x.begin(), x.end());
  const int64_t row = element_count({shape.begin() + 1, shape.end()});
  for (int64_t i = 0; i < shape[0]; ++i) {
    transpose(x.data() + i * row, shape[1], row / shape[1], out.data() + i * row);
  }
  return out;
}
inline std::vector<float> channels_last(const Tensor& x) {
  return transposed(x.values<float>(), x.shape(), kernels::channels_first_to_last);
}
inline std::vector<float> channels_first(const std::vector<float>& x, const Shape& shape) {
  return transposed(x, shape, kernels::channels_last_to_first);
}

template <class A, class B>
bool equal(const A& a, const B& b) {  // as numbers: -0 is 0
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace evenkeel::golden
