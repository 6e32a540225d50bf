// From an ONNX graph to a list of steps: values with their shapes, buffers, and what writes them. Each operator has a function that asks the
// builder for its inputs, declares its outputs and adds a step. Where all inputs are constant the steps are run at once and the outputs
// are constants, too: shape arithmetic disappears here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::inference {

// How values are kept: floating types as float32, whole numbers and truth values as int64.
enum class Kind { kFloat, kInteger };
Kind kind_of(onnx::ElementType type);  // throws BackendError for strings and the like
inline size_t element_bytes(Kind kind) { return kind == Kind::kFloat ? sizeof(float) : sizeof(int64_t); }

// Plain: row-major. Channels last: [n, space..., c], for values with three extents and more.
enum class Layout { kPlain, kChannelsLast };
// Elements from one index to the next, per extent of the shape [n, c, space...].
Shape strides_of(const Shape& shape, Layout layout);

using Buffer = int32_t;
inline constexpr Buffer kNoBuffer = -1;

struct Value {
  onnx::ElementType type = onnx::ElementType::kFloat;
  Kind kind = Kind::kFloat;
  Shape shape;
  bool constant = false;
  Layout layout = Layout::kPlain;
  Buffer buffer = kNoBuffer;
  Buffer plain = kNoBuffer, channels_last = kNoBuffer;  // copies in a layout that somebody asked for

  int64_t count() const { return element_count(shape); }
};

// Where the buffers are in one run.
class Frame {
 public:
  explicit Frame(std::span<std::byte* const> addresses) : addresses_(addresses) {}
  std::byte* at(Buffer b) const { return addresses_[static_cast<size_t>(b)]; }
  float* floats(Buffer b) const { return reinterpret_cast<float*>(at(b)); }
  int64_t* integers(Buffer b) const { return reinterpret_cast<int64_t*>(at(b)); }

 private:
  std::span<std::byte* const> addresses_;
};

struct Step {
  std::string node;  // for messages
  std::vector<Buffer> reads, writes;
  std::function<void(const Frame&)> run;
};

struct BufferInfo {
  size_t bytes = 0;
  std::byte* fixed = nullptr;  // of constants: their content
};

// A producer with what follows it in the same pass: [add] and maps. Indices of nodes.
struct Chain {
  std::string add;            // the other addend; "": none
  std::vector<size_t> nodes;  // behind the head, in order
};

class Builder {
 public:
  Builder(const onnx::Model& model, const Options& options, int threads);

  // Lowers the whole graph.
  void build();

  // --- for the functions of operators: the node at hand, and its inputs and outputs by position ---
  const onnx::Node& node() const { return *node_; }
  int64_t opset() const { return opset_; }
  int threads() const { return threads_; }
  const Options& options() const { return options_; }
  bool has(size_t input) const;
  const Value& in(size_t input) const;  // throws FormatError when it is absent or unknown
  bool wanted(size_t output) const;     // the output has a name
  bool needed(size_t output) const;     // and a node that is run reads it, or the caller does
  // Content of a constant input. Throws BackendError when it is made at run time.
  std::vector<int64_t> integers(size_t input) const;
  std::vector<float> floats(size_t input) const;
  float number(const Value& constant) const;  // its first element
  bool is_constant(size_t input) const { return has(input) && in(input).constant; }
  // The buffer of an input in a layout, converted by a step of its own where it is kept in the other. Floats of an integer input are not.
  Buffer read(size_t input, Layout layout);
  Buffer read_as_is(size_t input) { return in_mutable(input).buffer; }
  // Declares an output and gives its buffer.
  Buffer write(size_t output, const Shape& shape, onnx::ElementType type, Layout layout = Layout::kPlain);
  Layout layout_of_output(size_t output) const;  // after write(): plain where both layouts are the same memory
  // Declares an output of whole numbers whose content is known now.
  void known(size_t output, const Shape& shape, const std::vector<int64_t>& values,
             onnx::ElementType type = onnx::ElementType::kInt64);
  // The output is the (plain) input under another shape.
  void alias(size_t output, size_t input, const Shape& shape);
  // The output is the input as it is, layout too.
  void pass(size_t output, size_t input, onnx::ElementType type = onnx::ElementType::kUndefined);
  void step(std::vector<Buffer> reads, std::vector<Buffer> writes, std::function<void(const Frame&)> run);
  Buffer scratch(const Shape& floats);  // for a step: name it among the writes

