// The TOML form of a ModelSpec: the only file that knows toml++. One function reads a table, one writes it, in the same order.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <exception>
#include <filesystem>
#include <string_view>

// toml++ 3.3 takes some of a file's mistakes for its own ("[[[" breaks an assertion of its parser), and in release builds its assertions
// become promises to the compiler. A model file may hold any text: here they throw, in every build.
namespace evenkeel {
namespace {
struct ParserConfused : std::exception {
  const char* what() const noexcept override { return "a key or a bracket stands where it cannot"; }
};
constexpr void parser_expects(bool truth) {
  if (!truth) throw ParserConfused();
}
}  // namespace
}  // namespace evenkeel
#undef NDEBUG
#define TOML_ASSERT(expression) ::evenkeel::parser_expects(static_cast<bool>(expression))
#include <toml++/toml.h>

#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/model_spec.h"
#include "evenkeel/train/words.h"

namespace evenkeel {
namespace {

constexpr int64_t kMaxInteger = int64_t{1} << 24;

// The words of an enumeration, in its order.
using Words = std::vector<std::string>;
const Words& placement_words() {
  static const Words words = {"before", "after"};
  return words;
}
const Words& variance_words() {
  static const Words words = {"unbiased", "biased"};
  return words;
}
const Words& loss_words() {
  static const Words words = {"cross_entropy", "mse"};
  return words;
}
const Words& shortcut_words() {
  static const Words words = {"identity", "pad", "projection"};
  return words;
}
const Words& statistics_words() {
  static const Words words = {"ema", "cumulative"};
  return words;
}
struct InitWord {
  const char* word;
  Init init;
};
constexpr InitWord kInitWords[] = {
    {"default", Init::kTorchDefault}, {"he", Init::kHe}, {"xavier", Init::kXavier}, {"normal", Init::kNormal}};
const Words& init_words() {
  static const Words words = [] {
    Words all;
    for (const InitWord& entry : kInitWords) all.emplace_back(entry.word);
    return all;
  }();
  return words;
}

// The keys of each type of layer, besides `type` and `name`.
struct TypeKeys {
  const char* type;
  Words keys;
};
const std::vector<TypeKeys>& type_keys() {
  static const std::vector<TypeKeys> all = {
      {"conv",
       {"out", "kernel", "stride", "padding", "dilation", "groups", "bias", "norm", "activation", "slope", "placement",
        "norm_name", "zero_gamma"}},
      {"linear", {"out", "bias", "norm", "activation", "slope", "placement", "norm_name", "zero_gamma"}},
      {"norm", {"norm", "zero_gamma"}},
      {"activation", {"activation", "slope"}},
      {"max_pool", {"kernel", "stride", "padding"}},
      {"avg_pool", {"kernel", "stride", "padding", "count_include_pad"}},
      {"global_avg_pool", {}},
      {"flatten", {}},
      {"dropout", {"probability"}},
      {"residual", {"shortcut", "shortcut_name", "activation", "slope", "body"}}};
  return all;
}

// One table, read key by key; finish() refuses the keys that nobody asked for.
class TableReader {
 public:
  TableReader(const toml::table& table, const std::string& file) : table_(table), file_(file) {}

  [[noreturn]] void fail(const toml::node& at, const std::string& what) const {
    const auto line = at.source().begin.line;
    throw UsageError(file_ + (line > 0 ? ", line " + std::to_string(line) : "") + ": " + what);
  }
  [[noreturn]] void fail(const std::string& what) const { fail(table_, what); }

