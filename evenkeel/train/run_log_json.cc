#include "evenkeel/train/run_log_json.h"

#include <cmath>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>

namespace evenkeel {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// --- record -> JSON ---

ordered_json json_of(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

ordered_json json_of(const std::optional<double>& value) {
  return value.has_value() ? json_of(*value) : ordered_json(nullptr);
}

ordered_json json_of(const std::vector<NormRecord>& norms) {
  ordered_json list = ordered_json::array();
  for (const NormRecord& norm : norms) {
    list.push_back({{"name", norm.name},
                    {"mean_shift", json_of(norm.mean_shift)},
                    {"log_var_ratio", json_of(norm.log_var_ratio)},
                    {"channel", norm.channel}});
  }
  return list;
}

ordered_json to_json(const RunStart& record) {
  return {{"kind", "start"},
          {"format_version", record.format_version},
          {"step", record.step},
          {"unix_time_s", json_of(record.unix_time_s)},
          {"model", record.model},
          {"data", record.data},
          {"parameters", record.parameters},
          {"train_examples", record.train_examples},
          {"test_examples", record.test_examples},
          {"versions", record.versions},
          {"settings", record.settings}};
}

ordered_json to_json(const StepRecord& record) {
  ordered_json object = {{"kind", "step"},
                         {"step", record.step},
                         {"epoch", record.epoch},
                         {"loss", json_of(record.loss)},
                         {"learning_rate", json_of(record.learning_rate)},
                         {"images_per_s", json_of(record.images_per_s)},
                         {"examples", record.examples}};
  if (record.comm_bytes) object["comm_bytes"] = *record.comm_bytes;
  if (record.comm_wait_s) object["comm_wait_s"] = json_of(*record.comm_wait_s);
  return object;
}

ordered_json to_json(const EpochRecord& record) {
  return {{"kind", "epoch"},
          {"epoch", record.epoch},
          {"step", record.step},
          {"train_loss", json_of(record.train_loss)},
          {"train_accuracy", json_of(record.train_accuracy)},
          {"test_loss", json_of(record.test_loss)},
          {"test_accuracy", json_of(record.test_accuracy)},
          {"validation_loss", json_of(record.validation_loss)},
          {"validation_accuracy", json_of(record.validation_accuracy)},
          {"images_per_s", json_of(record.images_per_s)},
          {"seconds", json_of(record.seconds)},
          {"refused_batches", record.refused_batches},
          {"norms", json_of(record.norms)}};
}

ordered_json to_json(const StatisticsRecord& record) {
  return {{"kind", "statistics"},
          {"step", record.step},
          {"epoch", record.epoch},
          {"running_statistics", record.running_statistics},
          {"examples", record.examples},
          {"seconds", json_of(record.seconds)},
          {"test_loss", json_of(record.test_loss)},
          {"test_accuracy", json_of(record.test_accuracy)},
          {"validation_loss", json_of(record.validation_loss)},
          {"validation_accuracy", json_of(record.validation_accuracy)}};
}

ordered_json json_of(const std::optional<Percentiles>& p) {
  if (!p) return nullptr;
  return {json_of(p->least), json_of(p->p15), json_of(p->p50), json_of(p->p85), json_of(p->greatest)};
}

ordered_json json_of(const LayerRecord& layer) {
  return {{"name", layer.name},
          {"input", json_of(std::optional<Percentiles>(layer.input))},
          {"gamma", json_of(layer.gamma)},
          {"beta", json_of(layer.beta)},
          {"batch_mean", json_of(layer.batch_mean)},
          {"batch_var", json_of(layer.batch_var)},
          {"running_mean", json_of(layer.running_mean)},
          {"running_var", json_of(layer.running_var)},
          {"output", json_of(layer.output)}};
}

ordered_json json_of(const GradientRecord& gradient) {
  return {{"parameter", gradient.parameter},
          {"norm", json_of(gradient.norm)},
          {"weight_norm", json_of(gradient.weight_norm)}};
}

ordered_json json_of(const Mistake& mistake) {
  return {{"example", mistake.example},
          {"label", mistake.label},
          {"predicted", mistake.predicted},
          {"probability", json_of(mistake.probability)},
          {"png_base64", mistake.png_base64}};
}

template <class Entry>
ordered_json list_of(const std::vector<Entry>& entries) {
  ordered_json list = ordered_json::array();
  for (const Entry& entry : entries) list.push_back(json_of(entry));
  return list;
}

ordered_json to_json(const LayersRecord& record) {
  return {{"kind", "layers"},
          {"step", record.step},
          {"epoch", record.epoch},
          {"examples", record.examples},
          {"loss", json_of(record.loss)},
          {"layers", list_of(record.layers)},
          {"gradients", list_of(record.gradients)}};
}

ordered_json to_json(const AnswersRecord& record) {
  return {{"kind", "answers"},         {"step", record.step},           {"epoch", record.epoch},
          {"classes", record.classes}, {"confusion", record.confusion}, {"mistakes", list_of(record.mistakes)}};
}

ordered_json to_json(const CheckpointRecord& record) {
  return {{"kind", "checkpoint"},
          {"step", record.step},
          {"epoch", record.epoch},
          {"file", record.file},
          {"seconds", json_of(record.seconds)}};
}

ordered_json to_json(const EndRecord& record) {
  ordered_json json = {{"kind", "end"},
                       {"status", record.status},
                       {"step", record.step},
                       {"epoch", record.epoch},
                       {"seconds", json_of(record.seconds)},
                       {"peak_memory_bytes", record.peak_memory_bytes},
                       {"message", record.message}};
  if (record.best_epoch > 0) json["best_epoch"] = record.best_epoch;
  if (record.stopped_early) json["stopped_early"] = true;
  return json;
}

// --- JSON -> record ---

// The fields of one line (json, not ordered_json, whose objects take quadratic time to build). A
// field that is absent keeps its default: a later version of the same format may add some.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  void read(const char* key, int64_t& value) const {
    const json* field = find(key);
    if (field == nullptr) return;
    value = integer(*field, key);
  }

