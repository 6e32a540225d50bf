#include "evenkeel/graph/autodiff.h"

#include <algorithm>

namespace evenkeel {
namespace {

// Appends backward nodes for the nodes of a forward graph, last first.
class Differentiator {
 public:
  Differentiator(Graph graph, bool input_gradient) : graph_(std::move(graph)) {
    forward_nodes_ = graph_.nodes.size();
    needs_.assign(graph_.values.size(), false);
    gradient_.assign(graph_.values.size(), kNoValue);
    for (size_t id = 0; id < graph_.values.size(); ++id) {
      const Value& value = graph_.values[id];
      needs_[id] = (value.role == Role::kParameter && value.trained) ||
                   (input_gradient && value.role == Role::kInput && value.name == "x");
    }
    for (const Node& node : graph_.nodes) {
      const bool any = std::any_of(node.inputs.begin(), node.inputs.end(), [&](ValueId id) { return needs(id); });
      for (const ValueId id : node.outputs) {
        if (id != kNoValue && any) needs_[static_cast<size_t>(id)] = true;
      }
    }
  }

  Graph run() {
    if (graph_.find("loss") == kNoValue)
      throw UsageError("the graph has no value named 'loss' to differentiate; add a loss node");
    for (size_t i = forward_nodes_; i-- > 0;) {
      const Node node = graph_.nodes[i];
      if (is_update(node.op)) continue;
      std::visit([&](const auto& op) { differentiate(op, node); }, node.op);
    }
    for (size_t id = 0; id < needs_.size(); ++id) {
      const Value& value = graph_.values[id];
      if (gradient_[id] == kNoValue) continue;
      if (value.role == Role::kParameter || value.role == Role::kInput)
        graph_.named["grad:" + value.name] = gradient_[id];
    }
    std::stable_partition(graph_.nodes.begin(), graph_.nodes.end(),
                          [](const Node& node) { return !is_update(node.op); });
    return std::move(graph_);
  }

 private:
  bool needs(ValueId id) const { return id != kNoValue && needs_[static_cast<size_t>(id)]; }
  ValueId gradient(ValueId id) const { return gradient_[static_cast<size_t>(id)]; }

  ValueId like(ValueId id, const std::string& name) {
    Value value = graph_.value(id);
    value.name = name;
    value.role = Role::kComputed;
    return graph_.add_value(std::move(value));
  }
  ValueId gradient_value(ValueId id) { return needs(id) ? like(id, "d " + graph_.value(id).name) : kNoValue; }
  void emit(const Node& of, Op op, std::vector<ValueId> inputs, std::vector<ValueId> outputs) {
    graph_.nodes.push_back({of.name + ".gradient", std::move(op), std::move(inputs), std::move(outputs)});
  }
  // Takes `part` as (a part of) the gradient of `id`; several parts are added in the order of the backward walk.
  void accumulate(ValueId id, ValueId part) {
    if (part == kNoValue) return;
    ValueId& total = gradient_[static_cast<size_t>(id)];
    if (total == kNoValue) {
      total = part;
      return;
    }
    const ValueId sum = like(id, "d " + graph_.value(id).name);
    const auto gated = std::find_if(graph_.nodes.begin(), graph_.nodes.end(), [&](const Node& node) {
      return std::holds_alternative<ResidualGradient>(node.op) && node.outputs[0] == total;
    });
    if (gated != graph_.nodes.end() && gated->inputs.size() == 2 && is_read_once(total)) {
      // The gate and the sum in one pass.
      Node joined = *gated;
      graph_.nodes.erase(gated);
      joined.inputs.push_back(part);
      joined.outputs = {sum};
      graph_.nodes.push_back(std::move(joined));
    } else {
      graph_.nodes.push_back({graph_.value(id).name + ".gradient_sum", Add{}, {total, part}, {sum}});
    }
    total = sum;
  }
  // True when no node reads a gradient yet, and it is that of one value only: an addition hands the same on to both sides.
  bool is_read_once(ValueId id) const {
    const bool read = std::any_of(graph_.nodes.begin(), graph_.nodes.end(), [&](const Node& node) {
      return std::find(node.inputs.begin(), node.inputs.end(), id) != node.inputs.end();
    });
    return !read && std::count(gradient_.begin(), gradient_.end(), id) == 1;
  }
  // One output, one differentiable input, gradient op of (dy).
  void chain(const Node& node, Op op, std::vector<ValueId> before_dy = {}) {
    const ValueId dy = gradient(node.outputs[0]);
    if (dy == kNoValue || !needs(node.inputs[0])) return;
    const ValueId dx = gradient_value(node.inputs[0]);
    before_dy.push_back(dy);
    emit(node, std::move(op), std::move(before_dy), {dx});
    accumulate(node.inputs[0], dx);
  }

