#include "evenkeel/train/model_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "evenkeel/core/rng.h"
#include "evenkeel/model_io/json_depth.h"
#include "evenkeel/model_io/tensor_convert.h"

namespace evenkeel {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormatName = "evenkeel";

// FNV-1a, 64 bits: fixed for all time and machines, as std::hash is not.
uint64_t name_hash(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

void fill_uniform(std::span<float> values, double bound, RandomStream random) {
  for (float& value : values)
    value = static_cast<float>(bound * (2.0 * static_cast<double>(random.next_uniform()) - 1.0));
}

void fill_normal(std::span<float> values, double sigma, RandomStream random) {
  for (float& value : values) value = static_cast<float>(sigma * random.next_normal());
}

Tensor initial_value(const ParameterInfo& info, uint64_t seed) {
  Tensor tensor(DType::kF32, info.shape);
  const std::span<float> values = tensor.values<float>();
  const RandomStream random(seed, RandomUse::kInitialize, name_hash(info.name), 0);
  const auto fan_in = static_cast<double>(info.fan_in);
  const auto fan_out = static_cast<double>(info.fan_out);
  switch (info.init) {
    case Init::kZero:
      break;  // tensors start at 0
    case Init::kOne:
      std::fill(values.begin(), values.end(), 1.0f);
      break;
    case Init::kTorchDefault:
      fill_uniform(values, 1 / std::sqrt(fan_in), random);
      break;
    case Init::kHe:
      fill_normal(values, std::sqrt(2 / fan_in), random);
      break;
    case Init::kXavier:
      fill_uniform(values, std::sqrt(6 / (fan_in + fan_out)), random);
      break;
    case Init::kNormal:
      fill_normal(values, info.init_scale, random);
      break;
  }
  return tensor;
}

Tensor initial_value(const BufferInfo& info) {
  Tensor tensor(info.dtype, info.shape);
  if (info.dtype == DType::kI64) {
    for (int64_t& value : tensor.values<int64_t>()) value = static_cast<int64_t>(info.initial);
  } else {
    for (float& value : tensor.values<float>()) value = static_cast<float>(info.initial);
  }
  return tensor;
}

struct Expected {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// Every tensor of the network in the order of PyTorch's state dict: the buffers of a norm come behind its weight and bias.
std::vector<Expected> state_dict_of(const Network& network) {
  std::vector<Expected> all;
  std::set<std::string> done;
  const auto add_buffers = [&](const std::string& prefix) {
    for (const BufferInfo& buffer : network.buffers) {
      const bool in = buffer.name.starts_with(prefix) && buffer.name.find('.', prefix.size()) == std::string::npos;
      if (in && done.insert(buffer.name).second) all.push_back({buffer.name, buffer.dtype, buffer.shape});
    }
  };
  for (size_t i = 0; i < network.parameters.size(); ++i) {
    const ParameterInfo& info = network.parameters[i];
    all.push_back({info.name, DType::kF32, info.shape});
    const std::string prefix = info.name.substr(0, info.name.rfind('.') + 1);
    const bool more = i + 1 < network.parameters.size() && network.parameters[i + 1].name.starts_with(prefix);
    if (!more) add_buffers(prefix);
  }
  for (const BufferInfo& buffer : network.buffers) {
    if (done.insert(buffer.name).second) all.push_back({buffer.name, buffer.dtype, buffer.shape});
  }
  return all;
}

Network inference_network(const ModelSpec& spec) { return build_network(spec, Mode::kInference, {.with_loss = false}); }

// What the norms of the model mean, for readers of the file that do not parse the architecture.
// Keys may be added: readers compare those that they know.
Json conventions_of(const ModelSpec& spec, const std::string& running_statistics) {
  const NormSettings& o = spec.norm_options;
  return {{"kind", norm_kind_names()[static_cast<size_t>(spec.norm)]},
          {"eps", o.eps},
          {"new_batch_weight", o.new_batch_weight},
          {"running_variance", o.biased ? "biased" : "unbiased"},
          {"bias_corrected", o.bias_corrected},
          {"running_statistics", running_statistics}};
}

// Text that is not UTF-8 (a class name from a CSV file) is mended, not refused.
std::string text_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Reads the metadata of a file that may hold anything.
class MetadataReader {
 public:
  MetadataReader(const TensorFile& file, const std::string& name) : file_(file), name_(name) {}

  [[noreturn]] void fail(const std::string& what) const { throw FormatError(name_ + ": " + what); }

  const std::string& text(const std::string& key) const {
    const auto it = file_.metadata.find(key);
    if (it == file_.metadata.end()) {
      fail("the metadata has no '" + key + "'; the file is damaged or was changed by another program");
    }
    return it->second;
  }
  Json json(const std::string& key) const {
    require_shallow_json(text(key), name_ + ": metadata '" + key + "'");
    Json value = Json::parse(text(key), nullptr, false);
    if (value.is_discarded()) fail("metadata '" + key + "' is not JSON");
    return value;
  }

  void require_format() const {
    const auto it = file_.metadata.find("format");
    if (it != file_.metadata.end() && it->second == std::string(kFormatName) + " checkpoint") {
      fail(
          "this is a checkpoint, from which `evenkeel train --resume` goes on; give the model.safetensors of the same "
          "folder, which is written when the run ends");
    }
    if (it == file_.metadata.end() || it->second != kFormatName) {
      const bool state_dict = std::any_of(file_.tensors.begin(), file_.tensors.end(), [](const auto& tensor) {
        return tensor.first.ends_with(".weight") || tensor.first.ends_with(".running_mean");
      });
      if (state_dict) {
        fail(
            "this file holds weights without a network, as a state dict of PyTorch does; `evenkeel convert FILE "
            "--architecture NAME -o model.safetensors` makes a model of it");
      }
      fail("this file was not written by evenkeel (expected format = 'evenkeel' in its metadata, found " +
           (it == file_.metadata.end() ? "none" : "'" + it->second + "'") +
           "); train a model, or give its model.safetensors");
    }
    const std::string& version = text("format_version");
    int64_t number = 0;
    const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), number);
    if (error != std::errc() || end != version.data() + version.size() || number < 1) {
      fail("metadata 'format_version' should be a whole number, found '" + version + "'");
    }
    if (number > kModelFormatVersion) {
      fail("the model has format version " + version + ", but this evenkeel reads versions up to " +
           std::to_string(kModelFormatVersion) + "; use a newer evenkeel");
    }
  }

  // One finite number per channel or feature.
  std::vector<double> numbers(const Json& object, const std::string& key, int64_t count) const {
    const auto it = object.find(key);
    std::vector<double> values;
    if (it != object.end() && it->is_array()) {
      for (const Json& value : *it) {
        values.push_back(value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN());
      }
    }
    bool good = it != object.end() && static_cast<int64_t>(values.size()) == count;
    for (const double value : values) good = good && std::isfinite(value) && (key != "std" || value > 0);
    if (!good) {
      fail("metadata 'standardization': '" + key + "' should be a list of " + std::to_string(count) +
           (key == "std" ? " positive numbers" : " numbers"));
    }
    return values;
  }

  // Absent in files of older versions.
  std::optional<data::ValueRange> input_range() const {
    if (file_.metadata.count("input_range") == 0) return {};
    const Json object = json("input_range");
    const auto number = [&](const char* key) {
      const auto it = object.find(key);
      return it != object.end() && it->is_number() ? it->get<double>() : std::numeric_limits<double>::quiet_NaN();
    };
    const data::ValueRange range{number("min"), number("max")};
    if (!std::isfinite(range.min) || !std::isfinite(range.max) || range.min > range.max) {
      fail("metadata 'input_range' should be the numbers 'min' and 'max', min <= max");
    }
    return range;
  }

  // Absent when the features have no names, as in files of older versions.
  std::vector<std::string> feature_names(int64_t features) const {
    return file_.metadata.count("features") == 0 ? std::vector<std::string>() : names("features", features);
  }

  std::vector<std::string> names(const std::string& key, int64_t count) const {
    const Json list = json(key);
    std::vector<std::string> names;
    bool good = list.is_array();
    for (const Json& name : list) {
      good = good && name.is_string();
      if (good) names.push_back(name.get<std::string>());
    }
    if (!good || (!names.empty() && static_cast<int64_t>(names.size()) != count)) {
      fail("metadata '" + key + "' should be a list of " + std::to_string(count) + " names");
    }
    return names;
  }

  // The kind of the running statistics; all else that 'norm' says must agree with the architecture.
  std::string running_statistics(const ModelSpec& spec) const {
    const Json norm = json("norm");
    const auto it = norm.find("running_statistics");
    if (it == norm.end() || !it->is_string()) fail("metadata 'norm' should name its 'running_statistics'");
    const Json expected = conventions_of(spec, it->get<std::string>());
    for (const auto& [key, value] : expected.items()) {
      if (!norm.contains(key) || norm.at(key) != value) {
        fail("metadata 'norm' does not agree with 'architecture' about '" + key + "'; the file was changed by hand");
      }
    }
    return it->get<std::string>();
  }

  std::map<std::string, std::string> training() const { return texts(json("training"), "'training'"); }

  // Absent in files of older versions, and where the statistics were made in training.
  std::map<std::string, std::string> statistics_made() const {
    const Json norm = json("norm");
    const auto it = norm.find("made_from");
    if (it == norm.end()) return {};
    return texts(*it, "'norm', 'made_from'");
  }

 private:
  std::map<std::string, std::string> texts(const Json& object, const char* what) const {
    std::map<std::string, std::string> settings;
    if (!object.is_object()) fail(std::string("metadata ") + what + " should be an object");
    for (const auto& [key, value] : object.items())
      settings[key] = value.is_string() ? value.get<std::string>() : value.dump();
    return settings;
  }

  const TensorFile& file_;
  const std::string& name_;
};

// Variances and counts come from sums of squares and from counting: a negative one is a damaged file.
bool plausible(const std::string& name, const Tensor& tensor) {
  if (tensor.dtype() == DType::kI64) {
    for (const int64_t value : tensor.values<int64_t>()) {
      if (value < 0) return false;
    }
  } else if (name.ends_with(".running_var")) {
    for (const float value : tensor.values<float>()) {
      if (value < 0) return false;
    }
  }
  return true;
}

// As the architecture has it: weights kept in F64, F16 or BF16 are made F32. None where that cannot be.
std::optional<Tensor> taken(const AnyTensor& tensor, const Expected& expected) {
  if (tensor.shape() != expected.shape) return {};
  if (tensor.held != nullptr && tensor.held->dtype() == expected.dtype) return tensor.held->clone();
  return expected.dtype == DType::kF32 ? tensor.f32() : std::nullopt;
}

void take_tensors(const TensorFile& file, const Network& network, const MetadataReader& reader, ParameterStore* store) {
  std::map<std::string, AnyTensor> there = tensors_by_name(file);
  for (const Expected& expected : state_dict_of(network)) {
    const auto it = there.find(expected.name);
    if (it == there.end()) reader.fail("tensor '" + expected.name + "' of the architecture is missing");
    std::optional<Tensor> tensor = taken(it->second, expected);
    if (!tensor) {
      reader.fail("tensor '" + expected.name + "': expected " + name_of(expected.dtype) + " " +
                  to_string(expected.shape) + ", found " + it->second.dtype() + " " + to_string(it->second.shape()));
    }
    if (!plausible(expected.name, *tensor)) reader.fail("tensor '" + expected.name + "' has a negative value");
    store->add(expected.name, std::move(*tensor));
    there.erase(it);
  }
  if (!there.empty()) reader.fail("tensor '" + there.begin()->first + "' does not belong to the architecture");
}

}  // namespace

