#include "evenkeel/tools/export_onnx.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <variant>

#include "evenkeel/core/error.h"
#include "evenkeel/graph/running_reading.h"
#include "evenkeel/model_io/tensor_convert.h"
#include "evenkeel/tools/conventions.h"
#include "evenkeel/tools/onnx_metadata.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/version.h"

namespace evenkeel::tools {
namespace {

constexpr int64_t kIrVersion = 8, kOpset = 17;

template <class... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <class... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

std::string without_suffix(const std::string& name, const std::string& suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : name;
}

class Exporter {
 public:
  Exporter(const Model& model, const ExportOptions& options)
      : model_(model),
        options_(options),
        network_(build_network(model.spec, options.training ? Mode::kTrain : Mode::kInference, {.with_loss = false})) {
    // Kept free for what has these names in any case.
    names_ = {"input", "logits"};
    for (const ParameterInfo& info : network_.parameters) names_.insert(info.name);
    for (const BufferInfo& info : network_.buffers) names_.insert(info.name);
  }

  onnx::Model run() {
    graph_.name = model_.spec.name.empty() ? "network" : model_.spec.name;
    declare(graph_.inputs, "input", model_.spec.input);
    values_[network_.graph.find("x")] = options_.standardization ? standardized("input") : "input";
    index_scales();
    const ValueId logits = network_.graph.find("logits");
    for (const Node& node : network_.graph.nodes) write(node);
    name_output(logits);
    declare(graph_.outputs, "logits", {model_.spec.classes});
    for (onnx::ValueInfo& info : next_statistics_) graph_.outputs.push_back(std::move(info));
    onnx::Model result;
    result.ir_version = kIrVersion;
    result.opsets[""] = kOpset;
    result.producer_name = "evenkeel";
    result.producer_version = EVENKEEL_VERSION;
    add_metadata(result);
    result.graph = std::move(graph_);
    return result;
  }

 private:
  // --- names and small parts ---

  std::string unused(const std::string& wish) {
    std::string name = wish;
    for (int number = 2; !names_.insert(name).second; ++number) name = wish + "_" + std::to_string(number);
    return name;
  }

  void declare(std::vector<onnx::ValueInfo>& list, const std::string& name, const Shape& shape) {
    onnx::ValueInfo info{.name = name, .type = onnx::ElementType::kFloat, .dims = {}};
    info.dims.emplace({onnx::Dim{{}, options_.batch}});
    for (const int64_t extent : shape) info.dims->push_back({extent, ""});
    list.push_back(std::move(info));
  }

  // Adds a node with one output; its name and that of the output are `wish`, or like it where that is taken.
  std::string node(const std::string& op, const std::string& wish, std::vector<std::string> inputs) {
    onnx::Node made;
    made.op_type = op;
    made.name = unused_node(wish);
    made.inputs = std::move(inputs);
    while (!made.inputs.empty() && made.inputs.back().empty()) made.inputs.pop_back();
    made.outputs = {unused(wish)};
    graph_.nodes.push_back(std::move(made));
    return graph_.nodes.back().outputs[0];
  }
  onnx::Node& last() { return graph_.nodes.back(); }
  void set_integers(const char* attribute, std::vector<int64_t> values) { last().set(attribute, std::move(values)); }

  std::string unused_node(const std::string& wish) {
    std::string name = wish;
    for (int number = 2; !node_names_.insert(name).second; ++number) name = wish + "_" + std::to_string(number);
    return name;
  }

  std::string constant(const std::string& wish, const Shape& dims, const std::vector<float>& values) {
    std::string name = constants_.emplace_back(unused(wish));
    graph_.initializers.push_back(onnx::make_tensor(name, dims, std::span<const float>(values)));
    return name;
  }
  std::string constant(const std::string& wish, const std::vector<int64_t>& values) {
    std::string name = constants_.emplace_back(unused(wish));
    graph_.initializers.push_back(
        onnx::make_tensor(name, {static_cast<int64_t>(values.size())}, std::span<const int64_t>(values)));
    return name;
  }
  // A number that takes part in element-wise operations; each is there once.
  std::string number(float value) {
    const auto [it, is_new] = numbers_.try_emplace(value);
    if (is_new) it->second = constant(fmt::format("number.{}", value), {}, {value});
    return it->second;
  }

  // A parameter or buffer of the store, under its own name; "" for none.
  std::string stored(ValueId id) {
    if (id == kNoValue) return "";
    const std::string& name = network_.graph.value(id).name;
    if (stored_.insert(name).second) graph_.initializers.push_back(to_onnx(name, model_.store.at(name)));
    return name;
  }

