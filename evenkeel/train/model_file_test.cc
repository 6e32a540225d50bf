#include "evenkeel/train/model_file.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

Model small_model(const std::string& name = "mlp", const Shape& input = {4}, int64_t classes = 3) {
  Model model;
  model.spec = zoo_model(name, input, classes);
  for (int64_t i = 0; i < input[0]; ++i) {
    model.standardization.mean.push_back(1.0 / static_cast<double>(3 + i));
    model.standardization.std.push_back(std::sqrt(static_cast<double>(2 + i)) * 1e-7);
  }
  for (int64_t i = 0; i < classes; ++i) model.class_names.push_back("class " + std::to_string(i));
  model.data_name = "a set";
  model.training = {{"optimizer", "adamw"}, {"epochs", "3"}};
  initialize(build_network(model.spec, Mode::kTrain), 7, &model.store);
  return model;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TensorFile copy_of(const TensorFile& file) {
  TensorFile copy;
  copy.metadata = file.metadata;
  for (const auto& [name, tensor] : file.tensors) copy.tensors.emplace_back(name, tensor.clone());
  return copy;
}

std::string refusal_of(const TensorFile& file) {
  return message_of<FormatError>([&] { model_from(file, "m.safetensors"); });
}

// --- Initial values ---

ParameterInfo weight(const std::string& name, Init init, int64_t fan_in, int64_t fan_out, double scale = 1) {
  return {name, {fan_out, fan_in}, init, scale, fan_in, fan_out, true};
}
std::vector<double> initial_values(const ParameterInfo& info, uint64_t seed = 1) {
  Network network;
  network.parameters = {info};
  ParameterStore store;
  initialize(network, seed, &store);
  const auto values = store.at(info.name).values<float>();
  return {values.begin(), values.end()};
}
double mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum / static_cast<double>(values.size());
}

TEST(Initialize, draws_from_the_distributions_it_names) {
  constexpr int64_t kIn = 300, kOut = 500;
  const double uniform = 1.0 / 3;  // variance of U(-1, 1)
  struct Case {
    Init init;
    double scale, variance, bound;
  };
  const double infinite = std::numeric_limits<double>::infinity();
  const std::vector<Case> cases = {{Init::kTorchDefault, 1, uniform / kIn, std::sqrt(1.0 / kIn)},
                                   {Init::kHe, 1, 2.0 / kIn, infinite},
                                   {Init::kXavier, 1, 2.0 / (kIn + kOut), std::sqrt(6.0 / (kIn + kOut))},
                                   {Init::kNormal, 0.25, 0.0625, infinite}};
  for (const Case& c : cases) {
    const std::vector<double> values = initial_values(weight("w", c.init, kIn, kOut, c.scale));
    ASSERT_EQ(values.size(), static_cast<size_t>(kIn * kOut));
    // The mean square of n normal values has a relative deviation of sqrt(2 / n) = 0.0037: four of them.
    EXPECT_NEAR(mean_square(values) / c.variance, 1, 0.015) << static_cast<int>(c.init);
    double sum = 0, largest = 0;
    for (const double value : values) {
      sum += value;
      largest = std::max(largest, std::abs(value));
    }
    EXPECT_LT(std::abs(sum / static_cast<double>(values.size())),
              4 * std::sqrt(c.variance / static_cast<double>(values.size())));
    EXPECT_LE(largest, c.bound * (1 + 1e-6));
    if (c.bound < infinite) {
      EXPECT_GT(largest, 0.999 * c.bound);
    }
  }
  EXPECT_EQ(mean_square(initial_values(weight("w", Init::kZero, 3, 4))), 0.0);
  EXPECT_EQ(initial_values(weight("w", Init::kOne, 3, 4)), std::vector<double>(12, 1.0));
}

