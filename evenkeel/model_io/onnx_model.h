// An ONNX model as plain values: nodes, initializers, inputs and outputs, read from a file by onnx_file.h and written back by it.
// A tool edits these values; whatever it does not touch, and whatever this structure has no room for, comes back field for field.
//
//   onnx::Model model = onnx::load("model.onnx");
//   for (const onnx::Node& node : model.graph.nodes) ...
//   onnx::save("out.onnx", model);
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::onnx {

// TensorProto.DataType, by its numbers. Others occur in files (strings, complex, fp8): they are carried, never read.
enum class ElementType : int32_t {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kString = 8,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kUint32 = 12,
  kUint64 = 13,
  kBfloat16 = 16
};
// "float32", "int64", ..., "type 17" for one that is not listed.
std::string name_of(ElementType type);
// Bytes of one element; 0 where it is not known or not fixed (strings, packed kinds).
size_t size_bytes(ElementType type);

// Elements of a tensor: little endian, packed, row-major. Shared and never changed in place; copying it copies a pointer. The memory may
// not be aligned: read it by the functions below, or memcpy.
class Bytes {
 public:
  Bytes() = default;
  Bytes(std::shared_ptr<const void> owner, std::span<const std::byte> data) : owner_(std::move(owner)), data_(data) {}
  static Bytes copy_of(std::span<const std::byte> data);
  // `size` bytes that `fill` assigns: void(std::byte*).
  template <class Fill>
  static Bytes made(size_t size, Fill fill) {
    auto owner = std::make_shared<std::string>(size, '\0');
    fill(reinterpret_cast<std::byte*>(owner->data()));
    Bytes bytes(owner, std::as_bytes(std::span(*owner)));
    bytes.text_ = owner;
    return bytes;
  }
  std::span<const std::byte> view() const { return data_; }
  size_t size() const { return data_.size(); }
  // All of them as a string, which a message can borrow; null where they are a part of something else.
  const std::shared_ptr<std::string>& text() const { return text_; }

 private:
  std::shared_ptr<const void> owner_;
  std::shared_ptr<std::string> text_;
  std::span<const std::byte> data_;
};

struct TensorValue {
  std::string name;
  ElementType type = ElementType::kFloat;
  Shape dims;
  Bytes data;
  // Index in the file's list, while the tensor is as it was there; -1: new, or changed by a tool.
  int64_t origin = -1;

  int64_t count() const { return element_count(dims); }
};
TensorValue make_tensor(std::string name, const Shape& dims, std::span<const float> values);
TensorValue make_tensor(std::string name, const Shape& dims, std::span<const double> values);  // stored as float64
TensorValue make_tensor(std::string name, const Shape& dims, std::span<const int64_t> values);
// Elements of any floating or whole-number type (float16 and bfloat16 too), converted. Throws UsageError naming the tensor for other types.
std::vector<float> floats_of(const TensorValue& tensor);
std::vector<double> doubles_of(const TensorValue& tensor);
std::vector<int64_t> integers_of(const TensorValue& tensor);
// The same into memory of the caller: as many values as data holds. Whole numbers: of a type of whole numbers.
void read_elements(ElementType type, std::span<const std::byte> data, std::span<float> values);
void read_elements(ElementType type, std::span<const std::byte> data, std::span<double> values);
void read_elements(ElementType type, std::span<const std::byte> data, std::span<int64_t> values);
// Doubles rounded to a floating type, to nearest even, into memory of the caller. Throws UsageError for other types.
void write_elements(ElementType type, std::span<const double> values, std::byte* to);
// The tensor in the element type of `like` (float, double, float16 or bfloat16, rounded to nearest even), from doubles; origin -1.
TensorValue tensor_as(ElementType type, std::string name, const Shape& dims, std::span<const double> values);

struct Graph;

struct Attribute {
  enum class Kind { kNone, kFloat, kInt, kString, kTensor, kGraph, kFloats, kInts, kStrings, kOther };
  std::string name;
  Kind kind = Kind::kNone;
  float f = 0;
  int64_t i = 0;
  std::string s = {};
  std::vector<float> floats = {};
  std::vector<int64_t> ints = {};
  std::vector<std::string> strings = {};
  std::shared_ptr<TensorValue> tensor = {};
  std::shared_ptr<Graph> graph = {};  // bodies of If, Loop, Scan; edit it in place
};

struct Node {
  std::string op_type, domain, name;  // domain "" is ONNX's own ("ai.onnx" is read as "")
  std::vector<std::string> inputs;    // "" = absent
  std::vector<std::string> outputs;   // "" = absent
  std::vector<Attribute> attributes;
  int64_t origin = -1;  // index in the file's list; -1: new
  bool attributes_changed =
      false;  // set it with every change of `attributes`; inputs, outputs, names and op_type are compared

  const Attribute* find(std::string_view attribute) const;
  // The attribute, or the default where it is absent. Throws FormatError when it is there and of another kind.
  int64_t integer(std::string_view attribute, int64_t otherwise) const;
  float number(std::string_view attribute, float otherwise) const;
  std::string text(std::string_view attribute, const std::string& otherwise) const;
  std::vector<int64_t> integers(std::string_view attribute, const std::vector<int64_t>& otherwise = {}) const;
  std::vector<float> numbers(std::string_view attribute) const;
  // Adds or replaces, and sets attributes_changed.
  void set(const std::string& attribute, int64_t value);
  void set(const std::string& attribute, float value);
  void set(const std::string& attribute, std::vector<int64_t> value);
  void set(const std::string& attribute, const std::string& value);
  void erase(std::string_view attribute);
  // The name, or "Conv -> 'output'" for a node without one: for messages and tables.
  std::string label() const;
};

// One extent of a declared shape: a number, a name ("N"), or neither.
struct Dim {
  std::optional<int64_t> value;
  std::string symbol;
};
struct ValueInfo {
  std::string name;
  ElementType type = ElementType::kUndefined;  // kUndefined also for what is no tensor (sequences, maps)
  std::optional<std::vector<Dim>> dims = {};   // none: not declared, not even the rank
  int64_t origin = -1;
};

struct Graph {
  std::string name;
  std::vector<Node> nodes;  // in the file's order; sorted() gives one that can be run
  std::vector<TensorValue> initializers;
  std::vector<ValueInfo> inputs, outputs, value_infos;

  const TensorValue* initializer(std::string_view tensor) const;  // linear; null: none of that name
  // Assigns the initializer of that name, or adds it.
  void set_initializer(TensorValue tensor);
  // Inputs that the caller feeds: those without an initializer (IR 3 lists initializers as inputs, too).
  std::vector<ValueInfo> fed_inputs() const;
  // Removes initializers, and inputs of their names, that no node (nor a body of one) and no output uses any more.
  // Only those that `candidates` names; all where it is empty.
  void erase_unused_initializers(std::span<const std::string> candidates = {});
};

struct Model {
  int64_t ir_version = 8;
  std::map<std::string, int64_t> opsets;  // domain -> version; "" is ONNX's own
  std::string producer_name, producer_version;
  std::map<std::string, std::string> metadata;
  Graph graph;
  // The file's message as it was read, where fields that have no room here live on; null for a model made here.
  std::shared_ptr<const void> original;
  // The folder of the file, for tensors kept outside of it; "" for a model made here.
  std::string folder;

  int64_t opset() const;  // of ONNX's own domain; 1 where the file names none
};

// Node indices in an order in which inputs come first; ties by the file's order. Throws FormatError naming a node of a cycle,
// or a value that is made twice.
std::vector<size_t> sorted(const Graph& graph);

// How a value is used: who makes it, who reads it (nodes of this graph, with bodies counted as readers of their node), whether it is an output.
struct Uses {
  int64_t producer = -1;          // node index; -1: an input, an initializer, or nobody
  std::vector<size_t> consumers;  // node indices, each once per use as an input; a body that reads it adds its node
  bool graph_output = false;
};
std::map<std::string, Uses, std::less<>> uses_of(const Graph& graph);

// The content of a value that is constant in the file: an initializer that is not also fed as an input of its own, the output of a Constant
// node, or either behind Identity nodes; null where it is none. Pointers live as long as the graph is unchanged.
class Constants {
 public:
  // An initializer that is also a graph input (IR 3 style) counts as constant; IR >= 4 lets callers override it, which nobody does.
  explicit Constants(const Graph& graph, const Constants* outer = nullptr);
  const TensorValue* find(std::string_view value) const;

 private:
  std::map<std::string, const TensorValue*, std::less<>> tensors_;
  std::vector<std::shared_ptr<TensorValue>> owned_;
  const Constants* outer_;
};

}  // namespace evenkeel::onnx
