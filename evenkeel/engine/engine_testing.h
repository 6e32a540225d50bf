// What the tests of the engine share: small networks that have every operation between them, and one of them ready to train or to infer.
//
//   for (const TestNet& net : test_nets()) {
//     TestStep step(net, {.batch = 20, .tile = 3, .threads = 2}, 20);
//     step.train(3);
//     EXPECT_EQ(step.outcome(), ...);
//   }
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/precision.h"

namespace evenkeel {

struct TestNet {
  const char* name;
  Shape input;
  std::function<ValueId(GraphBuilder&, ValueId x, const Activation& hidden)> layers;  // -> four logits
};

namespace test_net {

inline ValueId convolution(GraphBuilder& b, ValueId x, const std::string& name, const ConvOptions& options,
                           const Activation& activation) {
  x = b.batch_norm(name + ".bn", b.conv(name, x, options), {});
  return activation.kind == ActivationKind::kIdentity ? x : b.activate(name + ".act", x, activation);
}

// Convolution, norm, relu and max-pool; a convolution with a bias before its norm; two readers of one value.
inline ValueId plain(GraphBuilder& b, ValueId x, const Activation& hidden) {
  x = convolution(b, x, "conv1", {.out_channels = 7, .padding = 1, .bias = false}, hidden);
  x = b.max_pool("pool1", x, {});
  x = convolution(b, x, "conv2", {.out_channels = 16, .padding = 1, .bias = true}, {ActivationKind::kLeakyRelu, 0.1f});
  x = b.max_pool("pool2", x, {.kernel = 3, .stride = 2, .padding = 1});
  return b.linear("fc", x, {.out_features = 4});
}

inline ValueId block(GraphBuilder& b, ValueId x, const std::string& name, int64_t out, const std::string& shortcut,
                     const Activation& hidden) {
  const int64_t stride = shortcut == "identity" ? 1 : 2;
  ValueId y =
      convolution(b, x, name + ".conv1", {.out_channels = out, .stride = stride, .padding = 1, .bias = false}, hidden);
  y = convolution(b, y, name + ".conv2", {.out_channels = out, .padding = 1, .bias = false}, {});
  if (shortcut == "pad") x = b.subsample_pad(name + ".pad", x, 2, out);
  if (shortcut == "projection") {
    x = convolution(b, x, name + ".project", {.out_channels = out, .kernel = 1, .stride = 2, .bias = false}, {});
  }
  return b.activate(name + ".relu", b.add(name + ".add", y, x), hidden);
}

inline ValueId residual(GraphBuilder& b, ValueId x, const Activation& hidden) {
  x = convolution(b, x, "conv1", {.out_channels = 8, .padding = 1, .bias = false}, hidden);
  x = block(b, x, "same1", 8, "identity", hidden);
  x = block(b, x, "same2", 8, "identity", hidden);
  x = block(b, x, "pad", 16, "pad", hidden);
  x = block(b, x, "project", 24, "projection", hidden);
  return b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
}

// Groups, biases, smooth activations, average pooling, dropout, a norm of a linear layer and one without affine parameters.
inline ValueId mixed(GraphBuilder& b, ValueId x, const Activation& hidden) {
  x = b.activate("tanh", b.conv("grouped", x, {.out_channels = 8, .padding = 1, .groups = 2}), {ActivationKind::kTanh});
  x = b.average_pool("average1", x, {.kernel = 3, .stride = 2, .padding = 1, .count_include_pad = false});
  x = convolution(b, x, "conv2", {.out_channels = 12, .kernel = 1}, {ActivationKind::kGelu});
  x = b.dropout("dropout1", x, 0.2);
  x = b.average_pool("average2", x, {});
  x = b.flatten("flatten", x);
  x = b.linear("fc1", x, {.out_features = 70, .bias = false});
  x = b.activate("relu", b.batch_norm("fc1.bn", x, {.affine = false}), hidden);
  x = b.dropout("dropout2", x, 0.5);
  return b.linear("fc2", x, {.out_features = 4});
}

}  // namespace test_net

inline std::vector<TestNet> test_nets() {
  return {{"plain", {3, 10, 9}, test_net::plain},
          {"residual", {3, 12, 12}, test_net::residual},
          {"mixed", {4, 9, 7}, test_net::mixed}};
}

// Everything by name, to the bit.
using Bits = std::map<std::string, std::vector<std::byte>>;

// A network with its store, compiled for training with momentum or for inference, and examples for it.
class TestStep {
 public:
  TestStep(const TestNet& net, const PlanOptions& options, int64_t n, Mode mode = Mode::kTrain,
           ActivationKind hidden = ActivationKind::kRelu, Precision precision = Precision::kF32,
           const std::string& spill_folder = "", Comm* comm = nullptr)
      : TestStep(
            net, options, n, mode, hidden,
            [precision](Graph graph) { return with_precision(std::move(graph), precision); }, spill_folder, comm) {}
  // pass: graph -> graph, of the whole step. comm: of options.ranks ranks, each of which makes the same TestStep.
  TestStep(const TestNet& net, const PlanOptions& options, int64_t n, Mode mode, ActivationKind hidden,
           const std::function<Graph(Graph)>& pass, const std::string& spill_folder = "", Comm* comm = nullptr)
      : n_(n), elements_(element_count(net.input)), comm_(comm) {
    GraphBuilder b(mode);
    const ValueId logits = net.layers(b, b.input(net.input), {hidden});
    b.set_name("logits", logits);
    if (mode == Mode::kTrain) b.softmax_cross_entropy(logits, b.labels(), 0.1);
    const auto parameters = b.parameters();
    const auto buffers = b.buffers();
    Graph graph = b.take();
    std::vector<StateInfo> states;
    if (mode == Mode::kTrain) {
      const OptimizerOptions momentum{.kind = OptimizerKind::kMomentum, .weight_decay = 1e-3, .clip_norm = 5};
      graph = with_updates(with_gradients(std::move(graph)), momentum, parameters, &states);
    }
    fill_store(parameters, buffers, states);
    graph = pass(std::move(graph));
    executable_ =
        cpu_backend(options.threads, spill_folder)->compile(make_plan(std::move(graph), options), store_, comm);
    RandomStream random(5, RandomUse::kInitialize);
    for (int64_t i = 0; i < n * elements_; ++i) x_.push_back(static_cast<float>(random.next_normal()));
    for (int64_t i = 0; i < n; ++i) labels_.push_back(static_cast<int32_t>(i * i % 4));
  }