TEST(Initialize, depends_on_seed_and_name_and_nothing_else) {
  const ParameterInfo info = weight("fc1.weight", Init::kTorchDefault, 20, 30);
  EXPECT_EQ(initial_values(info), initial_values(info));
  EXPECT_NE(initial_values(info, 1), initial_values(info, 2));
  EXPECT_NE(initial_values(info), initial_values(weight("fc2.weight", Init::kTorchDefault, 20, 30)));
  // A layer keeps its values when others come and go.
  ParameterStore few, many;
  initialize(build_network(zoo_model("cnn", {1, 28, 28}, 10), Mode::kTrain), 5, &few);
  ModelSpec without = zoo_model("cnn", {1, 28, 28}, 10);
  without.norm = NormKind::kNone;
  initialize(build_network(without, Mode::kTrain), 5, &many);
  EXPECT_TRUE(same_bits(few.at("conv3.weight"), many.at("conv3.weight")));
}

TEST(Initialize, gives_the_same_values_on_every_machine) {
  // Written down once: they are part of what a seed means. Box-Muller goes through the C library's log and cosine, which may differ in
  // the last bit.
  EXPECT_EQ(initial_values(weight("fc.weight", Init::kTorchDefault, 4, 1)),
            (std::vector<double>{0x1.16ccacp-2, 0x1.eb278p-3, -0x1.bc1a9p-2, 0x1.c25p-12}));
  const std::vector<double> normal = initial_values(weight("conv.weight", Init::kHe, 2, 1));
  EXPECT_NEAR(normal[0], 1.15041578, 1e-7);
  EXPECT_NEAR(normal[1], -0.389197826, 1e-7);
}

TEST(Initialize, norms_start_as_in_pytorch) {
  const Model model = small_model();
  for (const float value : model.store.at("bn1.weight").values<float>()) EXPECT_EQ(value, 1.0f);
  for (const float value : model.store.at("bn1.bias").values<float>()) EXPECT_EQ(value, 0.0f);
  for (const float value : model.store.at("bn1.running_mean").values<float>()) EXPECT_EQ(value, 0.0f);
  for (const float value : model.store.at("bn1.running_var").values<float>()) EXPECT_EQ(value, 1.0f);
  EXPECT_EQ(model.store.at("bn1.num_batches_tracked").values<int64_t>()[0], 0);
}

// --- Files ---

TEST(ModelFile, is_read_back_to_the_bit) {
  const TestFolder folder;
  for (const std::string& name : zoo_names()) {
    if (name == "vgg11" || name == "resnet18") continue;  // 40 MB each, nothing new
    Model model = small_model(name, {3, 32, 32}, 10);
    model.running_statistics = "population";
    save_model(folder / "m.safetensors", model);
    const Model back = load_model(folder / "m.safetensors");
    EXPECT_EQ(back.spec, model.spec);
    EXPECT_EQ(back.standardization.mean, model.standardization.mean);
    EXPECT_EQ(back.standardization.std, model.standardization.std);
    EXPECT_EQ(back.class_names, model.class_names);
    EXPECT_EQ(back.data_name, model.data_name);
    EXPECT_EQ(back.training, model.training);
    EXPECT_EQ(back.running_statistics, "population");
    ASSERT_EQ(back.store.tensors().size(), model.store.tensors().size());
    for (const auto& [key, tensor] : model.store.tensors()) EXPECT_TRUE(same_bits(back.store.at(key), tensor)) << key;
  }
}

TEST(ModelFile, holds_the_state_dict_of_pytorch_in_its_order_and_no_optimizer) {
  Model model = small_model();
  model.store.add("optimizer.m.fc1.weight", Tensor(DType::kF32, {512, 4}));
  const TensorFile file = to_tensor_file(model);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file.tensors) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"fc1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean",
                                             "bn1.running_var", "bn1.num_batches_tracked", "fc2.weight", "bn2.weight",
                                             "bn2.bias", "bn2.running_mean", "bn2.running_var",
                                             "bn2.num_batches_tracked", "fc3.weight", "fc3.bias"}));
  const Tensor* count = file.find("bn1.num_batches_tracked");
  EXPECT_EQ(count->dtype(), DType::kI64);
  EXPECT_TRUE(count->shape().empty());
}

