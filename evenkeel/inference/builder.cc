#include "evenkeel/inference/builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/copy.h"

namespace evenkeel::inference {

using onnx::ElementType;

namespace {

// No single array of a network that can be run is larger; a file that asks for more is wrong or hostile.
constexpr int64_t kMostElements = int64_t{1} << 34;
// Of what is computed when a model is loaded, all together.
constexpr size_t kMostConstantBytes = size_t{4} << 30;
constexpr size_t kMostExtents = 32;

// Whether the product of the extents can be held, also of those in front of and behind a 0: strides are products of a part of them.
bool is_holdable(const Shape& shape) {
  int64_t count = 1;
  return std::none_of(shape.begin(), shape.end(), [&](int64_t extent) {
    return extent < 0 || __builtin_mul_overflow(count, std::max<int64_t>(extent, 1), &count) || count > kMostElements;
  });
}

bool is_channels_last_rank(const Shape& shape) { return shape.size() >= 3 && shape.size() <= 5; }

// True when both layouts of this shape are the same memory: one channel, or one position.
bool layouts_agree(const Shape& shape) {
  int64_t space = 1;
  for (size_t i = 2; i < shape.size(); ++i) space *= shape[i];
  return shape.size() < 3 || shape[1] <= 1 || space <= 1;
}

}  // namespace

Kind kind_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
    case ElementType::kDouble:
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return Kind::kFloat;
    case ElementType::kUint8:
    case ElementType::kInt8:
    case ElementType::kUint16:
    case ElementType::kInt16:
    case ElementType::kInt32:
    case ElementType::kUint32:
    case ElementType::kInt64:
    case ElementType::kUint64:
    case ElementType::kBool:
      return Kind::kInteger;
    case ElementType::kUndefined:
    case ElementType::kString:
      break;
  }
  throw BackendError(fmt::format("elements of {} cannot be computed with here", onnx::name_of(type)));
}

Shape strides_of(const Shape& shape, Layout layout) {
  Shape strides(shape.size(), 1);
  int64_t step = 1;
  if (layout == Layout::kPlain || shape.size() < 3) {
    for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
    return strides;
  }
  strides[1] = 1;
  step = shape[1];
  for (size_t i = shape.size(); i-- > 2; step *= shape[i]) strides[i] = step;
  strides[0] = step;
  return strides;
}

Builder::Builder(const onnx::Model& model, const Options& options, int threads)
    : model_(model), options_(options), threads_(threads), opset_(model.opset()) {}

std::vector<bool> needed_nodes(const onnx::Graph& graph, const std::vector<size_t>& order,
                               const std::map<std::string, onnx::Uses, std::less<>>& uses,
                               const std::vector<std::string>& keep, bool keep_norms) {
  const std::set<std::string_view> kept(keep.begin(), keep.end());
  std::vector<bool> needed(graph.nodes.size(), false);
  const auto is_read = [&](const std::string& value) {
    const auto use = uses.find(value);
    if (value.empty() || use == uses.end()) return false;
    return use->second.graph_output || kept.contains(value) ||
           std::any_of(use->second.consumers.begin(), use->second.consumers.end(),
                       [&](size_t consumer) { return needed[consumer]; });
  };
  for (size_t i = order.size(); i-- > 0;) {
    const onnx::Node& node = graph.nodes[order[i]];
    needed[order[i]] = (keep_norms && node.op_type == "BatchNormalization") ||
                       std::any_of(node.outputs.begin(), node.outputs.end(), is_read);
  }
  return needed;
}

void Builder::build() {
  order_ = onnx::sorted(model_.graph);
  uses_ = onnx::uses_of(model_.graph);
  needed_ = needed_nodes(model_.graph, order_, uses_, options_.keep, options_.moments);
  add_initializers();
  add_inputs();
  find_chains();
  for (const size_t index : order_) lower(index);
}