  const toml::node* find(const std::string& key) {
    asked_.push_back(key);
    return table_.get(key);
  }
  void read(const std::string& key, std::string* value) {
    if (const toml::node* node = find(key)) *value = exact<std::string>(*node, key, "text in quotes");
  }
  void read(const std::string& key, bool* value) {
    if (const toml::node* node = find(key)) *value = exact<bool>(*node, key, "true or false");
  }
  void read(const std::string& key, int64_t* value, int64_t least) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    *value = exact<int64_t>(*node, key, "a whole number");
    if (*value < least || *value > kMaxInteger) {
      fail(*node, "'" + key + "' must be from " + std::to_string(least) + " to " + std::to_string(kMaxInteger) +
                      ", found " + std::to_string(*value));
    }
  }
  // Texts in brackets.
  void read(const std::string& key, Words* values) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    const toml::array* list = node->as_array();
    if (list == nullptr) fail(*node, "'" + key + "' must be a list of texts, such as [\"bn1\", \"layer1.*\"]");
    values->clear();
    for (const toml::node& entry : *list)
      values->push_back(exact<std::string>(entry, key, "a list of texts in quotes"));
  }
  // A number for which good() holds; condition says so in words.
  template <class Good>
  void read(const std::string& key, double* value, const char* condition, Good good) {
    const toml::node* node = find(key);
    if (node == nullptr) return;
    *value =
        node->is_integer() ? static_cast<double>(*node->value_exact<int64_t>()) : exact<double>(*node, key, "a number");
    if (!std::isfinite(*value) || !good(*value)) {
      fail(*node, "'" + key + "' must be " + condition + ", found " + std::to_string(*value));
    }
  }
  // The place of the word in the list, or `missing`.
  size_t read_word(const std::string& key, const Words& words, size_t missing) {
    const toml::node* node = find(key);
    if (node == nullptr) return missing;
    const auto word = exact<std::string>(*node, key, "text in quotes");
    const auto it = std::find(words.begin(), words.end(), word);
    if (it == words.end()) fail(*node, "'" + key + "' = \"" + word + "\" is unknown" + did_you_mean(word, words));
    return static_cast<size_t>(it - words.begin());
  }
  bool has(const std::string& key) const { return table_.contains(key); }

  // activation and slope, which belongs to leaky_relu alone.
  void read_activation(Activation* activation) {
    const size_t kind = read_word("activation", activation_names(), static_cast<size_t>(activation->kind));
    activation->kind = static_cast<ActivationKind>(kind);
    double slope = static_cast<double>(activation->slope);
    read("slope", &slope, "a number of a usual size", [](double s) { return std::abs(s) < 1e6; });
    if (has("slope") && activation->kind != ActivationKind::kLeakyRelu) {
      fail(*table_.get("slope"), "'slope' belongs to activation = \"leaky_relu\", but the activation is \"" +
                                     std::string(name_of(activation->kind)) + "\"");
    }
    activation->slope = static_cast<float>(slope);
  }

  // context: what the table is, for the message.
  void finish(const std::string& context) const {
    for (const auto& [key, node] : table_) {
      const std::string word(key.str());
      if (std::find(asked_.begin(), asked_.end(), word) != asked_.end()) continue;
      const std::string likely = likely_meant(word, asked_);
      std::string text = "unknown key '";
      text.append(word).append("' in ").append(context);
      if (!likely.empty()) {
        text += "; did you mean '" + likely + "'?";
      } else {
        Words sorted = asked_;
        std::sort(sorted.begin(), sorted.end());
        sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());  // some are asked for twice
        text += "; the keys there are";
        for (size_t i = 0; i < sorted.size(); ++i) text += (i == 0 ? " " : ", ") + sorted[i];
      }
      fail(node, text);
    }
  }

  const std::string& file() const { return file_; }

 private:
  template <class T>
  T exact(const toml::node& node, const std::string& key, const char* expected) const {
    if (std::optional<T> value = node.value_exact<T>()) return *std::move(value);
    fail(node, "'" + key + "' must be " + expected);
  }

  const toml::table& table_;
  const std::string& file_;
  Words asked_;
};

std::vector<LayerSpec> read_layers(TableReader& reader, const std::string& key, int depth);

void read_windows(TableReader& reader, LayerSpec* layer) {
  reader.read("kernel", &layer->kernel, 1);
  reader.read("stride", &layer->stride, 1);
  reader.read("padding", &layer->padding, 0);
}

// What conv and linear share.
void read_weighted(TableReader& reader, LayerSpec* layer) {
  reader.read("out", &layer->out, 1);
  bool bias = true;
  reader.read("bias", &bias);
  if (reader.has("bias")) layer->bias = bias;
  const size_t norm = reader.read_word("norm", norm_kind_names(), 0);
  if (reader.has("norm")) layer->norm = static_cast<NormKind>(norm);
  const size_t placement = reader.read_word("placement", placement_words(), 0);
  if (reader.has("placement")) layer->placement = static_cast<NormPlacement>(placement);
  reader.read("norm_name", &layer->norm_name);
  reader.read("zero_gamma", &layer->zero_gamma);
}

