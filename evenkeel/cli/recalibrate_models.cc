#include "evenkeel/cli/recalibrate_models.h"

#include <algorithm>
#include <cstring>

namespace evenkeel::cli {
namespace {

bool same_values(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

}  // namespace

bool OwnModel::is_source_of(const std::string& path) const {
  try {
    const Model other = load_model(path);
    const std::vector<NormLayer> norms = norm_layers(model_.spec);
    for (const auto& [name, tensor] : model_.store.tensors()) {
      const bool of_norm = std::any_of(norms.begin(), norms.end(), [&name = name](const NormLayer& norm) {
        return name.starts_with(norm.name + ".");
      });
      if (of_norm) continue;
      if (!other.store.contains(name) || !same_values(other.store.at(name), tensor)) return false;
    }
    const auto before = other.statistics_made.find("before");
    if (before == other.statistics_made.end()) return true;
    const std::vector<ChannelStatistics> had = tools::unpacked(before->second), has = statistics();
    return std::equal(had.begin(), had.end(), has.begin(), has.end(),
                      [](const auto& a, const auto& b) { return a.mean == b.mean && a.var == b.var; });
  } catch (const Error&) {
    return false;  // something else
  }
}

void ForeignModel::state_standardization(const Arguments& arguments, const data::Dataset& dataset) {
  std::optional<tools::InputMeaning> meaning = tools::input_meaning(subject_.model);
  if (!meaning || meaning->left_to_caller.mean.empty()) return;
  meaning->left_to_caller = subject_.shell.standardization;
  if (dataset.values.dtype() == DType::kU8) {
    meaning->unit = tools::InputUnit::kUnitPixels;
  } else {  // the values were divided by S: (x / S - mean) / std = (x - S mean) / (S std)
    for (double& mean : meaning->left_to_caller.mean) mean *= arguments.preprocess.scale.value_or(1);
    for (double& std : meaning->left_to_caller.std) std *= arguments.preprocess.scale.value_or(1);
  }
  tools::state_input(subject_.model, *meaning);
}

tools::EndedTraining ForeignModel::end_training() {
  onnx::Model& model = subject_.model;
  const std::vector<tools::OnnxNorm> norms = tools::onnx_norms(model);
  std::vector<size_t> renewed = tools::norms_in_training(model.graph, model.opset());
  std::erase_if(renewed, [&](size_t index) {
    return std::none_of(norms.begin(), norms.end(), [&](const tools::OnnxNorm& norm) { return norm.node == index; });
  });
  tools::EndedTraining ended = tools::end_training(model.graph, model.opset(), renewed, false);
  ended.dropout = subject_.ended_dropout;
  return ended;
}

}  // namespace evenkeel::cli
