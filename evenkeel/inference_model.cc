// The public face of inference: files become ONNX models in memory, folded; contexts are programs over them.
#include <algorithm>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/team.h"
#include "evenkeel/inference/session.h"
#include "evenkeel/model.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/fold.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel {

struct EK_HIDDEN InferenceModel::State {
  std::string name;  // for messages
  onnx::Model model;
  std::vector<ModelPort> inputs, outputs;
  std::vector<std::string> folded, left;

  // Tools and ports; `model` has been read.
  void prepare(const InferenceOptions& options);
};

namespace {

// Messages of parts that do not know the file get its name in front.
template <class Body>
auto naming(const std::string& name, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    const std::string_view said = error.what();
    if (said.starts_with(name + ":") || said.find("'" + name + "'") != std::string_view::npos) throw;
    throw Error("'" + name + "': " + error.what(), error.exit_code());
  }
}

bool is_whole(onnx::ElementType type) {
  switch (type) {
    case onnx::ElementType::kFloat:
    case onnx::ElementType::kDouble:
    case onnx::ElementType::kFloat16:
    case onnx::ElementType::kBfloat16:
      return false;
    default:
      return true;
  }
}

std::string output_type(onnx::ElementType type) { return is_whole(type) ? "int64" : "float32"; }

// Weights in their architecture, as the network that they are for.
onnx::Model network_of(const TensorFile& file, const std::string& name, const InferenceOptions& options) {
  if (!tools::is_state_dict(file)) return tools::to_onnx(model_from(file, name));
  if (options.architecture.empty()) {
    std::string fitting;
    for (const std::string& each : tools::fitting_architectures(file)) fitting += (fitting.empty() ? "" : ", ") + each;
    throw UsageError("'" + name + "' holds weights without a network: give the architecture in the options" +
                     (fitting.empty() ? "" : "; it fits " + fitting));
  }
  return tools::to_onnx(tools::model_from_state_dict(file, name, {.architecture = options.architecture}));
}

std::vector<ModelPort> ports_of(const std::vector<inference::Port>& ports, bool outputs) {
  std::vector<ModelPort> all;
  for (const inference::Port& port : ports) {
    all.push_back({port.name, outputs ? output_type(port.type) : onnx::name_of(port.type), port.shape});
  }
  return all;
}

}  // namespace

void InferenceModel::State::prepare(const InferenceOptions& options) {
  naming(name, [&] {
    if (options.fold) {
      const tools::FoldRecord record = tools::fold(model);
      for (const tools::FoldedNorm& norm : record.folded) folded.push_back(norm.norm);
      for (const tools::LeftNorm& norm : record.left) left.push_back(norm.norm + ": " + norm.reason);
    }
    inputs = ports_of(inference::input_ports(model), false);
    outputs = ports_of(inference::output_ports(model), true);
  });
}

InferenceModel::InferenceModel(const std::string& given, const InferenceOptions& options)
    : state_(std::make_unique<State>()) {
  const std::string path = tools::model_path_of(given);
  state_->name = path;
  state_->model =
      require_model(path) == ModelKind::kOnnx ? onnx::load(path) : network_of(read_safetensors(path), path, options);
  state_->prepare(options);
}

InferenceModel::InferenceModel(std::span<const std::byte> content, const std::string& name,
                               const InferenceOptions& options)
    : state_(std::make_unique<State>()) {
  state_->name = name;
  const ModelKind kind = kind_of_bytes(content.first(std::min(content.size(), kKindBytes)), content.size());
  if (kind == ModelKind::kSafetensors) {
    state_->model = network_of(parse_safetensors(content, name), name, options);
  } else if (kind == ModelKind::kOnnx) {
    state_->model = onnx::parse({reinterpret_cast<const char*>(content.data()), content.size()}, name);
  } else {
    throw FormatError(not_read(name, kind, "an ONNX or a safetensors file"));
  }
  state_->prepare(options);
}

InferenceModel::~InferenceModel() = default;
InferenceModel::InferenceModel(InferenceModel&&) noexcept = default;
InferenceModel& InferenceModel::operator=(InferenceModel&&) noexcept = default;
const std::vector<ModelPort>& InferenceModel::inputs() const { return state_->inputs; }
const std::vector<ModelPort>& InferenceModel::outputs() const { return state_->outputs; }
const std::vector<std::string>& InferenceModel::folded_norms() const { return state_->folded; }
const std::vector<std::string>& InferenceModel::left_norms() const { return state_->left; }

// --- contexts ---------------------------------------------------------------------------------------------------------
struct EK_HIDDEN InferenceContext::State {
  State(const onnx::Model& model, const inference::Options& options) : program(model, options) {}

  std::string name;
  inference::Program program;
  std::vector<ModelPort> inputs, outputs;
  int threads = 1;  // that the program was made for
  bool has_run = false;

  const ModelPort& port(size_t index, const char* type) const;
};

const ModelPort& InferenceContext::State::port(size_t index, const char* type) const {
  if (index >= outputs.size()) {
    throw UsageError("'" + name + "' has " + std::to_string(outputs.size()) + " outputs; there is no output " +
                     std::to_string(index));
  }
  if (outputs[index].type != type) {
    throw UsageError("'" + name + "': output '" + outputs[index].name + "' is " + outputs[index].type + ", not " +
                     type);
  }
  if (!has_run) throw UsageError("'" + name + "' has not been run: there is no output yet");
  return outputs[index];
}

