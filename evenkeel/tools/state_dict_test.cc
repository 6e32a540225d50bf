#include "evenkeel/tools/state_dict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "evenkeel/core/error.h"
#include "evenkeel/data/cifar.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel::tools {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// A state dict of the zoo's model, as PyTorch would write it.
TensorFile zoo_state_dict(const std::string& name, const Shape& input, int64_t classes) {
  Model model;
  model.spec = zoo_model(name, input, classes);
  initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 1, &model.store);
  model.standardization.mean.assign(static_cast<size_t>(input[0]), 0);
  model.standardization.std.assign(static_cast<size_t>(input[0]), 1);
  return to_state_dict(model);
}

void rename(TensorFile& file, const std::string& from, const std::string& to) {
  for (auto& [name, tensor] : file.tensors) {
    if (name == from) name = to;
  }
}

TEST(StateDict, every_model_of_the_zoo_is_known_by_its_keys) {
  const std::vector<std::tuple<std::string, Shape, int64_t>> cases = {
      {"cnn", {1, 28, 28}, 10},         {"mlp", {13}, 3},
      {"cnn-gap", {3, 32, 32}, 7},      {"lenet", {1, 28, 28}, 26},
      {"resnet20", {3, 32, 32}, 100},   {"vgg11", {3, 32, 32}, 10},
      {"resnet18", {3, 224, 224}, 1000}};
  for (const auto& [name, input, classes] : cases) {
    const TensorFile file = zoo_state_dict(name, input, classes);
    EXPECT_THAT(fitting_architectures(file), ElementsAre(name));
    EXPECT_TRUE(is_state_dict(file));
    const Model model = model_from_state_dict(file, "x", {.architecture = name});
    EXPECT_EQ(model.spec.classes, classes) << name;
    // Behind a global pool any size of image has the same keys; the channels must agree.
    EXPECT_EQ(model.spec.input[0], input[0]) << name;
    for (const auto& [key, tensor] : file.tensors)
      EXPECT_EQ(std::memcmp(model.store.at(key).raw(), tensor.raw(), tensor.bytes()), 0) << name << " " << key;
  }
}

TEST(StateDict, prefixes_are_left_out_and_counts_may_be_absent) {
  for (const char* prefix :
       {"module.", "model.", "_orig_mod.", "state_dict.", "model._orig_mod.", "_orig_mod.module.model."}) {
    TensorFile file = zoo_state_dict("lenet", {1, 28, 28}, 10);
    std::erase_if(file.tensors, [](const auto& entry) { return entry.first.ends_with("num_batches_tracked"); });
    file.find("conv2.weight")->values<float>()[3] = 42;
    for (auto& [name, tensor] : file.tensors) name = prefix + name;
    const Model model = model_from_state_dict(file, "x", {.architecture = "lenet"});
    EXPECT_EQ(model.store.at("conv2.weight").values<float>()[3], 42);
    EXPECT_EQ(model.store.at("bn1.num_batches_tracked").values<int64_t>()[0], 0);
    EXPECT_THAT(fitting_architectures(file), ElementsAre("lenet")) << prefix;
  }
}

TEST(StateDict, an_architecture_whose_own_keys_begin_so_keeps_them) {
  const TestFolder folder;
  write_text(
      folder / "net.toml",
      "input = [4]\n[[layer]]\ntype = \"linear\"\nname = \"model.fc\"\nout = 5\n[[layer]]\ntype = \"linear\"\nname = "
      "\"head\"\n");
  TensorFile file;
  file.tensors.emplace_back("model.fc.weight", Tensor(DType::kF32, {5, 4}));
  for (const char* part : {"weight", "bias", "running_mean", "running_var"})
    file.tensors.emplace_back(std::string("model.fc.bn.") + part, Tensor(DType::kF32, {5}));
  file.tensors.emplace_back("head.weight", Tensor(DType::kF32, {6, 5}));
  file.tensors.emplace_back("head.bias", Tensor(DType::kF32, {6}));
  EXPECT_EQ(model_from_state_dict(file, "x", {.architecture = folder / "net.toml"}).spec.classes, 6);
  for (auto& [name, tensor] : file.tensors) name = "module." + name;
  EXPECT_EQ(model_from_state_dict(file, "x", {.architecture = folder / "net.toml"}).spec.classes, 6);
}

