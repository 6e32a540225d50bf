#include "evenkeel/model_io/keras_config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/json_depth.h"

namespace evenkeel {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostLayers = 100'000;

std::string text_at(const Json& object, const char* key) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

std::optional<double> number_at(const Json& object, const char* key) {
  if (!object.is_object()) return {};
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

struct Layer {
  std::string name, class_name;
  const Json* config = nullptr;
  std::vector<std::string> fed_by;  // names
};

// Reads the layers of a model, and of the models in it.
class ConfigReader {
 public:
  void read(const Json& model, int depth) {
    if (depth > kMostJsonDepth || !model.is_object()) return;
    const auto config = model.find("config");
    if (config == model.end()) return;
    // A Sequential of Keras before 2.2 has its layers as the config itself.
    const Json* list = config->is_array() ? &*config : nullptr;
    if (config->is_object() && config->contains("layers")) list = &config->at("layers");
    if (list == nullptr || !list->is_array()) return;
    std::string before;  // in a Sequential each layer is fed by the one before
    const bool sequential = text_at(model, "class_name") == "Sequential";
    for (const Json& entry : *list) {
      if (layers_.size() >= kMostLayers) return;
      Layer layer{text_at(entry, "name"), text_at(entry, "class_name"), nullptr, {}};
      if (!entry.is_object() || !entry.contains("config")) continue;
      layer.config = &entry.at("config");
      if (layer.name.empty()) layer.name = text_at(*layer.config, "name");
      if (sequential && !before.empty()) layer.fed_by.push_back(before);
      if (entry.contains("inbound_nodes")) find_sources(entry.at("inbound_nodes"), layer.fed_by, 0);
      before = layer.name;
      layers_.push_back(std::move(layer));
      read(entry, depth + 1);
    }
  }

  std::vector<KerasLayer> norms() const {
    std::map<std::string, std::string> shown;
    for (const Layer& layer : layers_) shown[layer.name] = layer.name + " (" + layer.class_name + ")";
    std::map<std::string, std::vector<std::string>> feeds;
    for (const Layer& layer : layers_) {
      for (const std::string& source : layer.fed_by) feeds[source].push_back(shown[layer.name]);
    }
    std::vector<KerasLayer> norms;
    for (const Layer& layer : layers_) {
      if (layer.class_name.find("BatchNormalization") == std::string::npos) continue;
      KerasLayer norm{
          layer.name, layer.class_name, number_at(*layer.config, "epsilon"), number_at(*layer.config, "momentum"),
          {},         feeds[layer.name]};
      for (const std::string& source : layer.fed_by)
        norm.fed_by.push_back(shown.count(source) > 0 ? shown[source] : source);
      norms.push_back(std::move(norm));
    }
    return norms;
  }

 private:
  // Keras 2 writes ["conv2d", 0, 0, {}] for the output of a layer, Keras 3 "keras_history": ["conv2d", 0, 0], both deep inside lists.
  static void find_sources(const Json& json, std::vector<std::string>& sources, int depth) {
    if (depth > kMostJsonDepth) return;
    if (json.is_array() && json.size() >= 3 && json[0].is_string() && json[1].is_number_integer() &&
        json[2].is_number_integer()) {
      const auto name = json[0].get<std::string>();
      if (std::find(sources.begin(), sources.end(), name) == sources.end()) sources.push_back(name);
      return;
    }
    if (json.is_structured()) {
      for (const Json& inner : json) find_sources(inner, sources, depth + 1);
    }
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::vector<KerasLayer> norms_of_keras_config(std::string_view json, const std::string& name_for_messages) {
  const std::string what = "'" + name_for_messages + "': the description of the model";
  require_shallow_json(json, what);
  const Json model = Json::parse(json, nullptr, false);
  if (model.is_discarded()) throw FormatError(what + " is not JSON");
  ConfigReader reader;
  reader.read(model, 0);
  return reader.norms();
}

}  // namespace evenkeel