// --- values -----------------------------------------------------------------------------------------------------------
Buffer Builder::new_buffer(size_t bytes) {
  buffers_.push_back({.bytes = bytes});
  constant_addresses_.push_back(nullptr);
  return static_cast<Buffer>(buffers_.size() - 1);
}

std::byte* Builder::keep_constant(Buffer buffer) {
  BufferInfo& info = buffers_[static_cast<size_t>(buffer)];
  constants_.push_back(allocate_aligned(std::max<size_t>(info.bytes, 1)));
  return constant_addresses_[static_cast<size_t>(buffer)] = info.fixed = constants_.back().get();
}

void Builder::define(const std::string& name, Value value) {
  if (!values_.emplace(name, std::move(value)).second) wrong(fmt::format("makes value '{}' a second time", name));
}

const Value* Builder::find(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

void Builder::add_initializers() {
  for (const onnx::TensorValue& tensor : model_.graph.initializers) {
    if (onnx::size_bytes(tensor.type) == 0) continue;  // whoever reads it will say so
    require_extents(tensor.dims);
    if (!is_holdable(tensor.dims)) {
      throw FormatError(
          fmt::format("tensor '{}' has the shape {}, more than can be held", tensor.name, to_string(tensor.dims)));
    }
    Value value{.type = tensor.type, .kind = kind_of(tensor.type), .shape = tensor.dims, .constant = true};
    value.buffer = new_buffer(static_cast<size_t>(tensor.count()) * element_bytes(value.kind));
    std::byte* to = keep_constant(value.buffer);
    if (value.kind == Kind::kFloat) {
      const std::vector<float> values = onnx::floats_of(tensor);
      if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(float));
    } else {
      const std::vector<int64_t> values = onnx::integers_of(tensor);
      if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(int64_t));
    }
    values_.insert_or_assign(tensor.name, std::move(value));
  }
}

void Builder::add_inputs() {
  for (const Port& port : input_ports(model_)) {
    const auto given = options_.inputs.find(port.name);
    if (given == options_.inputs.end())
      throw UsageError(fmt::format("no shape is given for the model's input '{}'", port.name));
    const Shape& shape = given->second;
    require_extents(shape);
    const bool fits = shape.size() == port.shape.size() &&
                      std::equal(shape.begin(), shape.end(), port.shape.begin(),
                                 [](int64_t found, int64_t declared) { return declared < 0 || found == declared; });
    if (!fits) {
      throw UsageError(fmt::format("the model's input '{}': expected shape {} (-1: any), found {}", port.name,
                                   to_string(port.shape), to_string(shape)));
    }
    Value value{.type = port.type, .kind = kind_of(port.type), .shape = shape};
    if (!is_holdable(shape))
      throw UsageError(fmt::format("input '{}' of shape {} is too large", port.name, to_string(shape)));
    value.buffer = new_buffer(static_cast<size_t>(value.count()) * element_bytes(value.kind));
    inputs_.push_back(value.buffer);
    input_names_.push_back(port.name);
    values_.insert_or_assign(port.name, std::move(value));
  }
}

// --- chains: what can run in the pass of the node in front ------------------------------------------------------------------
namespace {

// Maps that are computed in registers as the result is written.
bool is_map(const onnx::Node& node) {
  static const std::vector<std::string> kMaps = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Elu"};
  return node.domain.empty() && std::find(kMaps.begin(), kMaps.end(), node.op_type) != kMaps.end();
}

}  // namespace

void Builder::find_chains() {
  absorbed_.assign(model_.graph.nodes.size(), false);
  for (const size_t index : order_) {
    const onnx::Node& node = model_.graph.nodes[index];
    if (!node.domain.empty() || absorbed_[index]) continue;
    // A norm that gives more than its output out is run where it stands.
    const bool gives_more = std::any_of(node.outputs.begin() + (node.outputs.empty() ? 0 : 1), node.outputs.end(),
                                        [](const std::string& output) { return !output.empty(); });
    if (gives_more) continue;
    if (node.op_type == "Conv" || node.op_type == "Gemm" || node.op_type == "BatchNormalization") extend_chain(index);
  }
}