void read_optional_activation(TableReader& reader, LayerSpec* layer) {
  Activation activation;
  reader.read_activation(&activation);
  if (reader.has("activation")) layer->activation = activation;
}

const Words& keys_of_type(TableReader& reader, const std::string& type) {
  Words types;
  for (const TypeKeys& entry : type_keys()) types.emplace_back(entry.type);
  const auto it = std::find(types.begin(), types.end(), type);
  if (it == types.end()) {
    const toml::node* node = reader.find("type");
    if (node == nullptr) reader.fail("a layer has no 'type'" + did_you_mean("", types));
    reader.fail(*node, "unknown layer type '" + type + "'" + did_you_mean(type, types));
  }
  return type_keys()[static_cast<size_t>(it - types.begin())].keys;
}

// A key that exists, but not for this type, deserves to be told so.
void require_keys_of_type(TableReader& reader, const toml::table& table, const LayerSpec& layer) {
  const Words& allowed = keys_of_type(reader, layer.type);
  for (const auto& [key, node] : table) {
    const std::string word(key.str());
    if (std::find(allowed.begin(), allowed.end(), word) != allowed.end()) continue;
    for (const TypeKeys& entry : type_keys()) {
      if (std::find(entry.keys.begin(), entry.keys.end(), word) == entry.keys.end()) continue;
      reader.fail(node, "'" + word + "' has no meaning for a layer of type \"" + layer.type + "\", only for \"" +
                            entry.type + "\" and the like; remove it");
    }
  }
}

LayerSpec read_layer(const toml::table& table, const std::string& file, int depth) {
  TableReader reader(table, file);
  LayerSpec layer;
  reader.read("type", &layer.type);
  reader.read("name", &layer.name);
  require_keys_of_type(reader, table, layer);
  const std::string& type = layer.type;
  if (type == "conv" || type == "linear") {
    read_weighted(reader, &layer);
    read_optional_activation(reader, &layer);
  }
  if (type == "conv" || type == "max_pool" || type == "avg_pool") read_windows(reader, &layer);
  if (type == "conv") {
    reader.read("dilation", &layer.dilation, 1);
    reader.read("groups", &layer.groups, 1);
  }
  if (type == "norm") {
    const size_t norm = reader.read_word("norm", norm_kind_names(), 0);
    if (reader.has("norm")) layer.norm = static_cast<NormKind>(norm);
    reader.read("zero_gamma", &layer.zero_gamma);
  }
  if (type == "activation") read_optional_activation(reader, &layer);
  if (type == "avg_pool") reader.read("count_include_pad", &layer.count_include_pad);
  if (type == "dropout") {
    reader.read("probability", &layer.probability, "at least 0 and less than 1",
                [](double p) { return p >= 0 && p < 1; });
  }
  if (type == "residual") {
    layer.shortcut = shortcut_words()[reader.read_word("shortcut", shortcut_words(), 0)];
    reader.read("shortcut_name", &layer.shortcut_name);
    read_optional_activation(reader, &layer);
    layer.body = read_layers(reader, "body", depth + 1);
  }
  reader.finish("a layer of type \"" + type + "\"");
  return layer;
}

std::vector<LayerSpec> read_layers(TableReader& reader, const std::string& key, int depth) {
  const std::string example = depth == 0 ? "[[layer]]" : "[[layer.body]]";
  const toml::node* node = reader.find(key);
  if (node == nullptr)
    reader.fail((depth == 0 ? "the network has no layers" : "a residual has no body") + ("; add tables " + example));
  const toml::array* array = node->as_array();
  if (array == nullptr)
    reader.fail(*node, "'" + key + "' must be a list of tables, written as " + example + " in double brackets");
  if (depth > kMostNestedResiduals)
    reader.fail(*node, "residual blocks nest at most " + std::to_string(kMostNestedResiduals) + " deep");
  std::vector<LayerSpec> layers;
  const std::string no_table = "an element of '" + key + "' is not a table; write it as " + example;
  for (const toml::node& element : *array) {
    const toml::table* table = element.as_table();
    if (table == nullptr) reader.fail(element, no_table);
    layers.push_back(read_layer(*table, reader.file(), depth));
  }
  if (layers.empty()) reader.fail(*node, "'" + key + "' is an empty list; add tables " + example);
  return layers;
}