void initialize(const Network& network, uint64_t seed, ParameterStore* store) {
  for (const ParameterInfo& info : network.parameters) store->add(info.name, initial_value(info, seed));
  for (const BufferInfo& info : network.buffers) store->add(info.name, initial_value(info));
}

TensorFile to_tensor_file(const Model& model) {
  TensorFile file;
  file.metadata["format"] = kFormatName;
  file.metadata["format_version"] = std::to_string(kModelFormatVersion);
  file.metadata["architecture"] = to_toml(model.spec);
  file.metadata["standardization"] =
      text_of({{"mean", model.standardization.mean}, {"std", model.standardization.std}});
  if (model.input_range) {
    file.metadata["input_range"] = text_of({{"min", model.input_range->min}, {"max", model.input_range->max}});
  }
  if (!model.feature_names.empty()) file.metadata["features"] = text_of(Json(model.feature_names));
  file.metadata["classes"] = text_of(Json(model.class_names));
  Json norm = conventions_of(model.spec, model.running_statistics);
  if (!model.statistics_made.empty()) norm["made_from"] = model.statistics_made;
  file.metadata["norm"] = text_of(norm);
  file.metadata["data"] = model.data_name;
  file.metadata["training"] = text_of(Json(model.training));
  for (const Expected& expected : state_dict_of(inference_network(model.spec))) {
    file.tensors.emplace_back(expected.name, model.store.at(expected.name).clone());
  }
  return file;
}

