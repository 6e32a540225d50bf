// A specification becomes a graph: names, defaults and the rules around the norm are settled first (resolve), then the layers are
// walked once with a GraphBuilder.
#include <fnmatch.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include "evenkeel/train/model_spec.h"
#include "evenkeel/train/words.h"

namespace evenkeel {
namespace {

// Wide enough for any network, narrow enough that no product of two or three of them overflows on the word of a model file.
constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxExtent = int64_t{1} << 16;
constexpr int64_t kMaxWindow = int64_t{1} << 12;
constexpr int64_t kMaxLayers = 5000;  // names are compared pairwise

const std::vector<std::string>& layer_types() {
  static const std::vector<std::string> types = {"conv",     "linear",          "norm",    "activation", "max_pool",
                                                 "avg_pool", "global_avg_pool", "flatten", "dropout",    "residual"};
  return types;
}

bool has_weights(const LayerSpec& layer) { return layer.type == "conv" || layer.type == "linear"; }
bool is_pool(const LayerSpec& layer) { return layer.type == "max_pool" || layer.type == "avg_pool"; }

int64_t kernel_of(const LayerSpec& layer) { return layer.kernel > 0 ? layer.kernel : is_pool(layer) ? 2 : 3; }
int64_t stride_of(const LayerSpec& layer) {
  if (layer.stride > 0) return layer.stride;
  return is_pool(layer) ? kernel_of(layer) : 1;
}

// By how much the layers shrink an image: what their shortcut must do too.
int64_t total_stride(const std::vector<LayerSpec>& layers) {
  int64_t total = 1;
  for (const LayerSpec& layer : layers) {
    if (layer.type == "conv" || is_pool(layer)) total *= stride_of(layer);
    if (layer.type == "residual") total *= total_stride(layer.body);
    total = std::min(total, kMaxExtent);
  }
  return total;
}

// The names of one list of layers. Those that are given are set aside first, so that none of those made up here meets them.
class Names {
 public:
  Names(const std::vector<LayerSpec>& layers, std::string prefix) : prefix_(std::move(prefix)) {
    for (const LayerSpec& layer : layers) {
      if (!layer.name.empty()) taken_.insert(layer.name);
      if (!layer.norm_name.empty()) taken_.insert(layer.norm_name);
    }
  }
  // The name within the list: add the prefix for the whole name.
  std::string of(const LayerSpec& layer) {
    if (!layer.name.empty()) return layer.name;
    return next_free(layer.type == "linear"            ? "fc"
                     : layer.type == "norm"            ? "bn"
                     : layer.type == "activation"      ? "act"
                     : is_pool(layer)                  ? "pool"
                     : layer.type == "global_avg_pool" ? "gap"
                     : layer.type == "residual"        ? "block"
                                                       : layer.type);
  }
  std::string of_norm(const LayerSpec& layer, const std::string& name) {
    if (!layer.norm_name.empty()) return layer.norm_name;
    for (const std::string stem : {"conv", "fc"}) {
      const std::string number = name.starts_with(stem) ? name.substr(stem.size()) : "";
      if (number.empty() || !std::all_of(number.begin(), number.end(), [](unsigned char c) { return std::isdigit(c); }))
        continue;
      return taken_.insert("bn" + number).second ? "bn" + number : next_free("bn");
    }
    return name + ".bn";
  }
  const std::string& prefix() const { return prefix_; }

 private:
  std::string next_free(const std::string& stem) {
    for (int number = 1;; ++number) {
      std::string name = stem + std::to_string(number);
      if (taken_.insert(name).second) return name;
    }
  }
  std::string prefix_;
  std::set<std::string> taken_;
};

bool is_meant(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
}

// A layer with everything settled.
struct Resolved {
  explicit Resolved(const LayerSpec& of) : layer(of) {}
  const LayerSpec& layer;
  std::string name, norm_name;      // whole names
  NormKind norm = NormKind::kNone;  // of its own
  bool norm_first = true;           // before the activation
  bool bias = true;
  bool zero_gamma = false;
  Activation activation;
};

// The layer that a network or a body ends in as far as weights go, or null when that is a residual block or nothing.
const LayerSpec* last_with_weights(const std::vector<LayerSpec>& layers) {
  for (auto it = layers.rbegin(); it != layers.rend(); ++it) {
    if (has_weights(*it)) return &*it;
    if (it->type == "residual") return nullptr;
  }
  return nullptr;
}

class NetworkBuilder {
 public:
  NetworkBuilder(const ModelSpec& spec, Mode mode) : spec_(spec), builder_(mode, spec.init, spec.init_sigma) {}

