#include "evenkeel/inference/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/team.h"
#include "evenkeel/inference/arena.h"
#include "evenkeel/inference/builder.h"

namespace evenkeel::inference {

using onnx::ElementType;

namespace {

Port port_of(const onnx::ValueInfo& info) {
  Port port{.name = info.name, .type = info.type, .shape = {}};
  if (info.dims) {
    for (const onnx::Dim& dim : *info.dims) port.shape.push_back(dim.value && *dim.value > 0 ? *dim.value : -1);
  }
  return port;
}

}  // namespace

std::vector<Port> input_ports(const onnx::Model& model) {
  std::vector<Port> ports;
  for (const onnx::ValueInfo& info : model.graph.fed_inputs()) {
    if (!info.dims || onnx::size_bytes(info.type) == 0) {
      throw BackendError(
          fmt::format("the model's input '{}' declares no shape or no type of numbers, and cannot be fed", info.name));
    }
    ports.push_back(port_of(info));
  }
  return ports;
}

std::vector<Port> output_ports(const onnx::Model& model) {
  std::vector<Port> ports;
  for (const onnx::ValueInfo& info : model.graph.outputs) ports.push_back(port_of(info));
  return ports;
}

Shape bound_shape(const Port& port, int64_t n, int64_t other) {
  Shape shape = port.shape;
  bool first = true;
  for (int64_t& extent : shape) {
    if (extent >= 0) continue;
    extent = first ? n : other;
    first = false;
  }
  return shape;
}

struct Program::State {
  struct Out {
    Buffer buffer;
    Kind kind;
    ElementType type;
    Shape shape;
    std::vector<float> floats;  // of whole numbers, when asked for as floats
  };
  struct Input {
    std::string name;
    Buffer buffer;
    ElementType type;
    int64_t count;
    AlignedBytes converted;  // where the caller's element type is not the one that is computed with
  };
  int threads = 1;
  std::vector<Step> steps;
  std::vector<BufferInfo> buffers;
  std::vector<AlignedBytes> constants;
  AlignedBytes arena;
  size_t memory_bytes = 0;
  std::vector<std::byte*> addresses;
  std::vector<Input> inputs;
  std::vector<const void*> fed;
  std::map<std::string, Out> outputs;
  std::shared_ptr<std::map<std::string, std::vector<Moments>>> moments;

  void plan(const std::vector<Buffer>& lasting);
  const Out& out(const std::string& name) const;
};

// Buffers that `lasting` names live to the end; constants and inputs have their own places.
void Program::State::plan(const std::vector<Buffer>& lasting) {
  std::vector<Lifetime> lives(buffers.size());
  const auto end = static_cast<int64_t>(steps.size());
  for (int64_t s = 0; s < end; ++s) {
    const Step& step = steps[static_cast<size_t>(s)];
    for (const Buffer b : step.writes) {
      Lifetime& life = lives[static_cast<size_t>(b)];
      if (life.last < 0) life.first = s;
      life.last = s;
    }
    for (const Buffer b : step.reads) {
      if (b != kNoBuffer) lives[static_cast<size_t>(b)].last = s;
    }
  }
  for (const Buffer b : lasting) lives[static_cast<size_t>(b)].last = end;
  for (size_t b = 0; b < buffers.size(); ++b) lives[b].bytes = buffers[b].fixed == nullptr ? buffers[b].bytes : 0;
  for (const Input& input : inputs) lives[static_cast<size_t>(input.buffer)].bytes = 0;
  const Arena placed = place(lives);
  arena = allocate_untouched(std::max<size_t>(placed.bytes, 1), true);
  memory_bytes = placed.bytes;
  addresses.resize(buffers.size());
  for (size_t b = 0; b < buffers.size(); ++b) {
    addresses[b] = buffers[b].fixed != nullptr ? buffers[b].fixed : arena.get() + placed.offsets[b];
    if (buffers[b].fixed != nullptr) memory_bytes += buffers[b].bytes;
  }
}

const Program::State::Out& Program::State::out(const std::string& name) const {
  const auto found = outputs.find(name);
  if (found == outputs.end()) throw UsageError(fmt::format("'{}' is no output of the model, and was not kept", name));
  return found->second;
}

Program::Program(const onnx::Model& model, const Options& options) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.threads = options.threads > 0 ? options.threads : available_cores();
  const TeamScope team(s.threads);
  Builder builder(model, options, s.threads);
  builder.build();

  std::vector<Buffer> lasting;
  const auto keep = [&](const std::string& name) {
    if (name.empty() || s.outputs.contains(name)) return;
    const Buffer buffer = builder.readable_buffer(name);
    const Value* value = builder.find(name);
    s.outputs[name] = {.buffer = buffer, .kind = value->kind, .type = value->type, .shape = value->shape, .floats = {}};
    lasting.push_back(buffer);
  };
  for (const onnx::ValueInfo& output : model.graph.outputs) keep(output.name);
  for (const std::string& name : options.keep) keep(name);