  // Of the chain that this node heads: the addend's buffer (layout of the output) and the nodes of maps behind it. Outputs written by
  // write(0, ...) are then those of the chain's last node.
  bool chain_adds() const { return chain_ != nullptr && !chain_->add.empty(); }
  Buffer chain_addend(Layout layout);
  std::vector<const onnx::Node*> chain_maps() const;

  // BackendError naming the node: "WHAT cannot be run here (...)".
  [[noreturn]] void unsupported(const std::string& what) const;
  [[noreturn]] void wrong(const std::string& what) const;           // FormatError naming the node
  void require_floats(std::initializer_list<size_t> inputs) const;  // of those that are there
  void require_holdable(const Shape& shape) const;                  // before work is done for an output of that shape
  void require_rank(size_t input, size_t at_least, size_t at_most) const;

  // Moments of a norm's input, by the name of its first output.
  std::map<std::string, std::vector<Moments>>& moments() { return *moments_; }

  // --- the result ---
  const Value* find(std::string_view name) const;
  // The value as a plain buffer, for whoever reads it after the run: a copy where it is an input under its own or another name, whose memory is
  // the caller's.
  Buffer readable_buffer(const std::string& name);
  std::vector<Step>& steps() { return steps_; }
  std::vector<BufferInfo>& buffers() { return buffers_; }
  std::vector<AlignedBytes> take_constants() { return std::move(constants_); }
  std::shared_ptr<std::map<std::string, std::vector<Moments>>> shared_moments() { return moments_; }
  const std::vector<Buffer>& inputs() const { return inputs_; }
  const std::vector<std::string>& input_names() const { return input_names_; }

 private:
  void require_extents(const Shape& shape) const;
  void add_inputs();
  void add_initializers();
  void find_chains();
  void extend_chain(size_t head);
  void lower(size_t index);
  bool lower_chain(size_t head);
  void lower_node(const onnx::Node& node);
  void fold_constants(size_t first_step, const onnx::Node& node);
  Buffer new_buffer(size_t bytes);
  std::byte* keep_constant(Buffer buffer);
  void define(const std::string& name, Value value);
  Value& in_mutable(size_t input);
  Buffer in_layout(Value& value, Layout layout);
  const std::string& output_name(size_t output) const;

  const onnx::Model& model_;
  const Options& options_;
  int threads_;
  int64_t opset_;
  std::vector<size_t> order_;
  std::map<std::string, onnx::Uses, std::less<>> uses_;
  std::vector<bool> needed_;        // by node: something that is wanted of the model hangs on it
  std::map<size_t, Chain> chains_;  // by head
  std::map<size_t, size_t> tail_to_head_;
  std::vector<bool> absorbed_;  // by a chain, and not its tail
  const onnx::Node* node_ = nullptr;
  const Chain* chain_ = nullptr;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<BufferInfo> buffers_;
  std::vector<AlignedBytes> constants_;
  std::vector<std::byte*> constant_addresses_;  // by buffer; null: of no constant
  size_t constant_bytes_ = 0;
  std::vector<Step> steps_;
  std::vector<Buffer> inputs_;
  std::vector<std::string> input_names_;
  std::shared_ptr<std::map<std::string, std::vector<Moments>>> moments_ =
      std::make_shared<std::map<std::string, std::vector<Moments>>>();
};

// For each node of the graph whether an output of the model or a value of `keep` hangs on it; `order` and `uses` are the graph's.
std::vector<bool> needed_nodes(const onnx::Graph& graph, const std::vector<size_t>& order,
                               const std::map<std::string, onnx::Uses, std::less<>>& uses,
                               const std::vector<std::string>& keep, bool keep_norms = false);

// The shape of the output of a node that can head a chain with an addend (Conv, BatchNormalization): the node at hand.
Shape head_shape(const Builder& builder);

// True where the node at hand (Conv, Gemm, BatchNormalization) can take maps along: its weights are constant and in the usual form.
bool head_fits(const Builder& builder);

// Operators of ONNX's own domain, by name.
using Lower = void (*)(Builder&);
const std::map<std::string, Lower, std::less<>>& operators();

}  // namespace evenkeel::inference