  template <class T>
  void differentiate(const T&, const Node& node) {
    // Operations without a gradient (statistics, inference only): fine as long as none flows into them.
    for (const ValueId id : node.outputs) EK_ASSERT(id == kNoValue || gradient(id) == kNoValue);
  }
  void differentiate(const SoftmaxCrossEntropyLoss& op, const Node& node) {
    loss(node, SoftmaxCrossEntropyGradient{op.label_smoothing});
  }
  void differentiate(const MeanSquaredError&, const Node& node) { loss(node, MeanSquaredErrorGradient{}); }
  void differentiate(const EntropyLoss&, const Node& node) { loss(node, EntropyGradient{}); }
  void loss(const Node& node, Op op) {
    if (node.outputs[0] != graph_.find("loss") || !needs(node.inputs[0])) return;
    const ValueId dy = gradient_value(node.inputs[0]);
    emit(node, std::move(op), node.inputs, {dy});
    accumulate(node.inputs[0], dy);
  }
  void differentiate(const Gemm&, const Node& node) { weighted(node, GemmGradInput{}, GemmGradWeight{}); }
  void differentiate(const Conv& op, const Node& node) { weighted(node, ConvGradInput{op}, ConvGradWeight{op}); }
  void weighted(const Node& node, Op input_op, Op weight_op) {
    const ValueId dy = gradient(node.outputs[0]);
    if (dy == kNoValue) return;
    if (needs(node.inputs[1]) || needs(node.inputs[2])) {
      const ValueId dweight = like(node.inputs[1], "d " + graph_.value(node.inputs[1]).name);
      const ValueId dbias = gradient_value(node.inputs[2]);
      emit(node, std::move(weight_op), {node.inputs[0], dy}, {dweight, dbias});
      if (needs(node.inputs[1])) accumulate(node.inputs[1], dweight);
      if (dbias != kNoValue) accumulate(node.inputs[2], dbias);
    }
    if (!needs(node.inputs[0])) return;
    const ValueId dx = gradient_value(node.inputs[0]);
    emit(node, std::move(input_op), {dy, node.inputs[1]}, {dx});
    accumulate(node.inputs[0], dx);
  }
  void differentiate(const Normalize& op, const Node& node) {
    const ValueId dy = gradient(node.outputs[0]);
    if (dy == kNoValue) return;
    const ValueId x = node.inputs[0], scale = node.inputs[1], gamma = node.inputs[2], beta = node.inputs[3];
    const bool linear = op.activation.kind == ActivationKind::kIdentity;
    // Behind an addition the gate is a bit of a mask instead of the residual read again, and its gradient is made where it is wanted.
    const ValueId mask = mask_of(op, node);
    const ValueId residual = mask == kNoValue && !linear ? node.inputs[4] : kNoValue;
    const Shape channels = graph_.value(scale).shape;
    const bool grouped = static_cast<bool>(op.groups);
    const bool by_running = is_made_by<ScaleOfRunning>(scale);
    const ValueId dgamma = needs(gamma) ? gradient_value(gamma) : kNoValue;
    const ValueId dbeta = needs(beta) ? gradient_value(beta) : kNoValue;
    const bool affine = dgamma != kNoValue || dbeta != kNoValue;
    // A frozen norm is an affine map of constants: nobody asks for the sums.
    const ValueId sums =
        by_running && !affine
            ? kNoValue
            : graph_.add_value({node.name + ".sums", Role::kComputed, Element::kGradientSums, grouped, channels});
    const ValueId weights = weights_of(scale);
    const auto weighted = [&](std::vector<ValueId> inputs) {
      if (weights != kNoValue) inputs.push_back(weights);
      return inputs;
    };
    if (sums != kNoValue) {
      emit(node, NormGradientSums{op.activation, op.groups}, weighted({x, dy, scale, gamma, beta, residual, mask}),
           {sums});
    }
    if (affine) emit(node, NormAffineGradient{}, {sums, scale}, {dgamma, dbeta});
    if (dgamma != kNoValue) accumulate(gamma, dgamma);
    if (dbeta != kNoValue) accumulate(beta, dbeta);
    const bool wants_residual = needs(node.inputs[4]);
    if (needs(x) || (wants_residual && residual != kNoValue)) {
      const ValueId dx = like(x, "d " + graph_.value(x).name);
      const ValueId dresidual = residual == kNoValue ? kNoValue : gradient_value(residual);
      emit(node, NormGradientInput{op.activation, !by_running, op.groups},
           weighted({x, dy, scale, gamma, beta, residual, sums_for_input(node, sums, scale), mask}), {dx, dresidual});
      if (needs(x)) accumulate(x, dx);
      if (dresidual != kNoValue) accumulate(residual, dresidual);
    }
    if (wants_residual && linear) accumulate(node.inputs[4], dy);
    if (!wants_residual || mask == kNoValue) return;
    const ValueId dresidual = gradient_value(node.inputs[4]);
    emit(node, ResidualGradient{op.activation}, {dy, mask}, {dresidual});
    accumulate(node.inputs[4], dresidual);
  }
  // A new output of a Normalize with a residual and an activation whose gradient is a matter of sign; kNoValue for others.
  ValueId mask_of(const Normalize& op, const Node& node) {
    const bool by_sign =
        op.activation.kind == ActivationKind::kRelu || op.activation.kind == ActivationKind::kLeakyRelu;
    if (node.inputs[4] == kNoValue || !by_sign) return kNoValue;
    const int64_t bytes = (element_count(graph_.value(node.outputs[0]).shape) + 7) / 8;
    const ValueId mask = graph_.add_value({node.name + ".mask", Role::kComputed, Element::kU8, true, {bytes}});
    for (Node& forward : graph_.nodes) {
      if (!forward.outputs.empty() && forward.outputs[0] == node.outputs[0]) forward.outputs.resize(2, mask);
    }
    return mask;
  }
  const Node* maker_of(ValueId id) const {
    for (const Node& node : graph_.nodes) {
      if (!node.outputs.empty() && node.outputs[0] == id) return &node;
    }
    return nullptr;
  }
  // What weights the moments behind `scale`; kNoValue where nothing does.
  ValueId weights_of(ValueId scale) const {
    const Node* node = maker_of(scale);
    if (node != nullptr && std::holds_alternative<RenormScale>(node->op)) node = maker_of(node->inputs[0]);
    if (node == nullptr || !std::holds_alternative<ScaleOfMoments>(node->op)) return kNoValue;
    node = maker_of(node->inputs[0]);
    const bool weighted = node != nullptr && std::holds_alternative<MomentsOf>(node->op) && node->inputs.size() > 1;
    return weighted ? node->inputs[1] : kNoValue;
  }
  template <class T>
  bool is_made_by(ValueId id) const {
    const Node* maker = maker_of(id);
    return maker != nullptr && std::holds_alternative<T>(maker->op);
  }
  // Batch renorm's two corrections are constants of the gradient (docs/math.md, eq. 48).
  ValueId sums_for_input(const Node& node, ValueId sums, ValueId scale) {
    if (!is_made_by<RenormScale>(scale)) return sums;
    const ValueId batch_scale = maker_of(scale)->inputs[0];
    const ValueId corrected = like(sums, node.name + ".renorm_sums");
    emit(node, RenormSums{}, {sums, batch_scale, scale}, {corrected});
    return corrected;
  }
  void differentiate(const Activate& op, const Node& node) {
    chain(node, ActivateGradient{op.activation}, {node.inputs[0]});
  }
  void differentiate(const MaxPool& op, const Node& node) {
    const ValueId dy = gradient(node.outputs[0]);
    if (dy == kNoValue || !needs(node.inputs[0])) return;
    EK_ASSERT(node.outputs[1] != kNoValue);
    const ValueId dx = gradient_value(node.inputs[0]);
    emit(node, MaxPoolGradient{op}, {dy, node.outputs[1]}, {dx});
    accumulate(node.inputs[0], dx);
  }
  void differentiate(const AveragePool& op, const Node& node) { chain(node, AveragePoolGradient{op}); }
  void differentiate(const Flatten&, const Node& node) { chain(node, FlattenGradient{}); }
  void differentiate(const SubsamplePad& op, const Node& node) { chain(node, SubsamplePadGradient{op}); }
  void differentiate(const Dropout& op, const Node& node) { chain(node, DropoutGradient{op}); }
  void differentiate(const Add&, const Node& node) {
    const ValueId dy = gradient(node.outputs[0]);
    if (dy == kNoValue) return;
    for (const ValueId input : node.inputs) {
      if (needs(input)) accumulate(input, dy);
    }
  }