// data: the input of the data, or {} when there is none.
Shape read_input(TableReader& reader, const Shape& data) {
  const toml::node* node = reader.find("input");
  if (node == nullptr) {
    if (data.empty()) reader.fail("'input' is missing; add for instance input = [1, 28, 28] or input = [784]");
    return data;
  }
  Shape shape;
  const toml::array* array = node->as_array();
  bool good = array != nullptr && (array->size() == 1 || array->size() == 3);
  if (good) {
    for (const toml::node& element : *array) {
      const int64_t extent = element.value_exact<int64_t>().value_or(0);
      good = good && extent >= 1 && extent <= kMaxInteger;
      shape.push_back(extent);
    }
  }
  if (!good) reader.fail(*node, "'input' must be [channels, height, width] or [features], all at least 1");
  if (!data.empty() && shape != data) {
    reader.fail(*node, "'input' is " + to_string(shape) + ", but the data has examples of " + to_string(data) +
                           "; remove the key to take it from the data");
  }
  return shape;
}

int64_t read_classes(TableReader& reader, int64_t data) {
  int64_t classes = data;
  reader.read("classes", &classes, 1);
  if (classes < 1) reader.fail("'classes' is missing; add for instance classes = 10");
  if (data > 0 && classes != data) {
    reader.fail(*reader.find("classes"), "'classes' is " + std::to_string(classes) + ", but the data has " +
                                             std::to_string(data) + "; remove the key to take it from the data");
  }
  return classes;
}

void read_norm_options(TableReader& reader, NormSettings* options) {
  const auto positive = [](double value) { return value > 0; };
  reader.read("eps", &options->eps, "positive", positive);
  reader.read("new_batch_weight", &options->new_batch_weight,
              "more than 0 and at most 1 (it is the weight of the NEW batch: PyTorch's momentum, 1 minus Keras')",
              [](double value) { return value > 0 && value <= 1; });
  options->biased = reader.read_word("running_variance", variance_words(), options->biased ? 1 : 0) == 1;
  reader.read("bias_corrected", &options->bias_corrected);
  reader.read("affine", &options->affine);
  options->cumulative = reader.read_word("running_average", statistics_words(), options->cumulative ? 1 : 0) == 1;
  reader.read("ghost_batch", &options->ghost_batch, 0);
  reader.read("norm_groups", &options->groups, 0);
  RenormScale& renorm = options->renorm;
  reader.read("renorm_r_max", &renorm.r_max, "at least 1", [](double value) { return value >= 1; });
  reader.read("renorm_d_max", &renorm.d_max, "at least 0", [](double value) { return value >= 0; });
  reader.read("renorm_hold", &renorm.hold, 0);
  reader.read("renorm_d_steps", &renorm.d_steps, 0);
  reader.read("renorm_r_steps", &renorm.r_steps, 0);
}

void read_norm_switches(TableReader& reader, NormSwitches* switches) {
  reader.read("freeze_norm", &switches->freeze);
  reader.read("freeze_affine", &switches->freeze_affine);
  reader.read("freeze_running", &switches->freeze_running);
  reader.read("use_running", &switches->use_running);
}

ModelSpec read_model(const toml::table& table, const std::string& file, const Shape& input, int64_t classes) {
  TableReader reader(table, file);
  ModelSpec spec;
  spec.name = std::filesystem::path(file).stem().string();
  reader.read("name", &spec.name);
  spec.input = read_input(reader, input);
  spec.classes = read_classes(reader, classes);
  spec.norm = static_cast<NormKind>(reader.read_word("norm", norm_kind_names(), static_cast<size_t>(spec.norm)));
  spec.placement =
      static_cast<NormPlacement>(reader.read_word("placement", placement_words(), static_cast<size_t>(spec.placement)));
  reader.read_activation(&spec.activation);
  read_norm_options(reader, &spec.norm_options);
  read_norm_switches(reader, &spec.norm_switches);
  spec.init = kInitWords[reader.read_word("init", init_words(), 0)].init;
  reader.read("init_sigma", &spec.init_sigma, "positive", [](double sigma) { return sigma > 0; });
  reader.read("zero_gamma", &spec.zero_gamma);
  spec.loss = loss_words()[reader.read_word("loss", loss_words(), 0)];
  reader.read("label_smoothing", &spec.label_smoothing, "at least 0 and less than 1",
              [](double s) { return s >= 0 && s < 1; });
  const toml::node* layers = reader.find("layer");
  if (layers == nullptr) reader.finish("the description of the network");  // "layers" is told what it should be
  spec.layers = read_layers(reader, "layer", 0);
  reader.finish("the description of the network");
  return spec;
}