  Network build(const BuildOptions& options) {
    require_network();
    ValueId x = builder_.input(spec_.input);
    if (options.with_weights) builder_.weights();
    x = builder_.flatten("logits.flatten", layers(spec_.layers, "", x, 0));
    const Shape& logits = builder_.shape(x);
    if (logits[0] != spec_.classes) {
      throw UsageError("the network ends in " + std::to_string(logits[0]) + " outputs for " +
                       std::to_string(spec_.classes) + " classes; end it with a linear layer without 'out'");
    }
    builder_.set_name("logits", x);
    if (builder_.mode() != Mode::kTrain) builder_.set_name("probabilities", builder_.softmax("probabilities", x));
    if (options.with_loss && options.entropy) {
      builder_.entropy(x);
    } else if (options.with_loss) {
      const ValueId labels = builder_.labels();
      if (spec_.loss == "mse") {
        builder_.mean_squared_error(x, labels);
      } else {
        builder_.softmax_cross_entropy(x, labels, spec_.label_smoothing);
      }
    }
    require_patterns_used();
    Network network;
    network.graph = builder_.take();
    network.parameters = builder_.parameters();
    network.buffers = builder_.buffers();
    network.warnings = warnings();
    return network;
  }

 private:
  enum class List { kNetwork, kBody };

  void require_network() const {
    const auto require = [](bool good, const std::string& message) {
      if (!good) throw UsageError(message);
    };
    require(!spec_.layers.empty(), "the network has no layers; a TOML file lists them as [[layer]] tables");
    require(spec_.classes >= 1 && spec_.classes <= kMaxChannels,
            "the network needs at least one class, found classes = " + std::to_string(spec_.classes));
    for (size_t i = 0; i < spec_.input.size(); ++i) {
      const int64_t most = i == 0 ? kMaxChannels : kMaxExtent;
      require(spec_.input[i] <= most, "input: an extent of " + std::to_string(spec_.input[i]) + " is more than the " +
                                          std::to_string(most) + " supported there");
    }
    require(spec_.loss == "cross_entropy" || spec_.loss == "mse",
            "unknown loss '" + spec_.loss + "'" + did_you_mean(spec_.loss, {"cross_entropy", "mse"}));
    require(spec_.loss == "cross_entropy" || spec_.label_smoothing == 0,
            "label smoothing belongs to the loss 'cross_entropy', but the loss is '" + spec_.loss + "'");
    require(spec_.init != Init::kNormal || (spec_.init_sigma > 0 && std::isfinite(spec_.init_sigma)),
            "init_sigma must be positive, found " + std::to_string(spec_.init_sigma));
  }

  void require_layer(const LayerSpec& layer, const std::string& name) {
    const auto& types = layer_types();
    if (std::find(types.begin(), types.end(), layer.type) == types.end()) {
      throw UsageError("layer '" + name + "': unknown type '" + layer.type + "'" + did_you_mean(layer.type, types));
    }
    if (++layer_count_ > kMaxLayers)
      throw UsageError("a network has at most " + std::to_string(kMaxLayers) + " layers");
    const auto within = [&](const char* key, int64_t value, int64_t most) {
      if (value >= 0 && value <= most) return;
      throw UsageError("layer '" + name + "': " + key + " must be from 0 to " + std::to_string(most) + ", found " +
                       std::to_string(value));
    };
    within("out", layer.out, kMaxChannels);
    within("kernel", layer.kernel, kMaxWindow);
    within("stride", layer.stride, kMaxWindow);
    within("padding", layer.padding, kMaxWindow);
    within("dilation", layer.dilation, kMaxWindow);
    within("groups", layer.groups, kMaxChannels);
  }

