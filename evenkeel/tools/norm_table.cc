#include "evenkeel/tools/norm_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/model_kind.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/tensor_convert.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/state_dict.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::tools {
namespace {

std::vector<double> doubles(std::span<const float> values) { return {values.begin(), values.end()}; }

// The values of a tensor of one extent; empty where there is none of that name or its type is not read.
std::vector<double> values_of(const std::map<std::string, AnyTensor>& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return {};
  const std::optional<Tensor> tensor = found->second.f32();
  return tensor ? doubles(tensor->values<float>()) : std::vector<double>();
}

std::optional<int64_t> batches_of(const TensorFile& file, const std::string& prefix) {
  const Tensor* tensor = file.find(prefix + ".num_batches_tracked");
  if (tensor == nullptr || tensor->dtype() != DType::kI64 || tensor->count() != 1) return std::nullopt;
  return tensor->values<int64_t>()[0];
}

// By its name alone: "layer1.0.bn1" stands behind "layer1.0.conv1", as in torchvision's networks.
std::string likely_conv(const std::string& prefix) {
  const size_t dot = prefix.rfind('.');
  const size_t begin = dot == std::string::npos ? 0 : dot + 1;
  if (prefix.compare(begin, 2, "bn") != 0) return "";
  return prefix.substr(0, begin) + "conv" + prefix.substr(begin + 2);
}

// The keys of a state dict, and which of them stand where.
class Keys {
 public:
  Keys(const TensorFile& file, const std::map<std::string, AnyTensor>& tensors) : tensors_(tensors) {
    std::vector<std::string_view> names;
    for (const auto& [name, tensor] : file.tensors) names.push_back(name);
    // Most writers of safetensors sort the names: then their order says nothing.
    ordered_ = !std::is_sorted(names.begin(), names.end());
    for (size_t i = 0; i < names.size(); ++i) places_[names[i]] = i;
  }

  // The bias of the convolution that a norm of so many channels stands behind, by all that names, shapes and order tell; "" = none.
  std::string bias_in_front(const std::string& prefix, int64_t channels) const {
    const std::string conv = likely_conv(prefix), bias = conv + ".bias";
    if (conv.empty() || !tensors_.contains(bias) || tensors_.at(bias).shape() != Shape{channels}) return "";
    if (ordered_ && place(bias) > place(prefix + ".running_mean")) return "";
    const std::vector<double> values = values_of(tensors_, bias);
    return std::any_of(values.begin(), values.end(), [](double b) { return b != 0; }) ? bias : "";
  }

  // True where the norm fits the inputs of its convolution and not the outputs: pre-activation, norms in front of what they are named after.
  bool stands_in_front(const std::string& prefix, int64_t channels) const {
    const auto weight = tensors_.find(likely_conv(prefix) + ".weight");
    if (weight == tensors_.end()) return false;
    const Shape& shape = weight->second.shape();
    return shape.size() >= 2 && shape[0] != channels && shape[1] == channels;
  }

 private:
  size_t place(const std::string& name) const {
    const auto found = places_.find(name);
    return found == places_.end() ? 0 : found->second;
  }
  const std::map<std::string, AnyTensor>& tensors_;
  std::map<std::string_view, size_t> places_;
  bool ordered_ = false;
};

void require_lengths(const NormRecord& norm) {
  const size_t channels = norm.mean.size();
  for (const auto* values : {&norm.gamma, &norm.beta, &norm.var}) {
    if ((values->empty() && values != &norm.var) || values->size() == channels) continue;
    throw FormatError(
        fmt::format("norm '{}': its running mean has {} values, gamma {}, beta {}, the running variance {}", norm.name,
                    channels, norm.gamma.size(), norm.beta.size(), norm.var.size()));
  }
}

NormRecord record_of(const NormLayer& layer, const Model& model) {
  const auto values = [&](const char* name) { return doubles(model.store.at(layer.name + name).values<float>()); };
  NormRecord norm{.name = layer.name, .channels = layer.channels};
  norm.eps = layer.eps;
  const NormSettings& o = model.spec.norm_options;
  if (model.running_statistics == "ema") norm.new_batch_weight = o.new_batch_weight;
  norm.start_removed = o.bias_corrected;
  norm.variance_kind = o.biased ? RunningVariance::kBiased : RunningVariance::kUnbiased;
  if (layer.affine) {
    norm.gamma = values(".weight");
    norm.beta = values(".bias");
  }
  norm.mean = values(".running_mean");
  norm.var = values(".running_var");
  norm.batches = model.store.at(layer.name + ".num_batches_tracked").values<int64_t>()[0];
  return norm;
}

void take_surroundings(NormRecord& norm, NormRecord& exported) {
  norm.output = exported.output;
  norm.fed_by = std::move(exported.fed_by);
  norm.feeds = std::move(exported.feeds);
  norm.bias_in_front = std::move(exported.bias_in_front);
  norm.weight_range = std::move(exported.weight_range);
  norm.shares_with = std::move(exported.shares_with);
  norm.streams = std::move(exported.streams);
  norm.closes_branch = exported.closes_branch;
  norm.padded_behind = std::move(exported.padded_behind);
}

void take_wrappers_off(NormTable& table) {
  std::vector<std::string> names;
  for (const NormRecord& norm : table.norms) names.push_back(norm.name);
  const size_t length = wrapped_by(names);
  for (NormRecord& norm : table.norms) norm.name.erase(0, length);
}

}  // namespace

