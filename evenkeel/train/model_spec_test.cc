// build_network: how a specification becomes a graph.
#include "evenkeel/train/model_spec.h"

#include <algorithm>
#include <functional>

#include <gtest/gtest.h>

#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"

namespace evenkeel {
namespace {

LayerSpec layer(const std::string& type, int64_t out = 0) {
  LayerSpec l;
  l.type = type;
  l.out = out;
  if (type == "conv") l.padding = 1;
  return l;
}
LayerSpec residual(std::vector<LayerSpec> body, const std::string& shortcut = "identity") {
  LayerSpec l = layer("residual");
  l.body = std::move(body);
  l.shortcut = shortcut;
  return l;
}
LayerSpec strided(LayerSpec l, int64_t stride) {
  l.stride = stride;
  return l;
}
ModelSpec spec_of(std::vector<LayerSpec> layers, const Shape& input = {3, 8, 8}) {
  ModelSpec spec;
  spec.name = "test";
  spec.input = input;
  spec.classes = 10;
  spec.layers = std::move(layers);
  return spec;
}

std::vector<std::string> parameters_of(const Network& network) {
  std::vector<std::string> names;
  for (const ParameterInfo& info : network.parameters) names.push_back(info.name);
  return names;
}
std::vector<std::string> parameters_of(const ModelSpec& spec) {
  return parameters_of(build_network(spec, Mode::kTrain));
}
using Names = std::vector<std::string>;

std::vector<std::string> ops_of(const ModelSpec& spec) {
  std::vector<std::string> names;
  const Graph graph = build_network(spec, Mode::kInference, {.with_loss = false}).graph;
  for (const Node& node : graph.nodes) {
    if (!std::holds_alternative<ScaleOfRunning>(node.op)) names.push_back(name_of(node.op));
  }
  return names;
}

std::string refusal_of(const ModelSpec& spec) {
  try {
    build_network(spec, Mode::kTrain);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}
void expect_refusal(const ModelSpec& spec, const std::string& name, const std::string& part) {
  const std::string message = refusal_of(spec);
  EXPECT_NE(message.find(name), std::string::npos) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

const ParameterInfo& parameter(const Network& network, const std::string& name) {
  const auto it =
      std::find_if(network.parameters.begin(), network.parameters.end(), [&](const auto& p) { return p.name == name; });
  EK_ASSERT(it != network.parameters.end());
  return *it;
}

TEST(BuildNetwork, layers_without_names_are_numbered_by_their_type) {
  EXPECT_EQ(parameters_of(spec_of({layer("conv", 4), layer("max_pool"), layer("conv", 5), layer("linear", 6),
                                   layer("linear", 7), layer("linear")})),
            (Names{"conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias", "fc1.weight",
                   "bn3.weight", "bn3.bias", "fc2.weight", "bn4.weight", "bn4.bias", "fc3.weight", "fc3.bias"}));
}

TEST(BuildNetwork, names_made_up_keep_clear_of_names_given) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("conv", 5), layer("linear")});
  spec.layers[1].name = "conv1";
  spec.layers[1].norm_name = "bn2";
  EXPECT_EQ(parameters_of(spec), (Names{"conv2.weight", "bn1.weight", "bn1.bias", "conv1.weight", "bn2.weight",
                                        "bn2.bias", "fc1.weight", "fc1.bias"}));
  spec = spec_of({layer("conv", 4), layer("linear")});
  spec.layers[0].name = "stem";
  EXPECT_EQ(parameters_of(spec)[1], "stem.bn.weight");
}

TEST(BuildNetwork, a_layer_that_feeds_a_norm_has_no_bias) {
  const ModelSpec spec = spec_of({layer("conv", 4), layer("linear", 6), layer("linear")});
  const Names names = parameters_of(spec);
  EXPECT_EQ(std::count(names.begin(), names.end(), "conv1.bias"), 0);
  EXPECT_EQ(std::count(names.begin(), names.end(), "fc1.bias"), 0);
  EXPECT_EQ(std::count(names.begin(), names.end(), "fc2.bias"), 1);
  EXPECT_TRUE(build_network(spec, Mode::kTrain).warnings.empty());
}

TEST(BuildNetwork, a_bias_asked_for_before_a_norm_is_kept_with_one_warning_that_says_why) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("conv", 4), layer("conv", 4), layer("linear")});
  spec.layers[0].bias = true;
  spec.layers[1].bias = false;
  spec.layers[2].bias = true;
  const Network network = build_network(spec, Mode::kTrain);
  const Names names = parameters_of(network);
  EXPECT_EQ(std::count(names.begin(), names.end(), "conv1.bias"), 1);
  EXPECT_EQ(std::count(names.begin(), names.end(), "conv2.bias"), 0);
  ASSERT_EQ(network.warnings.size(), 1u);
  EXPECT_NE(network.warnings[0].find("'conv1', 'conv3'"), std::string::npos) << network.warnings[0];
  EXPECT_NE(network.warnings[0].find("subtracts the mean, and the bias with it"), std::string::npos);
}

