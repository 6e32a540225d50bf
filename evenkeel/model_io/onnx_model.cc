#include "evenkeel/model_io/onnx_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <queue>
#include <set>

#include "evenkeel/core/error.h"

namespace evenkeel::onnx {

std::string name_of(ElementType type) {
  switch (type) {
    case ElementType::kUndefined:
      return "undefined";
    case ElementType::kFloat:
      return "float32";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kUint16:
      return "uint16";
    case ElementType::kInt16:
      return "int16";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    case ElementType::kString:
      return "string";
    case ElementType::kBool:
      return "bool";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kDouble:
      return "float64";
    case ElementType::kUint32:
      return "uint32";
    case ElementType::kUint64:
      return "uint64";
    case ElementType::kBfloat16:
      return "bfloat16";
  }
  return fmt::format("type {}", static_cast<int32_t>(type));
}

size_t size_bytes(ElementType type) {
  switch (type) {
    case ElementType::kUint8:
    case ElementType::kInt8:
    case ElementType::kBool:
      return 1;
    case ElementType::kUint16:
    case ElementType::kInt16:
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return 2;
    case ElementType::kFloat:
    case ElementType::kInt32:
    case ElementType::kUint32:
      return 4;
    case ElementType::kInt64:
    case ElementType::kDouble:
    case ElementType::kUint64:
      return 8;
    case ElementType::kUndefined:
    case ElementType::kString:
      return 0;
  }
  return 0;
}

Bytes Bytes::copy_of(std::span<const std::byte> data) {
  return made(data.size(), [&](std::byte* to) {
    if (!data.empty()) std::memcpy(to, data.data(), data.size());
  });
}

// --- elements ---------------------------------------------------------------------------------------------------------
namespace {

float float_from_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float value = std::ldexp(static_cast<float>(fraction), -24);
  return sign != 0 ? -value : value;
}

// Rounded to nearest even, straight from double: no second rounding on the way.
uint16_t half_from(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  const double size = std::abs(value);
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);                                   // size in [2^(exponent - 1), 2^exponent)
  const int step = std::max(exponent - 11, -24);                 // value of the last of 11 bits
  const double steps = std::nearbyint(std::ldexp(size, -step));  // <= 2048
  const double rounded = std::ldexp(steps, step);
  if (rounded < std::ldexp(1.0, -14))
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::ldexp(rounded, 24)));
  std::frexp(rounded, &exponent);
  const auto fraction = static_cast<uint16_t>(std::ldexp(rounded, 11 - exponent) - 1024);
  return static_cast<uint16_t>(sign | static_cast<uint16_t>((exponent + 14) << 10) | fraction);
}