std::vector<double> NormRecord::scale() const {
  if (!unreadable.empty()) return {};
  std::vector<double> scale(var.size());
  for (size_t c = 0; c < var.size(); ++c) scale[c] = (gamma.empty() ? 1.0 : gamma[c]) / std::sqrt(var[c] + eps);
  return scale;
}

std::vector<double> NormRecord::shift() const {
  std::vector<double> shift = scale();
  for (size_t c = 0; c < shift.size(); ++c) shift[c] = (beta.empty() ? 0.0 : beta[c]) - mean[c] * shift[c];
  return shift;
}

NormTable norm_table(const Model& model) {
  NormTable table{.format = "evenkeel", .norms = {}, .notes = {}};
  for (const NormLayer& layer : norm_layers(model.spec)) table.norms.push_back(record_of(layer, model));
  if (table.norms.empty()) return table;
  for (NormRecord& exported : norm_table(to_onnx(model)).norms) {
    const auto norm = std::find_if(table.norms.begin(), table.norms.end(),
                                   [&](const NormRecord& known) { return known.name == exported.name; });
    if (norm != table.norms.end()) take_surroundings(*norm, exported);
  }
  return table;
}

NormTable norm_table_of_state_dict(const TensorFile& file) {
  constexpr std::string_view kMean = ".running_mean", kVar = ".running_var";
  const std::map<std::string, AnyTensor> tensors = tensors_by_name(file);
  const Keys keys(file, tensors);
  NormTable table{.format = "PyTorch state dict", .norms = {}, .notes = {}};
  bool norms_first = false;
  const auto add = [&](const std::string& key) {
    const std::string_view ending = key.ends_with(kVar) ? kVar : kMean;
    if (key.size() <= ending.size() || !key.ends_with(ending)) return;
    const std::string prefix = key.substr(0, key.size() - ending.size());
    const std::string other = prefix + std::string(ending == kVar ? kMean : kVar);
    const bool alone = !tensors.contains(other);
    if (ending == kVar && !alone) return;  // taken with its mean
    NormRecord norm{.name = prefix};
    norm.eps_known = norm.weight_known = false;
    norm.variance_kind = RunningVariance::kUnbiased;
    norm.mean = values_of(tensors, prefix + ".running_mean");
    norm.var = values_of(tensors, prefix + ".running_var");
    norm.gamma = values_of(tensors, prefix + ".weight");
    norm.beta = values_of(tensors, prefix + ".bias");
    norm.batches = batches_of(file, prefix);
    norm.channels = static_cast<int64_t>(std::max(norm.mean.size(), norm.var.size()));
    if (alone) {
      norm.missing = {other};
      norm.unreadable = fmt::format("'{}' is missing", other);
      norm.has_statistics = false;
      norm.mean.clear();
      norm.var.clear();
      table.norms.push_back(std::move(norm));
      return;
    }
    if (norm.mean.empty()) norm.unreadable = "its element type is not read";
    require_lengths(norm);
    norm.bias_in_front = keys.bias_in_front(prefix, norm.channels);
    norms_first = norms_first || keys.stands_in_front(prefix, norm.channels);
    table.norms.push_back(std::move(norm));
  };
  for (const auto& [name, tensor] : file.tensors) add(name);  // in the order of the file
  for (const CarriedTensor& tensor : file.carried) add(tensor.name);
  if (norms_first) {  // a network is built in one way
    for (NormRecord& norm : table.norms) norm.bias_in_front.clear();
  }
  take_wrappers_off(table);
  if (!table.norms.empty())
    table.notes.push_back("a state dict does not say eps and momentum: PyTorch's defaults, 1e-05 and 0.1, are assumed");
  return table;
}

NormTable norm_table(const KerasModel& model) {
  NormTable table{
      .format = model.keras_version.empty() ? "Keras" : "Keras " + model.keras_version, .norms = {}, .notes = {}};
  for (const KerasNorm& layer : model.norms) {
    NormRecord norm{.name = layer.name};
    norm.gamma = doubles(layer.gamma);
    norm.beta = doubles(layer.beta);
    norm.mean = doubles(layer.moving_mean);
    norm.var = doubles(layer.moving_variance);
    norm.channels = static_cast<int64_t>(norm.mean.size());
    norm.eps_known = layer.epsilon.has_value();
    norm.eps = layer.epsilon.value_or(1e-3);
    norm.weight_known = layer.momentum.has_value();
    if (layer.momentum) norm.new_batch_weight = new_batch_weight_of(Dialect::kKeras, *layer.momentum);
    norm.variance_kind = usual_running_variance(Dialect::kKeras);
    norm.fed_by = layer.fed_by;
    norm.feeds = layer.feeds;
    require_lengths(norm);
    table.norms.push_back(std::move(norm));
  }
  if (!model.has_description && !model.norms.empty())
    table.notes.push_back(
        "a file of weights alone does not say eps and momentum: Keras' defaults, 0.001 and 0.99, are assumed");
  return table;
}

NormTable read_norm_table(const std::string& path) {
  const ModelKind kind = kind_of_file(path);
  switch (kind) {
    case ModelKind::kOnnx:
      return norm_table(onnx::load(path));
    case ModelKind::kHdf5:
      return norm_table(read_keras_h5(path));
    case ModelKind::kSafetensors: {
      const TensorFile file = read_safetensors(path);
      return is_state_dict(file) ? norm_table_of_state_dict(file) : norm_table(model_from(file, path));
    }
    default:
      throw FormatError(not_read(path, kind, "an ONNX, a safetensors or a Keras file"));
  }
}

}  // namespace evenkeel::tools
