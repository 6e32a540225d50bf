// What the exported model says, and that it answers as ours does here; tests/onnx_export_test.py asks an independent runtime.
#include "evenkeel/tools/export_onnx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Model zoo(const std::string& name, const Shape& input, int64_t classes) {
  Model model;
  model.spec = zoo_model(name, input, classes);
  model.standardization.mean.assign(static_cast<size_t>(input[0]), 0.5);
  model.standardization.std.assign(static_cast<size_t>(input[0]), 0.25);
  initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 3, &model.store);
  return model;
}

std::vector<const onnx::Node*> nodes_of(const onnx::Model& model, const std::string& op) {
  std::vector<const onnx::Node*> found;
  for (const onnx::Node& node : model.graph.nodes) {
    if (node.op_type == op) found.push_back(&node);
  }
  return found;
}

TEST(ExportOnnx, initializers_keep_the_names_of_the_state_dict_and_their_bits) {
  const Model model = zoo("resnet20", {3, 32, 32}, 10);
  const onnx::Model exported = to_onnx(model);
  EXPECT_EQ(exported.opset(), 17);
  EXPECT_EQ(exported.ir_version, 8);
  EXPECT_EQ(nodes_of(exported, "BatchNormalization").size(), 19u);
  size_t found = 0;
  for (const auto& [name, tensor] : model.store.tensors()) {
    if (name.ends_with("num_batches_tracked")) continue;
    const onnx::TensorValue* initializer = exported.graph.initializer(name);
    ASSERT_NE(initializer, nullptr) << name;
    ++found;
    const auto values = tensor.values<float>();
    EXPECT_EQ(onnx::floats_of(*initializer), std::vector<float>(values.begin(), values.end())) << name;
  }
  EXPECT_EQ(found, 19u * 4 + 19 + 2) << "norms, convolutions, a linear layer";
}

TEST(ExportOnnx, nodes_have_names_of_layers_and_values_are_made_once_in_order) {
  for (const char* name : {"cnn", "lenet", "vgg11", "resnet18"}) {
    const onnx::Model exported = to_onnx(zoo(name, {3, 32, 32}, 10));
    std::set<std::string> made = {"input"}, names;
    for (const onnx::TensorValue& tensor : exported.graph.initializers) EXPECT_TRUE(made.insert(tensor.name).second);
    for (const onnx::Node& node : exported.graph.nodes) {
      EXPECT_TRUE(names.insert(node.name).second) << node.name;
      for (const std::string& input : node.inputs) EXPECT_TRUE(input.empty() || made.count(input) > 0) << input;
      for (const std::string& output : node.outputs) EXPECT_TRUE(made.insert(output).second) << output;
    }
    EXPECT_TRUE(names.count(name == std::string("vgg11") ? "features.0" : "conv1") > 0);
    EXPECT_TRUE(made.count("logits") > 0);
  }
}

TEST(ExportOnnx, the_batch_is_a_symbol_and_metadata_say_what_the_input_means) {
  Model model = zoo("cnn", {1, 28, 28}, 3);
  model.class_names = {"a", "\"b\"", "c"};
  const onnx::Model exported = to_onnx(model, {.batch = "batch"});
  ASSERT_EQ(exported.graph.inputs.size(), 1u);
  EXPECT_EQ(exported.graph.inputs[0].dims->at(0).symbol, "batch");
  EXPECT_EQ(exported.graph.inputs[0].dims->at(3).value, 28);
  EXPECT_EQ(exported.graph.outputs[0].dims->at(1).value, 3);
  EXPECT_EQ(exported.metadata.at("evenkeel.classes"), R"(["a","\"b\"","c"])");
  EXPECT_EQ(exported.metadata.at("evenkeel.input"), "pixels / 255, channels first");
  EXPECT_THAT(exported.metadata.at("evenkeel.running_statistics"),
              HasSubstr("weight of a new batch 0.1 (PyTorch momentum 0.1, Keras/ONNX momentum 0.9); running variance "
                        "unbiased (n-1)"));
  EXPECT_EQ(nodes_of(exported, "Sub").size(), 1u);
  model.data_name = "/folder/of/pictures";
  EXPECT_EQ(to_onnx(model).metadata.at("evenkeel.data"), "pictures") << "folders are nobody's business";
  const onnx::Model bare = to_onnx(model, {.standardization = false});
  EXPECT_TRUE(nodes_of(bare, "Sub").empty());
  EXPECT_THAT(bare.metadata.at("evenkeel.input"), AllOf(HasSubstr("mean 0.5"), HasSubstr("std 0.25")));
}