// --- Writing ---

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (code < 0x20 || code == 0x7f) {
      constexpr char kHex[] = "0123456789ABCDEF";
      out += {'\\', 'u', '0', '0', kHex[code >> 4], kHex[code & 15]};
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// The shortest text that reads back to the same bits, as a TOML float.
template <class Float>
std::string number(Float value) {
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

class TableWriter {
 public:
  void line(const std::string& key, const std::string& value) { text_ += key + " = " + value + "\n"; }
  void text(const char* key, const std::string& value) {
    if (!value.empty()) line(key, toml_string(value));
  }
  void texts(const char* key, const Words& values) {
    std::string list;
    for (const std::string& value : values) list += (list.empty() ? "[" : ", ") + toml_string(value);
    if (!values.empty()) line(key, list + "]");
  }
  void integer(const char* key, int64_t value, int64_t usual) {
    if (value != usual) line(key, std::to_string(value));
  }
  void flag(const char* key, bool value) { line(key, value ? "true" : "false"); }
  void activation(const Activation& activation) {
    line("activation", toml_string(name_of(activation.kind)));
    if (activation.kind == ActivationKind::kLeakyRelu) line("slope", number(activation.slope));
  }
  void header(const std::string& path) { text_ += "\n[[" + path + "]]\n"; }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void write_layers(TableWriter& out, const std::vector<LayerSpec>& layers, const std::string& path);

void write_layer(TableWriter& out, const LayerSpec& layer, const std::string& path) {
  const LayerSpec usual;
  out.header(path);
  out.line("type", toml_string(layer.type));
  out.text("name", layer.name);
  out.integer("out", layer.out, usual.out);
  out.integer("kernel", layer.kernel, usual.kernel);
  out.integer("stride", layer.stride, usual.stride);
  out.integer("padding", layer.padding, usual.padding);
  out.integer("dilation", layer.dilation, usual.dilation);
  out.integer("groups", layer.groups, usual.groups);
  if (layer.count_include_pad != usual.count_include_pad) out.flag("count_include_pad", layer.count_include_pad);
  if (layer.type == "dropout") out.line("probability", number(layer.probability));
  if (layer.bias) out.flag("bias", *layer.bias);
  if (layer.norm) out.line("norm", toml_string(norm_kind_names()[static_cast<size_t>(*layer.norm)]));
  out.text("norm_name", layer.norm_name);
  if (layer.activation) out.activation(*layer.activation);
  if (layer.placement) out.line("placement", toml_string(placement_words()[static_cast<size_t>(*layer.placement)]));
  if (layer.zero_gamma) out.flag("zero_gamma", true);
  if (layer.type != "residual") return;
  out.line("shortcut", toml_string(layer.shortcut));
  out.text("shortcut_name", layer.shortcut_name);
  write_layers(out, layer.body, path + ".body");
}

void write_layers(TableWriter& out, const std::vector<LayerSpec>& layers, const std::string& path) {
  for (const LayerSpec& layer : layers) write_layer(out, layer, path);
}

// Two things that toml++ 3.3 cannot take are refused before it sees them: letters beyond ASCII outside quotes and comments, where TOML
// has no place for them (it runs into a branch called unreachable), and keys of very many parts, a.b.c..., each a table inside the one
// before (their destructors nest as deep as the stack).
void require_parsable(std::string_view text, const std::string& file) {
  constexpr int kMaxDots = 100;  // on a line
  int dots = 0;
  size_t line = 1;
  std::string_view until;  // what ends the string or the comment that we are in; "" outside
  size_t at = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '\n') {
      ++line;
      dots = 0;
    }
    size_t step = 1;
    if (until.empty()) {
      if (static_cast<unsigned char>(c) >= 0x80) {
        throw UsageError(file + ", line " + std::to_string(line) +
                         ": not TOML: letters beyond ASCII stand only in quotes and comments");
      }
      if (c == '.' && ++dots > kMaxDots) {
        throw UsageError(file + ", line " + std::to_string(line) + ": a key has more than " + std::to_string(kMaxDots) +
                         " parts");
      }
      if (c == '#') until = "\n";
      for (const std::string_view quote : {"'", "\"", "'''", "\"\"\""}) {  // the longest that fits wins
        if (!text.substr(at).starts_with(quote)) continue;
        until = quote;
        step = quote.size();
      }
    } else if (text.substr(at).starts_with(until)) {
      step = until.size();
      until = {};
    } else if (c == '\n' && until.size() == 1) {
      until = {};  // a quote left open: the parser says so
    } else if (c == '\\' && until.front() == '"') {
      step = 2;
      if (at + 1 < text.size() && text[at + 1] == '\n') ++line;
    }
    at += step;
  }
}

}  // namespace

