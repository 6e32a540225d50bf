#include "evenkeel/tools/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/core/rng.h"

namespace evenkeel::tools {
namespace {

using inference::Port;

// Where a model leaves more open than the batch, images of this size are made up.
constexpr int64_t kOpenExtent = 32;
constexpr int64_t kMostBatch = 16;

bool is_floating(onnx::ElementType type) {
  using onnx::ElementType;
  return type == ElementType::kFloat || type == ElementType::kDouble || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

// The values that both models make, in the order of the first.
std::set<std::string> values_made(const onnx::Graph& graph) {
  std::set<std::string> names;
  for (const onnx::Node& node : graph.nodes) names.insert(node.outputs.begin(), node.outputs.end());
  return names;
}

template <class T>
onnx::Bytes whole_numbers(const std::vector<double>& values) {
  std::vector<T> numbers;
  for (const double value : values) numbers.push_back(static_cast<T>(value));
  return onnx::Bytes::copy_of(std::as_bytes(std::span<const T>(numbers)));
}

onnx::Bytes bytes_of(const Port& port, const Shape& shape, const std::vector<double>& values) {
  using onnx::ElementType;
  switch (port.type) {
    case ElementType::kInt64:
    case ElementType::kUint64:
      return whole_numbers<int64_t>(values);
    case ElementType::kInt32:
    case ElementType::kUint32:
      return whole_numbers<int32_t>(values);
    case ElementType::kInt8:
    case ElementType::kUint8:
    case ElementType::kBool:
      return whole_numbers<int8_t>(values);
    default:
      return onnx::tensor_as(port.type, port.name, shape, values).data;
  }
}

// As many at a time as divide the inputs, if that is not next to none.
int64_t batch_for(int64_t inputs) {
  if (inputs <= kMostBatch) return inputs;
  for (int64_t batch = kMostBatch; batch >= kMostBatch / 4; --batch) {
    if (inputs % batch == 0) return batch;
  }
  return kMostBatch;
}

class Inputs {
 public:
  Inputs(const onnx::Model& model, const CompareOptions& options)
      : options_(options), ports_(inference::input_ports(model)) {
    if (ports_.empty()) throw UsageError("the model has no inputs: there is nothing to compare it on");
    const int64_t wanted = batch_for(std::max<int64_t>(options.inputs, 1));
    for (const Port& port : ports_) shapes_[port.name] = inference::bound_shape(port, wanted, kOpenExtent);
    const Shape& first = shapes_.at(ports_[0].name);
    batch_ = first.empty() ? 1 : std::max<int64_t>(first[0], 1);
    runs_ = (std::max<int64_t>(options.inputs, 1) + batch_ - 1) / batch_;
    if (options.examples.empty()) return;
    const int64_t values = element_count(first);
    const int64_t example = values / batch_;
    if (ports_.size() != 1 || !is_floating(ports_[0].type) || example == 0 ||
        std::ssize(options.examples) % example != 0) {
      throw UsageError(fmt::format("the data do not fit the model: it has {} input{}, '{}' {}", ports_.size(),
                                   ports_.size() == 1 ? "" : "s", ports_[0].name, to_string(ports_[0].shape)));
    }
    runs_ = std::min(runs_, std::ssize(options.examples) / values);
    if (runs_ == 0) throw UsageError(fmt::format("the model takes {} examples at a time; the data have fewer", batch_));
  }

  const std::map<std::string, Shape>& shapes() const { return shapes_; }
  const std::vector<Port>& ports() const { return ports_; }
  int64_t runs() const { return runs_; }
  int64_t examples() const { return runs_ * batch_; }

  // The inputs of one run; valid until the next call.
  std::map<std::string, const void*> of_run(int64_t run) {
    std::map<std::string, const void*> pointers;
    held_.clear();
    for (size_t i = 0; i < ports_.size(); ++i) {
      const Shape& shape = shapes_.at(ports_[i].name);
      held_.push_back(bytes_of(ports_[i], shape, numbers(run, i, element_count(shape))));
      pointers[ports_[i].name] = held_.back().view().data();
    }
    return pointers;
  }

 private:
  std::vector<double> numbers(int64_t run, size_t port, int64_t count) const {
    if (!options_.examples.empty()) {
      const auto part = options_.examples.subspan(static_cast<size_t>(run * count), static_cast<size_t>(count));
      return {part.begin(), part.end()};
    }
    RandomStream random(options_.seed, RandomUse::kProbe, static_cast<uint64_t>(run), port);
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values)
      value = is_floating(ports_[port].type) ? random.next_normal() : static_cast<double>(random.next_below(2));
    return values;
  }

  const CompareOptions& options_;
  std::vector<Port> ports_;
  std::map<std::string, Shape> shapes_;
  int64_t batch_ = 1, runs_ = 1;
  std::vector<onnx::Bytes> held_;
};

void add(std::span<const float> a, std::span<const float> b, Difference& difference) {
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (std::isfinite(x)) difference.largest = std::max(difference.largest, std::abs(x));
    if (!std::isfinite(x)) ++difference.not_finite;
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    double apart = std::abs(x - y);
    if (!std::isfinite(apart)) apart = std::numeric_limits<double>::infinity();
    difference.max_abs = std::max(difference.max_abs, apart);
    difference.mean_abs += apart;  // the sum, until finished()
  }
  difference.count += std::ssize(a);
}

void finish(Difference& difference) {
  difference.mean_abs /= static_cast<double>(std::max<int64_t>(difference.count, 1));
  if (difference.max_abs == 0) return;
  difference.relative =
      difference.largest > 0 ? difference.max_abs / difference.largest : std::numeric_limits<double>::infinity();
}

void add_run(inference::Program& a, inference::Program& b, std::vector<Difference>& differences) {
  for (Difference& difference : differences) {
    const std::span<const float> x = a.output(difference.name), y = b.output(difference.name);
    if (x.size() != y.size()) {
      throw UsageError(fmt::format("value '{}' is {} in the first model and {} in the second", difference.name,
                                   to_string(a.shape_of(difference.name)), to_string(b.shape_of(difference.name))));
    }
    add(x, y, difference);
  }
}

double worst_in(const std::vector<Difference>& differences) {
  double worst = 0;
  for (const Difference& difference : differences) worst = std::max(worst, difference.relative);
  return worst;
}

void require_runnable(const onnx::Model& model) {
  const std::string first = inference::first_unsupported(model);
  if (!first.empty()) throw BackendError(fmt::format("the model cannot be run here: {} is not supported", first));
}

}  // namespace

