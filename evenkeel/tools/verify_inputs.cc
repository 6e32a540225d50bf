#include "evenkeel/tools/verify_inputs.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/core/error.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/tools/verify.h"

namespace evenkeel::tools {
namespace {

using inference::Port;
using onnx::ElementType;

// Where a model leaves more open than the batch, images of this size are made up.
constexpr int64_t kOpenExtent = 32;
constexpr int64_t kMostBatch = 16;

template <class T>
onnx::Bytes whole_numbers(const std::vector<float>& values) {
  std::vector<T> numbers;
  for (const float value : values) numbers.push_back(static_cast<T>(value));
  return onnx::Bytes::copy_of(std::as_bytes(std::span<const T>(numbers)));
}

onnx::Bytes bytes_of(const Port& port, const Shape& shape, const std::vector<float>& values) {
  if (is_floating(port.type))
    return onnx::tensor_as(port.type, port.name, shape, std::vector<double>(values.begin(), values.end())).data;
  switch (onnx::size_bytes(port.type)) {
    case 8:
      return whole_numbers<int64_t>(values);
    case 4:
      return whole_numbers<int32_t>(values);
    case 2:
      return whole_numbers<int16_t>(values);
    default:
      return whole_numbers<int8_t>(values);
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

std::vector<PairedPort> paired(const std::vector<Port>& first, const std::vector<Port>& second) {
  std::vector<PairedPort> pairs;
  for (const Port& port : first) pairs.push_back({.first = port});
  for (const Port& port : second) {
    const auto found =
        std::find_if(pairs.begin(), pairs.end(), [&](const PairedPort& pair) { return pair.first.name == port.name; });
    if (found == pairs.end())
      throw UsageError(fmt::format("input '{}' of the second model is none of the first", port.name));
    found->second = port;
  }
  return pairs;
}

}  // namespace

bool is_floating(ElementType type) {
  return type == ElementType::kFloat || type == ElementType::kDouble || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

ComparedInputs::ComparedInputs(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options)
    : options_(options), ports_(paired(inference::input_ports(a), inference::input_ports(b))) {
  if (ports_.empty()) throw UsageError("the model has no inputs: there is nothing to compare it on");
  const int64_t wanted = batch_for(std::max<int64_t>(options.inputs, 1));
  for (const PairedPort& port : ports_) bind(port, wanted);
  const Shape& leading = first_.shapes.at(ports_[0].first.name);
  batch_ = leading.empty() ? 1 : std::max<int64_t>(leading[0], 1);
  runs_ = (std::max<int64_t>(options.inputs, 1) + batch_ - 1) / batch_;
  if (!options.examples.empty()) require_examples_fit();
}

void ComparedInputs::bind(const PairedPort& port, int64_t wanted) {
  const Shape shape = inference::bound_shape(port.first, wanted, kOpenExtent);
  first_.shapes[port.first.name] = shape;
  if (port.second) second_.shapes[port.second->name] = shape;
}

void ComparedInputs::require_examples_fit() {
  const Port& port = ports_[0].first;
  const int64_t values = element_count(first_.shapes.at(port.name)), example = values / batch_;
  if (ports_.size() != 1 || !is_floating(port.type) || example == 0 || std::ssize(options_.examples) % example != 0) {
    throw UsageError(fmt::format("the data do not fit the model: it has {} input{}, '{}' {}", ports_.size(),
                                 ports_.size() == 1 ? "" : "s", port.name, to_string(port.shape)));
  }
  runs_ = std::min(runs_, std::ssize(options_.examples) / values);
  if (runs_ == 0) throw UsageError(fmt::format("the model takes {} examples at a time; the data have fewer", batch_));
}

void ComparedInputs::Side::add(const Port& port, const std::vector<float>& values) {
  held.push_back(bytes_of(port, shapes.at(port.name), values));
  pointers[port.name] = held.back().view().data();
}

void ComparedInputs::make(int64_t run) {
  first_.held.clear();
  second_.held.clear();
  for (size_t i = 0; i < ports_.size(); ++i) {
    const PairedPort& port = ports_[i];
    const std::vector<float> values = numbers(run, i, element_count(first_.shapes.at(port.first.name)));
    first_.add(port.first, values);
    if (port.second) second_.add(*port.second, values);
  }
}

std::vector<float> ComparedInputs::numbers(int64_t run, size_t port, int64_t count) const {
  if (!options_.examples.empty()) {
    const auto part = options_.examples.subspan(static_cast<size_t>(run * count), static_cast<size_t>(count));
    return {part.begin(), part.end()};
  }
  // Whole numbers where one of the two takes nothing else.
  const bool floating =
      is_floating(ports_[port].first.type) && (!ports_[port].second || is_floating(ports_[port].second->type));
  RandomStream random(options_.seed, RandomUse::kProbe, static_cast<uint64_t>(run), port);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values)
    value = static_cast<float>(floating ? random.next_normal() : double(random.next_below(2)));
  return values;
}

}  // namespace evenkeel::tools