ModelSpec parse_model_toml(const std::string& text, const std::string& name_for_messages, const Shape& input,
                           int64_t classes) {
  require_parsable(text, name_for_messages);
  toml::table table;
  try {
    table = toml::parse(text, name_for_messages);
  } catch (const toml::parse_error& error) {
    throw UsageError(name_for_messages + ", line " + std::to_string(error.source().begin.line) +
                     ": not TOML: " + std::string(error.description()));
  } catch (const ParserConfused& error) {
    throw UsageError(name_for_messages + ": not TOML: " + error.what());
  }
  return read_model(table, name_for_messages, input, classes);
}

ModelSpec read_model_toml(const std::string& path, const Shape& input, int64_t classes) {
  const std::vector<std::byte> bytes = read_file(path);
  return parse_model_toml({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path, input, classes);
}

std::string to_toml(const ModelSpec& spec) {
  const NormSettings& norm = spec.norm_options;
  TableWriter out;
  out.line("name", toml_string(spec.name));
  std::string input;
  for (const int64_t extent : spec.input) input += (input.empty() ? "[" : ", ") + std::to_string(extent);
  out.line("input", input + "]");
  out.line("classes", std::to_string(spec.classes));
  out.line("norm", toml_string(norm_kind_names()[static_cast<size_t>(spec.norm)]));
  out.line("placement", toml_string(placement_words()[static_cast<size_t>(spec.placement)]));
  out.activation(spec.activation);
  out.line("eps", number(norm.eps));
  out.line("new_batch_weight", number(norm.new_batch_weight));
  out.line("running_variance", toml_string(variance_words()[norm.biased ? 1 : 0]));
  out.flag("bias_corrected", norm.bias_corrected);
  if (!norm.affine) out.flag("affine", false);
  if (norm.cumulative) out.line("running_average", toml_string("cumulative"));
  out.integer("ghost_batch", norm.ghost_batch, 0);
  out.integer("norm_groups", norm.groups, 0);
  if (const RenormScale usual; norm.renorm != usual) {
    out.line("renorm_r_max", number(norm.renorm.r_max));
    out.line("renorm_d_max", number(norm.renorm.d_max));
    out.line("renorm_hold", std::to_string(norm.renorm.hold));
    out.line("renorm_d_steps", std::to_string(norm.renorm.d_steps));
    out.line("renorm_r_steps", std::to_string(norm.renorm.r_steps));
  }
  out.texts("freeze_norm", spec.norm_switches.freeze);
  out.texts("freeze_affine", spec.norm_switches.freeze_affine);
  out.texts("freeze_running", spec.norm_switches.freeze_running);
  out.texts("use_running", spec.norm_switches.use_running);
  for (const InitWord& entry : kInitWords) {
    if (entry.init == spec.init) out.line("init", toml_string(entry.word));
  }
  out.line("init_sigma", number(spec.init_sigma));
  out.flag("zero_gamma", spec.zero_gamma);
  out.line("loss", toml_string(spec.loss));
  out.line("label_smoothing", number(spec.label_smoothing));
  write_layers(out, spec.layers, "layer");
  return out.take();
}

}  // namespace evenkeel
