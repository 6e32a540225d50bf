#include "evenkeel/tools/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Model small() {
  Model model;
  model.spec = zoo_model("lenet", {1, 28, 28}, 10);
  model.standardization = {{0.25}, {0.5}};
  initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 3, &model.store);
  return model;
}

TEST(Convert, a_model_becomes_a_state_dict_and_comes_back_with_its_architecture) {
  const TestFolder folder;
  save_model(folder / "ours.safetensors", small());
  const Conversion done = convert(folder / "ours.safetensors", folder / "plain.safetensors", {});
  EXPECT_EQ(done.to, "a state dict");
  EXPECT_THAT(read_safetensors(folder / "plain.safetensors").metadata, ElementsAre(testing::Pair("format", "pt")));
  ConvertOptions options;
  options.weights = {.architecture = "lenet", .mean = {0.25}, .std = {0.5}};
  convert(folder / "plain.safetensors", folder / "back.safetensors", options);
  EXPECT_EQ(text_of_file(folder / "back.safetensors"), text_of_file(folder / "ours.safetensors"));
}

TEST(Convert, our_own_export_comes_back_as_the_weights_of_its_architecture) {
  const TestFolder folder;
  for (const char* name : {"lenet", "resnet20"}) {  // resnet20: constants of its shortcuts, too
    Model model;
    model.spec = zoo_model(name, name == std::string("lenet") ? Shape{1, 28, 28} : Shape{3, 32, 32}, 10);
    const auto channels = static_cast<size_t>(model.spec.input[0]);
    model.standardization = {std::vector<double>(channels, 0.25), std::vector<double>(channels, 0.5)};
    initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 3, &model.store);
    save_model(folder / "ours.safetensors", model);
    for (const bool training : {false, true}) {
      convert(folder / "ours.safetensors", folder / "net.onnx", {.weights = {}, .onnx = {.training = training}});
      convert(folder / "net.onnx", folder / "weights.safetensors", {});
      const Model back = load_state_dict(folder / "weights.safetensors", {.architecture = name});
      for (const auto& [key, tensor] : model.store.tensors()) {
        if (tensor.dtype() != DType::kF32) continue;
        const auto want = tensor.values<float>(), found = back.store.at(key).values<float>();
        EXPECT_TRUE(std::equal(want.begin(), want.end(), found.begin(), found.end())) << key;
      }
    }
  }
}

TEST(Convert, an_onnx_model_becomes_all_its_tensors_by_name) {
  const TestFolder folder;
  const Model model = small();
  onnx::Model network = to_onnx(model, {.standardization = false});
  network.graph.initializers.push_back(
      onnx::tensor_as(onnx::ElementType::kFloat16, "half", {2}, std::vector<double>{1, 2}));
  onnx::save(folder / "net.onnx", network);
  const Conversion done = convert(folder / "net.onnx", folder / "all.safetensors", {});
  const TensorFile all = read_safetensors(folder / "all.safetensors");
  EXPECT_EQ(done.tensors, network.graph.initializers.size());
  EXPECT_EQ(all.tensors.size() + all.carried.size(), done.tensors);
  ASSERT_EQ(all.carried.size(), 1u);
  EXPECT_EQ(all.carried[0].dtype, "F16");
  ASSERT_NE(all.find("bn1.running_var"), nullptr);
  EXPECT_EQ(all.find("conv1.weight")->values<float>()[7], model.store.at("conv1.weight").values<float>()[7]);
}