  // Examples [first, first + count) of those that there are.
  RunArguments arguments(int64_t first, int64_t count, int64_t step = 1) const {
    return {.x = x_.data() + first * elements_,
            .labels = labels_.data() + first,
            .n = count,
            .learning_rate = 0.05,
            .step = step,
            .seed = 11,
            .epoch = 1};
  }
  // This rank's share of the first `count` examples.
  RunArguments shared_arguments(int64_t count, int64_t step = 1) const {
    if (comm_ == nullptr) return arguments(0, count, step);
    const Shard share = shard_of(count, executable_->plan().shard_unit, comm_->size(), comm_->rank());
    RunArguments shared = arguments(share.first, share.rows, step);
    shared.batch = count;
    shared.first = share.first;
    return shared;
  }
  RunResult run(int64_t step = 1) { return executable_->run(shared_arguments(n_, step)); }
  bool train(int64_t steps) {
    bool finite = true;
    for (int64_t step = 1; step <= steps; ++step) finite = run(step).finite && finite;
    return finite;
  }

  double loss() const { return executable_->scalar("loss"); }
  Executable& executable() { return *executable_; }
  ParameterStore& store() { return store_; }
  int64_t n() const { return n_; }

  // The loss, all gradients, parameters, running statistics and states.
  Bits outcome() const {
    Bits bits;
    const double value = loss();
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    bits["loss"].assign(bytes, bytes + sizeof value);
    for (const auto& [name, tensor] : store_.tensors()) bits[name].assign(tensor.raw(), tensor.raw() + tensor.bytes());
    for (const auto& [name, id] : executable_->plan().graph.named) {
      if (!name.starts_with("grad:")) continue;
      const Tensor gradient = executable_->read(name);
      bits[name].assign(gradient.raw(), gradient.raw() + gradient.bytes());
    }
    return bits;
  }

 private:
  void fill_store(const std::vector<ParameterInfo>& parameters, const std::vector<BufferInfo>& buffers,
                  const std::vector<StateInfo>& states) {
    RandomStream random(3, RandomUse::kInitialize);
    for (const ParameterInfo& info : parameters) {
      Tensor tensor(DType::kF32, info.shape);
      const float bound = 1 / std::sqrt(static_cast<float>(std::max<int64_t>(1, info.fan_in)));
      for (float& w : tensor.values<float>())
        w = info.init == Init::kOne ? 0.5f + random.next_uniform() : bound * (2 * random.next_uniform() - 1);
      store_.add(info.name, std::move(tensor));
    }
    for (const BufferInfo& info : buffers) {
      Tensor tensor(info.dtype, info.shape);
      if (info.dtype == DType::kF32) {
        for (float& v : tensor.values<float>()) v = static_cast<float>(info.initial);
      }
      store_.add(info.name, std::move(tensor));
    }
    for (const StateInfo& info : states) store_.add(info.name, Tensor(DType::kF32, info.shape));
  }

  int64_t n_, elements_;
  Comm* comm_;
  ParameterStore store_;
  std::unique_ptr<Executable> executable_;
  std::vector<float> x_;
  std::vector<int32_t> labels_;
};

// The first name whose bits differ; "" when all are the same.
inline std::string first_difference(const Bits& a, const Bits& b) {
  if (a.size() != b.size()) return "other names";
  for (const auto& [name, bytes] : a) {
    const auto other = b.find(name);
    if (other == b.end() || other->second != bytes) return name;
  }
  return "";
}

}  // namespace evenkeel