Model model_from(const TensorFile& file, const std::string& name_for_messages) {
  const MetadataReader reader(file, name_for_messages);
  reader.require_format();
  Model model;
  Network network;
  try {
    model.spec = parse_model_toml(reader.text("architecture"), "its architecture", {}, 0);
    network = inference_network(model.spec);
  } catch (const UsageError& error) {  // here the text is bytes of a file, not a request
    reader.fail(error.what());
  }
  const Json standardization = reader.json("standardization");
  model.standardization.mean = reader.numbers(standardization, "mean", model.spec.input[0]);
  model.standardization.std = reader.numbers(standardization, "std", model.spec.input[0]);
  model.input_range = reader.input_range();
  model.class_names = reader.names("classes", model.spec.classes);
  model.feature_names = reader.feature_names(model.spec.input[0]);
  model.running_statistics = reader.running_statistics(model.spec);
  model.statistics_made = reader.statistics_made();
  model.data_name = reader.text("data");
  model.training = reader.training();
  take_tensors(file, network, reader, &model.store);
  return model;
}

Model clone(const Model& model) {
  Model copy;
  copy.spec = model.spec;
  copy.standardization = model.standardization;
  copy.input_range = model.input_range;
  copy.class_names = model.class_names;
  copy.feature_names = model.feature_names;
  copy.data_name = model.data_name;
  copy.training = model.training;
  copy.running_statistics = model.running_statistics;
  copy.statistics_made = model.statistics_made;
  for (const Expected& expected : state_dict_of(inference_network(model.spec)))
    copy.store.add(expected.name, model.store.at(expected.name).clone());
  return copy;
}

void save_model(const std::string& path, const Model& model) { write_safetensors(path, to_tensor_file(model)); }

Model load_model(const std::string& path) { return model_from(read_safetensors(path), path); }

}  // namespace evenkeel