TEST(ModelFile, norms_without_gamma_and_beta_keep_their_statistics) {
  Model model;
  model.spec = zoo_model("mlp", {1}, 2);
  model.spec.norm_options.affine = false;
  model.standardization = {{0.5}, {2.0}};
  initialize(build_network(model.spec, Mode::kTrain), 1, &model.store);
  const Model back = model_from(to_tensor_file(model), "m");
  EXPECT_TRUE(back.store.contains("bn2.running_var"));
  EXPECT_FALSE(back.store.contains("bn2.weight"));
}

TEST(ModelFile, says_what_its_norms_mean) {
  Model model = small_model();
  model.spec.norm_options = {.eps = 1e-3, .new_batch_weight = 0.01, .biased = true, .bias_corrected = true};
  const TensorFile file = to_tensor_file(model);
  EXPECT_EQ(file.metadata.at("format"), "evenkeel");
  EXPECT_EQ(file.metadata.at("format_version"), "1");
  const auto norm = nlohmann::json::parse(file.metadata.at("norm"));
  EXPECT_EQ(norm, (nlohmann::json{{"kind", "batch"},
                                  {"eps", 1e-3},
                                  {"new_batch_weight", 0.01},
                                  {"running_variance", "biased"},
                                  {"bias_corrected", true},
                                  {"running_statistics", "ema"}}));
  EXPECT_EQ(model_from(file, "m").spec.norm_options, model.spec.norm_options);
}

TEST(ModelFile, remembers_range_and_feature_names_of_its_data) {
  Model model = small_model();
  EXPECT_EQ(model_from(to_tensor_file(model), "m").input_range, std::nullopt);  // as in files of older versions
  EXPECT_TRUE(model_from(to_tensor_file(model), "m").feature_names.empty());
  model.input_range = data::ValueRange{-0.1, 1.0 / 3};
  model.feature_names = {"a", "b", "c", "d \"x\""};
  const Model back = model_from(to_tensor_file(model), "m");
  EXPECT_EQ(back.input_range, model.input_range);
  EXPECT_EQ(back.feature_names, model.feature_names);
}

TEST(ModelFile, names_a_checkpoint_that_is_given_in_its_place) {
  TensorFile file = to_tensor_file(small_model());
  file.metadata["format"] = "evenkeel checkpoint";
  EXPECT_NE(refusal_of(file).find("m.safetensors: this is a checkpoint"), std::string::npos) << refusal_of(file);
}

TEST(ModelFile, class_names_that_are_not_utf8_are_mended) {
  Model model = small_model();
  model.class_names[1] = "na\xefve";
  const Model back = model_from(to_tensor_file(model), "m");
  EXPECT_EQ(back.class_names[1], "na\xef\xbf\xbdve");
}

TEST(ModelFile, refuses_files_of_others_and_of_a_newer_evenkeel) {
  const TensorFile good = to_tensor_file(small_model());
  TensorFile file = copy_of(good);
  file.metadata["format"] = "pt";
  EXPECT_NE(refusal_of(file).find("m.safetensors: this file holds weights without a network, as a state dict"),
            std::string::npos)
      << refusal_of(file);
  TensorFile other;
  other.tensors.emplace_back("data", Tensor(DType::kF32, {2}));
  EXPECT_NE(refusal_of(other).find("m.safetensors: this file was not written by evenkeel"), std::string::npos)
      << refusal_of(other);
  EXPECT_NE(refusal_of(other).find("found none"), std::string::npos) << refusal_of(other);
  file = copy_of(good);
  file.metadata["format_version"] = "2";
  EXPECT_NE(refusal_of(file).find("format version 2, but this evenkeel reads versions up to 1"), std::string::npos)
      << refusal_of(file);
  for (const char* version : {"", "one", "1x", "-1", "0", "99999999999999999999"}) {
    file.metadata["format_version"] = version;
    EXPECT_NE(refusal_of(file).find("format_version"), std::string::npos) << version;
  }
}

