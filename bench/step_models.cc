#include "bench/step_models.h"

#include <algorithm>

#include <fmt/format.h>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"
#include "evenkeel/graph/precision.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel::bench {
namespace {

struct Model {
  const char* name;
  Shape input;
  int64_t batch;
};

const std::vector<Model>& models() {
  static const std::vector<Model> all{{"mlp", {1, 28, 28}, 128},     {"cnn", {1, 28, 28}, 128},
                                      {"cnn-gap", {1, 28, 28}, 128}, {"resnet20", {3, 32, 32}, 128},
                                      {"vgg11", {3, 32, 32}, 128},   {"resnet18", {3, 64, 64}, 32}};
  return all;
}

// ---- the calls of the floor

FloorCall convolution(const Graph& graph, const Conv& conv, ValueId x, ValueId weight, ValueId y) {
  const Shape &in = graph.value(x).shape, &kernel = graph.value(weight).shape, &out = graph.value(y).shape;
  return {.in_channels = in.at(0),
          .in_h = in.at(1),
          .in_w = in.at(2),
          .out_channels = out.at(0),
          .out_h = out.at(1),
          .out_w = out.at(2),
          .kernel_h = kernel.at(2),
          .kernel_w = kernel.at(3),
          .stride_h = conv.stride_h,
          .stride_w = conv.stride_w,
          .pad_h = conv.pad_h,
          .pad_w = conv.pad_w,
          .dilation_h = conv.dilation_h,
          .dilation_w = conv.dilation_w,
          .group = conv.group};
}

FloorCall product(const Graph& graph, ValueId weight) {
  const Shape& shape = graph.value(weight).shape;
  return {.matrix = true, .in_channels = shape.at(1), .out_channels = shape.at(0)};
}

std::vector<FloorCall> calls_of(const Graph& graph) {
  std::vector<FloorCall> calls;
  for (const Node& node : graph.nodes) {
    const auto add = [&](FloorCall call, FloorKind kind) {
      call.node = node.name;
      call.kind = kind;
      calls.push_back(std::move(call));
    };
    const std::vector<ValueId>&in = node.inputs, &out = node.outputs;
    if (const auto* conv = std::get_if<Conv>(&node.op))
      add(convolution(graph, *conv, in.at(0), in.at(1), out.at(0)), FloorKind::kForward);
    if (const auto* gradient = std::get_if<ConvGradInput>(&node.op))
      add(convolution(graph, gradient->conv, out.at(0), in.at(1), in.at(0)), FloorKind::kInputGradient);
    if (const auto* gradient = std::get_if<ConvGradWeight>(&node.op))
      add(convolution(graph, gradient->conv, in.at(0), out.at(0), in.at(1)), FloorKind::kWeightGradient);
    if (std::holds_alternative<Gemm>(node.op)) add(product(graph, in.at(1)), FloorKind::kForward);
    if (std::holds_alternative<GemmGradInput>(node.op)) add(product(graph, in.at(1)), FloorKind::kInputGradient);
    if (std::holds_alternative<GemmGradWeight>(node.op)) add(product(graph, out.at(0)), FloorKind::kWeightGradient);
  }
  return calls;
}

// ---- evenkeel

class Evenkeel final : public EvenkeelContender {
 public:
  Evenkeel(const StepSettings& s, const Batches& batches) : settings_(s), batches_(batches) {
    const bool halves = s.precision == StepPrecision::kBf16;
    if (halves && !cpu_has_bf16()) throw UsageError("this processor has no bf16 products");
    Network network = build_network(zoo_model(s.model, s.input, s.classes), Mode::kTrain);
    initialize(network, 1, &store_);
    const bool adam = s.optimizer == StepOptimizer::kAdam;
    const OptimizerOptions optimizer{.kind = adam ? OptimizerKind::kAdam : OptimizerKind::kMomentum};
    std::vector<StateInfo> states;
    Graph graph = with_updates(with_gradients(std::move(network.graph)), optimizer, network.parameters, &states);
    for (const StateInfo& state : states) store_.add(state.name, Tensor(DType::kF32, state.shape));
    calls_ = calls_of(graph);
    graph = with_precision(std::move(graph), halves ? Precision::kBF16 : Precision::kF32);
    executable_ = cpu_backend(s.threads)->compile(make_plan(std::move(graph), {.batch = s.batch}), store_);
  }