  // Settles names, norms, activations and biases of a list. next: the layer after it, or null.
  std::vector<Resolved> resolve(const std::vector<LayerSpec>& layers, const std::string& prefix) {
    const List list = prefix.empty() ? List::kNetwork : List::kBody;
    const LayerSpec* last = last_with_weights(layers);
    Names names(layers, prefix);
    std::vector<Resolved> all;
    for (size_t i = 0; i < layers.size(); ++i) {
      const LayerSpec& layer = layers[i];
      const LayerSpec* next = i + 1 < layers.size() ? &layers[i + 1] : nullptr;
      Resolved r(layer);
      const std::string name = names.of(layer);
      r.name = prefix + name;
      require_layer(layer, r.name);
      if (has_weights(layer)) {
        settle_norm_and_activation(r, next, &layer == last, list);
        settle_bias(r, next);
        if (r.norm != NormKind::kNone) r.norm_name = prefix + names.of_norm(layer, name);
      } else {
        if (layer.type == "norm") {
          const NormKind usual = spec_.norm == NormKind::kNone ? NormKind::kBatch : spec_.norm;
          r.norm = norm_wanted(layer.norm.value_or(usual), r.name, true);
        }
        r.norm_name = prefix + (layer.norm_name.empty() ? name : layer.norm_name);
        r.activation = layer.activation.value_or(spec_.activation);
      }
      r.zero_gamma = layer.zero_gamma;
      all.push_back(std::move(r));
    }
    if (list == List::kBody && spec_.zero_gamma) zero_last_gamma(all);
    return all;
  }

  // asked: the layer itself says so.
  NormKind norm_wanted(NormKind kind, const std::string& name, bool asked) {
    if (spec_.norm != NormKind::kNone || kind == NormKind::kNone) return kind;
    if (asked) dropped_norms_.push_back(name);
    return NormKind::kNone;
  }

  void settle_norm_and_activation(Resolved& r, const LayerSpec* next, bool last, List list) {
    const LayerSpec& layer = r.layer;
    const bool norm_follows = next != nullptr && next->type == "norm";
    const bool activation_follows = next != nullptr && next->type == "activation";
    const bool is_head = last && list == List::kNetwork;
    const NormKind default_norm = is_head || norm_follows ? NormKind::kNone : spec_.norm;
    r.norm = norm_wanted(layer.norm.value_or(default_norm), r.name, layer.norm.has_value());
    const bool bare = last || norm_follows || activation_follows;
    r.activation = layer.activation.value_or(bare ? Activation{} : spec_.activation);
    const bool active = r.activation.kind != ActivationKind::kIdentity;
    r.norm_first = !active || layer.placement.value_or(spec_.placement) == NormPlacement::kBefore;
  }

  void settle_bias(Resolved& r, const LayerSpec* next) {
    const bool has_norm = r.norm != NormKind::kNone;
    const bool own_norm = has_norm && r.norm_first && removes_bias(r.norm);
    const bool next_norm = !has_norm && r.activation.kind == ActivationKind::kIdentity && next != nullptr &&
                           next->type == "norm" && spec_.norm != NormKind::kNone &&
                           removes_bias(next->norm.value_or(spec_.norm));
    r.bias = r.layer.bias.value_or(!own_norm && !next_norm);
    if (r.bias && (own_norm || next_norm)) redundant_biases_.push_back(r.name);
  }

  // A block with zero gamma starts as its shortcut. Only where the norm is the last thing in the body: before a ReLU a zero output
  // would close the gate for good.
  void zero_last_gamma(std::vector<Resolved>& body) {
    if (body.empty()) return;
    Resolved& last = body.back();
    const bool own = has_weights(last.layer) && last.norm != NormKind::kNone &&
                     (!last.norm_first || last.activation.kind == ActivationKind::kIdentity);
    if (own || (last.layer.type == "norm" && last.norm != NormKind::kNone)) {
      last.zero_gamma = true;
    } else {
      zero_gamma_skipped_.push_back(last.name);
    }
  }

