// What `evenkeel recalibrate` needs of a model, for models of ours and ONNX models alike: two classes with the same functions.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/model_data.h"
#include "evenkeel/cli/onnx_subject.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/inference_mode.h"
#include "evenkeel/tools/onnx_metadata.h"
#include "evenkeel/tools/onnx_statistics.h"
#include "evenkeel/train/adapt.h"
#include "evenkeel/train/estimate.h"

namespace evenkeel::cli {

// A model of ours.
class OwnModel {
 public:
  explicit OwnModel(const Arguments& arguments) : model_(load_model_of(arguments)) {
    if (arguments.recalibrate.out.ends_with(".onnx")) {
      throw UsageError(fmt::format(
          "--out: found {}, but what is written is a safetensors file; `evenkeel convert` makes it an ONNX model",
          arguments.recalibrate.out));
    }
    if (!has_norm(model_)) {
      throw UsageError(
          fmt::format("'{}' has no batch norm, and so no running statistics to make anew", arguments.model));
    }
  }
  Model& shell() { return model_; }
  void bind(const Arguments&, const Shape&) {}
  data::Dataset take(data::Splits& splits, const std::string& split, const Arguments& arguments) {
    return take_split(splits, split, arguments, model_);
  }
  bool classifies() const { return true; }
  std::string unsupported() const { return ""; }
  std::vector<ChannelStatistics> statistics() const { return running_statistics_of(model_.spec, model_.store); }
  std::vector<NormDistance> moved(const std::vector<ChannelStatistics>& from) const {
    return distances(model_.spec, from, statistics());
  }
  EvalResult evaluate(const data::Dataset& dataset, const EvalSettings& settings) {
    return evenkeel::evaluate(model_, dataset, settings);
  }
  StatisticsWork recompute(const data::Dataset& dataset, const StatisticsSettings& settings) {
    return recompute_statistics(model_, dataset, settings);
  }
  void require_adaptable() const {}
  AdaptWork adapt(const data::Dataset& dataset, const AdaptSettings& settings) {
    adapted_ = to_string(settings);
    return adapt_affine(model_, dataset, settings);
  }
  std::vector<NormAffine> affine() const { return affine_of(model_); }
  void assign(const std::vector<NormAffine>& affine) { assign_affine(model_, affine); }
  void assign(const std::vector<ChannelStatistics>& statistics) { assign_statistics(model_, statistics); }
  // The text of statistics from before, in the model's metadata; "" takes it away.
  std::string before() const {
    const auto found = model_.statistics_made.find("before");
    return found == model_.statistics_made.end() ? "" : found->second;
  }
  void keep_before(const std::string& text) {
    if (text.empty()) {
      model_.statistics_made.clear();
      model_.running_statistics = name_of(RunningStatistics::kEma);
    } else {
      model_.statistics_made["before"] = text;
      if (!adapted_.empty()) model_.statistics_made["adapt"] = adapted_;
    }
  }
  std::string words() const { return statistics_text(model_); }
  nlohmann::ordered_json json() const { return json_of_statistics(model_); }
  bool biased() const { return model_.spec.norm_options.biased; }
  void save(const std::string& path) const { save_model(path, model_); }
  std::string default_out(const std::string& path) const {
    const std::string word = ".recalibrated";
    std::string stem = std::filesystem::path(path).stem().string();
    if (!stem.ends_with(word)) stem += word;
    return (std::filesystem::path(path).parent_path() / (stem + ".safetensors")).string();
  }
  // Whether the file holds this model, recalibrated: all but its norms is the same, and it says that it had these statistics before.
  bool is_source_of(const std::string& path) const;
  tools::EndedTraining end_training() { return {}; }