void Builder::extend_chain(size_t head) {
  const std::vector<onnx::Node>& nodes = model_.graph.nodes;
  const bool norm = nodes[head].op_type == "BatchNormalization";
  Chain chain;
  size_t last = head;
  while (!nodes[last].outputs.empty()) {
    const std::string& value = nodes[last].outputs[0];
    const auto use = uses_.find(value);
    const bool kept = std::find(options_.keep.begin(), options_.keep.end(), value) != options_.keep.end();
    if (use == uses_.end() || use->second.graph_output || kept || use->second.consumers.size() != 1) break;
    const size_t next = use->second.consumers[0];
    if (absorbed_[next] || tail_to_head_.contains(next)) break;  // a sum has two producers: the first takes it
    const onnx::Node& follower = nodes[next];
    const bool reads_it = std::find(follower.inputs.begin(), follower.inputs.end(), value) != follower.inputs.end();
    if (!needed_[next] || !reads_it || follower.outputs.empty() || follower.outputs[0].empty())
      break;  // a body reads it, or nobody
    const bool free_to_add = chain.nodes.empty() && nodes[head].op_type != "Gemm";
    if (follower.domain.empty() && follower.op_type == "Add" && follower.inputs.size() == 2 && free_to_add) {
      const std::string& other = follower.inputs[follower.inputs[0] == value ? 1 : 0];
      if (other == value) break;
      chain.add = other;
    } else if (is_map(follower) && follower.inputs[0] == value && !(norm && follower.op_type != "Relu")) {
      // fine: one map, or several one after the other
    } else {
      break;
    }
    chain.nodes.push_back(next);
    last = next;
    if (norm && follower.op_type == "Relu") break;
  }
  if (chain.nodes.empty()) return;
  // The head runs where its last follower stands: a constant in between would be made before its time otherwise.
  for (const size_t n : chain.nodes) absorbed_[n] = true;
  absorbed_[head] = true;
  absorbed_[last] = false;
  tail_to_head_[last] = head;
  chains_[head] = std::move(chain);
}

void Builder::lower(size_t index) {
  if (absorbed_[index] || !needed_[index]) return;
  const auto head = tail_to_head_.find(index);
  if (head == tail_to_head_.end()) return lower_node(model_.graph.nodes[index]);
  if (lower_chain(head->second)) return;
  lower_node(model_.graph.nodes[head->second]);
  for (const size_t n : chains_.at(head->second).nodes) lower_node(model_.graph.nodes[n]);
}

// False where the addend or a map does not fit: the nodes are then lowered one by one.
bool Builder::lower_chain(size_t head) {
  const Chain& chain = chains_.at(head);
  const onnx::Node& first = model_.graph.nodes[head];
  for (const std::string& input : first.inputs) {
    if (!input.empty() && find(input) == nullptr) return false;
  }
  const Value* x = find(first.inputs.empty() ? "" : first.inputs[0]);
  if (x == nullptr || x->constant) return false;  // computed at load, one by one
  node_ = &first;
  if (!head_fits(*this)) return false;
  for (const size_t n : chain.nodes) {
    const onnx::Node& node = model_.graph.nodes[n];
    if (node.op_type != "Clip") continue;
    for (size_t i = 1; i < node.inputs.size(); ++i) {
      const Value* bound = find(node.inputs[i]);
      if (!node.inputs[i].empty() && (bound == nullptr || !bound->constant)) return false;
    }
  }
  if (!chain.add.empty()) {
    const Value* addend = find(chain.add);
    if (addend == nullptr || addend->kind != Kind::kFloat) return false;
    if (head_shape(*this) != addend->shape) return false;
  }
  chain_ = &chain;
  lower_node(first);
  chain_ = nullptr;
  return true;
}