  ValueId layers(const std::vector<LayerSpec>& list, const std::string& prefix, ValueId x, int depth) {
    const LayerSpec* head = prefix.empty() ? last_with_weights(list) : nullptr;
    for (const Resolved& r : resolve(list, prefix)) x = layer(r, x, &r.layer == head, depth);
    return x;
  }

  ValueId layer(const Resolved& r, ValueId x, bool is_head, int depth) {
    const LayerSpec& l = r.layer;
    const PoolOptions pool{kernel_of(l), stride_of(l), l.padding, l.count_include_pad};
    if (has_weights(l)) return normed(r, weighted(r, x, is_head));
    if (l.type == "norm") return norm(r.norm_name, x, r.norm, r.zero_gamma);
    if (l.type == "activation") return builder_.activate(r.name, x, r.activation);
    if (l.type == "max_pool") return builder_.max_pool(r.name, x, pool);
    if (l.type == "avg_pool") return builder_.average_pool(r.name, x, pool);
    if (l.type == "global_avg_pool") return builder_.global_average_pool(r.name, x);
    if (l.type == "flatten") return builder_.flatten(r.name, x);
    if (l.type == "dropout") return builder_.dropout(r.name, x, l.probability);
    return residual(r, x, depth);
  }

  ValueId weighted(const Resolved& r, ValueId x, bool is_head) {
    const LayerSpec& l = r.layer;
    const int64_t out = l.out == 0 && is_head ? spec_.classes : l.out;
    if (out < 1)
      throw UsageError("layer '" + r.name + "': 'out' is missing; only the last layer takes it from the classes");
    if (l.type == "linear") return builder_.linear(r.name, x, {.out_features = out, .bias = r.bias});
    return builder_.conv(r.name, x,
                         {.out_channels = out,
                          .kernel = kernel_of(l),
                          .stride = stride_of(l),
                          .padding = l.padding,
                          .dilation = l.dilation,
                          .groups = l.groups,
                          .bias = r.bias});
  }

  ValueId normed(const Resolved& r, ValueId x) {
    if (r.norm_first) x = norm(r.norm_name, x, r.norm, r.zero_gamma);
    x = builder_.activate(r.name + ".activation", x, r.activation);
    return r.norm_first ? x : norm(r.norm_name, x, r.norm, r.zero_gamma);
  }

  ValueId norm(const std::string& name, ValueId x, NormKind kind, bool zero_gamma) {
    if (kind == NormKind::kNone) return x;
    norm_names_.push_back(name);
    const NormSwitches& switches = spec_.norm_switches;
    const bool frozen = is_meant(switches.freeze, name);
    NormSettings options = spec_.norm_options;
    options.zero_gamma = zero_gamma;
    options.train_affine = !frozen && !is_meant(switches.freeze_affine, name);
    options.update_running = updates_running(spec_, name);
    options.statistics =
        frozen || is_meant(switches.use_running, name) ? NormStatistics::kRunning : NormStatistics::kBatch;
    return builder_.norm(name, x, kind, options);
  }

  void require_patterns_used() const {
    const NormSwitches& s = spec_.norm_switches;
    for (const auto& [option, patterns] :
         {std::pair{"freeze_norm", &s.freeze}, std::pair{"freeze_affine", &s.freeze_affine},
          std::pair{"freeze_running", &s.freeze_running}, std::pair{"use_running", &s.use_running}}) {
      for (const std::string& pattern : *patterns) {
        if (std::any_of(norm_names_.begin(), norm_names_.end(),
                        [&](const std::string& name) { return is_meant({pattern}, name); }))
          continue;
        if (norm_names_.empty())
          throw UsageError(std::string(option) + ": '" + pattern + "' means no layer: the network has no norms");
        throw UsageError(std::string(option) + ": there is no norm layer '" + pattern + "'" +
                         did_you_mean(pattern, norm_names_));
      }
    }
  }