TEST(ExportOnnx, training_mode_has_the_new_running_statistics_as_outputs) {
  Model model = zoo("lenet", {1, 28, 28}, 10);
  model.spec.norm_options.new_batch_weight = 0.01;
  model.spec.norm_switches.freeze_running = {"bn2"};
  model.spec.norm_switches.use_running = {"bn2", "bn3"};
  model.spec.norm_switches.freeze = {"bn3"};
  const onnx::Model exported = to_onnx(model, {.training = true});
  const auto norms = nodes_of(exported, "BatchNormalization");
  ASSERT_EQ(norms.size(), 4u);
  EXPECT_EQ(norms[0]->integer("training_mode", 0), 1);
  EXPECT_EQ(norms[0]->number("momentum", 0), 0.99f);
  EXPECT_THAT(norms[0]->outputs, ElementsAre("bn1", "bn1.running_mean.next", "bn1.running_var.next"));
  for (const size_t frozen : {size_t{1}, size_t{2}}) {
    EXPECT_EQ(norms[frozen]->integer("training_mode", 0), 0);
    EXPECT_EQ(norms[frozen]->outputs.size(), 1u) << "extra outputs are invalid without training_mode";
  }
  std::vector<std::string> outputs;
  for (const onnx::ValueInfo& info : exported.graph.outputs) outputs.push_back(info.name);
  EXPECT_THAT(outputs, ElementsAre("logits", "bn1.running_mean.next", "bn1.running_var.next", "bn4.running_mean.next",
                                   "bn4.running_var.next"));
}

TEST(ExportOnnx, statistics_that_are_updated_but_not_used_have_no_words) {
  Model model = zoo("lenet", {1, 28, 28}, 10);
  model.spec.norm_switches.use_running = {"bn2"};
  EXPECT_THAT(message_of<BackendError>([&] { to_onnx(model, {.training = true}); }), HasSubstr("norm 'bn2'"));
  model.spec.norm_options.cumulative = true;
  EXPECT_THAT(message_of<BackendError>([&] { to_onnx(model, {.training = true}); }),
              HasSubstr("norm 'bn1' keeps the plain average of all batches"));
  EXPECT_NO_THROW(to_onnx(model));
}

TEST(ExportOnnx, bias_corrected_statistics_are_exported_as_they_are_read) {
  Model model = zoo("lenet", {1, 28, 28}, 10);
  model.spec.norm_options.bias_corrected = true;
  model.spec.norm_options.new_batch_weight = 0.5;
  for (float& v : model.store.writable("bn1.running_var").values<float>()) v = 3;
  model.store.writable("bn1.num_batches_tracked").values<int64_t>()[0] = 2;  // 1 - 0.5^2 of the weight is there
  EXPECT_EQ(onnx::floats_of(*to_onnx(model).graph.initializer("bn1.running_var"))[0], 4.0f);
}

TEST(ExportOnnx, a_corrected_norm_that_has_seen_no_batch_is_exported_with_the_start_values) {
  Model model = zoo("lenet", {1, 28, 28}, 10);
  model.spec.norm_options.bias_corrected = true;
  for (float& v : model.store.writable("bn1.running_var").values<float>()) v = 0;
  const onnx::Model exported = to_onnx(model);
  EXPECT_EQ(onnx::floats_of(*exported.graph.initializer("bn1.running_mean"))[0], 0.0f);
  EXPECT_EQ(onnx::floats_of(*exported.graph.initializer("bn1.running_var"))[0], 1.0f);
}

// Parameters and statistics of every norm far from where they start.
void stir(Model& model) {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<float> spread(0.5f, 1.5f);
  for (const auto& [name, tensor] : model.store.tensors()) {
    if (tensor.dtype() != DType::kF32) continue;
    const bool positive = name.ends_with("running_var");
    if (!positive && !name.ends_with("running_mean") && tensor.shape().size() != 1) continue;
    for (float& v : model.store.writable(name).values<float>()) v = positive ? spread(random) : spread(random) - 0.6f;
  }
}