  const std::string& value(ValueId id) const { return values_.at(id); }
  const Shape& shape(ValueId id) const { return network_.graph.value(id).shape; }

  // [C] as it stands beside [N, C, ...].
  static Shape beside(const Shape& example) {
    Shape dims(example.size(), 1);
    dims[0] = example[0];
    return dims;
  }

  std::string standardized(const std::string& x) {
    const data::Standardization& s = model_.standardization;
    const bool plain = std::all_of(s.mean.begin(), s.mean.end(), [](double v) { return v == 0; }) &&
                       std::all_of(s.std.begin(), s.std.end(), [](double v) { return v == 1; });
    if (plain) return x;
    const Shape dims = beside(model_.spec.input);
    const std::vector<float> mean(s.mean.begin(), s.mean.end()), std(s.std.begin(), s.std.end());
    const std::string centred = node("Sub", "input.centred", {x, constant(kStandardizationMean, dims, mean)});
    return node("Div", "input.standardized", {centred, constant(kStandardizationStd, dims, std)});
  }

  // --- layers ---

  void write(const Node& n) {
    std::visit(
        Overloaded{
            [&](const Gemm&) { gemm(n); }, [&](const Conv& op) { conv(n, op); },
            [&](const Normalize& op) { normalize(n, op); },
            [&](const Activate& op) { values_[n.outputs[0]] = activated(n.name, value(n.inputs[0]), op.activation); },
            [&](const MaxPool& op) { max_pool(n, op); }, [&](const AveragePool& op) { average_pool(n, op); },
            [&](const Flatten&) { values_[n.outputs[0]] = node("Flatten", n.name, {value(n.inputs[0])}); },
            [&](const Add&) {
              values_[n.outputs[0]] = node("Add", n.name, {value(n.inputs[0]), value(n.inputs[1])});
            },
            [&](const SubsamplePad& op) { subsample_pad(n, op); }, [&](const Dropout& op) { dropout(n, op); },
            // Softmax is left off; the others are parts of norms, which normalize() looks up.
            [](const Softmax&) {}, [](const MomentsOf&) {}, [](const GhostMoments&) {}, [](const ScaleOfExample&) {},
            [](const ScaleOfMoments&) {}, [](const ScaleOfRunning&) {}, [](const RenormScale&) {},
            [](const UpdateRunning&) {},
            [&](const auto&) {
              throw BackendError(fmt::format("layer '{}': the operation {} cannot be written to ONNX", n.name,
                                             evenkeel::name_of(n.op)));
            }},
        n.op);
  }

  void gemm(const Node& n) {
    values_[n.outputs[0]] = node("Gemm", n.name, {value(n.inputs[0]), stored(n.inputs[1]), stored(n.inputs[2])});
    last().set("transB", int64_t{1});
  }

  void conv(const Node& n, const Conv& op) {
    const Shape weight = shape(n.inputs[1]);
    values_[n.outputs[0]] = node("Conv", n.name, {value(n.inputs[0]), stored(n.inputs[1]), stored(n.inputs[2])});
    set_integers("kernel_shape", {weight[2], weight[3]});
    set_integers("strides", {op.stride_h, op.stride_w});
    set_integers("pads", {op.pad_h, op.pad_w, op.pad_h, op.pad_w});
    set_integers("dilations", {op.dilation_h, op.dilation_w});
    last().set("group", op.group);
  }

  void max_pool(const Node& n, const MaxPool& op) {
    values_[n.outputs[0]] = node("MaxPool", n.name, {value(n.inputs[0])});
    window(op.kernel_h, op.kernel_w, op.stride_h, op.stride_w, op.pad_h, op.pad_w);
  }
  void average_pool(const Node& n, const AveragePool& op) {
    if (op.global) {
      values_[n.outputs[0]] = node("GlobalAveragePool", n.name, {value(n.inputs[0])});
      return;
    }
    values_[n.outputs[0]] = node("AveragePool", n.name, {value(n.inputs[0])});
    window(op.kernel_h, op.kernel_w, op.stride_h, op.stride_w, op.pad_h, op.pad_w);
    last().set("count_include_pad", int64_t{op.count_include_pad ? 1 : 0});
  }
  void window(int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w) {
    set_integers("kernel_shape", {kernel_h, kernel_w});
    set_integers("strides", {stride_h, stride_w});
    set_integers("pads", {pad_h, pad_w, pad_h, pad_w});
  }

