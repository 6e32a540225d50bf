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

bool is_open(int64_t extent) { return extent < 0; }

// The shape that both declarations allow; none where they contradict each other.
std::optional<Shape> common_shape(const Shape& a, const Shape& b) {
  if (a.size() != b.size()) return std::nullopt;
  Shape common = a;
  for (size_t i = 0; i < a.size(); ++i) {
    if (is_open(a[i])) common[i] = b[i];
    if (!is_open(a[i]) && !is_open(b[i]) && a[i] != b[i]) return std::nullopt;
  }
  return common;
}

bool can_be_one(const Port& a, const Port& b) {
  return is_floating(a.type) == is_floating(b.type) && common_shape(a.shape, b.shape).has_value();
}

}  // namespace

bool is_floating(ElementType type) {
  return type == ElementType::kFloat || type == ElementType::kDouble || type == ElementType::kFloat16 ||
         type == ElementType::kBfloat16;
}

std::string in_words(const std::vector<Port>& ports) {
  std::string text;
  for (const Port& port : ports)
    text += fmt::format("{}'{}' {}", text.empty() ? "" : ", ", port.name, to_string(port.shape));
  return text.empty() ? "none" : text;
}

ComparedInputs::ComparedInputs(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options)
    : options_(options) {
  pair(inference::input_ports(a), inference::input_ports(b));
  if (ports_.empty()) throw UsageError("the model has no inputs: there is nothing to compare it on");
  int64_t wanted = std::max<int64_t>(options.inputs, 1);
  bind(wanted);
  if (!options.examples.empty()) {
    const int64_t given = examples_given();
    if (given < wanted) bind(wanted = given);
    runs_ = std::min(runs_, given / batch_);
    if (runs_ == 0) {
      throw UsageError(
          fmt::format("the models take {} examples at a time, and the data have {}; give at least {}, or compare on "
                      "--random inputs",
                      batch_, given, batch_));
    }
  }
  if (examples() == wanted) return;
  notes_.push_back(fmt::format("the outputs are compared on {} inputs, not on {}, because {} are run at a time",
                               examples(), wanted, batch_));
}

// By name; those left over in their order.
void ComparedInputs::pair(const std::vector<Port>& first, const std::vector<Port>& second) {
  for (const Port& port : first) ports_.push_back({.first = port});
  std::vector<Port> left;
  for (const Port& port : second) {
    const auto found = std::find_if(ports_.begin(), ports_.end(),
                                    [&](const PairedPort& pair) { return pair.first.name == port.name; });
    if (found == ports_.end()) {
      left.push_back(port);
    } else {
      found->second = port;
    }
  }
  if (left.empty()) return;  // what the first reads beside may have been folded away in the second
  std::vector<PairedPort*> free;
  for (PairedPort& pair : ports_) {
    if (!pair.second) free.push_back(&pair);
  }
  const bool fit = std::equal(free.begin(), free.end(), left.begin(), left.end(),
                              [](const PairedPort* pair, const Port& port) { return can_be_one(pair->first, port); });
  if (!fit) {
    throw UsageError(
        fmt::format("the two models cannot be fed the same: the inputs of the first are {}, those of the second {}; "
                    "export both with the same names and shapes of inputs",
                    in_words(first), in_words(second)));
  }
  for (size_t i = 0; i < left.size(); ++i) {
    free[i]->second = left[i];
    notes_.push_back(fmt::format("input '{}' is matched with '{}', by its place", free[i]->first.name, left[i].name));
  }
}

// To shapes that both models take: what one leaves open the other may say.
void ComparedInputs::bind(int64_t inputs) {
  for (const PairedPort& pair : ports_) {
    Port port = pair.first;
    if (pair.second) {
      const std::optional<Shape> common = common_shape(port.shape, pair.second->shape);
      if (!common) {
        throw UsageError(
            fmt::format("input '{}' is {} in the first model and {} in the second (-1: any), so that they cannot take "
                        "the same values; export both with the same shape, or with an open batch",
                        port.name, to_string(port.shape), to_string(pair.second->shape)));
      }
      port.shape = *common;
    }
    const Shape shape = inference::bound_shape(port, batch_for(inputs), kOpenExtent);
    first_.shapes[port.name] = shape;
    if (pair.second) second_.shapes[pair.second->name] = shape;
  }
  const Shape& leading = first_.shapes.at(ports_[0].first.name);
  batch_ = leading.empty() ? 1 : std::max<int64_t>(leading[0], 1);
  runs_ = (inputs + batch_ - 1) / batch_;
}

int64_t ComparedInputs::examples_given() const {
  const Port& port = ports_[0].first;
  const int64_t example = element_count(first_.shapes.at(port.name)) / batch_;
  if (ports_.size() != 1 || !is_floating(port.type) || example == 0 || std::ssize(options_.examples) % example != 0) {
    throw UsageError(fmt::format("the data do not fit the model: it has {} input{}, {}", ports_.size(),
                                 ports_.size() == 1 ? "" : "s", in_words({port})));
  }
  return std::ssize(options_.examples) / example;
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