TEST(BuildNetwork, a_norm_after_the_activation_leaves_the_bias) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("linear")});
  spec.placement = NormPlacement::kAfter;
  EXPECT_EQ(parameters_of(spec),
            (Names{"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "fc1.weight", "fc1.bias"}));
  EXPECT_EQ(ops_of(spec), (Names{"Conv", "Activate", "Normalize", "Flatten", "Gemm", "Softmax"}));
  spec.layers[0].bias = true;
  EXPECT_TRUE(build_network(spec, Mode::kTrain).warnings.empty());
  // Without an activation between, the norm follows at once, wherever it is placed.
  spec.layers[0].bias.reset();
  spec.layers[0].activation = Activation{};
  EXPECT_EQ(parameters_of(spec)[1], "bn1.weight");
}

TEST(BuildNetwork, without_norms_every_layer_has_its_bias) {
  ModelSpec spec =
      spec_of({layer("conv", 4), residual({layer("conv", 8), layer("conv", 8)}, "projection"), layer("linear")});
  spec.norm = NormKind::kNone;
  const Network network = build_network(spec, Mode::kTrain);
  EXPECT_TRUE(network.buffers.empty());
  EXPECT_TRUE(network.warnings.empty());
  EXPECT_EQ(parameters_of(network), (Names{"conv1.weight", "conv1.bias", "block1.conv1.weight", "block1.conv1.bias",
                                           "block1.conv2.weight", "block1.conv2.bias", "block1.downsample.0.weight",
                                           "block1.downsample.0.bias", "fc1.weight", "fc1.bias"}));
}

TEST(BuildNetwork, norm_none_of_the_network_overrules_its_layers_and_says_so) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("conv", 4), layer("norm"), layer("linear")});
  spec.layers[0].norm = NormKind::kBatch;
  spec.norm = NormKind::kNone;
  const Network network = build_network(spec, Mode::kTrain);
  EXPECT_TRUE(network.buffers.empty());
  ASSERT_EQ(network.warnings.size(), 1u);
  EXPECT_NE(network.warnings[0].find("'conv1', 'bn1'"), std::string::npos) << network.warnings[0];
  EXPECT_EQ(parameters_of(network)[3], "conv2.bias");
}

TEST(BuildNetwork, the_last_layer_has_neither_norm_nor_activation_unless_it_says_so) {
  ModelSpec spec = spec_of({layer("linear")}, {5});
  EXPECT_EQ(ops_of(spec), (Names{"Gemm", "Softmax"}));
  spec.layers[0].norm = NormKind::kBatch;
  spec.layers[0].activation = Activation{ActivationKind::kTanh};
  EXPECT_EQ(ops_of(spec), (Names{"Gemm", "Normalize", "Softmax"}));
  EXPECT_EQ(parameters_of(spec), (Names{"fc1.weight", "bn1.weight", "bn1.bias"}));
  // A convolution that ends the network, pooled to one value per class.
  EXPECT_EQ(ops_of(spec_of({layer("conv"), layer("global_avg_pool")})),
            (Names{"Conv", "AveragePool", "Flatten", "Softmax"}));
}