  void subsample_pad(const Node& n, const SubsamplePad& op) {
    std::string x = value(n.inputs[0]);
    if (op.stride > 1) {
      const int64_t end = std::numeric_limits<int64_t>::max();
      x = node("Slice", n.name + ".slice",
               {x, constant(n.name + ".starts", {0, 0}), constant(n.name + ".ends", {end, end}),
                constant(n.name + ".axes", {2, 3}), constant(n.name + ".steps", {op.stride, op.stride})});
    }
    if (op.pad_before > 0 || op.pad_after > 0)
      x = node("Pad", n.name, {x, constant(n.name + ".pads", {0, op.pad_before, 0, 0, 0, op.pad_after, 0, 0})});
    values_[n.outputs[0]] = x;
  }

  void dropout(const Node& n, const Dropout& op) {
    onnx::TensorValue on;
    on.name = constants_.emplace_back(unused(n.name + ".training"));
    on.type = onnx::ElementType::kBool;
    const std::byte yes{1};
    on.data = onnx::Bytes::copy_of({&yes, 1});
    graph_.initializers.push_back(on);
    values_[n.outputs[0]] = node("Dropout", n.name, {value(n.inputs[0]), number(op.probability), on.name});
  }

  std::string activated(const std::string& name, const std::string& x, const Activation& activation) {
    switch (activation.kind) {
      case ActivationKind::kIdentity:
        return x;
      case ActivationKind::kRelu:
        return node("Relu", name, {x});
      case ActivationKind::kLeakyRelu: {
        std::string y = node("LeakyRelu", name, {x});
        last().set("alpha", activation.slope);
        return y;
      }
      case ActivationKind::kSigmoid:
        return node("Sigmoid", name, {x});
      case ActivationKind::kTanh:
        return node("Tanh", name, {x});
      case ActivationKind::kSilu:
        return node("Mul", name, {x, node("Sigmoid", name + ".sigmoid", {x})});
      case ActivationKind::kGelu: {  // x/2 * (1 + erf(x / sqrt(2))): Gelu is an operator from opset 20 on
        const std::string scaled = node("Mul", name + ".scaled", {x, number(static_cast<float>(std::sqrt(0.5)))});
        return half_of_gelu(name, x, node("Erf", name + ".erf", {scaled}));
      }
      case ActivationKind::kGeluTanh: {  // x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
        const std::string square = node("Mul", name + ".square", {x, x});
        const std::string cubic = node("Mul", name + ".cubic", {square, number(0.044715f)});
        const std::string factor = node("Add", name + ".factor", {cubic, number(1)});
        const std::string inner = node("Mul", name + ".inner", {x, factor});
        const std::string scaled =
            node("Mul", name + ".scaled", {inner, number(static_cast<float>(std::sqrt(2 / 3.14159265358979323846)))});
        return half_of_gelu(name, x, node("Tanh", name + ".tanh", {scaled}));
      }
    }
    return x;
  }
  std::string half_of_gelu(const std::string& name, const std::string& x, const std::string& gate) {
    const std::string shifted = node("Add", name + ".gate", {gate, number(1)});
    return node("Mul", name, {node("Mul", name + ".half", {x, number(0.5f)}), shifted});
  }

  // --- norms ---

  // Who made the scale that a Normalize reads, and which update reads the running statistics of the same norm.
  void index_scales() {
    for (const Node& n : network_.graph.nodes) {
      for (const ValueId output : n.outputs) {
        if (output != kNoValue) producers_[output] = &n;
      }
      if (std::holds_alternative<UpdateRunning>(n.op)) updates_[without_suffix(n.name, ".update")] = &n;
    }
  }

  void normalize(const Node& n, const Normalize& op) {
    const Node& scale = *producers_.at(n.inputs[1]);
    const std::string x = value(n.inputs[0]);
    std::string y =
        op.groups.channels > 0 ? group_norm(n, std::get<ScaleOfExample>(scale.op), x) : batch_norm(n, scale, x);
    const std::string name = network_.graph.value(n.outputs[0]).name;
    const bool active = op.activation.kind != ActivationKind::kIdentity;
    if (n.inputs[4] != kNoValue) {
      const std::string sum = active ? without_suffix(name, ".activation") : name;
      y = node("Add", sum, {y, value(n.inputs[4])});
    }
    values_[n.outputs[0]] = active ? activated(name, y, op.activation) : y;
  }