  void read(const char* key, double& value) const {
    if (const json* field = find(key)) value = number(*field, key);
  }

  void read(const char* key, std::optional<double>& value) const {
    const json* field = find(key);
    if (field == nullptr || field->is_null()) return;
    value = number(*field, key);
  }

  void read(const char* key, std::optional<int64_t>& value) const {
    const json* field = find(key);
    if (field != nullptr && !field->is_null()) value = integer(*field, key);
  }

  void read(const char* key, bool& value) const {
    const json* field = find(key);
    if (field == nullptr) return;
    if (!field->is_boolean()) throw BadLine{std::string("\"") + key + "\" is not true or false"};
    value = field->get<bool>();
  }

  void read(const char* key, std::string& value) const {
    const json* field = find(key);
    if (field == nullptr) return;
    if (!field->is_string()) throw BadLine{std::string("\"") + key + "\" is not a text"};
    value = field->get<std::string>();
  }

  void read(const char* key, std::vector<NormRecord>& value) const {
    each_object(key, value, [](const Fields& fields, NormRecord& norm) {
      fields.read("name", norm.name);
      fields.read("mean_shift", norm.mean_shift);
      fields.read("log_var_ratio", norm.log_var_ratio);
      fields.read("channel", norm.channel);
    });
  }

  void read(const char* key, std::optional<Percentiles>& value) const {
    const json* field = find(key);
    if (field == nullptr || field->is_null()) return;
    if (!field->is_array() || field->size() != 5) throw BadLine{std::string("\"") + key + "\" is not five numbers"};
    const auto at = [&](size_t i) { return number((*field)[i], key); };
    value = Percentiles{at(0), at(1), at(2), at(3), at(4)};
  }