TEST(ModelFile, refuses_metadata_that_is_missing_or_lies) {
  const TensorFile good = to_tensor_file(small_model());
  for (const auto& [key, value] : good.metadata) {
    TensorFile file = copy_of(good);
    file.metadata.erase(key);
    EXPECT_NE(refusal_of(file), "") << key;
  }
  const std::vector<std::pair<std::string, std::string>> lies = {
      {"architecture", "not toml at all"},
      {"architecture", "[[layer]]\ntype = \"linear\""},
      {"architecture", "input = [4]\nclasses = 3\n[[layer]]\ntype = \"conv\"\nout = 3"},
      {"architecture", "input = [16777216]\nclasses = 16777216\n[[layer]]\ntype = \"linear\""},
      {"standardization", "{"},
      {"standardization", "[]"},
      {"standardization", "{\"mean\":[0,0,0,0]}"},
      {"standardization", "{\"mean\":[0,0,0],\"std\":[1,1,1,1]}"},
      {"standardization", "{\"mean\":[0,0,0,0],\"std\":[1,1,1,0]}"},
      {"standardization", "{\"mean\":[0,0,0,0],\"std\":[1,1,1,-1]}"},
      {"standardization", "{\"mean\":[0,0,0,null],\"std\":[1,1,1,1]}"},
      {"standardization", "{\"mean\":[0,0,0,1e999],\"std\":[1,1,1,1]}"},
      {"standardization", std::string(200000, '[')},
      {"input_range", "[]"},
      {"input_range", "{\"min\":0}"},
      {"input_range", "{\"min\":2,\"max\":1}"},
      {"input_range", "{\"min\":0,\"max\":1e999}"},
      {"features", "[\"a\",\"b\"]"},
      {"features", "[1,2,3,4]"},
      {"classes", "[\"a\",\"b\"]"},
      {"classes", "[1,2,3]"},
      {"classes", "{}"},
      {"classes", "3"},
      {"norm", "[]"},
      {"norm", "{\"running_statistics\":3}"},
      {"norm", "{\"running_statistics\":\"ema\"}"},
      {"training", "[1]"}};
  for (const auto& [key, value] : lies) {
    TensorFile file = copy_of(good);
    file.metadata[key] = value;
    const std::string message = refusal_of(file);
    EXPECT_EQ(message.rfind("m.safetensors: ", 0), 0u) << key << " = " << value.substr(0, 80) << ": " << message;
  }
  TensorFile file = copy_of(good);
  auto norm = nlohmann::json::parse(file.metadata.at("norm"));
  norm["eps"] = 0.5;
  file.metadata["norm"] = norm.dump();
  EXPECT_NE(refusal_of(file).find("does not agree with 'architecture' about 'eps'"), std::string::npos)
      << refusal_of(file);
}

// 200 KB of brackets, closed: JSON that is written again, here as a setting's text, by recursion through the stack.
TEST(ModelFile, refuses_metadata_that_are_nested_deep) {
  const TensorFile good = to_tensor_file(small_model());
  constexpr size_t kDepth = 100'000;
  const std::string deep = std::string(kDepth, '[') + std::string(kDepth, ']');
  const std::string norm = good.metadata.at("norm");
  const std::vector<std::pair<std::string, std::string>> lies = {
      {"training", R"({"epochs":)" + deep + "}"},
      {"norm", norm.substr(0, norm.size() - 1) + R"(,"made_from":{"data":)" + deep + "}}"},
      {"classes", deep}};
  for (const auto& [key, value] : lies) {
    TensorFile file = copy_of(good);
    file.metadata[key] = value;
    const std::string message = refusal_of(file);
    EXPECT_EQ(
        message.rfind("m.safetensors: metadata '" + key + "': lists and objects are nested more than 200 deep", 0), 0u)
        << message;
  }
  // Others' words of a usual depth are kept as their text.
  TensorFile file = copy_of(good);
  file.metadata["training"] = R"({"epochs":[[1,{"a":2}]]})";
  EXPECT_EQ(model_from(file, "m").training.at("epochs"), R"([[1,{"a":2}]])");
}