  // gamma and beta, or ones and zeros where the norm has none.
  std::pair<std::string, std::string> affine(const Node& n) {
    const auto channels = static_cast<size_t>(shape(n.inputs[0])[0]);
    const auto same = [&](const char* part, float v) {
      return constant(n.name + part, {static_cast<int64_t>(channels)}, std::vector<float>(channels, v));
    };
    return {n.inputs[2] != kNoValue ? stored(n.inputs[2]) : same(".ones", 1),
            n.inputs[3] != kNoValue ? stored(n.inputs[3]) : same(".zeros", 0)};
  }

  std::string batch_norm(const Node& n, const Node& scale, const std::string& x) {
    const auto [gamma, beta] = affine(n);
    const auto update = updates_.find(n.name);
    if (const auto* running = std::get_if<ScaleOfRunning>(&scale.op)) {
      if (update != updates_.end()) refuse(n.name, "takes the running statistics and updates them all the same");
      const auto [mean, var] = running_statistics(n.name, *running);
      std::string y = node("BatchNormalization", n.name, {x, gamma, beta, mean, var});
      last().set("epsilon", static_cast<float>(running->eps));
      last().set("momentum", static_cast<float>(momentum_of(Dialect::kOnnx, running->new_batch_weight)));
      return y;
    }
    const auto* batch = std::get_if<ScaleOfMoments>(&scale.op);
    if (batch == nullptr) refuse(n.name, "is batch renorm");
    if (const Node& moments = *producers_.at(scale.inputs[0]); std::holds_alternative<GhostMoments>(moments.op))
      refuse(n.name, "normalizes by ghost batches");
    return trained_batch_norm(n, batch->eps, x, gamma, beta, update == updates_.end() ? nullptr : update->second);
  }

  // With statistics of the batch. ONNX always makes new running statistics; they are an output where the model keeps some.
  std::string trained_batch_norm(const Node& n, double eps, const std::string& x, const std::string& gamma,
                                 const std::string& beta, const Node* update) {
    const std::string mean = n.name + ".running_mean", var = n.name + ".running_var";
    for (const std::string& name : {mean, var}) {
      if (stored_.insert(name).second) graph_.initializers.push_back(to_onnx(name, model_.store.at(name)));
    }
    std::string y = node("BatchNormalization", n.name, {x, gamma, beta, mean, var});
    last().set("epsilon", static_cast<float>(eps));
    last().set("training_mode", int64_t{1});
    double weight = model_.spec.norm_options.new_batch_weight;
    if (update != nullptr) {
      const auto& op = std::get<UpdateRunning>(update->op);
      if (op.cumulative) refuse(n.name, "keeps the plain average of all batches");
      if (op.bias_corrected) refuse(n.name, "keeps bias-corrected running statistics");
      weight = op.new_batch_weight;
    }
    last().set("momentum", static_cast<float>(momentum_of(Dialect::kOnnx, weight)));
    for (const std::string& name : {mean, var}) {
      const std::string next = unused(name + ".next");
      last().outputs.push_back(next);
      if (update == nullptr) continue;
      onnx::ValueInfo info{.name = next, .type = onnx::ElementType::kFloat, .dims = {}};
      info.dims.emplace({onnx::Dim{shape(n.inputs[0])[0], ""}});
      next_statistics_.push_back(std::move(info));
    }
    return y;
  }

  // As they are read at test time: where the start values are still in them they are taken out here.
  std::pair<std::string, std::string> running_statistics(const std::string& name, const ScaleOfRunning& op) {
    const auto part = [&](const char* which, auto read_as) {
      std::string full = name + which;
      if (!stored_.insert(full).second) return full;
      onnx::TensorValue tensor = to_onnx(full, model_.store.at(full));
      const int64_t count = model_.store.at(name + ".num_batches_tracked").values<int64_t>()[0];
      if (op.bias_corrected) {
        const RunningReading read(op, count);
        std::vector<double> values = onnx::doubles_of(tensor);
        for (double& v : values) v = (read.*read_as)(v);
        tensor = onnx::tensor_as(onnx::ElementType::kFloat, full, tensor.dims, values);
      }
      graph_.initializers.push_back(std::move(tensor));
      return full;
    };
    return {part(".running_mean", &RunningReading::mean), part(".running_var", &RunningReading::var)};
  }

  [[noreturn]] static void refuse(const std::string& norm, const std::string& why) {
    throw BackendError(fmt::format(
        "norm '{}' {}, for which ONNX has no words in training mode; export for inference, or change the norm", norm,
        why));
  }

