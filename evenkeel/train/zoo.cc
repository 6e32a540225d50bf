// The models that have a name. Parameter names are those of the PyTorch models they correspond to (tests/torch_models.py; torchvision
// for vgg11's features and resnet18).
#include <algorithm>
#include <filesystem>

#include "evenkeel/train/model_spec.h"
#include "evenkeel/train/words.h"

namespace evenkeel {
namespace {

LayerSpec conv(const std::string& name, int64_t out, int64_t kernel = 3, int64_t stride = 1) {
  LayerSpec layer;
  layer.type = "conv";
  layer.name = name;
  layer.out = out;
  layer.kernel = kernel;
  layer.stride = stride;
  layer.padding = kernel / 2;
  return layer;
}

LayerSpec linear(const std::string& name, int64_t out = 0) {
  LayerSpec layer;
  layer.type = "linear";
  layer.name = name;
  layer.out = out;
  return layer;
}

LayerSpec plain(const std::string& type, const std::string& name) {
  LayerSpec layer;
  layer.type = type;
  layer.name = name;
  return layer;
}

LayerSpec max_pool(const std::string& name, int64_t kernel = 2, int64_t stride = 2, int64_t padding = 0) {
  LayerSpec layer = plain("max_pool", name);
  layer.kernel = kernel;
  layer.stride = stride;
  layer.padding = padding;
  return layer;
}

LayerSpec with_norm(LayerSpec layer, const std::string& norm_name) {
  layer.norm_name = norm_name;
  return layer;
}

// Two 3x3 convolutions around which the input is added; shortcut where the shape changes.
LayerSpec basic_block(const std::string& name, int64_t out, int64_t stride, const std::string& shortcut) {
  LayerSpec block = plain("residual", name);
  block.shortcut = shortcut;
  block.body = {conv("conv1", out, 3, stride), conv("conv2", out)};
  return block;
}

std::vector<LayerSpec> mlp(const Shape& input) {
  std::vector<LayerSpec> layers = {linear("fc1", 512), linear("fc2", 512), linear("fc3")};
  if (input.size() > 1) layers.insert(layers.begin(), plain("flatten", "flatten"));
  return layers;
}

std::vector<LayerSpec> cnn(const Shape&) {
  return {conv("conv1", 32),  max_pool("pool1"), conv("conv2", 64),           max_pool("pool2"),
          conv("conv3", 128), max_pool("pool3"), plain("flatten", "flatten"), linear("fc")};
}

std::vector<LayerSpec> cnn_gap(const Shape&) {
  return {conv("conv1", 32), conv("conv2", 64), max_pool("pool1"), conv("conv3", 128), plain("global_avg_pool", "gap"),
          linear("fc")};
}

std::vector<LayerSpec> lenet(const Shape&) {
  LayerSpec second = conv("conv2", 16, 5);
  second.padding = 0;
  return {conv("conv1", 6, 5),
          max_pool("pool1"),
          second,
          max_pool("pool2"),
          plain("flatten", "flatten"),
          with_norm(linear("fc1", 120), "bn3"),
          with_norm(linear("fc2", 84), "bn4"),
          linear("fc3")};
}

std::vector<LayerSpec> resnet20(const Shape&) {
  std::vector<LayerSpec> layers = {conv("conv1", 16)};
  for (int stage = 1; stage <= 3; ++stage) {
    for (int block = 0; block < 3; ++block) {
      const bool narrows = stage > 1 && block == 0;
      const std::string name = "layer" + std::to_string(stage) + "." + std::to_string(block);
      layers.push_back(basic_block(name, int64_t{8} << stage, narrows ? 2 : 1, narrows ? "pad" : "identity"));
    }
  }
  layers.push_back(plain("global_avg_pool", "gap"));
  layers.push_back(linear("linear"));
  return layers;
}

// torchvision's vgg11_bn up to its features, then one linear layer, as is usual for small images. Images under 32 pixels have shrunk to
// one pixel before the fifth pooling, which is left out then.
std::vector<LayerSpec> vgg11(const Shape& input) {
  constexpr int64_t kPool = 0;
  std::vector<LayerSpec> layers;
  int index = 0;  // torchvision counts conv, norm, activation and pool
  for (const int64_t out : {64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0}) {
    const std::string name = "features." + std::to_string(index);
    if (out == kPool) {
      layers.push_back(max_pool(name));
      index += 1;
    } else {
      layers.push_back(with_norm(conv(name, out), "features." + std::to_string(index + 1)));
      index += 3;
    }
  }
  if (std::min(input[1], input[2]) < 32) layers.pop_back();
  layers.push_back(plain("flatten", "flatten"));
  layers.push_back(linear("classifier"));
  return layers;
}

std::vector<LayerSpec> resnet18(const Shape& input) {
  std::vector<LayerSpec> layers;
  if (std::max(input[1], input[2]) <= 64) {  // the usual stem would leave nothing of a small image
    layers = {conv("conv1", 64)};
  } else {
    layers = {conv("conv1", 64, 7, 2), max_pool("maxpool", 3, 2, 1)};
  }
  for (int stage = 1; stage <= 4; ++stage) {
    for (int block = 0; block < 2; ++block) {
      const bool narrows = stage > 1 && block == 0;
      const std::string name = "layer" + std::to_string(stage) + "." + std::to_string(block);
      layers.push_back(basic_block(name, int64_t{32} << stage, narrows ? 2 : 1, narrows ? "projection" : "identity"));
    }
  }
  layers.push_back(plain("global_avg_pool", "avgpool"));
  layers.push_back(linear("fc"));
  return layers;
}

struct ZooEntry {
  const char* name;
  bool needs_image;
  std::vector<LayerSpec> (*layers)(const Shape& input);
};
constexpr ZooEntry kZoo[] = {{"cnn", true, cnn},          {"mlp", false, mlp},          {"cnn-gap", true, cnn_gap},
                             {"lenet", true, lenet},      {"resnet20", true, resnet20}, {"vgg11", true, vgg11},
                             {"resnet18", true, resnet18}};

std::string all_names() {
  std::string text;
  for (const std::string& name : zoo_names()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

[[noreturn]] void throw_unknown(const std::string& name) {
  const std::string likely = likely_meant(name, zoo_names());
  throw UsageError("unknown model '" + name + "'" +
                   (likely.empty() ? "; the models are " : "; did you mean '" + likely + "'? The models are ") +
                   all_names() + ", or give the path of a TOML file");
}

}  // namespace

const std::vector<std::string>& zoo_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const ZooEntry& entry : kZoo) all.emplace_back(entry.name);
    return all;
  }();
  return names;
}

