#include <set>

#include <gtest/gtest.h>

#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan_check.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel {
namespace {

int64_t parameter_count(const ModelSpec& spec) {
  int64_t count = 0;
  for (const ParameterInfo& info : build_network(spec, Mode::kTrain).parameters) count += element_count(info.shape);
  return count;
}

std::set<std::string> state_names(const Network& network) {
  std::set<std::string> names;
  for (const ParameterInfo& info : network.parameters) names.insert(info.name);
  for (const BufferInfo& info : network.buffers) names.insert(info.name);
  return names;
}

TEST(Zoo, has_the_models_it_promises) {
  EXPECT_EQ(zoo_names(), (std::vector<std::string>{"cnn", "mlp", "cnn-gap", "lenet", "resnet20", "vgg11", "resnet18"}));
}

TEST(Zoo, models_have_the_parameter_counts_of_their_papers_and_of_pytorch) {
  // By hand: the weights, two per channel of a norm, and the last layer with its bias.
  EXPECT_EQ(parameter_count(zoo_model("mlp", {1, 28, 28}, 10)), 784 * 512 + 1024 + 512 * 512 + 1024 + 512 * 10 + 10);
  EXPECT_EQ(parameter_count(zoo_model("mlp", {20}, 3)), 20 * 512 + 1024 + 512 * 512 + 1024 + 512 * 3 + 3);
  EXPECT_EQ(parameter_count(zoo_model("cnn", {1, 28, 28}, 10)),
            9 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 128 + 256 + 128 * 3 * 3 * 10 + 10);
  EXPECT_EQ(parameter_count(zoo_model("cnn-gap", {1, 28, 28}, 10)),
            9 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 128 + 256 + 128 * 10 + 10);
  EXPECT_EQ(parameter_count(zoo_model("lenet", {1, 28, 28}, 10)),
            25 * 6 + 12 + 25 * 6 * 16 + 32 + 400 * 120 + 240 + 120 * 84 + 168 + 84 * 10 + 10);
  // He et al. 2016, with the parameter-free shortcut: 0.27 million.
  EXPECT_EQ(parameter_count(zoo_model("resnet20", {3, 32, 32}, 10)), 269722);
  // torchvision's resnet18 for ImageNet.
  EXPECT_EQ(parameter_count(zoo_model("resnet18", {3, 224, 224}, 1000)), 11689512);
  // torchvision's vgg11_bn has 9225984 in its features, 2752 of them biases before a norm; then 512 * 10 + 10.
  EXPECT_EQ(parameter_count(zoo_model("vgg11", {3, 32, 32}, 10)), 9225984 - 2752 + 5130);
}

TEST(Zoo, state_dicts_have_the_names_of_pytorch) {
  for (const std::string name : {"mlp", "cnn", "cnn-gap"}) {
    const TensorFile golden = read_safetensors("tests/golden/step_" + name + ".safetensors");
    std::set<std::string> expected;
    for (const auto& [key, tensor] : golden.tensors) {
      for (const std::string prefix : {"grad64.", "param."}) {
        if (key.starts_with(prefix)) expected.insert(key.substr(prefix.size()));
      }
      const std::string after = "after64.sgd.";
      if (key.starts_with(after) && key.find(".running_") != std::string::npos)
        expected.insert(key.substr(after.size()));
    }
    EXPECT_EQ(state_names(build_network(zoo_model(name, {1, 28, 28}, 10), Mode::kTrain)), expected) << name;
  }
}

TEST(Zoo, residual_networks_have_the_names_of_pytorch) {
  std::set<std::string> expected = {"conv1.weight"};
  const auto add_norm = [&](const std::string& name) {
    for (const char* part : {".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"})
      expected.insert(name + part);
  };
  const auto add_stages = [&](int stages, int blocks) {
    add_norm("bn1");
    for (int stage = 1; stage <= stages; ++stage) {
      for (int block = 0; block < blocks; ++block) {
        const std::string prefix = "layer" + std::to_string(stage) + "." + std::to_string(block) + ".";
        for (const char* number : {"1", "2"}) {
          expected.insert(prefix + "conv" + number + ".weight");
          add_norm(prefix + "bn" + number);
        }
      }
    }
  };
  add_stages(3, 3);
  expected.insert({"linear.weight", "linear.bias"});
  EXPECT_EQ(state_names(build_network(zoo_model("resnet20", {3, 32, 32}, 10), Mode::kTrain)), expected);
  expected = {"conv1.weight", "fc.weight", "fc.bias"};
  add_stages(4, 2);
  for (const char* stage : {"2", "3", "4"}) {
    const std::string prefix = std::string("layer") + stage + ".0.downsample.";
    expected.insert(prefix + "0.weight");
    add_norm(prefix + "1");
  }
  EXPECT_EQ(state_names(build_network(zoo_model("resnet18", {3, 32, 32}, 10), Mode::kTrain)), expected);
}

TEST(Zoo, vgg11_has_the_names_of_torchvision) {
  const auto names = state_names(build_network(zoo_model("vgg11", {3, 32, 32}, 10), Mode::kTrain));
  for (const int conv : {0, 4, 8, 11, 15, 18, 22, 25}) {
    EXPECT_TRUE(names.count("features." + std::to_string(conv) + ".weight")) << conv;
    EXPECT_TRUE(names.count("features." + std::to_string(conv + 1) + ".running_var")) << conv;
  }
  EXPECT_TRUE(names.count("classifier.weight"));
  EXPECT_EQ(names.size(), 8u + 8u * 5u + 2u);
}

TEST(Zoo, no_model_overwrites_a_value_that_it_still_needs) {
  for (const std::string& name : zoo_names()) {
    for (const Shape& input : {Shape{1, 28, 28}, Shape{3, 32, 32}}) {
      const ModelSpec spec = zoo_model(name, input, 10);
      const Network network = build_network(spec, Mode::kTrain);
      std::vector<StateInfo> states;
      const Graph step = with_updates(with_gradients(network.graph), {.clip_norm = 1}, network.parameters, &states);
      const Plan plan = make_plan(step, {.batch = 10});
      EXPECT_EQ(first_fault_of(plan), "") << name;
      EXPECT_LT(plan.arena_bytes, sum_of_value_bytes(plan)) << name;
      EXPECT_EQ(plan.parameter_count, parameter_count(spec)) << name;
      const Plan inference = make_plan(build_network(spec, Mode::kInference).graph, {.batch = 10});
      EXPECT_EQ(first_fault_of(inference), "") << name;
      EXPECT_LT(inference.arena_bytes, plan.arena_bytes) << name;
    }
  }
}

TEST(Zoo, every_norm_and_placement_and_activation_can_be_changed) {
  for (const std::string& name : zoo_names()) {
    ModelSpec spec = zoo_model(name, {3, 32, 32}, 10);
    spec.norm = NormKind::kNone;
    Network network = build_network(spec, Mode::kTrain);
    EXPECT_TRUE(network.buffers.empty()) << name;
    EXPECT_TRUE(network.warnings.empty()) << name;
    for (const ParameterInfo& info : network.parameters) {
      if (!info.name.ends_with(".weight")) continue;
      const std::string bias = info.name.substr(0, info.name.size() - 6) + "bias";
      EXPECT_TRUE(state_names(network).count(bias)) << name << ": " << bias;
    }
    spec = zoo_model(name, {3, 32, 32}, 10);
    spec.placement = NormPlacement::kAfter;
    spec.activation = {ActivationKind::kTanh};
    spec.zero_gamma = name.starts_with("resnet");  // the others have no residual blocks and say so
    network = build_network(spec, Mode::kTrain);
    EXPECT_TRUE(network.warnings.empty()) << name;
    EXPECT_EQ(first_fault_of(make_plan(with_gradients(network.graph), {.batch = 3})), "") << name;
  }
}

TEST(Zoo, image_models_tell_a_table_what_to_do) {
  for (const std::string& name : zoo_names()) {
    if (name == "mlp") continue;
    const std::string message = message_of<UsageError>([&] { zoo_model(name, {30}, 2); });
    EXPECT_NE(message.find("'" + name + "' needs images"), std::string::npos) << message;
    EXPECT_NE(message.find("--model mlp"), std::string::npos) << message;
  }
  EXPECT_NO_THROW(build_network(zoo_model("mlp", {30}, 2), Mode::kTrain));
  EXPECT_THROW(zoo_model("mlp", {}, 2), UsageError);
  EXPECT_THROW(zoo_model("cnn", {28, 28}, 2), UsageError);
}

TEST(Zoo, an_image_too_small_is_refused_by_the_name_of_the_layer) {
  const auto refusal = [](const std::string& name, const Shape& input) {
    return message_of<UsageError>([&] { build_network(zoo_model(name, input, 10), Mode::kTrain); });
  };
  EXPECT_NE(refusal("cnn", {1, 7, 28}).find("'pool3'"), std::string::npos) << refusal("cnn", {1, 7, 28});
  EXPECT_NE(refusal("lenet", {1, 8, 8}).find("'conv2'"), std::string::npos) << refusal("lenet", {1, 8, 8});
  EXPECT_NE(refusal("vgg11", {1, 8, 8}).find("'features.21'"), std::string::npos) << refusal("vgg11", {1, 8, 8});
  EXPECT_EQ(refusal("vgg11", {1, 28, 28}), "");
  EXPECT_EQ(refusal("resnet20", {1, 1, 1}), "");
}

TEST(Zoo, resnet18_keeps_small_images_large) {
  const auto first_stride = [](const Shape& input) {
    return std::get<Conv>(build_network(zoo_model("resnet18", input, 10), Mode::kTrain).graph.nodes[0].op).stride_h;
  };
  EXPECT_EQ(first_stride({3, 64, 64}), 1);
  EXPECT_EQ(first_stride({3, 65, 64}), 2);
}

TEST(Zoo, an_unknown_name_is_answered_with_the_closest_and_all_names) {
  const std::string message = message_of<UsageError>([] { zoo_model("resnet-20", {3, 32, 32}, 10); });
  EXPECT_NE(message.find("did you mean 'resnet20'?"), std::string::npos) << message;
  EXPECT_NE(message.find("cnn-gap"), std::string::npos) << message;
  EXPECT_NE(message.find("TOML"), std::string::npos) << message;
}

TEST(FindModel, takes_names_and_files) {
  const TestFolder folder;
  EXPECT_EQ(find_model("mlp", {4}, 3), zoo_model("mlp", {4}, 3));
  const std::string path = folder / "net.toml";
  write_text(path, "[[layer]]\ntype = \"linear\"\n");
  const ModelSpec spec = find_model(path, {4}, 3);
  EXPECT_EQ(spec.name, "net");
  EXPECT_EQ(spec.input, (Shape{4}));
  EXPECT_EQ(spec.classes, 3);
}

TEST(FindModel, a_missing_file_is_named_with_the_model_that_may_be_meant) {
  const std::string message = message_of<UsageError>([] { find_model("resnet2.toml", {4}, 3); });
  EXPECT_NE(
      message.find("there is no file 'resnet2.toml', and no model of that name; did you mean the model 'resnet20'?"),
      std::string::npos)
      << message;
  EXPECT_NE(message_of<UsageError>([] { find_model("resnet", {4}, 3); }).find("did you mean 'resnet20'"),
            std::string::npos);
  EXPECT_NE(message_of<UsageError>([] { find_model("qqqqqq.toml", {4}, 3); }).find("of that name; the models are cnn"),
            std::string::npos);
  EXPECT_NE(message_of<UsageError>([] { find_model("cnm", {4}, 3); }).find("did you mean 'cnn'"), std::string::npos);
  EXPECT_NE(message_of<UsageError>([] { find_model("runs/a/model.safetensors", {4}, 3); }).find("--resume"),
            std::string::npos);
}

}  // namespace
}  // namespace evenkeel