namespace {

std::map<std::string, std::vector<int64_t>> shapes_for(const std::vector<ModelPort>& inputs, int64_t batch_size) {
  if (batch_size < 1) throw UsageError("batch_size is " + std::to_string(batch_size) + "; expected at least 1");
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const ModelPort& port : inputs) {
    std::vector<int64_t> shape = port.shape;
    if (!shape.empty() && shape[0] < 0) shape[0] = batch_size;
    if (std::any_of(shape.begin(), shape.end(), [](int64_t extent) { return extent < 0; })) {
      throw UsageError("input '" + port.name + "' has the shape " + to_string(port.shape) +
                       ", open in more than the batch; give the shapes of the inputs");
    }
    if (!shape.empty() && shape[0] != batch_size) {
      throw UsageError("input '" + port.name + "' has the shape " + to_string(port.shape) +
                       " whatever the batch; found a batch of " + std::to_string(batch_size));
    }
    shapes[port.name] = std::move(shape);
  }
  return shapes;
}

void require_sane(const std::string& input, const std::vector<int64_t>& shape) {
  constexpr int64_t kMostElements = int64_t{1} << 34;
  int64_t count = 1;
  for (const int64_t extent : shape) {
    // Extents beside a 0 count, too: strides are products of them.
    if (extent < 0 || __builtin_mul_overflow(count, std::max<int64_t>(extent, 1), &count) || count > kMostElements) {
      throw UsageError("input '" + input +
                       "': expected extents of at least 0, 2^34 elements at most, found the shape " + to_string(shape));
    }
  }
}

}  // namespace

InferenceContext::InferenceContext(const InferenceModel& model, int64_t batch_size, int threads)
    : InferenceContext(model, naming(model.state_->name, [&] { return shapes_for(model.inputs(), batch_size); }),
                       threads) {}

InferenceContext::InferenceContext(const InferenceModel& model,
                                   const std::map<std::string, std::vector<int64_t>>& input_shapes, int threads) {
  const InferenceModel::State& from = *model.state_;
  naming(from.name, [&] {
    if (threads < 0 || threads > kMostThreads)
      throw UsageError("threads is " + std::to_string(threads) + "; expected 0 to " + std::to_string(kMostThreads));
    for (const auto& bound : input_shapes) {
      const bool known = std::any_of(from.inputs.begin(), from.inputs.end(),
                                     [&](const ModelPort& port) { return port.name == bound.first; });
      if (!known) throw UsageError("there is no input '" + bound.first + "'");
      require_sane(bound.first, bound.second);
    }
    const inference::Options options{.inputs = {input_shapes.begin(), input_shapes.end()}, .threads = threads};
    state_ = std::make_unique<State>(from.model, options);
    state_->name = from.name;
    state_->threads = team_is_lost() ? 1 : threads > 0 ? threads : available_cores();
    state_->inputs = from.inputs;
    state_->outputs = from.outputs;
    for (ModelPort& port : state_->inputs) port.shape = input_shapes.at(port.name);
    for (ModelPort& port : state_->outputs) {
      port.shape = state_->program.shape_of(port.name);
      port.type = output_type(state_->program.type_of(port.name));
    }
  });
}

InferenceContext::~InferenceContext() = default;
InferenceContext::InferenceContext(InferenceContext&&) noexcept = default;
InferenceContext& InferenceContext::operator=(InferenceContext&&) noexcept = default;
const std::vector<ModelPort>& InferenceContext::inputs() const { return state_->inputs; }
const std::vector<ModelPort>& InferenceContext::outputs() const { return state_->outputs; }
size_t InferenceContext::memory_bytes() const { return state_->program.memory_bytes(); }

void InferenceContext::run(std::span<const void* const> inputs, std::span<void* const> outputs) {
  State& s = *state_;
  const auto require_count = [&](size_t found, size_t expected, const char* what) {
    if (found != expected) {
      throw UsageError("'" + s.name + "' has " + std::to_string(expected) + " " + what + ", found " +
                       std::to_string(found) + " pointers");
    }
  };
  require_count(inputs.size(), s.inputs.size(), "inputs");
  if (!outputs.empty()) require_count(outputs.size(), s.outputs.size(), "outputs");
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i] == nullptr)
      throw UsageError("'" + s.name + "': the pointer for input '" + s.inputs[i].name + "' is null");
  }
  if (s.threads > 1 && team_is_lost()) {
    throw BackendError("'" + s.name + "': the context was made for " + std::to_string(s.threads) +
                       " threads before a fork(), and this child process has one; make a context in the child");
  }
  s.has_run = false;  // a run that fails leaves outputs of which some are of another one
  naming(s.name, [&] { s.program.run_in_order(inputs); });
  s.has_run = true;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] == nullptr) continue;
    if (s.outputs[i].type == "int64") {
      const std::span<const int64_t> values = integers(i);
      std::copy(values.begin(), values.end(), static_cast<int64_t*>(outputs[i]));
    } else {
      const std::span<const float> values = output(i);
      std::copy(values.begin(), values.end(), static_cast<float*>(outputs[i]));
    }
  }
}

void InferenceContext::run(const float* input, float* output) {
  State& s = *state_;
  if (s.inputs.size() != 1 || s.inputs[0].type != "float32") {
    throw UsageError("'" + s.name + "' has " + std::to_string(s.inputs.size()) + " inputs, the first of " +
                     (s.inputs.empty() ? "no type" : s.inputs[0].type) + "; run(input, output) is for one of float32");
  }
  const void* const inputs[] = {input};
  run(inputs);
  if (output == nullptr) return;
  const std::span<const float> values = this->output(0);
  std::copy(values.begin(), values.end(), output);
}

std::span<const float> InferenceContext::output(size_t index) const {
  return state_->program.output(state_->port(index, "float32").name);
}
std::span<const int64_t> InferenceContext::integers(size_t index) const {
  return state_->program.integers(state_->port(index, "int64").name);
}

}  // namespace evenkeel