  ValueId residual(const Resolved& r, ValueId x, int depth) {
    const LayerSpec& l = r.layer;
    if (depth >= kMostNestedResiduals)
      throw UsageError("layer '" + r.name + "': residual blocks nest at most " + std::to_string(kMostNestedResiduals) +
                       " deep");
    if (l.body.empty())
      throw UsageError("residual '" + r.name + "': it has no body; give it layers as [[layer.body]] tables");
    const ValueId body = layers(l.body, r.name + ".", x, depth + 1);
    const ValueId around = shortcut(r, x, builder_.shape(body));
    if (around != x && builder_.shape(around) != builder_.shape(body)) {
      throw UsageError("residual '" + r.name + "': the body gives " + to_string(builder_.shape(body)) +
                       ", but its shortcut " + to_string(builder_.shape(around)) +
                       "; pad the body's windows so that a stride of s leaves 1/s of the image, "
                       "rounded up");
    }
    const ValueId added = builder_.add(r.name, body, around);
    return builder_.activate(r.name + ".activation", added, r.activation);
  }

  ValueId shortcut(const Resolved& r, ValueId x, const Shape& target) {
    const LayerSpec& l = r.layer;
    const int64_t stride = total_stride(l.body);
    if (l.shortcut == "identity") return x;
    if (l.shortcut == "pad") {
      if (builder_.shape(x) == target) return x;
      return builder_.subsample_pad(r.name + ".shortcut", x, stride, target[0]);
    }
    if (l.shortcut != "projection") {
      throw UsageError("residual '" + r.name + "': unknown shortcut '" + l.shortcut + "'" +
                       did_you_mean(l.shortcut, {"identity", "pad", "projection"}));
    }
    const std::string prefix = r.name + "." + (l.shortcut_name.empty() ? "downsample" : l.shortcut_name);
    const bool normed = removes_bias(spec_.norm);
    const ValueId y = builder_.shape(x).size() == 1
                          ? builder_.linear(prefix + ".0", x, {.out_features = target[0], .bias = !normed})
                          : builder_.conv(prefix + ".0", x,
                                          {.out_channels = target[0], .kernel = 1, .stride = stride, .bias = !normed});
    return norm(prefix + ".1", y, spec_.norm, false);
  }

  static std::string listed(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "'" : ", '") + name + "'";
    return text;
  }
  std::vector<std::string> warnings() const {
    std::vector<std::string> texts;
    if (!redundant_biases_.empty()) {
      texts.push_back(
          "bias = true of " + listed(redundant_biases_) +
          " is redundant: the batch norm that follows subtracts the mean, and the bias with it, and adds its own beta; "
          "leave 'bias' out");
    }
    if (!dropped_norms_.empty()) {
      texts.push_back("the norm of " + listed(dropped_norms_) + " is left out: the network's norm is none");
    }
    const auto is_residual = [](const LayerSpec& layer) { return layer.type == "residual"; };
    if (spec_.zero_gamma && std::none_of(spec_.layers.begin(), spec_.layers.end(), is_residual)) {
      texts.push_back("zero_gamma has no effect: the network has no residual blocks");
    }
    if (!zero_gamma_skipped_.empty()) {
      texts.push_back("zero_gamma has no effect on the blocks that end in " + listed(zero_gamma_skipped_) +
                      ": their bodies do not end in a norm");
    }
    return texts;
  }

  const ModelSpec& spec_;
  GraphBuilder builder_;
  int64_t layer_count_ = 0;
  std::vector<std::string> norm_names_, redundant_biases_, dropped_norms_, zero_gamma_skipped_;
};

}  // namespace

const std::vector<std::string>& norm_kind_names() {
  static const std::vector<std::string> names = {"none", "batch", "renorm", "group", "layer", "instance"};
  return names;
}

bool updates_running(const ModelSpec& spec, const std::string& norm) {
  return !is_meant(spec.norm_switches.freeze, norm) && !is_meant(spec.norm_switches.freeze_running, norm);
}

Network build_network(const ModelSpec& spec, Mode mode, const BuildOptions& options) {
  return NetworkBuilder(spec, mode).build(options);
}

}  // namespace evenkeel