  Graph graph_;
  size_t forward_nodes_ = 0;
  std::vector<bool> needs_;        // of forward values: does the loss depend on it through something learned
  std::vector<ValueId> gradient_;  // of forward values
};

Op update_op(const OptimizerOptions& o, double decay) {
  switch (o.kind) {
    case OptimizerKind::kSgd:
      return SgdUpdate{0, decay, false};
    case OptimizerKind::kMomentum:
      return SgdUpdate{o.momentum, decay, false};
    case OptimizerKind::kNesterov:
      return SgdUpdate{o.momentum, decay, true};
    case OptimizerKind::kRmsprop:
      return RmspropUpdate{o.alpha, o.eps, decay, 0};
    case OptimizerKind::kAdam:
      return AdamUpdate{o.beta1, o.beta2, o.eps, decay, false};
    case OptimizerKind::kAdamW:
      return AdamUpdate{o.beta1, o.beta2, o.eps, decay, true};
  }
  return SgdUpdate{};
}

std::vector<const char*> state_names(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kSgd:
      return {};
    case OptimizerKind::kMomentum:
    case OptimizerKind::kNesterov:
      return {"momentum"};
    case OptimizerKind::kRmsprop:
      return {"square_average"};
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdamW:
      return {"m", "v"};
  }
  return {};
}

}  // namespace