  void read(const char* key, std::vector<LayerRecord>& value) const {
    each_object(key, value, [](const Fields& fields, LayerRecord& layer) {
      std::optional<Percentiles> input;
      fields.read("name", layer.name);
      fields.read("input", input);
      layer.input = input.value_or(Percentiles{});
      fields.read("gamma", layer.gamma);
      fields.read("beta", layer.beta);
      fields.read("batch_mean", layer.batch_mean);
      fields.read("batch_var", layer.batch_var);
      fields.read("running_mean", layer.running_mean);
      fields.read("running_var", layer.running_var);
      fields.read("output", layer.output);
    });
  }

  void read(const char* key, std::vector<GradientRecord>& value) const {
    each_object(key, value, [](const Fields& fields, GradientRecord& gradient) {
      fields.read("parameter", gradient.parameter);
      fields.read("norm", gradient.norm);
      fields.read("weight_norm", gradient.weight_norm);
    });
  }

  void read(const char* key, std::vector<Mistake>& value) const {
    each_object(key, value, [](const Fields& fields, Mistake& mistake) {
      fields.read("example", mistake.example);
      fields.read("label", mistake.label);
      fields.read("predicted", mistake.predicted);
      fields.read("probability", mistake.probability);
      fields.read("png_base64", mistake.png_base64);
    });
  }

  void read(const char* key, std::vector<std::string>& value) const {
    each_entry(key, [&](const json& entry) {
      if (!entry.is_string()) throw BadLine{std::string("\"") + key + "\" holds more than texts"};
      value.push_back(entry.get<std::string>());
    });
  }

  void read(const char* key, std::vector<int64_t>& value) const {
    each_entry(key, [&](const json& entry) { value.push_back(integer(entry, key)); });
  }

  void read(const char* key, std::map<std::string, std::string>& value) const {
    const json* field = find(key);
    if (field == nullptr) return;
    if (!field->is_object()) throw BadLine{std::string("\"") + key + "\" is not an object"};
    for (const auto& [name, text] : field->items()) {
      if (!text.is_string()) throw BadLine{std::string("\"") + key + "\" holds more than texts"};
      value[name] = text.get<std::string>();
    }
  }

 private:
  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }

  template <class Visit>
  void each_entry(const char* key, Visit visit) const {
    const json* field = find(key);
    if (field == nullptr) return;
    if (!field->is_array()) throw BadLine{std::string("\"") + key + "\" is not a list"};
    for (const json& entry : *field) visit(entry);
  }

  // Adds an element for each object of a list: read(fields of it, element).
  template <class Element, class Read>
  void each_object(const char* key, std::vector<Element>& value, Read read) const {
    each_entry(key, [&](const json& entry) {
      if (!entry.is_object()) throw BadLine{std::string("\"") + key + "\" holds more than objects"};
      read(Fields(entry), value.emplace_back());
    });
  }

  static int64_t integer(const json& field, const char* key) {
    const bool fits =
        field.is_number_integer() &&
        (!field.is_number_unsigned() || field.get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    if (!fits) throw BadLine{std::string("\"") + key + "\" is not an integer"};
    return field.get<int64_t>();
  }

  static double number(const json& field, const char* key) {
    if (field.is_number()) return field.get<double>();
    if (field.is_string()) {
      const std::string& text = field.get_ref<const std::string&>();
      if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
      if (text == "Infinity") return std::numeric_limits<double>::infinity();
      if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
    }
    throw BadLine{std::string("\"") + key + "\" is not a number"};
  }

  const json& object_;
};

RunStart start_from(const Fields& fields) {
  RunStart record;
  fields.read("format_version", record.format_version);
  fields.read("step", record.step);
  fields.read("unix_time_s", record.unix_time_s);
  fields.read("model", record.model);
  fields.read("data", record.data);
  fields.read("parameters", record.parameters);
  fields.read("train_examples", record.train_examples);
  fields.read("test_examples", record.test_examples);
  fields.read("versions", record.versions);
  fields.read("settings", record.settings);
  return record;
}

