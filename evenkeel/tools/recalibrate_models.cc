#include "evenkeel/tools/recalibrate_models.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/onnx_metadata.h"
#include "evenkeel/tools/onnx_statistics.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/tools/statistics_words.h"

namespace evenkeel::tools {
namespace {

bool same_values(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

// A model of ours.
class OwnModel final : public RecalibratedModel {
 public:
  OwnModel(const Asked& asked, const std::string& out) : model_(load_model_of(asked)) {
    if (out.ends_with(".onnx")) {
      throw UsageError(fmt::format(
          "--out: found {}, but what is written is a safetensors file; `evenkeel convert` makes it an ONNX model",
          out));
    }
    if (!has_norm(model_)) {
      throw UsageError(fmt::format("'{}' has no batch norm, and so no running statistics to make anew", asked.model));
    }
  }
  Model& shell() override { return model_; }
  void bind(const Asked&, const Shape&) override {}
  data::Dataset take(data::Splits& splits, const std::string& split, const Asked& asked) override {
    return take_split(splits, split, asked, model_);
  }
  bool classifies() const override { return true; }
  std::string unsupported() const override { return ""; }
  std::vector<ChannelStatistics> statistics() const override {
    return running_statistics_of(model_.spec, model_.store);
  }
  std::vector<NormDistance> moved(const std::vector<ChannelStatistics>& from) const override {
    return distances(model_.spec, from, statistics());
  }
  EvalResult evaluate(const data::Dataset& dataset, const EvalSettings& settings) override {
    return evenkeel::evaluate(model_, dataset, settings);
  }
  StatisticsWork recompute(const data::Dataset& dataset, const StatisticsSettings& settings) override {
    return evenkeel::recompute_statistics(model_, dataset, settings);
  }
  void require_adaptable() const override {}
  AdaptWork adapt(const data::Dataset& dataset, const AdaptSettings& settings) override {
    adapted_ = to_string(settings);
    return adapt_affine(model_, dataset, settings);
  }
  std::vector<NormAffine> affine() const override { return affine_of(model_); }
  void assign(const std::vector<NormAffine>& affine) override { assign_affine(model_, affine); }
  void assign(const std::vector<ChannelStatistics>& statistics) override {
    evenkeel::assign_statistics(model_, statistics);
  }
  // The text of statistics from before, in the model's metadata; "" takes it away.
  std::string before() const override {
    const auto found = model_.statistics_made.find("before");
    return found == model_.statistics_made.end() ? "" : found->second;
  }
  void keep_before(const std::string& text) override {
    if (text.empty()) {
      model_.statistics_made.clear();
      model_.running_statistics = name_of(RunningStatistics::kEma);
    } else {
      model_.statistics_made["before"] = text;
      if (!adapted_.empty()) model_.statistics_made["adapt"] = adapted_;
    }
  }
  std::string words() const override { return evenkeel::statistics_text(model_); }
  nlohmann::ordered_json json() const override { return json_of_statistics(model_); }
  bool biased() const override { return model_.spec.norm_options.biased; }
  void save(const std::string& path) const override { save_model(path, model_); }
  std::string default_out(const std::string& path) const override {
    const std::string word = ".recalibrated";
    std::string stem = std::filesystem::path(path).stem().string();
    if (!stem.ends_with(word)) stem += word;
    return (std::filesystem::path(path).parent_path() / (stem + ".safetensors")).string();
  }
  // Whether the file holds this model, recalibrated: all but its norms is the same, and it says that it had these statistics before.
  bool is_source_of(const std::string& path) const override;
  EndedTraining end_training() override { return {}; }
  const Model* own() const override { return &model_; }

 private:
  Model model_;
  std::string adapted_;  // how gamma and beta were; "": they were not
};

class ForeignModel final : public RecalibratedModel {
 public:
  ForeignModel(const Asked& asked, const std::string& out) : subject_(OnnxSubject::load(asked)) {
    if (!out.empty() && !out.ends_with(".onnx")) {
      throw UsageError(fmt::format(
          "--out: found {}, but what is written is an ONNX model, as it was read: give a name that ends in .onnx",
          out));
    }
    if (onnx_norms(subject_.model).empty()) {
      throw UsageError(
          fmt::format("'{}' has no batch norm with statistics of its own, and so none to make anew", asked.model));
    }
    for (const std::vector<std::string>& norms : norms_that_share(subject_.model)) {
      asked.note(fmt::format("the norms '{}' share their running statistics: each gets those of its own inputs",
                             fmt::join(norms, "', '")));
    }
  }
  Model& shell() override { return subject_.shell; }
  // Networks that do not classify have norms, too.
  void bind(const Asked& asked, const Shape& example) override { subject_.bind(asked, example, true); }
  data::Dataset take(data::Splits& splits, const std::string& split, const Asked& asked) override {
    data::Dataset dataset = subject_.take(splits, split, asked);
    if (asked.preprocess.normalizes()) state_standardization(asked, dataset);
    return dataset;
  }
  bool classifies() const override { return subject_.form.classes > 0; }
  std::string unsupported() const override { return inference::first_unsupported(subject_.model); }
  std::vector<ChannelStatistics> statistics() const override {
    std::vector<ChannelStatistics> all;
    for (OnnxNorm& norm : onnx_norms(subject_.model)) all.push_back(std::move(norm.stored));
    return all;
  }
  std::vector<NormDistance> moved(const std::vector<ChannelStatistics>& from) const override {
    std::vector<NormDistance> all;
    const std::vector<OnnxNorm> norms = onnx_norms(subject_.model);
    for (size_t i = 0; i < norms.size(); ++i) all.push_back(distance(from.at(i), norms[i].stored, norms[i].eps));
    return all;
  }
  EvalResult evaluate(const data::Dataset& dataset, const EvalSettings& settings) override {
    return tools::evaluate(subject_.model, subject_.form, dataset, subject_.shell.standardization, settings);
  }
  StatisticsWork recompute(const data::Dataset& dataset, const StatisticsSettings& settings) override {
    const StatisticsWork work =
        tools::recompute_statistics(subject_.model, subject_.form, dataset, subject_.shell.standardization, settings);
    state_statistics(subject_.model,
                     {.estimate = name_of(settings.kind),
                      .variance = settings.biased ? RunningVariance::kBiased : RunningVariance::kUnbiased,
                      .made_from = statistics_record(settings, dataset, work)});
    return work;
  }
  void require_adaptable() const override {
    throw BackendError("ONNX models cannot be trained here; convert a state dict with --architecture instead");
  }
  AdaptWork adapt(const data::Dataset&, const AdaptSettings&) override { return {}; }
  std::vector<NormAffine> affine() const override { return {}; }
  void assign(const std::vector<NormAffine>&) override {}
  // In the order of statistics(): a tensor that was shared has another name now, and may have lent it to its norm.
  void assign(const std::vector<ChannelStatistics>& statistics) override {
    const std::vector<OnnxNorm> norms = onnx_norms(subject_.model);
    if (norms.size() != statistics.size()) {
      throw FormatError(
          fmt::format("the model has {} norms, and statistics from before of {}", norms.size(), statistics.size()));
    }
    std::vector<ChannelStatistics> named = statistics;
    for (size_t i = 0; i < norms.size(); ++i) named[i].name = norms[i].name;
    tools::assign_statistics(subject_.model, named);
  }
  std::string before() const override {
    const auto found = subject_.model.metadata.find(kStatisticsBefore);
    return found == subject_.model.metadata.end() ? "" : found->second;
  }
  void keep_before(const std::string& text) override {
    if (text.empty()) {
      subject_.model.metadata.erase(kStatisticsBefore);
      forget_statistics(subject_.model);
    } else {
      subject_.model.metadata[kStatisticsBefore] = text;
    }
  }
  std::string words() const override { return statistics_text(subject_.model); }
  nlohmann::ordered_json json() const override { return json_of_statistics(subject_.model); }
  bool biased() const override {
    const StatedStatistics stated = stated_statistics(subject_.model);
    return !stated.estimate.empty() && stated.variance == RunningVariance::kBiased;
  }
  void save(const std::string& path) const override { onnx::save(path, subject_.model); }
  std::string default_out(const std::string&) const override {
    throw UsageError("say where to write the model: --out FILE.onnx");
  }
  bool is_source_of(const std::string&) const override { return false; }
  // New statistics are to be used: norms that have some normalize by them from here on.
  EndedTraining end_training() override;

 private:
  // The new statistics are for the standardization of the command line, and the file says so from here on.
  void state_standardization(const Asked& asked, const data::Dataset& dataset);
  OnnxSubject subject_;
};

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
    const std::vector<ChannelStatistics> had = unpacked(before->second), has = statistics();
    return std::equal(had.begin(), had.end(), has.begin(), has.end(),
                      [](const auto& a, const auto& b) { return a.mean == b.mean && a.var == b.var; });
  } catch (const Error&) {
    return false;  // something else
  }
}

// Of images of floats that were divided by `scale`: pixels where their values say so, else numbers of any kind.
InputUnit unit_of_floats(const data::Dataset& dataset, double scale) {
  if (dataset.example_shape.size() != 3) return InputUnit::kFeatures;
  const data::ValueRange range = data::range_of(dataset);
  if (range.min < 0 || range.max > 1) return InputUnit::kFeatures;
  if (scale == 1) return InputUnit::kUnitPixels;
  return scale == 255 ? InputUnit::kBytePixels : InputUnit::kFeatures;
}

void ForeignModel::state_standardization(const Asked& asked, const data::Dataset& dataset) {
  const std::optional<InputMeaning> said = input_meaning(subject_.model);
  InputMeaning meaning{.unit = InputUnit::kFeatures, .left_to_caller = subject_.shell.standardization};
  if (dataset.values.dtype() == DType::kU8) {
    meaning.unit = InputUnit::kUnitPixels;
  } else {  // the values were divided by S: (x / S - mean) / std = (x - S mean) / (S std)
    const double scale = asked.preprocess.scale.value_or(1);
    for (double& mean : meaning.left_to_caller.mean) mean *= scale;
    for (double& std : meaning.left_to_caller.std) std *= scale;
    meaning.unit = said ? said->unit : unit_of_floats(dataset, scale);
  }
  state_input(subject_.model, meaning);
}

EndedTraining ForeignModel::end_training() {
  onnx::Model& model = subject_.model;
  const std::vector<OnnxNorm> norms = onnx_norms(model);
  std::vector<size_t> renewed = norms_in_training(model.graph, model.opset());
  std::erase_if(renewed, [&](size_t index) {
    return std::none_of(norms.begin(), norms.end(), [&](const OnnxNorm& norm) { return norm.node == index; });
  });
  EndedTraining ended = tools::end_training(model.graph, model.opset(), renewed, false);
  ended.dropout = subject_.ended_dropout;
  return ended;
}

}  // namespace

std::unique_ptr<RecalibratedModel> load_recalibrated(const Asked& asked, const std::string& out) {
  if (is_onnx(asked)) return std::make_unique<ForeignModel>(asked, out);
  return std::make_unique<OwnModel>(asked, out);
}

}  // namespace evenkeel::tools