TEST(ModelFile, refuses_tensors_that_do_not_belong_to_the_architecture) {
  const TensorFile good = to_tensor_file(small_model());
  TensorFile file = copy_of(good);
  file.tensors.erase(file.tensors.begin() + 4);
  EXPECT_NE(refusal_of(file).find("tensor 'bn1.running_var' of the architecture is missing"), std::string::npos)
      << refusal_of(file);
  file = copy_of(good);
  *file.find("fc2.weight") = Tensor(DType::kF32, {512, 511});
  EXPECT_NE(refusal_of(file).find("'fc2.weight': expected F32 [512, 512], found F32 [512, 511]"), std::string::npos)
      << refusal_of(file);
  file = copy_of(good);
  *file.find("fc3.bias") = Tensor(DType::kI32, {3});
  EXPECT_NE(refusal_of(file).find("expected F32 [3], found I32 [3]"), std::string::npos) << refusal_of(file);
  file = copy_of(good);
  file.tensors.emplace_back("fc9.weight", Tensor(DType::kF32, {1}));
  EXPECT_NE(refusal_of(file).find("'fc9.weight' does not belong"), std::string::npos) << refusal_of(file);
  file = copy_of(good);
  file.carried.push_back({"half", "BF16", {3}, std::vector<std::byte>(6)});
  EXPECT_NE(refusal_of(file).find("tensor 'half' does not belong"), std::string::npos) << refusal_of(file);
  file = copy_of(good);
  file.find("bn1.running_var")->values<float>()[5] = -1;
  EXPECT_NE(refusal_of(file).find("'bn1.running_var' has a negative value"), std::string::npos) << refusal_of(file);
}

TEST(ModelFile, weights_that_were_made_wider_or_narrower_load_as_float32) {
  TensorFile file = copy_of(to_tensor_file(small_model()));
  Tensor wide(DType::kF64, {3});
  wide.values<double>()[1] = 0.1;
  *file.find("fc3.bias") = std::move(wide);
  for (auto it = file.tensors.begin(); it != file.tensors.end(); ++it) {
    if (it->first != "bn1.weight") continue;
    const Shape shape = it->second.shape();
    file.tensors.erase(it);
    std::vector<std::byte> ones;  // 1.5 in bfloat16 is 3fc0
    for (int64_t i = 0; i < shape[0]; ++i) ones.insert(ones.end(), {std::byte{0xc0}, std::byte{0x3f}});
    file.carried.push_back({"bn1.weight", "BF16", shape, ones});
    break;
  }
  const Model model = model_from(file, "m.safetensors");
  EXPECT_EQ(model.store.at("fc3.bias").values<float>()[1], 0.1f);
  EXPECT_EQ(model.store.at("bn1.weight").values<float>()[7], 1.5f);
}

TEST(ModelFile, cut_at_any_byte_is_refused) {
  Model model = small_model("lenet", {1, 28, 28}, 10);
  const std::vector<std::byte> bytes = serialize_safetensors(to_tensor_file(model));
  for (size_t size = 0; size < bytes.size(); size += size < 8000 ? 1 : 4099) {
    EXPECT_THROW(model_from(parse_safetensors(std::span(bytes).first(size), "m"), "m"), FormatError) << size;
  }
}

TEST(ModelFile, a_missing_file_is_a_usage_error) { EXPECT_THROW(load_model("/nonexistent/m.safetensors"), UsageError); }

}  // namespace
}  // namespace evenkeel