StepRecord step_from(const Fields& fields) {
  StepRecord record;
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("loss", record.loss);
  fields.read("learning_rate", record.learning_rate);
  fields.read("images_per_s", record.images_per_s);
  fields.read("examples", record.examples);
  fields.read("comm_bytes", record.comm_bytes);
  fields.read("comm_wait_s", record.comm_wait_s);
  return record;
}

EpochRecord epoch_from(const Fields& fields) {
  EpochRecord record;
  fields.read("epoch", record.epoch);
  fields.read("step", record.step);
  fields.read("train_loss", record.train_loss);
  fields.read("train_accuracy", record.train_accuracy);
  fields.read("test_loss", record.test_loss);
  fields.read("test_accuracy", record.test_accuracy);
  fields.read("validation_loss", record.validation_loss);
  fields.read("validation_accuracy", record.validation_accuracy);
  fields.read("images_per_s", record.images_per_s);
  fields.read("seconds", record.seconds);
  fields.read("refused_batches", record.refused_batches);
  fields.read("norms", record.norms);
  return record;
}

StatisticsRecord statistics_from(const Fields& fields) {
  StatisticsRecord record;
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("running_statistics", record.running_statistics);
  fields.read("examples", record.examples);
  fields.read("seconds", record.seconds);
  fields.read("test_loss", record.test_loss);
  fields.read("test_accuracy", record.test_accuracy);
  fields.read("validation_loss", record.validation_loss);
  fields.read("validation_accuracy", record.validation_accuracy);
  return record;
}

LayersRecord layers_from(const Fields& fields) {
  LayersRecord record;
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("examples", record.examples);
  fields.read("loss", record.loss);
  fields.read("layers", record.layers);
  fields.read("gradients", record.gradients);
  return record;
}

AnswersRecord answers_from(const Fields& fields) {
  AnswersRecord record;
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("classes", record.classes);
  fields.read("confusion", record.confusion);
  fields.read("mistakes", record.mistakes);
  return record;
}

CheckpointRecord checkpoint_from(const Fields& fields) {
  CheckpointRecord record;
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("file", record.file);
  fields.read("seconds", record.seconds);
  return record;
}

EndRecord end_from(const Fields& fields) {
  EndRecord record;
  fields.read("status", record.status);
  fields.read("step", record.step);
  fields.read("epoch", record.epoch);
  fields.read("seconds", record.seconds);
  fields.read("peak_memory_bytes", record.peak_memory_bytes);
  fields.read("message", record.message);
  fields.read("best_epoch", record.best_epoch);
  fields.read("stopped_early", record.stopped_early);
  return record;
}

// The object on a line, or nothing when the line is not JSON. No record is deeper than an object in
// an object: more is refused before it is built, so that a hostile line of brackets costs nothing.
json object_on(std::string_view line) {
  constexpr int kMostDepth = 8;
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > kMostDepth) throw BadLine{"it is nested too deep"};
    return true;
  };
  json object = json::parse(line, shallow, /*allow_exceptions=*/false);
  if (!object.is_object()) throw BadLine{"it is not a JSON object"};
  return object;
}

}  // namespace

std::string line_of(const LogRecord& record) {
  const ordered_json object = std::visit([](const auto& typed) { return to_json(typed); }, record);
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::optional<LogRecord> record_on(std::string_view line) {
  const json object = object_on(line);
  const Fields fields(object);
  std::string kind;
  fields.read("kind", kind);
  if (kind == "start") return start_from(fields);
  if (kind == "step") return step_from(fields);
  if (kind == "epoch") return epoch_from(fields);
  if (kind == "checkpoint") return checkpoint_from(fields);
  if (kind == "statistics") return statistics_from(fields);
  if (kind == "layers") return layers_from(fields);
  if (kind == "answers") return answers_from(fields);
  if (kind == "end") return end_from(fields);
  if (kind.empty()) throw BadLine{"it has no \"kind\""};
  return std::nullopt;
}

}  // namespace evenkeel