Graph with_gradients(Graph graph, bool input_gradient) {
  return Differentiator(std::move(graph), input_gradient).run();
}

const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = {"sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw"};
  return names;
}

double usual_weight_decay(OptimizerKind kind) { return kind == OptimizerKind::kAdamW ? 1e-2 : 0; }

OptimizerKind optimizer_from_name(const std::string& name) {
  const auto& names = optimizer_names();
  const auto it = std::find(names.begin(), names.end(), name);
  if (it != names.end()) return static_cast<OptimizerKind>(it - names.begin());
  std::string all;
  for (const std::string& n : names) all += (all.empty() ? "" : ", ") + n;
  const std::string likely = closest_match(name, names);
  throw UsageError("unknown optimizer '" + name + "'" + (likely.empty() ? "" : "; did you mean '" + likely + "'?") +
                   " The optimizers are " + all);
}

const char* name_of(OptimizerKind kind) { return optimizer_names()[static_cast<size_t>(kind)].c_str(); }

Graph with_updates(Graph graph, const OptimizerOptions& options, const std::vector<ParameterInfo>& parameters,
                   std::vector<StateInfo>* states) {
  std::vector<Node> late;  // updates of the running statistics: behind the guard
  std::vector<ValueId> checked;
  std::vector<ValueId> gradients;
  std::vector<Node> nodes;
  for (Node& node : graph.nodes) {
    if (std::holds_alternative<MomentsOf>(node.op)) checked.push_back(node.outputs[0]);
    if (std::holds_alternative<GhostMoments>(node.op)) checked.push_back(node.outputs[1]);
    (is_update(node.op) ? late : nodes).push_back(std::move(node));
  }
  graph.nodes = std::move(nodes);
  checked.push_back(graph.find("loss"));
  std::vector<const ParameterInfo*> updated;
  std::vector<ValueId> weights;
  for (const ParameterInfo& info : parameters) {
    const ValueId gradient = graph.find("grad:" + info.name);
    if (gradient == kNoValue) continue;  // does not reach the loss
    updated.push_back(&info);
    gradients.push_back(gradient);
    for (size_t id = 0; id < graph.values.size(); ++id) {
      if (graph.values[id].role == Role::kParameter && graph.values[id].name == info.name) {
        weights.push_back(static_cast<ValueId>(id));
      }
    }
  }
  EK_ASSERT(weights.size() == updated.size());
  checked.insert(checked.end(), gradients.begin(), gradients.end());
  graph.nodes.push_back({"guard", CheckFinite{}, checked, {}});
  ValueId factor = kNoValue;
  if (options.clip_norm > 0) {
    factor = graph.add_value({"clip factor", Role::kComputed, Element::kF64, false, {}});
    graph.nodes.push_back({"clip", ClipByNorm{options.clip_norm}, gradients, {factor}});
  }
  for (Node& node : late) graph.nodes.push_back(std::move(node));
  for (size_t i = 0; i < updated.size(); ++i) {
    const ParameterInfo& info = *updated[i];
    const double decay = info.decays || options.decay_norm_and_bias ? options.weight_decay : 0;
    std::vector<ValueId> inputs = {weights[i], gradients[i], factor};
    for (const char* state : state_names(options.kind)) {
      const std::string name = std::string("optimizer.") + state + "." + info.name;
      states->push_back({name, info.shape});
      inputs.push_back(graph.add_value({name, Role::kState, Element::kF32, false, info.shape}));
    }
    graph.nodes.push_back({info.name + ".update", update_op(options, decay), std::move(inputs), {}});
  }
  return graph;
}

Graph with_averages(Graph graph, std::vector<StateInfo>* states) {
  std::vector<ValueId> weights;
  for (const Node& node : graph.nodes) {
    if (is_update(node.op) && graph.value(node.inputs[0]).role == Role::kParameter) weights.push_back(node.inputs[0]);
  }
  for (const ValueId weight : weights) {
    const Value parameter = graph.value(weight);
    const std::string name = "average." + parameter.name;
    states->push_back({name, parameter.shape});
    const ValueId average = graph.add_value({name, Role::kState, Element::kF32, false, parameter.shape});
    graph.nodes.push_back({name, AverageWeights{}, {weight, average}, {}});
  }
  return graph;
}

}  // namespace evenkeel