TEST(Convert, parameters_that_are_constants_or_aliases_are_taken) {
  const TestFolder folder;
  onnx::Model network = to_onnx(small(), {.standardization = false});
  onnx::Graph& graph = network.graph;
  const onnx::TensorValue weight = *graph.initializer("conv1.weight"), mean = *graph.initializer("bn1.running_mean");
  std::erase_if(graph.initializers, [](const onnx::TensorValue& t) {
    return t.name == "conv1.weight" || t.name == "bn1.running_mean" || t.name == "bn1.bias";
  });
  const auto constant = [&](const std::string& name, const onnx::TensorValue& value) {
    onnx::Node node{.op_type = "Constant", .domain = "", .name = "", .inputs = {}, .outputs = {name}, .attributes = {}};
    node.attributes.push_back({.name = "value",
                               .kind = onnx::Attribute::Kind::kTensor,
                               .tensor = std::make_shared<onnx::TensorValue>(value)});
    graph.nodes.push_back(node);
  };
  constant("conv1.weight", weight);
  constant("bn1.running_mean", mean);
  constant("shape", onnx::make_tensor("", {1}, std::span<const int64_t>(std::vector<int64_t>{3})));
  graph.nodes.push_back({.op_type = "Identity",
                         .domain = "",
                         .name = "",
                         .inputs = {"bn1.running_mean"},
                         .outputs = {"bn1.bias"},
                         .attributes = {}});
  onnx::save(folder / "net.onnx", network);
  const Conversion done = convert(folder / "net.onnx", folder / "all.safetensors", {});
  const TensorFile all = read_safetensors(folder / "all.safetensors");
  EXPECT_EQ(done.tensors, graph.initializers.size() + 3);
  ASSERT_NE(all.find("conv1.weight"), nullptr);
  EXPECT_EQ(all.find("conv1.weight")->values<float>()[7], onnx::floats_of(weight)[7]);
  ASSERT_NE(all.find("bn1.bias"), nullptr);
  EXPECT_EQ(all.find("bn1.bias")->values<float>()[3], onnx::floats_of(mean)[3]);
  EXPECT_NO_THROW(load_state_dict(folder / "all.safetensors", {.architecture = "lenet"}));
}

TEST(Convert, the_input_is_never_overwritten_and_what_cannot_be_is_refused) {
  const TestFolder folder;
  save_model(folder / "a.safetensors", small());
  std::filesystem::create_symlink(folder / "a.safetensors", folder / "link.safetensors");
  const std::string before = text_of_file(folder / "a.safetensors");
  const auto refusal = [&](const std::string& in, const std::string& out, const ConvertOptions& options = {}) {
    return message_of<UsageError>([&] { convert(folder / in, folder / out, options); });
  };
  for (const char* same : {"a.safetensors", "./a.safetensors", "link.safetensors"})
    EXPECT_THAT(refusal("a.safetensors", same), HasSubstr("would take the place of"));
  EXPECT_THAT(refusal("a.safetensors", "a.pt"), HasSubstr("ends in .onnx or .safetensors"));
  EXPECT_THAT(refusal("none.safetensors", "b.onnx"), HasSubstr("there is no file"));
  ConvertOptions options;
  options.weights.architecture = "lenet";
  EXPECT_THAT(refusal("a.safetensors", "b.onnx", options), HasSubstr("has its architecture in it"));
  convert(folder / "a.safetensors", folder / "plain.safetensors", {});
  EXPECT_THAT(refusal("plain.safetensors", "b.onnx"), HasSubstr("give --architecture lenet"));
  convert(folder / "a.safetensors", folder / "net.onnx", {});
  EXPECT_THAT(refusal("net.onnx", "b.onnx"), HasSubstr("is an ONNX model already"));
  EXPECT_EQ(text_of_file(folder / "a.safetensors"), before);
  EXPECT_FALSE(std::filesystem::exists(folder / "b.onnx"));
  EXPECT_THAT(message_of<FormatError>([&] {
                write_text(folder / "old.pt", "\x80\x02}q\x01.");
                convert(folder / "old.pt", folder / "b.safetensors", {});
              }),
              HasSubstr("python3 -c"));
}

TEST(Convert, real_files_of_other_frameworks_become_state_dicts) {
  const char* data = std::getenv("EVENKEEL_TEST_DATA");
  const std::string models = std::string(data != nullptr ? data : "../shared/data") + "/models/";
  if (!std::filesystem::exists(models)) GTEST_SKIP() << models << " is not there";
  const TestFolder folder;
  convert(models + "version-RFB-320.onnx", folder / "rfb.safetensors", {});
  const TensorFile rfb = read_safetensors(folder / "rfb.safetensors");
  int variances = 0;
  for (const auto& [name, tensor] : rfb.tensors) variances += name.ends_with("running_var");
  EXPECT_EQ(variances, 35);
  EXPECT_EQ(convert(models + "resnet20_cifar10_bn.onnx", folder / "r.safetensors", {}).left_out.size(), 0u);
}

}  // namespace
}  // namespace evenkeel::tools