double Comparison::worst() const { return worst_in(outputs); }
double Comparison::worst_of_all() const { return std::max(worst_in(outputs), worst_in(values)); }

Comparison compare(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options) {
  require_runnable(a);
  require_runnable(b);
  Inputs inputs(a, options);
  for (const Port& port : inference::input_ports(b)) {
    if (inputs.shapes().contains(port.name)) continue;
    throw UsageError(fmt::format("input '{}' of the second model is none of the first", port.name));
  }
  Comparison comparison;
  const std::set<std::string> made_by_a = values_made(a.graph), made_by_b = values_made(b.graph);
  std::vector<std::string> keep;
  for (const std::string& value : options.values) {
    if (!made_by_a.contains(value) || !made_by_b.contains(value)) continue;
    if (std::find(keep.begin(), keep.end(), value) == keep.end()) keep.push_back(value);
  }
  for (const std::string& value : keep) comparison.values.push_back({.name = value});
  const std::vector<Port> others = inference::output_ports(b);
  for (const Port& port : inference::output_ports(a)) {
    if (std::any_of(others.begin(), others.end(), [&](const Port& other) { return other.name == port.name; }))
      comparison.outputs.push_back({.name = port.name});
  }
  if (comparison.outputs.empty()) throw UsageError("the two models have no output of the same name");

  inference::Program first(
      a, {.inputs = inputs.shapes(), .threads = options.threads, .norms = options.norms, .keep = keep});
  inference::Program second(b, {.inputs = inputs.shapes(), .threads = options.threads, .keep = keep});
  for (int64_t run = 0; run < inputs.runs(); ++run) {
    const auto pointers = inputs.of_run(run);
    first.run(pointers);
    second.run(pointers);
    add_run(first, second, comparison.outputs);
    add_run(first, second, comparison.values);
  }
  for (auto* list : {&comparison.outputs, &comparison.values}) {
    for (Difference& difference : *list) finish(difference);
  }
  comparison.inputs = inputs.examples();
  return comparison;
}

}  // namespace evenkeel::tools