uint16_t bfloat16_from(double value) {
  if (std::isnan(value)) return 0x7fc0;
  // Round to odd in float first, so that the second rounding cannot go wrong.
  auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  const double back = std::bit_cast<float>(bits);
  if (std::isfinite(back) && back != value) {
    if (std::abs(back) > std::abs(value)) --bits;
    bits |= 1u;
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <class T>
T element(std::span<const std::byte> data, size_t i) {
  T value;
  std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
  return value;
}

template <class From, class To, class Convert>
void convert_elements(std::span<const std::byte> data, std::span<To> values, Convert convert) {
  if constexpr (std::is_same_v<From, To>) {
    if (!values.empty()) std::memcpy(values.data(), data.data(), values.size() * sizeof(To));
  } else {
    for (size_t i = 0; i < values.size(); ++i) values[i] = convert(element<From>(data, i));
  }
}

// False for a type that holds no numbers.
template <class To>
bool read_into(ElementType type, std::span<const std::byte> data, std::span<To> values) {
  const auto cast = [](auto v) { return static_cast<To>(v); };
  const auto half = [](uint16_t v) { return static_cast<To>(float_from_half(v)); };
  const auto brain = [](uint16_t v) { return static_cast<To>(std::bit_cast<float>(static_cast<uint32_t>(v) << 16)); };
  EK_ASSERT(data.size() == values.size() * size_bytes(type));
  switch (type) {
    case ElementType::kFloat:
      return convert_elements<float>(data, values, cast), true;
    case ElementType::kDouble:
      return convert_elements<double>(data, values, cast), true;
    case ElementType::kFloat16:
      return convert_elements<uint16_t>(data, values, half), true;
    case ElementType::kBfloat16:
      return convert_elements<uint16_t>(data, values, brain), true;
    case ElementType::kUint8:
    case ElementType::kBool:
      return convert_elements<uint8_t>(data, values, cast), true;
    case ElementType::kInt8:
      return convert_elements<int8_t>(data, values, cast), true;
    case ElementType::kUint16:
      return convert_elements<uint16_t>(data, values, cast), true;
    case ElementType::kInt16:
      return convert_elements<int16_t>(data, values, cast), true;
    case ElementType::kInt32:
      return convert_elements<int32_t>(data, values, cast), true;
    case ElementType::kUint32:
      return convert_elements<uint32_t>(data, values, cast), true;
    case ElementType::kInt64:
      return convert_elements<int64_t>(data, values, cast), true;
    case ElementType::kUint64:
      return convert_elements<uint64_t>(data, values, cast), true;
    case ElementType::kUndefined:
    case ElementType::kString:
      break;
  }
  return false;
}

template <class To>
std::vector<To> values_of(const TensorValue& tensor) {
  const size_t width = size_bytes(tensor.type);
  std::vector<To> values(width == 0 ? 0 : tensor.data.size() / width);
  if (width != 0 && read_into<To>(tensor.type, tensor.data.view().first(values.size() * width), values)) return values;
  throw UsageError(
      fmt::format("tensor '{}': expected numbers, found elements of {}", tensor.name, name_of(tensor.type)));
}

template <class T>
TensorValue tensor_of(ElementType type, std::string name, const Shape& dims, std::span<const T> values) {
  EK_ASSERT(element_count(dims) == static_cast<int64_t>(values.size()));
  TensorValue tensor;
  tensor.name = std::move(name);
  tensor.type = type;
  tensor.dims = dims;
  tensor.data = Bytes::copy_of(std::as_bytes(values));
  return tensor;
}

}  // namespace

TensorValue make_tensor(std::string name, const Shape& dims, std::span<const float> values) {
  return tensor_of(ElementType::kFloat, std::move(name), dims, values);
}
TensorValue make_tensor(std::string name, const Shape& dims, std::span<const double> values) {
  return tensor_of(ElementType::kDouble, std::move(name), dims, values);
}
TensorValue make_tensor(std::string name, const Shape& dims, std::span<const int64_t> values) {
  return tensor_of(ElementType::kInt64, std::move(name), dims, values);
}

void read_elements(ElementType type, std::span<const std::byte> data, std::span<float> values) {
  if (!read_into(type, data, values)) throw UsageError("expected numbers, found elements of " + name_of(type));
}
void read_elements(ElementType type, std::span<const std::byte> data, std::span<double> values) {
  if (!read_into(type, data, values)) throw UsageError("expected numbers, found elements of " + name_of(type));
}
void read_elements(ElementType type, std::span<const std::byte> data, std::span<int64_t> values) {
  if (!read_into(type, data, values)) throw UsageError("expected numbers, found elements of " + name_of(type));
}

std::vector<float> floats_of(const TensorValue& tensor) { return values_of<float>(tensor); }
std::vector<double> doubles_of(const TensorValue& tensor) { return values_of<double>(tensor); }
std::vector<int64_t> integers_of(const TensorValue& tensor) {
  const bool floating = tensor.type == ElementType::kFloat || tensor.type == ElementType::kDouble ||
                        tensor.type == ElementType::kFloat16 || tensor.type == ElementType::kBfloat16;
  if (!floating) return values_of<int64_t>(tensor);
  // A float beyond int64 has no value there: casting it would be undefined.
  std::vector<int64_t> values;
  for (const double v : values_of<double>(tensor)) {
    if (!(std::abs(v) < 9.2e18)) {
      throw UsageError(fmt::format("tensor '{}': expected whole numbers, found {}", tensor.name, v));
    }
    values.push_back(static_cast<int64_t>(v));
  }
  return values;
}

void write_elements(ElementType type, std::span<const double> values, std::byte* to) {
  // Through memcpy: the memory may not be aligned.
  const auto write = [&](auto rounded) {
    for (const double value : values) {
      const auto element = rounded(value);
      std::memcpy(to, &element, sizeof(element));
      to += sizeof(element);
    }
  };
  switch (type) {
    case ElementType::kFloat:
      return write([](double v) { return static_cast<float>(v); });
    case ElementType::kDouble:
      return write([](double v) { return v; });
    case ElementType::kFloat16:
      return write(half_from);
    case ElementType::kBfloat16:
      return write(bfloat16_from);
    default:
      throw UsageError(fmt::format("expected a floating type, found {}", name_of(type)));
  }
}

TensorValue tensor_as(ElementType type, std::string name, const Shape& dims, std::span<const double> values) {
  EK_ASSERT(element_count(dims) == static_cast<int64_t>(values.size()));
  TensorValue tensor;
  tensor.name = std::move(name);
  tensor.type = type;
  tensor.dims = dims;
  tensor.data = Bytes::made(values.size() * size_bytes(type), [&](std::byte* to) { write_elements(type, values, to); });
  return tensor;
}

// --- nodes ------------------------------------------------------------------------------------------------------------
const Attribute* Node::find(std::string_view attribute) const {
  for (const Attribute& a : attributes) {
    if (a.name == attribute) return &a;
  }
  return nullptr;
}

namespace {

const Attribute* find_of(const Node& node, std::string_view attribute, Attribute::Kind kind, const char* expected) {
  const Attribute* a = node.find(attribute);
  if (a != nullptr && a->kind != kind) {
    throw FormatError(
        fmt::format("node {}: attribute '{}': expected {}, found another kind", node.label(), attribute, expected));
  }
  return a;
}

Attribute& assigned(Node& node, const std::string& name) {
  node.attributes_changed = true;
  for (Attribute& a : node.attributes) {
    if (a.name == name) return a = Attribute{.name = name};
  }
  return node.attributes.emplace_back(Attribute{.name = name});
}

}  // namespace

int64_t Node::integer(std::string_view attribute, int64_t otherwise) const {
  const Attribute* a = find_of(*this, attribute, Attribute::Kind::kInt, "a whole number");
  return a == nullptr ? otherwise : a->i;
}
float Node::number(std::string_view attribute, float otherwise) const {
  const Attribute* a = find_of(*this, attribute, Attribute::Kind::kFloat, "a number");
  return a == nullptr ? otherwise : a->f;
}
std::string Node::text(std::string_view attribute, const std::string& otherwise) const {
  const Attribute* a = find_of(*this, attribute, Attribute::Kind::kString, "text");
  return a == nullptr ? otherwise : a->s;
}
std::vector<int64_t> Node::integers(std::string_view attribute, const std::vector<int64_t>& otherwise) const {
  const Attribute* a = find_of(*this, attribute, Attribute::Kind::kInts, "a list of whole numbers");
  return a == nullptr ? otherwise : a->ints;
}
std::vector<float> Node::numbers(std::string_view attribute) const {
  const Attribute* a = find_of(*this, attribute, Attribute::Kind::kFloats, "a list of numbers");
  return a == nullptr ? std::vector<float>() : a->floats;
}

void Node::set(const std::string& attribute, int64_t value) {
  Attribute& a = assigned(*this, attribute);
  a.kind = Attribute::Kind::kInt;
  a.i = value;
}
void Node::set(const std::string& attribute, float value) {
  Attribute& a = assigned(*this, attribute);
  a.kind = Attribute::Kind::kFloat;
  a.f = value;
}
void Node::set(const std::string& attribute, std::vector<int64_t> value) {
  Attribute& a = assigned(*this, attribute);
  a.kind = Attribute::Kind::kInts;
  a.ints = std::move(value);
}
void Node::set(const std::string& attribute, const std::string& value) {
  Attribute& a = assigned(*this, attribute);
  a.kind = Attribute::Kind::kString;
  a.s = value;
}
void Node::erase(std::string_view attribute) {
  const auto removed = std::erase_if(attributes, [&](const Attribute& a) { return a.name == attribute; });
  if (removed > 0) attributes_changed = true;
}

std::string Node::label() const {
  if (!name.empty()) return fmt::format("'{}' ({})", name, op_type);
  for (const std::string& output : outputs) {
    if (!output.empty()) return fmt::format("'{}' ({})", output, op_type);
  }
  return op_type;
}

// --- graphs -----------------------------------------------------------------------------------------------------------
const TensorValue* Graph::initializer(std::string_view tensor) const {
  for (const TensorValue& t : initializers) {
    if (t.name == tensor) return &t;
  }
  return nullptr;
}

void Graph::set_initializer(TensorValue tensor) {
  tensor.origin = -1;
  for (TensorValue& t : initializers) {
    if (t.name == tensor.name) {
      t = std::move(tensor);
      return;
    }
  }
  initializers.push_back(std::move(tensor));
}

std::vector<ValueInfo> Graph::fed_inputs() const {
  std::set<std::string, std::less<>> own;
  for (const TensorValue& t : initializers) own.insert(t.name);
  std::vector<ValueInfo> fed;
  for (const ValueInfo& input : inputs) {
    if (!own.contains(input.name)) fed.push_back(input);
  }
  return fed;
}

namespace {

// Names that a body reads without making them itself; the names stay those of the outer graph.
void add_outer_reads(const Graph& body, std::vector<std::string>& reads) {
  std::set<std::string, std::less<>> made;
  for (const ValueInfo& input : body.inputs) made.insert(input.name);
  for (const TensorValue& t : body.initializers) made.insert(t.name);
  for (const Node& node : body.nodes) made.insert(node.outputs.begin(), node.outputs.end());
  std::vector<std::string> inside;
  for (const Node& node : body.nodes) {
    inside.insert(inside.end(), node.inputs.begin(), node.inputs.end());
    for (const Attribute& a : node.attributes) {
      if (a.graph) add_outer_reads(*a.graph, inside);
    }
  }
  for (const ValueInfo& output : body.outputs) inside.push_back(output.name);
  for (std::string& name : inside) {
    if (!name.empty() && !made.contains(name)) reads.push_back(std::move(name));
  }
}

std::vector<std::string> reads_of(const Node& node) {
  std::vector<std::string> reads;
  for (const std::string& input : node.inputs) {
    if (!input.empty()) reads.push_back(input);
  }
  for (const Attribute& a : node.attributes) {
    if (a.graph) add_outer_reads(*a.graph, reads);
  }
  return reads;
}

}  // namespace

void Graph::erase_unused_initializers(std::span<const std::string> candidates) {
  std::set<std::string, std::less<>> used;
  for (const Node& node : nodes) {
    for (std::string& read : reads_of(node)) used.insert(std::move(read));
  }
  for (const ValueInfo& output : outputs) used.insert(output.name);
  std::set<std::string, std::less<>> gone;
  for (const TensorValue& t : initializers) {
    const bool asked =
        candidates.empty() || std::find(candidates.begin(), candidates.end(), t.name) != candidates.end();
    if (asked && !used.contains(t.name)) gone.insert(t.name);
  }
  std::erase_if(initializers, [&](const TensorValue& t) { return gone.contains(t.name); });
  std::erase_if(inputs, [&](const ValueInfo& v) { return gone.contains(v.name); });
  std::erase_if(value_infos, [&](const ValueInfo& v) { return gone.contains(v.name); });
}

int64_t Model::opset() const {
  const auto found = opsets.find("");
  return found == opsets.end() ? 1 : found->second;
}

std::vector<size_t> sorted(const Graph& graph) {
  std::map<std::string, size_t, std::less<>> producer;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const std::string& output : graph.nodes[i].outputs) {
      if (output.empty()) continue;
      if (!producer.emplace(output, i).second) {
        throw FormatError(fmt::format("value '{}' is made twice, the second time by node {}; each value has one maker",
                                      output, graph.nodes[i].label()));
      }
    }
  }
  std::vector<std::vector<size_t>> readers(graph.nodes.size());
  std::vector<size_t> waits(graph.nodes.size(), 0);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const std::string& read : reads_of(graph.nodes[i])) {
      const auto from = producer.find(read);
      if (from == producer.end()) continue;
      readers[from->second].push_back(i);
      ++waits[i];
    }
  }
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> ready;
  for (size_t i = 0; i < waits.size(); ++i) {
    if (waits[i] == 0) ready.push(i);
  }
  std::vector<size_t> order;
  while (!ready.empty()) {
    const size_t i = ready.top();
    ready.pop();
    order.push_back(i);
    for (const size_t reader : readers[i]) {
      if (--waits[reader] == 0) ready.push(reader);
    }
  }
  if (order.size() < graph.nodes.size()) {
    const auto stuck = std::find_if(waits.begin(), waits.end(), [](size_t w) { return w > 0; });
    throw FormatError(fmt::format("node {} waits for its own output: the graph has a cycle",
                                  graph.nodes[static_cast<size_t>(stuck - waits.begin())].label()));
  }
  return order;
}