TEST(StateDict, all_keys_that_do_not_fit_are_listed_with_the_nearest_match) {
  TensorFile file = zoo_state_dict("resnet20", {3, 32, 32}, 10);
  rename(file, "linear.weight", "fc.weight");
  rename(file, "bn1.runing_mean", "bn1.running_mean");
  rename(file, "bn1.running_mean", "bn1.runing_mean");
  *file.find("layer1.0.conv1.weight") = Tensor(DType::kF32, {16, 16, 5, 5});
  file.tensors.emplace_back("ema.decay", Tensor(DType::kF32, {1}));
  const std::string message =
      message_of<FormatError>([&] { model_from_state_dict(file, "net.safetensors", {.architecture = "resnet20"}); });
  EXPECT_THAT(message,
              AllOf(HasSubstr("net.safetensors: the keys do not fit the architecture 'resnet20' (input [3, 32, 32], 10 "
                              "classes): 2 keys are missing, 3 are unexpected, 1 has another shape"),
                    HasSubstr("missing      'linear.weight' [10, 64]; the file has 'fc.weight' [10, 64]"),
                    HasSubstr("missing      'bn1.running_mean' [16]; the file has 'bn1.runing_mean' [16]"),
                    HasSubstr("unexpected   'fc.weight' [10, 64]; the architecture has 'linear.weight' [10, 64]"),
                    HasSubstr("unexpected   'ema.decay' [1]"),
                    HasSubstr("other shape  'layer1.0.conv1.weight' [16, 16, 5, 5]; expected [16, 16, 3, 3]")));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 6);
}

TEST(StateDict, wrappers_stand_in_front_of_all_names_or_of_none) {
  EXPECT_EQ(wrapped_by({}), 0u);
  EXPECT_EQ(wrapped_by({"bn1", "module.bn1"}), 0u);
  EXPECT_EQ(wrapped_by({"module.bn1", "module.layer1.bn"}), 7u);
  EXPECT_EQ(wrapped_by({"state_dict.model.module._orig_mod.bn"}), 34u);
  EXPECT_EQ(wrapped_by({"model.model.bn", "model.bn"}), 6u);
  EXPECT_EQ(wrapped_by({"model.module."}), 6u);  // a name is left
}

TEST(StateDict, a_prefix_that_all_keys_have_is_named_with_what_to_do) {
  TensorFile file = zoo_state_dict("lenet", {1, 28, 28}, 10);
  for (auto& [name, tensor] : file.tensors) name = "ema.net." + name;
  file.tensors.emplace_back("ema.decay", Tensor(DType::kF32, {1}));
  const std::string message =
      message_of<FormatError>([&] { model_from_state_dict(file, "x", {.architecture = "lenet"}); });
  EXPECT_THAT(message, AllOf(HasSubstr("are there behind 'ema.net.'"), HasSubstr("{k[8:]: v for k, v"),
                             HasSubstr("unexpected   'ema.decay'"), Not(HasSubstr("missing     "))));
  // A few keys that happen to end alike are no prefix.
  TensorFile other;
  for (const char* name : {"head.fc1.bias", "head.fc2.bias"})
    other.tensors.emplace_back(name, Tensor(DType::kF32, {3}));
  EXPECT_THAT(message_of<FormatError>([&] { model_from_state_dict(other, "x", {.architecture = "lenet"}); }),
              Not(HasSubstr("are there behind")));
}

TEST(StateDict, thousands_of_foreign_keys_are_refused_in_reasonable_time) {
  TensorFile file = zoo_state_dict("lenet", {1, 28, 28}, 10);
  for (int i = 0; i < 20000; ++i)
    file.tensors.emplace_back("other." + std::to_string(i) + std::string(40, 'x') + ".weight",
                              Tensor(DType::kF32, {0}));
  const std::string message =
      message_of<FormatError>([&] { model_from_state_dict(file, "x", {.architecture = "lenet"}); });
  EXPECT_THAT(message, HasSubstr("20000 are unexpected"));
}

TEST(StateDict, without_an_architecture_the_message_names_the_models_that_fit) {
  EXPECT_THAT(architecture_wanted(zoo_state_dict("resnet20", {3, 32, 32}, 10), "net.safetensors"),
              AllOf(HasSubstr("'net.safetensors' holds weights without their architecture"),
                    HasSubstr("give --architecture resnet20: its keys")));
  TensorFile other;
  other.tensors.emplace_back("w", Tensor(DType::kF32, {2}));
  EXPECT_THAT(architecture_wanted(other, "x"), AllOf(HasSubstr("FILE.toml"), HasSubstr("none of cnn, mlp")));
}

TEST(StateDict, the_preprocessing_becomes_the_standardization) {
  const TensorFile file = zoo_state_dict("resnet20", {3, 32, 32}, 10);
  Model model = model_from_state_dict(file, "x", {.architecture = "resnet20", .mean = {0.1, 0.2, 0.3}, .std = {0.5}});
  EXPECT_THAT(model.standardization.mean, ElementsAre(0.1, 0.2, 0.3));
  EXPECT_THAT(model.standardization.std, ElementsAre(0.5, 0.5, 0.5));
  EXPECT_THROW(model_from_state_dict(file, "x", {.architecture = "resnet20", .mean = {1, 2}}), UsageError);
  EXPECT_THROW(model_from_state_dict(file, "x", {.architecture = "resnet20", .std = {0}}), UsageError);
  EXPECT_THAT(message_of<UsageError>([&] { model_from_state_dict(file, "x", {.architecture = "resnet200"}); }),
              HasSubstr("did you mean 'resnet20'"));
}