// Our own probabilities against the softmax of what the exported network gives for the same bytes / 255.
void expect_same_answers(Model& model) {
  constexpr int64_t kCount = 5;
  data::Dataset dataset;
  dataset.name = "bytes";
  dataset.count = kCount;
  dataset.example_shape = model.spec.input;
  Shape shape = model.spec.input;
  shape.insert(shape.begin(), kCount);
  dataset.values = Tensor(DType::kU8, shape);
  dataset.labels.assign(kCount, -1);
  std::mt19937_64 random(7);
  std::vector<float> x;
  for (uint8_t& byte : dataset.values.values<uint8_t>()) {
    byte = static_cast<uint8_t>(random());
    x.push_back(static_cast<float>(byte) / 255);
  }
  const EvalResult ours = evaluate(model, dataset, {});
  inference::Program program(to_onnx(model), {.inputs = {{"input", shape}}});
  program.run({{"input", x.data()}});
  const auto logits = program.output("logits");
  const auto classes = static_cast<size_t>(model.spec.classes);
  ASSERT_EQ(logits.size(), ours.probabilities.size());
  for (size_t i = 0; i < logits.size(); i += classes) {
    double largest = logits[i], sum = 0;
    for (size_t c = 0; c < classes; ++c) largest = std::max<double>(largest, logits[i + c]);
    for (size_t c = 0; c < classes; ++c) sum += std::exp(logits[i + c] - largest);
    for (size_t c = 0; c < classes; ++c)
      EXPECT_NEAR(std::exp(logits[i + c] - largest) / sum, ours.probabilities[i + c], 1e-5)
          << model.spec.name << " " << c;
  }
}

TEST(ExportOnnx, the_exported_network_answers_as_ours_does) {
  for (const char* name : {"cnn", "cnn-gap", "lenet", "resnet20", "vgg11", "resnet18"}) {
    Model model = zoo(name, {3, 32, 32}, 10);
    stir(model);
    expect_same_answers(model);
  }
  Model table = zoo("mlp", {3, 8, 8}, 4);
  stir(table);
  expect_same_answers(table);
}

TEST(ExportOnnx, every_norm_and_activation_answers_as_ours_does) {
  int64_t round = 0;
  for (const NormKind kind : {NormKind::kNone, NormKind::kBatch, NormKind::kRenorm, NormKind::kGroup, NormKind::kLayer,
                              NormKind::kInstance}) {
    for (const NormPlacement placement : {NormPlacement::kBefore, NormPlacement::kAfter}) {
      for (const std::string& activation : activation_names()) {
        if (++round % 3 != 0) continue;  // a third of all pairs: every kind and every activation is among them
        Model model;
        model.spec = zoo_model("cnn-gap", {3, 8, 8}, 5);
        model.spec.name = norm_kind_names()[static_cast<size_t>(kind)] + " " + activation;
        model.spec.norm = kind;
        model.spec.placement = placement;
        model.spec.norm_options.eps = 0.1;  // not ONNX' default: it must be seen
        model.spec.activation.kind = *activation_from_name(activation);
        model.standardization = {{0.5, 0.4, 0.3}, {0.25, 0.2, 0.3}};
        initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 3, &model.store);
        stir(model);
        expect_same_answers(model);
      }
    }
  }
}

TEST(ExportOnnx, a_written_model_is_read_back_as_it_was) {
  const TestFolder folder;
  const onnx::Model exported = to_onnx(zoo("resnet20", {3, 32, 32}, 10), {.training = true});
  onnx::save(folder / "net.onnx", exported);
  const onnx::Model back = onnx::load(folder / "net.onnx");
  EXPECT_EQ(onnx::serialize(back), text_of_file(folder / "net.onnx"));
  EXPECT_EQ(back.graph.nodes.size(), exported.graph.nodes.size());
  EXPECT_EQ(back.metadata, exported.metadata);
  EXPECT_EQ(onnx::sorted(back.graph).size(), back.graph.nodes.size());
}

}  // namespace
}  // namespace evenkeel::tools