TEST(BuildNetwork, norm_and_activation_layers_of_their_own_replace_the_defaults_of_the_layer_before) {
  EXPECT_EQ(ops_of(spec_of({layer("conv", 4), layer("norm"), layer("activation"), layer("linear")})),
            (Names{"Conv", "Normalize", "Flatten", "Gemm", "Softmax"}));
  EXPECT_EQ(parameters_of(spec_of({layer("conv", 4), layer("norm"), layer("linear")}))[1], "bn1.weight");
  ModelSpec tanh = spec_of({layer("conv", 4), layer("activation"), layer("linear")});
  tanh.layers[1].activation = Activation{ActivationKind::kTanh};
  const Graph graph = build_network(tanh, Mode::kTrain).graph;
  const auto norm = std::find_if(graph.nodes.begin(), graph.nodes.end(),
                                 [](const Node& node) { return std::holds_alternative<Normalize>(node.op); });
  EXPECT_EQ(std::get<Normalize>(norm->op).activation.kind, ActivationKind::kTanh);
}

TEST(BuildNetwork, a_layer_whose_output_also_goes_around_the_norm_keeps_its_bias) {
  // Pre-activation: the block begins with the norm, but the shortcut passes the bias on.
  const Names names =
      parameters_of(spec_of({[] {
                               LayerSpec l = layer("conv", 4);
                               l.norm = NormKind::kNone;
                               return l;
                             }(),
                             residual({layer("norm"), layer("activation"), layer("conv", 4)}), layer("linear")}));
  EXPECT_EQ(names[1], "conv1.bias");
}

TEST(BuildNetwork, a_residual_block_is_one_normalize_behind_its_last_convolution) {
  const ModelSpec spec = spec_of(
      {layer("conv", 4), residual({layer("conv", 4), layer("conv", 4)}), layer("global_avg_pool"), layer("linear")});
  EXPECT_EQ(ops_of(spec), (Names{"Conv", "Normalize", "Conv", "Normalize", "Conv", "Normalize", "AveragePool",
                                 "Flatten", "Gemm", "Softmax"}));
  const Graph graph = build_network(spec, Mode::kTrain).graph;
  const auto last = std::find_if(graph.nodes.rbegin(), graph.nodes.rend(),
                                 [](const Node& node) { return std::holds_alternative<Normalize>(node.op); });
  EXPECT_NE(last->inputs[4], kNoValue);
  EXPECT_EQ(std::get<Normalize>(last->op).activation.kind, ActivationKind::kRelu);
}

TEST(BuildNetwork, shortcuts_follow_the_stride_and_the_channels_of_the_body) {
  for (const char* shortcut : {"pad", "projection"}) {
    // Strides round up on odd sizes in both ways, 9 x 8 -> 5 x 4; a pooling rounds down, so it needs even sizes.
    const LayerSpec halving = residual({strided(layer("conv", 8), 2), layer("conv", 8)}, shortcut);
    const LayerSpec pooling = residual({layer("conv", 9), layer("max_pool")}, shortcut);
    EXPECT_EQ(refusal_of(spec_of({layer("conv", 4), halving, layer("linear")}, {3, 9, 8})), "");
    EXPECT_EQ(refusal_of(spec_of({layer("conv", 4), pooling, layer("linear")}, {3, 6, 8})), "");
    expect_refusal(spec_of({layer("conv", 4), pooling, layer("linear")}, {3, 9, 8}), "'block1'", "[9, 4, 4]");
  }
  const ModelSpec even =
      spec_of({residual({strided(layer("conv", 8), 2), layer("conv", 8)}, "projection"), layer("linear")});
  EXPECT_EQ(parameters_of(even),
            (Names{"block1.conv1.weight", "block1.bn1.weight", "block1.bn1.bias", "block1.conv2.weight",
                   "block1.bn2.weight", "block1.bn2.bias", "block1.downsample.0.weight", "block1.downsample.1.weight",
                   "block1.downsample.1.bias", "fc1.weight", "fc1.bias"}));
  ModelSpec table = spec_of({residual({layer("linear", 8), layer("linear", 6)}, "projection"), layer("linear")}, {5});
  table.layers[0].shortcut_name = "skip";
  EXPECT_EQ(build_network(table, Mode::kTrain).parameters[6].name, "block1.skip.0.weight");
}