TEST(StateDict, the_norms_conventions_are_those_of_the_architecture) {
  const TestFolder folder;
  write_text(
      folder / "net.toml",
      "input = [4]\nclasses = 2\neps = 1e-3\nnew_batch_weight = 0.01\nrunning_variance = \"biased\"\n[[layer]]\ntype = "
      "\"linear\"\nout = 5\n[[layer]]\ntype = \"linear\"\n");
  TensorFile file;
  file.tensors.emplace_back("fc1.weight", Tensor(DType::kF32, {5, 4}));
  for (const char* part : {"weight", "bias", "running_mean", "running_var"})
    file.tensors.emplace_back(std::string("bn1.") + part, Tensor(DType::kF64, {5}));
  file.tensors.emplace_back("fc2.weight", Tensor(DType::kF32, {2, 5}));
  file.tensors.emplace_back("fc2.bias", Tensor(DType::kF32, {2}));
  Tensor count(DType::kI32, {1});
  count.values<int32_t>()[0] = 7;
  file.tensors.emplace_back("bn1.num_batches_tracked", std::move(count));
  const Model model = model_from_state_dict(file, "x", {.architecture = folder / "net.toml"});
  EXPECT_EQ(model.spec.norm_options.eps, 1e-3);
  EXPECT_EQ(model.spec.norm_options.new_batch_weight, 0.01);
  EXPECT_TRUE(model.spec.norm_options.biased);
  EXPECT_EQ(model.store.at("bn1.num_batches_tracked").values<int64_t>()[0], 7);
  EXPECT_THAT(message_of<UsageError>(
                  [&] { model_from_state_dict(file, "x", {.architecture = folder / "net.toml", .input = Shape{5}}); }),
              HasSubstr("'input' is [4]"));
  file.find("bn1.running_var")->values<double>()[2] = -1;
  EXPECT_THROW(model_from_state_dict(file, "x", {.architecture = folder / "net.toml"}), FormatError);
}

TEST(StateDict, a_fault_of_the_description_is_told_whatever_else_it_leaves_open) {
  const TestFolder folder;
  const TensorFile file = zoo_state_dict("lenet", {1, 28, 28}, 10);
  const std::string layers = "[[layer]]\ntype = \"gap\"\n";
  for (const char* said : {"", "input = [1, 28, 28]\n", "classes = 10\n", "input = [1, 28, 28]\nclasses = 10\n"}) {
    write_text(folder / "net.toml", said + layers);
    for (const std::optional<Shape>& input : {std::optional<Shape>(), std::optional<Shape>({1, 28, 28})}) {
      EXPECT_THAT(message_of<UsageError>(
                      [&] { model_from_state_dict(file, "x", {.architecture = folder / "net.toml", .input = input}); }),
                  AllOf(HasSubstr("gap"), Not(HasSubstr("is missing"))))
          << said;
    }
  }
}

TEST(StateDict, a_model_of_ours_is_none) {
  Model model = model_from_state_dict(zoo_state_dict("lenet", {1, 28, 28}, 10), "x", {.architecture = "lenet"});
  EXPECT_FALSE(is_state_dict(to_tensor_file(model)));
  EXPECT_TRUE(is_state_dict(to_state_dict(model)));
  EXPECT_THAT(to_state_dict(model).metadata, Not(testing::Contains(testing::Key("architecture"))));
}

TEST(StateDict, a_published_network_has_the_accuracy_that_it_is_known_for) {
  const char* data = std::getenv("EVENKEEL_TEST_DATA");
  const std::string folder = data != nullptr ? data : "../shared/data";
  const std::string weights = folder + "/models/resnet20_cifar10.safetensors",
                    test = folder + "/cifar10/test_2000.bin.gz";
  if (!std::filesystem::exists(weights) || !std::filesystem::exists(test)) GTEST_SKIP() << folder << " is not there";
  Model model = load_state_dict(
      weights, {.architecture = "resnet20", .mean = {0.485, 0.456, 0.406}, .std = {0.229, 0.224, 0.225}});
  EXPECT_EQ(model.spec.input, (Shape{3, 32, 32}));
  EXPECT_EQ(model.spec.classes, 10);

  data::Dataset dataset;
  data::Bytes pixels;
  data::parse_cifar(data::read_file(test), test, data::CifarKind::kCifar10, pixels, dataset.labels);
  dataset.count = static_cast<int64_t>(dataset.labels.size());
  dataset.example_shape = {3, 32, 32};
  dataset.values = Tensor(DType::kU8, {dataset.count, 3, 32, 32});
  ASSERT_EQ(pixels.size(), dataset.values.bytes());
  std::memcpy(dataset.values.raw(), pixels.data(), pixels.size());
  for (int i = 0; i < 10; ++i) dataset.class_names.push_back(std::to_string(i));
  EXPECT_DOUBLE_EQ(evaluate(model, dataset, {}).accuracy, 0.9180);
}

}  // namespace
}  // namespace evenkeel::tools