ModelSpec zoo_model(const std::string& name, const Shape& input, int64_t classes) {
  for (const ZooEntry& entry : kZoo) {
    if (entry.name != name) continue;
    if (input.size() != 1 && input.size() != 3) {
      throw UsageError("model '" + name + "': expected an input of {features} or {channels, height, width}, found " +
                       to_string(input));
    }
    if (entry.needs_image && input.size() != 3) {
      throw UsageError("model '" + name + "' needs images, but the data has " + std::to_string(input[0]) +
                       " features per example; use --model mlp, or a TOML file with linear layers");
    }
    ModelSpec spec;
    spec.name = name;
    spec.input = input;
    spec.classes = classes;
    spec.layers = entry.layers(input);
    return spec;
  }
  throw_unknown(name);
}

ModelSpec find_model(const std::string& name_or_path, const Shape& input, int64_t classes) {
  const auto& names = zoo_names();
  if (std::find(names.begin(), names.end(), name_or_path) != names.end())
    return zoo_model(name_or_path, input, classes);
  std::error_code ignored;
  if (name_or_path.ends_with(".safetensors")) {
    throw UsageError("'" + name_or_path + "' is a trained model, but the description of a network is wanted: a name (" +
                     all_names() + ") or a TOML file; to go on with a run use --resume with its folder");
  }
  if (std::filesystem::is_regular_file(name_or_path, ignored)) return read_model_toml(name_or_path, input, classes);
  const bool like_a_file = name_or_path.find_first_of("/.") != std::string::npos;
  if (!like_a_file) throw_unknown(name_or_path);
  const std::string stem = std::filesystem::path(name_or_path).stem().string();
  const std::string likely = likely_meant(stem, names);
  throw UsageError(
      "there is no file '" + name_or_path + "', and no model of that name" +
      (likely.empty() ? "; the models are " : "; did you mean the model '" + likely + "'? The models are ") +
      all_names());
}

}  // namespace evenkeel