std::map<std::string, Uses, std::less<>> uses_of(const Graph& graph) {
  std::map<std::string, Uses, std::less<>> uses;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    for (const std::string& output : graph.nodes[i].outputs) {
      if (!output.empty()) uses[output].producer = static_cast<int64_t>(i);
    }
    for (const std::string& read : reads_of(graph.nodes[i])) uses[read].consumers.push_back(i);
  }
  for (const ValueInfo& output : graph.outputs) uses[output.name].graph_output = true;
  return uses;
}

// --- constants --------------------------------------------------------------------------------------------------------
namespace {

// The tensor that a Constant node stands for; null for kinds that are no numbers.
std::shared_ptr<TensorValue> constant_of(const Node& node) {
  const auto as_list = [](size_t n) { return Shape{static_cast<int64_t>(n)}; };
  for (const Attribute& a : node.attributes) {
    if (a.name == "value" && a.kind == Attribute::Kind::kTensor) return a.tensor;
    if (a.name == "value_float" && a.kind == Attribute::Kind::kFloat)
      return std::make_shared<TensorValue>(make_tensor("", {}, std::span<const float>(&a.f, 1)));
    if (a.name == "value_floats" && a.kind == Attribute::Kind::kFloats)
      return std::make_shared<TensorValue>(make_tensor("", as_list(a.floats.size()), std::span<const float>(a.floats)));
    if (a.name == "value_int" && a.kind == Attribute::Kind::kInt)
      return std::make_shared<TensorValue>(make_tensor("", {}, std::span<const int64_t>(&a.i, 1)));
    if (a.name == "value_ints" && a.kind == Attribute::Kind::kInts)
      return std::make_shared<TensorValue>(make_tensor("", as_list(a.ints.size()), std::span<const int64_t>(a.ints)));
  }
  return nullptr;
}

}  // namespace