TEST(BuildNetwork, residual_blocks_may_hold_residual_blocks) {
  const ModelSpec spec = spec_of({residual({residual({layer("conv", 3)}), layer("conv", 3)}), layer("linear")});
  EXPECT_EQ(parameters_of(spec)[0], "block1.block1.conv1.weight");
  ModelSpec deep = spec;
  for (int i = 0; i < 20; ++i) deep.layers[0] = residual({deep.layers[0]});
  expect_refusal(deep, "block1.block1", "nest at most");
}

TEST(BuildNetwork, zero_gamma_without_residual_blocks_is_a_warning) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("linear")});
  spec.zero_gamma = true;
  const Network network = build_network(spec, Mode::kTrain);
  ASSERT_EQ(network.warnings.size(), 1u);
  EXPECT_NE(network.warnings[0].find("no residual blocks"), std::string::npos);
}

TEST(BuildNetwork, zero_gamma_is_for_the_norm_that_ends_the_body_of_a_block) {
  ModelSpec spec = spec_of({layer("conv", 4), residual({layer("conv", 4), layer("conv", 4)}), layer("linear")});
  spec.zero_gamma = true;
  const Network network = build_network(spec, Mode::kTrain);
  EXPECT_EQ(parameter(network, "bn1.weight").init, Init::kOne);
  EXPECT_EQ(parameter(network, "block1.bn1.weight").init, Init::kOne);
  EXPECT_EQ(parameter(network, "block1.bn2.weight").init, Init::kZero);
  EXPECT_TRUE(network.warnings.empty());
  // With a ReLU behind it, a gamma of zero would close the gate for good: left at one, and said.
  spec.layers[1].body[1].activation = Activation{ActivationKind::kRelu};
  const Network gated = build_network(spec, Mode::kTrain);
  EXPECT_EQ(parameter(gated, "block1.bn2.weight").init, Init::kOne);
  ASSERT_EQ(gated.warnings.size(), 1u);
  EXPECT_NE(gated.warnings[0].find("zero_gamma"), std::string::npos);
}

TEST(BuildNetwork, the_two_modes_have_the_same_parameters_and_buffers) {
  for (const std::string& name : zoo_names()) {
    const ModelSpec spec = zoo_model(name, {3, 32, 32}, 10);
    const Network train = build_network(spec, Mode::kTrain);
    for (const Mode mode : {Mode::kInference, Mode::kInferenceBatchStatistics}) {
      const Network other = build_network(spec, mode, {.with_loss = false});
      EXPECT_EQ(parameters_of(other), parameters_of(train));
      ASSERT_EQ(other.buffers.size(), train.buffers.size());
      EXPECT_NE(other.graph.find("probabilities"), kNoValue);
      EXPECT_EQ(other.graph.find("loss"), kNoValue);
      EXPECT_EQ(other.graph.find("labels"), kNoValue);
    }
    for (const char* value : {"x", "logits", "labels", "loss", "correct"})
      EXPECT_NE(train.graph.find(value), kNoValue) << value;
    EXPECT_EQ(train.graph.find("probabilities"), kNoValue);
  }
}

TEST(BuildNetwork, eval_may_have_the_loss_too) {
  const Network network = build_network(zoo_model("mlp", {4}, 3), Mode::kInference);
  for (const char* value : {"probabilities", "loss", "correct"})
    EXPECT_NE(network.graph.find(value), kNoValue) << value;
}

TEST(BuildNetwork, the_loss_is_the_one_asked_for) {
  ModelSpec spec = spec_of({layer("linear")}, {5});
  spec.label_smoothing = 0.25;
  const auto loss_of = [&] { return build_network(spec, Mode::kTrain).graph.nodes.back().op; };
  EXPECT_EQ(std::get<SoftmaxCrossEntropyLoss>(loss_of()).label_smoothing, 0.25);
  spec.loss = "mse";
  expect_refusal(spec, "label smoothing", "cross_entropy");
  spec.label_smoothing = 0;
  EXPECT_TRUE(std::holds_alternative<MeanSquaredError>(loss_of()));
  spec.loss = "mcse";
  expect_refusal(spec, "unknown loss 'mcse'", "did you mean 'mse'");
}