  // Group norm by the instance norm of [N, groups, rest]; layer norm is one group, instance norm as many as channels.
  std::string group_norm(const Node& n, const ScaleOfExample& op, const std::string& x) {
    const auto [gamma, beta] = affine(n);
    const Shape& example = shape(n.inputs[0]);
    const auto eps = static_cast<float>(op.eps);
    if (op.channel_groups == example[0] && example.size() == 3) {
      std::string y = node("InstanceNormalization", n.name, {x, gamma, beta});
      last().set("epsilon", eps);
      return y;
    }
    const auto groups = static_cast<size_t>(op.channel_groups);
    const std::string cut =
        node("Reshape", n.name + ".groups", {x, constant(n.name + ".cut", {0, op.channel_groups, -1})});
    const std::string plain = node("InstanceNormalization", n.name + ".normalized",
                                   {cut, constant(n.name + ".ones", {op.channel_groups}, std::vector<float>(groups, 1)),
                                    constant(n.name + ".zeros", {op.channel_groups}, std::vector<float>(groups, 0))});
    last().set("epsilon", eps);
    std::vector<int64_t> whole = {0};
    whole.insert(whole.end(), example.begin(), example.end());
    const std::string joined = node("Reshape", n.name + ".joined", {plain, constant(n.name + ".shape", whole)});
    const std::string axes = example.size() == 3 ? constant(n.name + ".axes", {1, 2}) : "";
    const auto beside_image = [&](const std::string& name) {
      return axes.empty() ? name : node("Unsqueeze", name + ".beside", {name, axes});
    };
    const std::string scaled = node("Mul", n.name + ".scaled", {joined, beside_image(gamma)});
    return node("Add", n.name, {scaled, beside_image(beta)});
  }

  // --- the end ---

  // The value that is the network's output gets the name that callers know.
  void name_output(ValueId logits) {
    const std::string old = values_.at(logits);
    if (old == "input") throw BackendError("the network has no layers that ONNX has words for");
    for (onnx::Node& n : graph_.nodes) {
      std::replace(n.inputs.begin(), n.inputs.end(), old, std::string("logits"));
      std::replace(n.outputs.begin(), n.outputs.end(), old, std::string("logits"));
    }
  }

  InputMeaning input_meaning() const {
    InputMeaning meaning;
    // As data/fit tells it: images whose values went far beyond 1 were not divided.
    const bool bytes = model_.input_range && model_.input_range->min >= 0 && model_.input_range->max >= 64;
    if (model_.spec.input.size() == 3) meaning.unit = bytes ? InputUnit::kBytePixels : InputUnit::kUnitPixels;
    if (!options_.standardization) meaning.left_to_caller = model_.standardization;
    return meaning;
  }

  void add_metadata(onnx::Model& result) const {
    std::map<std::string, std::string>& all = result.metadata;
    state_input(result, input_meaning());
    state_constants(result, constants_);
    if (!model_.class_names.empty()) {
      all["evenkeel.classes"] =
          nlohmann::json(model_.class_names).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
    if (!model_.data_name.empty()) all["evenkeel.data"] = without_folders(model_.data_name);
    if (norm_layers(model_.spec).empty()) return;
    const NormSettings& norm = model_.spec.norm_options;
    const RunningVariance variance = norm.biased ? RunningVariance::kBiased : RunningVariance::kUnbiased;
    all[kRunningStatistics] =
        model_.running_statistics + "; " +
        in_words(norm.cumulative ? std::nullopt : std::optional(norm.new_batch_weight), variance) +
        (options_.training ? "; ONNX updates it with the biased variance of the batch" : "");
    if (!model_.statistics_made.empty())
      state_statistics(result, {model_.running_statistics, variance, model_.statistics_made});
  }

  const Model& model_;
  const ExportOptions& options_;
  const Network network_;
  onnx::Graph graph_;
  std::map<ValueId, std::string> values_;
  std::map<ValueId, const Node*> producers_;
  std::map<std::string, const Node*> updates_;
  std::vector<onnx::ValueInfo> next_statistics_;
  std::set<std::string> names_, node_names_, stored_;
  std::vector<std::string> constants_;  // initializers that are no parameters
  std::map<float, std::string> numbers_;
};

}  // namespace

onnx::Model to_onnx(const Model& model, const ExportOptions& options) { return Exporter(model, options).run(); }

}  // namespace evenkeel::tools