void Builder::lower_node(const onnx::Node& node) {
  node_ = &node;
  const auto found = node.domain.empty() ? operators().find(node.op_type) : operators().end();
  if (found == operators().end()) {
    throw BackendError(fmt::format("node {}: the operator {}{}{} cannot be run here", node.label(), node.domain,
                                   node.domain.empty() ? "" : ".", node.op_type));
  }
  // What gives nothing out does nothing here.
  if (std::all_of(node.outputs.begin(), node.outputs.end(), [](const std::string& output) { return output.empty(); }))
    return;
  if (node.outputs[0].empty()) wrong("its first output has no name");
  const size_t first_step = steps_.size();
  found->second(*this);
  fold_constants(first_step, node);
}

void Builder::fold_constants(size_t first_step, const onnx::Node& node) {
  const bool all = std::all_of(node.inputs.begin(), node.inputs.end(), [&](const std::string& input) {
    const Value* value = find(input);
    return input.empty() || (value != nullptr && value->constant);
  });
  if (!all || node.op_type == "BatchNormalization") return;
  for (size_t i = first_step; i < steps_.size(); ++i) {
    for (const Buffer b : steps_[i].writes) {
      BufferInfo& info = buffers_[static_cast<size_t>(b)];
      if (info.fixed != nullptr) continue;
      constant_bytes_ += info.bytes;
      if (constant_bytes_ > kMostConstantBytes) {
        wrong(fmt::format("makes a constant of {} bytes: all constants together are limited to {}", info.bytes,
                          kMostConstantBytes));
      }
      keep_constant(b);
    }
  }
  const Frame frame(constant_addresses_);
  for (size_t i = first_step; i < steps_.size(); ++i) steps_[i].run(frame);
  steps_.resize(first_step);
  for (const std::string& output : node.outputs) {
    const auto value = values_.find(output);
    if (value != values_.end()) value->second.constant = true;
  }
}

// --- what operators ask -------------------------------------------------------------------------------------------------
bool Builder::has(size_t input) const { return input < node_->inputs.size() && !node_->inputs[input].empty(); }

const Value& Builder::in(size_t input) const {
  if (!has(input)) wrong(fmt::format("expected input {}, found none", input + 1));
  const Value* value = find(node_->inputs[input]);
  if (value == nullptr) wrong(fmt::format("reads '{}', which nobody makes", node_->inputs[input]));
  return *value;
}
Value& Builder::in_mutable(size_t input) { return const_cast<Value&>(in(input)); }

const std::string& Builder::output_name(size_t output) const {
  if (output == 0 && chain_ != nullptr) return model_.graph.nodes[chain_->nodes.back()].outputs[0];
  return node_->outputs[output];
}

bool Builder::wanted(size_t output) const { return output < node_->outputs.size() && !node_->outputs[output].empty(); }

bool Builder::needed(size_t output) const {
  if (!wanted(output)) return false;
  const std::string& name = node_->outputs[output];
  if (std::find(options_.keep.begin(), options_.keep.end(), name) != options_.keep.end()) return true;
  const auto use = uses_.find(name);
  return use != uses_.end() &&
         (use->second.graph_output || std::any_of(use->second.consumers.begin(), use->second.consumers.end(),
                                                  [&](size_t consumer) { return needed_[consumer]; }));
}

std::vector<int64_t> Builder::integers(size_t input) const {
  const Value& value = in(input);
  if (!value.constant) unsupported(fmt::format("an input that is made while it runs ('{}')", node_->inputs[input]));
  if (value.kind != Kind::kInteger) wrong(fmt::format("expected whole numbers in '{}'", node_->inputs[input]));
  const auto* data = reinterpret_cast<const int64_t*>(buffers_[static_cast<size_t>(value.buffer)].fixed);
  return {data, data + value.count()};
}