TEST(BuildNetwork, the_initialisation_reaches_the_weights) {
  ModelSpec spec = spec_of({layer("conv", 4), layer("linear")});
  spec.init = Init::kNormal;
  spec.init_sigma = 0.5;
  const Network network = build_network(spec, Mode::kTrain);
  EXPECT_EQ(parameter(network, "conv1.weight").init, Init::kNormal);
  EXPECT_EQ(parameter(network, "conv1.weight").init_scale, 0.5);
  EXPECT_EQ(parameter(network, "fc1.bias").init, Init::kZero);
  spec.init_sigma = 0;
  expect_refusal(spec, "init_sigma", "positive");
}

TEST(BuildNetwork, what_does_not_fit_is_refused_by_the_name_of_the_layer) {
  expect_refusal(spec_of({layer("conv", 4), layer("linear")}, {5}), "'conv1'", "channels x height x width");
  expect_refusal(spec_of({layer("max_pool"), layer("max_pool"), layer("max_pool"), layer("max_pool"), layer("linear")}),
                 "'pool4'", "does not fit");
  expect_refusal(spec_of({layer("conv"), layer("linear")}), "'conv1'", "'out' is missing");
  expect_refusal(spec_of({residual({layer("conv", 4)}), layer("linear")}), "'block1'", "same shape");
  expect_refusal(spec_of({residual({layer("conv", 2)}, "pad"), layer("linear")}), "'block1.shortcut'", "projection");
  expect_refusal(spec_of({residual({layer("conv", 3)}, "projektion"), layer("linear")}), "'block1'",
                 "did you mean 'projection'");
  expect_refusal(spec_of({residual({}), layer("linear")}), "'block1'", "no body");
  expect_refusal(spec_of({layer("convolution", 3), layer("linear")}), "convolution", "unknown type");
  expect_refusal(spec_of({layer("linear", 7)}), "7 outputs", "10 classes");
  expect_refusal(spec_of({layer("conv", 4), layer("flatten")}), "256 outputs", "10 classes");
  expect_refusal(spec_of({}), "no layers", "[[layer]]");
}

TEST(BuildNetwork, sizes_that_would_overflow_are_refused) {
  const int64_t huge = int64_t{1} << 62;
  const std::vector<std::function<void(LayerSpec&)>> changes = {
      [&](LayerSpec& l) { l.out = huge; },      [&](LayerSpec& l) { l.kernel = huge; },
      [&](LayerSpec& l) { l.stride = huge; },   [&](LayerSpec& l) { l.padding = huge; },
      [&](LayerSpec& l) { l.dilation = huge; }, [&](LayerSpec& l) { l.groups = huge; },
      [&](LayerSpec& l) { l.out = -1; },        [&](LayerSpec& l) { l.stride = -1; }};
  for (const auto& change : changes) {
    ModelSpec spec = spec_of({layer("conv", 4), layer("linear")});
    change(spec.layers[0]);
    expect_refusal(spec, "'conv1'", "must be from 0 to");
  }
  expect_refusal(spec_of({layer("linear")}, {3, huge, huge}), "input", "supported");
  ModelSpec classes = spec_of({layer("linear")});
  classes.classes = huge;
  expect_refusal(classes, "classes", "");
}

TEST(BuildNetwork, a_network_with_a_norm_on_dense_layers_is_refused_a_batch_of_one) {
  const Graph graph = with_gradients(build_network(zoo_model("mlp", {1, 28, 28}, 10), Mode::kTrain).graph);
  EXPECT_THROW(make_plan(graph, {.batch = 1}), UsageError);
  EXPECT_NO_THROW(make_plan(build_network(zoo_model("cnn", {1, 28, 28}, 10), Mode::kTrain).graph, {.batch = 1}));
}

}  // namespace
}  // namespace evenkeel