  std::string name() const override { return "evenkeel"; }
  void step() override {
    const size_t batch = static_cast<size_t>(steps_++) % batches_.x.size();
    const RunResult result = executable_->run({.x = batches_.x[batch].values<float>().data(),
                                               .labels = batches_.labels[batch].values<int32_t>().data(),
                                               .n = settings_.batch,
                                               .learning_rate = settings_.learning_rate,
                                               .step = steps_});
    if (!result.finite) throw Error(fmt::format("{}: step {} is not finite", settings_.model, steps_), kExitNotFinite);
  }
  double loss() override { return executable_->scalar("loss"); }
  const ParameterStore& store() const override { return store_; }
  const std::vector<FloorCall>& calls() const override { return calls_; }

 private:
  StepSettings settings_;
  const Batches& batches_;
  ParameterStore store_;
  std::vector<FloorCall> calls_;
  std::unique_ptr<Executable> executable_;
  int64_t steps_ = 0;
};

}  // namespace

const char* name_of(FloorKind kind) {
  switch (kind) {
    case FloorKind::kForward:
      return "forward";
    case FloorKind::kInputGradient:
      return "input gradient";
    case FloorKind::kWeightGradient:
      return "weight gradient";
  }
  return "";
}

double FloorCall::multiplications() const {
  return static_cast<double>(in_channels / group * kernel_h * kernel_w) *
         static_cast<double>(out_channels * out_h * out_w);
}

const std::vector<std::string>& default_models() {
  static const std::vector<std::string> names{"mlp", "cnn", "cnn-gap", "resnet20"};
  return names;
}

const std::vector<std::string>& all_models() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Model& model : models()) all.emplace_back(model.name);
    return all;
  }();
  return names;
}

StepSettings settings_of(const std::string& model, const SettingsOptions& options) {
  const auto found =
      std::find_if(models().begin(), models().end(), [&](const Model& known) { return known.name == model; });
  const Model used = found == models().end() ? Model{model.c_str(), {1, 28, 28}, 128} : *found;
  StepSettings s;
  s.model = model;
  s.input = used.input;
  s.batch = options.batch > 0 ? options.batch : used.batch;
  zoo_model(s.model, s.input, s.classes);  // throws for a name that the zoo has not
  s.threads = options.threads;
  s.optimizer = options.optimizer;
  s.learning_rate = s.optimizer == StepOptimizer::kAdam ? 1e-3 : 1e-2;
  return s;
}

Batches random_batches(const StepSettings& s, int count) {
  Batches batches;
  for (int i = 0; i < count; ++i) {
    RandomStream random(1, RandomUse::kShuffle, static_cast<uint64_t>(i));
    Shape shape{s.batch};
    shape.insert(shape.end(), s.input.begin(), s.input.end());
    Tensor x(DType::kF32, shape), labels(DType::kI32, {s.batch});
    for (float& value : x.values<float>()) value = (random.next_uniform() - 0.5f) * 3.4641016f;
    for (int32_t& label : labels.values<int32_t>())
      label = static_cast<int32_t>(random.next_below(static_cast<uint64_t>(s.classes)));
    batches.x.push_back(std::move(x));
    batches.labels.push_back(std::move(labels));
  }
  return batches;
}

std::unique_ptr<EvenkeelContender> make_evenkeel(const StepSettings& settings, const Batches& batches) {
  return std::make_unique<Evenkeel>(settings, batches);
}

}  // namespace evenkeel::bench