Constants::Constants(const Graph& graph, const Constants* outer) : outer_(outer) {
  for (const TensorValue& t : graph.initializers) tensors_[t.name] = &t;
  std::multimap<std::string_view, const Node*> aliases;  // by what they repeat
  std::vector<std::string_view> known;
  for (const Node& node : graph.nodes) {
    if (!node.domain.empty() || node.outputs.empty() || node.outputs[0].empty()) continue;
    if (node.op_type == "Constant") {
      if (auto tensor = constant_of(node)) {
        tensors_[node.outputs[0]] = tensor.get();
        owned_.push_back(std::move(tensor));
      }
    } else if (node.op_type == "Identity" && node.inputs.size() == 1) {
      aliases.emplace(node.inputs[0], &node);
    }
  }
  for (const auto& [input, node] : aliases) {
    if (find(input) != nullptr) known.push_back(input);
  }
  // Chains of Identity in any order, each link once.
  while (!known.empty()) {
    const std::string_view input = known.back();
    known.pop_back();
    const TensorValue* tensor = find(input);
    const auto [first, last] = aliases.equal_range(input);
    for (auto alias = first; alias != last; ++alias) {
      const std::string& output = alias->second->outputs[0];
      if (tensors_.emplace(output, tensor).second) known.push_back(output);
    }
  }
}

const TensorValue* Constants::find(std::string_view value) const {
  const auto found = tensors_.find(value);
  if (found != tensors_.end()) return found->second;
  return outer_ == nullptr ? nullptr : outer_->find(value);
}

}  // namespace evenkeel::onnx