std::vector<float> Builder::floats(size_t input) const {
  const Value& value = in(input);
  if (!value.constant) unsupported(fmt::format("an input that is made while it runs ('{}')", node_->inputs[input]));
  if (value.kind != Kind::kFloat) {
    const std::vector<int64_t> whole = integers(input);
    return {whole.begin(), whole.end()};
  }
  const auto* data = reinterpret_cast<const float*>(buffers_[static_cast<size_t>(value.buffer)].fixed);
  // A constant made by a step may be channels last: read in the order of its shape.
  if (value.layout == Layout::kPlain) return {data, data + value.count()};
  std::vector<float> plain(static_cast<size_t>(value.count()));
  const CopyBox box{.extents = value.shape,
                    .from_strides = strides_of(value.shape, value.layout),
                    .to_strides = strides_of(value.shape, Layout::kPlain)};
  copy_box(simplified(box), sizeof(float), reinterpret_cast<const std::byte*>(data),
           reinterpret_cast<std::byte*>(plain.data()), 1);
  return plain;
}

float Builder::number(const Value& constant) const {
  EK_ASSERT(constant.constant && constant.count() > 0);
  const std::byte* data = buffers_[static_cast<size_t>(constant.buffer)].fixed;
  if (constant.kind == Kind::kFloat) return *reinterpret_cast<const float*>(data);
  return static_cast<float>(*reinterpret_cast<const int64_t*>(data));
}

Buffer Builder::in_layout(Value& value, Layout layout) {
  if (value.layout == layout || layouts_agree(value.shape) || !is_channels_last_rank(value.shape)) return value.buffer;
  Buffer& copy = layout == Layout::kPlain ? value.plain : value.channels_last;
  if (copy != kNoBuffer) return copy;
  const Buffer from = value.buffer, to = new_buffer(buffers_[static_cast<size_t>(from)].bytes);
  const CopyBox box = simplified({.extents = value.shape,
                                  .from_strides = strides_of(value.shape, value.layout),
                                  .to_strides = strides_of(value.shape, layout)});
  const size_t width = element_bytes(value.kind);
  if (value.constant) {
    copy_box(box, width, buffers_[static_cast<size_t>(from)].fixed, keep_constant(to), 1);
  } else {
    step({from}, {to}, [box, width, from, to, threads = threads_](const Frame& f) {
      copy_box(box, width, f.at(from), f.at(to), threads);
    });
  }
  return copy = to;
}

Buffer Builder::read(size_t input, Layout layout) { return in_layout(in_mutable(input), layout); }

void Builder::require_extents(const Shape& shape) const {
  if (shape.size() > kMostExtents)
    unsupported(fmt::format("an array of {} extents (more than {})", shape.size(), kMostExtents));
}

void Builder::require_holdable(const Shape& shape) const {
  require_extents(shape);
  if (is_holdable(shape)) return;
  const bool negative = std::any_of(shape.begin(), shape.end(), [](int64_t extent) { return extent < 0; });
  wrong(
      fmt::format("its output would have the shape {}{}", to_string(shape), negative ? "" : ", more than can be held"));
}

Buffer Builder::write(size_t output, const Shape& shape, ElementType type, Layout layout) {
  require_holdable(shape);
  Value value{.type = type, .kind = kind_of(type), .shape = shape};
  const int64_t count = element_count(shape);
  value.layout = layouts_agree(shape) || !is_channels_last_rank(shape) ? Layout::kPlain : layout;
  value.buffer = new_buffer(static_cast<size_t>(count) * element_bytes(value.kind));
  const Buffer buffer = value.buffer;
  if (output == 0 && chain_ != nullptr) {
    define(output_name(0), std::move(value));
  } else if (wanted(output)) {
    define(output_name(output), std::move(value));
  }
  return buffer;
}

Layout Builder::layout_of_output(size_t output) const { return find(output_name(output))->layout; }