  for (size_t i = 0; i < builder.inputs().size(); ++i) {
    const Value* value = builder.find(builder.input_names()[i]);
    State::Input input{.name = builder.input_names()[i],
                       .buffer = builder.inputs()[i],
                       .type = value->type,
                       .count = value->count(),
                       .converted = {}};
    const bool as_floats = options.float_inputs && kind_of(input.type) == Kind::kFloat;
    if (input.type != ElementType::kFloat && input.type != ElementType::kInt64 && !as_floats) {
      input.converted = allocate_aligned(static_cast<size_t>(input.count) * element_bytes(value->kind));
    }
    s.inputs.push_back(std::move(input));
  }
  s.fed.resize(s.inputs.size());
  s.steps = std::move(builder.steps());
  s.buffers = std::move(builder.buffers());
  s.constants = builder.take_constants();
  s.moments = builder.shared_moments();
  s.plan(lasting);
}

Program::~Program() = default;
Program::Program(Program&&) noexcept = default;
Program& Program::operator=(Program&&) noexcept = default;

void Program::run(const std::map<std::string, const void*>& inputs) {
  for (size_t i = 0; i < state_->inputs.size(); ++i) {
    const auto found = inputs.find(state_->inputs[i].name);
    if (found == inputs.end() || found->second == nullptr) {
      throw UsageError(fmt::format("the model's input '{}' is not fed", state_->inputs[i].name));
    }
    state_->fed[i] = found->second;
  }
  run_in_order(state_->fed);
}

void Program::run_in_order(std::span<const void* const> inputs) {
  State& s = *state_;
  if (inputs.size() != s.inputs.size()) {
    throw UsageError(fmt::format("the model has {} inputs, found {}", s.inputs.size(), inputs.size()));
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    State::Input& input = s.inputs[i];
    auto* data = static_cast<std::byte*>(const_cast<void*>(inputs[i]));
    if (input.converted) {
      const std::span<const std::byte> given(data, static_cast<size_t>(input.count) * onnx::size_bytes(input.type));
      const auto count = static_cast<size_t>(input.count);
      std::byte* to = input.converted.get();
      if (kind_of(input.type) == Kind::kFloat) {
        onnx::read_elements(input.type, given, {reinterpret_cast<float*>(to), count});
      } else {
        onnx::read_elements(input.type, given, {reinterpret_cast<int64_t*>(to), count});
      }
      data = input.converted.get();
    }
    s.addresses[static_cast<size_t>(input.buffer)] = data;
  }
  const TeamScope team(s.threads);
  const Frame frame(s.addresses);
  for (const Step& step : s.steps) step.run(frame);
}

std::span<const float> Program::output(const std::string& name) {
  State& s = *state_;
  const State::Out& out = s.out(name);
  const std::byte* data = s.addresses[static_cast<size_t>(out.buffer)];
  const auto count = static_cast<size_t>(element_count(out.shape));
  if (out.kind == Kind::kFloat) return {reinterpret_cast<const float*>(data), count};
  std::vector<float>& floats = s.outputs.at(name).floats;
  const auto* whole = reinterpret_cast<const int64_t*>(data);
  floats.assign(whole, whole + count);
  return floats;
}

std::span<const int64_t> Program::integers(const std::string& name) {
  const State::Out& out = state_->out(name);
  if (out.kind != Kind::kInteger)
    throw UsageError(fmt::format("'{}' is of {}, not of whole numbers", name, onnx::name_of(out.type)));
  return {reinterpret_cast<const int64_t*>(state_->addresses[static_cast<size_t>(out.buffer)]),
          static_cast<size_t>(element_count(out.shape))};
}

ElementType Program::type_of(const std::string& name) const { return state_->out(name).type; }
const Shape& Program::shape_of(const std::string& name) const { return state_->out(name).shape; }
const std::map<std::string, std::vector<Moments>>& Program::moments() const { return *state_->moments; }
size_t Program::memory_bytes() const { return state_->memory_bytes; }

std::vector<std::string> supported_operators() {
  std::vector<std::string> names;
  for (const auto& [name, ignored] : operators()) names.push_back(name);
  return names;
}

std::string first_unsupported(const onnx::Model& model) {
  const std::vector<size_t> order = onnx::sorted(model.graph);
  const std::vector<bool> needed = needed_nodes(model.graph, order, onnx::uses_of(model.graph), {});
  for (const size_t index : order) {
    const onnx::Node& node = model.graph.nodes[index];
    if (!needed[index]) continue;
    if (node.domain.empty() && operators().contains(node.op_type)) continue;
    return fmt::format("{}{}{} (node {})", node.domain, node.domain.empty() ? "" : ".", node.op_type, node.label());
  }
  return "";
}

}  // namespace evenkeel::inference