 private:
  Model model_;
  std::string adapted_;  // how gamma and beta were; "": they were not
};

class ForeignModel {
 public:
  explicit ForeignModel(const Arguments& arguments) : subject_(OnnxSubject::load(arguments)) {
    const std::string& out = arguments.recalibrate.out;
    if (!out.empty() && !out.ends_with(".onnx")) {
      throw UsageError(fmt::format(
          "--out: found {}, but what is written is an ONNX model, as it was read: give a name that ends in .onnx",
          out));
    }
    if (tools::onnx_norms(subject_.model).empty()) {
      throw UsageError(
          fmt::format("'{}' has no batch norm with statistics of its own, and so none to make anew", arguments.model));
    }
  }
  Model& shell() { return subject_.shell; }
  // Networks that do not classify have norms, too.
  void bind(const Arguments& arguments, const Shape& example) { subject_.bind(arguments, example, true); }
  data::Dataset take(data::Splits& splits, const std::string& split, const Arguments& arguments) {
    data::Dataset dataset = subject_.take(splits, split, arguments);
    if (arguments.preprocess.normalizes()) state_standardization(arguments, dataset);
    return dataset;
  }
  bool classifies() const { return subject_.form.classes > 0; }
  std::string unsupported() const { return inference::first_unsupported(subject_.model); }
  std::vector<ChannelStatistics> statistics() const {
    std::vector<ChannelStatistics> all;
    for (tools::OnnxNorm& norm : tools::onnx_norms(subject_.model)) all.push_back(std::move(norm.stored));
    return all;
  }
  std::vector<NormDistance> moved(const std::vector<ChannelStatistics>& from) const {
    std::vector<NormDistance> all;
    const std::vector<tools::OnnxNorm> norms = tools::onnx_norms(subject_.model);
    for (size_t i = 0; i < norms.size(); ++i) all.push_back(distance(from.at(i), norms[i].stored, norms[i].eps));
    return all;
  }
  EvalResult evaluate(const data::Dataset& dataset, const EvalSettings& settings) {
    return tools::evaluate(subject_.model, subject_.form, dataset, subject_.shell.standardization, settings);
  }
  StatisticsWork recompute(const data::Dataset& dataset, const StatisticsSettings& settings) {
    const StatisticsWork work =
        tools::recompute_statistics(subject_.model, subject_.form, dataset, subject_.shell.standardization, settings);
    tools::state_statistics(subject_.model, {.estimate = name_of(settings.kind),
                                             .variance = settings.biased ? tools::RunningVariance::kBiased
                                                                         : tools::RunningVariance::kUnbiased,
                                             .made_from = statistics_record(settings, dataset, work)});
    return work;
  }
  void require_adaptable() const {
    throw BackendError("ONNX models cannot be trained here; convert a state dict with --architecture instead");
  }
  AdaptWork adapt(const data::Dataset&, const AdaptSettings&) { return {}; }
  std::vector<NormAffine> affine() const { return {}; }
  void assign(const std::vector<NormAffine>&) {}
  // In the order of statistics(): a tensor that was shared has another name now, and may have lent it to its norm.
  void assign(std::vector<ChannelStatistics> statistics) {
    const std::vector<tools::OnnxNorm> norms = tools::onnx_norms(subject_.model);
    if (norms.size() != statistics.size()) {
      throw FormatError(
          fmt::format("the model has {} norms, and statistics from before of {}", norms.size(), statistics.size()));
    }
    for (size_t i = 0; i < norms.size(); ++i) statistics[i].name = norms[i].name;
    tools::assign_statistics(subject_.model, statistics);
  }
  std::string before() const {
    const auto found = subject_.model.metadata.find(tools::kStatisticsBefore);
    return found == subject_.model.metadata.end() ? "" : found->second;
  }
  void keep_before(const std::string& text) {
    if (text.empty()) {
      subject_.model.metadata.erase(tools::kStatisticsBefore);
      tools::forget_statistics(subject_.model);
    } else {
      subject_.model.metadata[tools::kStatisticsBefore] = text;
    }
  }
  std::string words() const { return statistics_text(subject_.model); }
  nlohmann::ordered_json json() const { return json_of_statistics(subject_.model); }
  bool biased() const {
    const tools::StatedStatistics stated = tools::stated_statistics(subject_.model);
    return !stated.estimate.empty() && stated.variance == tools::RunningVariance::kBiased;
  }
  void save(const std::string& path) const { onnx::save(path, subject_.model); }
  std::string default_out(const std::string&) const {
    throw UsageError("say where to write the model: --out FILE.onnx");
  }
  bool is_source_of(const std::string&) const { return false; }
  // New statistics are to be used: norms that have some normalize by them from here on.
  tools::EndedTraining end_training();

 private:
  // Where the file leaves the standardization to the caller: the new statistics are for that of the command line.
  void state_standardization(const Arguments& arguments, const data::Dataset& dataset);
  OnnxSubject subject_;
};

}  // namespace evenkeel::cli