void Builder::known(size_t output, const Shape& shape, const std::vector<int64_t>& values, ElementType type) {
  constant_bytes_ += values.size() * sizeof(int64_t);
  if (constant_bytes_ > kMostConstantBytes) wrong("makes constants without end");
  const Buffer buffer = write(output, shape, type);
  std::byte* to = keep_constant(buffer);
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(int64_t));
  values_.find(output_name(output))->second.constant = true;
}

void Builder::alias(size_t output, size_t input, const Shape& shape) {
  const Buffer buffer = read(input, Layout::kPlain);
  const Value& x = in(input);
  require_holdable(shape);
  if (element_count(shape) != x.count()) {
    wrong(fmt::format("cannot see {} elements of shape {} as {}", x.count(), to_string(x.shape), to_string(shape)));
  }
  define(output_name(output),
         {.type = x.type, .kind = x.kind, .shape = shape, .constant = x.constant, .buffer = buffer});
}

void Builder::pass(size_t output, size_t input, ElementType type) {
  const Value& x = in(input);
  Value same = x;
  if (type != ElementType::kUndefined) same.type = type;
  define(output_name(output), std::move(same));
}

void Builder::step(std::vector<Buffer> reads, std::vector<Buffer> writes, std::function<void(const Frame&)> run) {
  steps_.push_back({.node = node_ == nullptr ? "" : node_->label(),
                    .reads = std::move(reads),
                    .writes = std::move(writes),
                    .run = std::move(run)});
}

Buffer Builder::scratch(const Shape& shape) {
  require_holdable(shape);
  return new_buffer(static_cast<size_t>(element_count(shape)) * sizeof(float));
}

void Builder::require_floats(std::initializer_list<size_t> inputs) const {
  for (const size_t input : inputs) {
    if (has(input) && in(input).kind != Kind::kFloat)
      unsupported(fmt::format("whole numbers in '{}'", node_->inputs[input]));
  }
}

Buffer Builder::chain_addend(Layout layout) { return in_layout(values_.find(chain_->add)->second, layout); }

std::vector<const onnx::Node*> Builder::chain_maps() const {
  std::vector<const onnx::Node*> maps;
  if (chain_ == nullptr) return maps;
  for (const size_t n : chain_->nodes) {
    if (is_map(model_.graph.nodes[n])) maps.push_back(&model_.graph.nodes[n]);
  }
  return maps;
}

void Builder::unsupported(const std::string& what) const {
  throw BackendError(
      fmt::format("{}{}{} cannot be run here (export the network in another form: for inference, with another opset, "
                  "or simplified)",
                  node_ == nullptr ? "" : "node ", node_ == nullptr ? "" : node_->label() + ": ", what));
}
void Builder::wrong(const std::string& what) const {
  throw FormatError(fmt::format("node {}: {}", node_ == nullptr ? "" : node_->label(), what));
}

void Builder::require_rank(size_t input, size_t at_least, size_t at_most) const {
  const size_t rank = in(input).shape.size();
  if (rank < at_least || rank > at_most) {
    unsupported(fmt::format("an input '{}' of shape {} (expected {} to {} extents)", node_->inputs[input],
                            to_string(in(input).shape), at_least, at_most));
  }
}

Buffer Builder::readable_buffer(const std::string& name) {
  const auto value = values_.find(name);
  if (value == values_.end()) throw UsageError(fmt::format("the model makes no value '{}'", name));
  const Buffer from = in_layout(value->second, Layout::kPlain);
  if (std::find(inputs_.begin(), inputs_.end(), from) == inputs_.end()) return from;
  const size_t bytes = buffers_[static_cast<size_t>(from)].bytes;
  const Buffer to = new_buffer(bytes);
  step({from}, {to}, [=](const Frame& f) { std::memcpy(f.at(to), f.at(from), bytes); });
  return to;
}

}  // namespace evenkeel::inference
